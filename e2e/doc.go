// Package e2e holds the black-box tests: they build the binaries, start them
// as a user would, and look at what comes out of PostgreSQL, Kafka, MongoDB and
// the mailbox. With OUTFLOW_TEST_KAFKA the events go through that broker
// instead of the one that outflow-dev brings.
package e2e
