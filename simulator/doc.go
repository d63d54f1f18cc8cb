// Package simulator makes life-like traffic through the REST API: customers
// who register, order, move, cancel, and now and then want their money back.
//
// What is asked for, of whom, in which order and after which pause is decided
// by the seed alone ([Plan]); answers change nothing about it. So the same
// seed makes the same traffic, whatever the machine and however slow the
// service. Pauses are exponentially distributed: requests arrive as those of
// many independent people do (a Poisson process), and they arrive on time also
// when earlier ones are still being answered. A request that needs an earlier
// one's answer (an order needs its customer's id) waits for that one.
package simulator
