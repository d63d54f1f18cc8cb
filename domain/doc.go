// Package domain holds what outflow is about: customers, orders, the events
// that their changes leave, and the decisions that make those changes.
//
// Decisions are pure functions: the current state, a command and the time go
// in; a [Change] (the state before and after, the type of its event, the
// notifications it asks for) or an [Error] comes out. Nothing here does I/O,
// reads a clock or draws a random number, and nothing here imports more than
// the standard library, so every rule can be tested in a line.
//
// Timestamps have millisecond resolution ([Timestamp]), because that is what
// JSON clients, PostgreSQL and BSON dates can all hold without loss: an entity
// is the same in the API, in its events and in every replica.
package domain
