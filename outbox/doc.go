// Package outbox is the event log: the table that every change adds to in its
// own transaction ([Append], [Entries]), and the relay that publishes it to
// Kafka ([Relay]).
//
// # What the relay promises
//
// A consumer that reads with isolation level read_committed sees every
// committed event exactly once, and the events of one key in the order in
// which they were committed, whatever is killed, paused or restarted. This
// needs writers that lock an aggregate before they insert its event.
//
// # How
//
// Sequence numbers are taken before the commit, so a cursor on position would
// lose events. There are two readers that don't. The stream reads the
// write-ahead log by logical decoding (pgoutput). The windows read the table by
// snapshot difference: what one snapshot shows and the one before did not,
// ordered by position. Windows publish what a new database holds, a backlog,
// and everything where the role may not replicate; the stream takes over from
// them when it can be proven that it begins no later than they end.
//
// Events and a progress record go into the same Kafka transaction, so the two
// stand or fall together. Transactions follow each other: one begins when the
// commit of the last was acknowledged, under the next of four transactional
// ids, and ends where a PostgreSQL transaction ends. PostgreSQL is told how far
// only after that, so a slot that is ahead of the progress record means that
// something else moved it.
//
// # When things fail
//
// After any failure it is unknown whether the last transaction was committed.
// So the relay gives up everything it holds and begins again: it takes the
// advisory lock of its group (others stand by meanwhile), initialises all
// transactional ids, which ends whatever was open and fences whoever still
// thinks it is the active relay, and only then reads the progress record. The
// lock keeps relays from fencing each other in turn; that events are published
// once depends on the transactional ids alone.
//
// A slot that was dropped, invalidated, moved or replaced is replaced without
// help: windows go on from the checkpoint that the stream keeps in its
// progress, and leave out what was published past it, until the stream can
// take over again. The same way a backlog is caught up after a long stop,
// faster than the server could decode it. What Kafka has lost is published
// again from the outbox. A promoted server is followed if it holds all that is
// published; another database is refused (see [Config], Resync).
//
// A relay that is paused loses the lock after a few seconds
// (idle_session_timeout), so that a standby takes over; when it wakes up, its
// transactional ids are fenced.
package outbox
