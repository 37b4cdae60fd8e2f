// Package blockrepl replicates volumes between servers: it is the shell around the
// state machine of package replica, which decides; here are the goroutines, the
// disks and the network that carry out what it decides.
//
// # Promise
//
// A write whose Done was called with nil is fsynced in the journal of every
// in-sync server, has its place in one order that is the same everywhere, and is
// what every later read sees, on every server. A request that cannot be decided
// (no master, fenced, stopping) is never answered with an error: it waits, and
// then its connection is closed without a reply. What fails on this server's disks
// ends its part in the volume, with the reason in status and log, until a restart.
//
// # What it does not promise
//
// It decides nothing about numbers, epochs or sets; no timer here is needed for a
// write's safety. Without an operator it promotes nobody.
//
// # Shapes
//
//	Server ─┬─ Volume … one for each volume: loop, committer, applier, checkpointer
//	        │    ├─ replica.Replica   decides; the loop's alone
//	        │    ├─ journal.Log       records, on disk; ring: the newest in memory
//	        │    ├─ image.Image       the bytes that clients read
//	        │    └─ Conn …            one for each client's connection
//	        ├─ link …    one for each other server: reader, writer, watch
//	        ├─ marks     what each journal once held, in a file of its own
//	        └─ space     how much may still be promised
//
// # The walk of one write
//
//	client.go     Submit: record made and compressed in the caller's goroutine
//	inbox.go      gathers what comes while the loop is busy
//	volume.go     the loop: Step for each event, publish, carry out
//	effects.go    journal first, then messages, records, completions
//	committer.go  waits for the fsync      sender.go  the same bytes to each peer
//	link.go       the peer's answer        applier.go committed: to the image
//	clients.go    Done
//
// reads.go has reads, resync.go and answer.go the copying of a whole image,
// verify.go its comparison, finding.go what that found, resize.go a new size,
// admin.go the operator's door, report.go the status.
//
// # Data directory
//
//	DATA/lock          held while a server runs
//	DATA/identity      cluster, server, incarnation; written once
//	DATA/marks         two slots of 64 KiB (marks.go)
//	DATA/journal/      package journal
//	DATA/images/N.img  the volume N, unless the configuration names another file
//
// # Goroutines
//
// Each is named at the type that starts it and waits for it. Locks are leaves:
// none is held over I/O, a channel send or a callback, but the image's own.
package blockrepl
