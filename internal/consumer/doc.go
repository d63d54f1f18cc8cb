// Package consumer is the loop that every worker runs: it reads events from
// Kafka as a member of a consumer group, hands them to the worker's [Handler]
// in batches, and lets the group's position follow what was handled.
//
// # What holds
//
//   - Only committed events are read. Every event is handled at least once: the
//     position is written after the effect. Handlers are idempotent.
//   - Events of one key are handled in their order, also across retries,
//     rebalances, restarts and parking.
//   - A message that fails comes again after a pause that grows, for as long as
//     it takes. It holds back its key and nothing else. Many that fail (2,000
//     messages or 16 MiB in a partition) hold back their partition.
//   - A message that fails for good (a [Permanent] error, a panic, a record
//     that is no event) is parked in the dead-letter topic <group>.dlq, and so
//     is what follows in its key, until an operator says what is to be done
//     with it ([DeadLetters]). Which keys are parked is in the compacted topic
//     <group>.parked.
//   - Where to begin is always known, never guessed: a new group begins at the
//     start, and when Kafka no longer has what comes next, that is a
//     [DataLossError] and not a jump. A topic that was deleted and made anew is
//     another log, and is read from its start.
//   - A rebalance or a stop waits for the batch in hand, up to Config.Grace.
//     Nothing comes twice unless a process dies or a batch overstays that.
//
// # How a parked key is retried
//
// The operator's request is a record in <group>.parked. The member that has the
// key's partition stops parking the key, lets new messages of it wait, reads
// what is parked, and hands it to the handler. When all of it is done, it notes
// that the key is no longer parked, and goes on with what waited. If one fails
// for good again, the key is parked again from that one on. A crash anywhere
// between begins the retry anew.
package consumer
