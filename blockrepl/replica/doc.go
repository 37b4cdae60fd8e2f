// Package replica decides: it is the replication state machine of one volume on
// one server. A Step takes the time and one event and says what is to be done;
// there is no goroutine, clock, randomness, socket, file or lock in it, and map
// order decides nothing, so that a schedule of events can be replayed from a
// seed and every rule can be tested by a script.
//
// # Walk
//
// A write of a local client arrives as Submit (forward.go), is numbered when
// this server is the master (master.go) or sent to the master; it comes back as
// a record of the stream (slave.go, window.go), is made durable (Store, Stored),
// acknowledged (Ack), committed when every server that must have it has it
// (members.go) and completed (Complete), at a slave when it is applied (Apply,
// Applied); the master's image follows, and reads wait for it.
//
// # Roles
//
// A server is a slave until it holds an epoch: a candidate (candidate.go) asks for
// promises (promise.go) until they are enough (elect.go), master.go starts the epoch,
// progress.go brings each slave to the common history and on. members.go changes the
// in-sync set through the authority; promote.go and handover.go answer the operator; split.go names
// a split brain and ends it; reads.go keeps leases and read rounds; resync.go replaces
// an image whose records are no longer kept.
package replica
