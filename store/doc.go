// Package store owns every statement that reads or writes customers and
// orders, together with the events that go with them.
//
// # What it guarantees
//
//   - A change of an entity, its change event and its notification requests are
//     written by one statement: whatever happens, either all of them are there
//     or none is.
//   - The versions of an entity's events are 1..n without gaps, and the before
//     of each is the after of the one before it.
//   - No update is lost: every write names the version that its decision was
//     made on, and takes place only if the entity still has it.
//   - What a decision reads of other rows can't change before it is committed:
//     an order is never placed for a customer that is being deleted, and a
//     customer with open orders is never deleted.
//   - An event that Kafka would refuse is never written.
//
// # Locks
//
// Everybody locks customers before orders, and either of them in the order of
// their ids, so that nobody deadlocks. Placing an order locks its customer FOR
// SHARE; deciding orders and deleting a customer lock it FOR NO KEY UPDATE.
//
// A rule that reads other rows can't be one statement: after waiting for a lock,
// a statement still sees the other tables as of its own start (PostgreSQL
// manual, 13.2.1). So one statement locks, the next one reads, and both go to
// the database in one round trip. All of this relies on READ COMMITTED, which
// [Open] asks for: there every statement has a snapshot of its own.
//
// # Failures
//
// Errors that callers may be told about are [domain.Error]. CodeUnavailable
// from a write says that its outcome is not known: the connection may have
// broken after the database had committed. Deadlocks and serialization
// failures, which write nothing, are tried again here.
package store
