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
// # Shared commits
//
// While [Store.Run] runs, the changes that arrive at the same time share a
// statement, up to 64 of them; a lone change goes at once. Nobody can tell who
// shared with whom: a statement that the database takes back is given up, and
// each of its changes is then written by its own caller, so that a failure, or
// somebody's lock, is the business of those alone whom it concerns. When the
// connection breaks instead, the outcome isn't known, nothing is tried again,
// and each of its callers gets CodeUnavailable. Statements lock in one order:
// emails, then the ids of customers, then those of orders, then idempotency keys.
//
// # Idempotency keys
//
// [Store.Once] makes a write take place at most once per key: the statement
// that makes the change stores the answer to the request, so one is there
// exactly if the other is, also when nobody learned of the commit. Keys expire
// after [KeyLife]; Run removes them, with the personal data in the answers.
//
// # Many at once
//
// Batches and imports are loaded by COPY, each batch and each chunk of an import
// in one transaction. They leave the same events and requests for mail as
// single writes.
//
// # Failures
//
// Errors that callers may be told about are [domain.Error]. CodeUnavailable
// from a write says that its outcome is not known: the connection may have
// broken after the database had committed. Deadlocks and serialization
// failures, which write nothing, are tried again here.
package store
