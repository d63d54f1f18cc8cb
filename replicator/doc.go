// Package replicator keeps a replica of customers and orders in MongoDB, from
// their events.
//
// Every entity is one document of a base collection (_customers, _orders): _id
// is the entity's id as text, every other field is named as in the API's JSON.
// Amounts and versions are longs, created_at and updated_at are dates. Whoever
// reads the replica reads the views customers and orders.
//
// # What holds
//
//   - A document never goes back: every write is guarded by the version, so
//     that events that come twice, late, out of order or from a replicator that
//     was thought dead do no harm.
//   - A deleted entity stays deleted: its document becomes a tombstone (_id,
//     version, deleted_at) that outlives any replay, and that no view shows.
//   - The position in Kafka is kept beside the documents, in _positions, and is
//     written after them. A replica that was dropped, or put back to an older
//     backup, is noticed within seconds, also by a replicator that runs; it
//     then catches up from where the replica is. Documents that were deleted by
//     hand are not noticed.
//   - Several replicators share the partitions.
//
// The consumer group's offsets follow about a second later, for tools that
// show lag.
package replicator
