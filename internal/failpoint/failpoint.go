// Package failpoint names the places where tests make a process fail, and
// makes it fail there: killed at the n-th pass, stopped, or with an error.
//
// Without the build tag "failpoints", [Hit] does nothing and costs nothing. With
// it, the variable OUTFLOW_TEST_FAILPOINTS says what happens where:
//
//	OUTFLOW_TEST_FAILPOINTS='relay.produced=kill@3;relay.committed=error@1'
//
// The actions are kill (SIGKILL to itself: nothing is cleaned up), stop
// (SIGSTOP: the process is paused until somebody continues it) and error ([Hit]
// returns [ErrInjected] once). The number says at which pass, 1 if left out.
//
// With the tag, OUTFLOW_TEST_MUTANT names a defence that is left out, so that tests
// can show that they would notice: code asks [Mutant].
package failpoint

import "errors"

// The failpoints.
const (
	RelayProduce   = "relay.produce"   // before a batch's first record is produced
	RelayProduced  = "relay.produced"  // all of it is on the broker, in an open transaction
	RelayCommitted = "relay.committed" // the transaction is committed, nothing is noted
	RelayConfirm   = "relay.confirm"   // before PostgreSQL is told how far
	RelayConfirmed = "relay.confirmed" // PostgreSQL was told
	RelayHandover  = "relay.handover"  // the windows are published, the stream not begun

	ConsumerSave   = "consumer.save"   // a batch is handled, the position not written
	ConsumerSaved  = "consumer.saved"  // the position is written
	ConsumerParked = "consumer.parked" // messages are in the dead-letter topic, that their key is parked is not written

	ReplicatorWrite   = "replicator.write"   // before a bulk write
	ReplicatorWritten = "replicator.written" // after it

	AnalyticsCount   = "analytics.count"   // before a batch is counted
	AnalyticsCounted = "analytics.counted" // it is in the buckets, not in the facts
	AnalyticsWritten = "analytics.written" // and in the facts

	ConfirmerDecide  = "confirmer.decide"  // before orders are decided
	ConfirmerDecided = "confirmer.decided" // that is committed

	NotifierClaimed = "notifier.claimed" // a mail is claimed, nothing is sent
	NotifierData    = "notifier.data"    // all of a mail is out but for the end of its data
	NotifierSent    = "notifier.sent"    // the server has the mail, that is not marked
	NotifierMarked  = "notifier.marked"  // it is
)

// Env is the variable that says what happens where.
const Env = "OUTFLOW_TEST_FAILPOINTS"

// MutantEnv is the variable that names the defence to leave out.
const MutantEnv = "OUTFLOW_TEST_MUTANT"

// ErrInjected is what the action "error" makes [Hit] return.
var ErrInjected = errors.New("injected failure")
