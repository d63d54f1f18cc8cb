// Package analytics keeps figures about orders and customers in MongoDB, from
// their events alone, and answers questions about windows of time.
//
// # What counts
//
// An order counts from its confirmation until it is cancelled: a cancellation
// takes the order out of every figure as if it had never been confirmed. A
// refund is a negative transaction at its own time and leaves the confirmation
// where it is. Deleting an order, which only a finished one allows, takes it
// out of the counts by status and leaves its transactions. Amounts are int64
// in minor units, and are never added across currencies.
//
// A window is (now-d, now], where now is the end of the present second: it
// slides by seconds, and what happened is in it or not by its millisecond. What
// the log no longer holds isn't counted.
//
// # How it is kept
//
// Each order and customer has one fact: what counts of it, as of a version. The
// sums of an hour are in buckets, one per hour and partition of the topic, so
// that workers with different partitions never write to the same one. A window
// is whole buckets plus the facts at its two edges, so the cost of an answer
// depends on the window and not on how much there is beside it.
//
// What an event changes in the buckets is the difference between what its
// fact counts before and after it; so buckets are the sums of the facts. To
// keep them so, whatever happens between two writes, a bucket names in "open"
// the versions that it includes and whose facts may not be written yet. A batch
// is applied so:
//
//  1. read the buckets, then the facts;
//  2. leave out the events that a fact includes, and from a bucket's changes
//     those that it includes by its open versions;
//  3. write the buckets, each provided that nobody has written it since it was
//     read, with the batch's versions open and those closed that the facts
//     include;
//  4. write the facts, each unless it is newer.
//
// A worker that dies between any two of these leaves versions open, and
// whoever gets the events again skips what is counted. A worker that was
// thought dead and wakes up finds a bucket changed, and reads again; the order
// of the reads matters: a version is closed only after its fact was written,
// so one that is missing in the bucket as read is in the facts read
// afterwards, unless nobody has counted it.
//
// The guard is the order's version, not the offset in the partition: messages
// that wait to be tried again come after those that follow them in the
// partition, so an offset doesn't tell what was counted.
//
// # Generations
//
// The collections that are filled together carry the name of their generation,
// which _analytics_state names. When one of them or the positions are found to
// be missing or another one, a new generation is begun from the start of the
// topics: facts without their buckets, or the other way round, could never be
// made right. The positions in _analytics_positions are written after the data
// and belong to a generation.
package analytics
