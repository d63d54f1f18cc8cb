// Package mongofake is an in-process server that speaks the MongoDB wire
// protocol: what kfake is for Kafka, this is for MongoDB. Tests and the
// development stack use it where no mongod is installed; the production binary
// never links it.
//
// It owns its storage, which is memory and nothing else, and presents itself as
// a standalone MongoDB 7.0. Whatever it answers is what MongoDB would answer,
// or else an error that says what is not supported: a command, an option, an
// operator or a stage that is not implemented is refused and never
// approximated.
//
// # What holds
//
//   - A write to one document is atomic, and writes to one collection happen
//     one after the other. A batch is not atomic: each operation of it succeeds
//     or fails by itself, and is reported as MongoDB reports it.
//   - Unique indexes, _id among them, hold at every moment.
//   - A find is a snapshot of the moment it ran. Its later batches come from
//     that snapshot; MongoDB promises less. Dropping or renaming the collection
//     ends the cursor with QueryPlanKilled.
//   - Documents are immutable: a write puts a new one in place of the old one,
//     so readers hold no lock while they encode.
//   - Natural order is the order of _id. MongoDB leaves it undefined.
//   - A malformed message ends the connection that sent it and nothing else; a
//     fault in this package's own code answers InternalError.
//
// # What is not there
//
// Transactions, retryable writes (drivers don't use them with a standalone),
// change streams, collations, text, geo and TTL indexes, capped and time series
// collections, validators, users, TLS and compression. Decimal128 is stored,
// compared and returned, but not calculated with.
//
// Beside the Go driver, pymongo (4.20) and mongosh (2.12) were tried by hand:
// they connect, list, find, count, insert, update, delete, aggregate, make
// indexes and views, and read through views.
//
// # How it is made
//
// The semantics are written here, on the driver's own BSON types. DESIGN
// decision 13 suggested taking them from lungo's mongokit; reading it showed
// more differences from MongoDB than could be stepped around: a wrong query is
// only refused if it meets a document, {"a.b": null} misses array elements that
// lack b, a regular expression as a value is compared as a value, field names
// outrank types when documents are compared, and the operators' errors have no
// codes. It would also have brought a second BSON library.
//
// Every comparison (_id, indexes, sort, $group, $lt) goes through one
// order-preserving encoding of BSON values, see key.go.
package mongofake
