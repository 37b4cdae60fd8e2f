// Package sim tries to break the promises: seeded clusters of replication state
// machines (package replica) on model disks and a model network, with one heap
// of events and a virtual clock. Nothing of it is part of the server.
//
// # Promise
//
// A seed is a schedule: the same seed gives the same events, to the last one, on
// every machine. There is no goroutine, no clock and no map order in a run.
//
// # Shape
//
//	Sim      the heap of events, the dice, the ring of what happened last (sim.go)
//	node     one server: the state machine and a model of the shell around it (node.go)
//	journal  stores that become durable later, and what a crash leaves (journal.go)
//	image    page cache, fsync, torn sectors (image.go)
//	frames   some as the bytes that they are on the wire, some of those with flipped
//	         bits (bits.go)
//	link     sessions in order until cut; some frames may be lost, doubled or
//	         overtaken (net.go), the sender's cursors (stream.go)
//	copying  the extents of a resync (resync.go)
//	client   writes, reads, moves to another server and sends again (client.go)
//	profile  what a seed decides about a whole schedule (profile.go)
//	faults   what goes wrong, each by its name (faults.go); servers that lose what they
//	         had acknowledged (damage.go)
//	rot      records of a journal that cannot be read any more (rot.go)
//	sick     images whose fsyncs, writes or reads fail, or that are full (sick.go)
//	operator promotes, forgets, stops, by the rules that its commands name (operator.go)
//	calm     does what status says when the faults are over, until all is well (calm.go)
//	init     volumes that are created by command, from what an image holds (init.go)
//	careless an operator who heeds no warning, and what may be lost by it (careless.go)
//	line     one order of committed records; a second one forks off where the operator
//	         gave something up (line.go)
//	change   the in-sync set changes only when enough servers have noted it (change.go)
//	oracle   what must be true at every moment, and at the end (oracle.go); that memory is
//	         bounded (held.go)
//
// # Running
//
//	go test ./blockrepl/sim                                    saved, fixed and fresh seeds
//	go test ./blockrepl/sim -run TestSchedules -length 2m      fresh seeds for two minutes
//	go test ./blockrepl/sim -run TestSchedules -schedules 1000000 -timeout 0 -failures /tmp/failures
//	go test ./blockrepl/sim -run TestSeed -v -seed N [-restless] [-off crash,lose] [-faults-for 1s]
//	go test -tags mutants ./blockrepl/sim -run TestMutants     every broken rule is found
//
// In one schedule of five the operator is careless. What is lost then must be what
// was said: beyond what the forced server itself holds, the report's numbers name
// all that anyone who answered holds; a kept side of a split brain loses nothing;
// committed records that are given up are set aside; and when the faults stop, doing
// what status says makes every server healthy again.
//
// # Values
//
// A sector of the model volume is eight bytes, and its value is the number of the
// request that wrote it, so that a read tells which write it saw. A request's
// number also stands in the record's time field, which the state machine carries
// and never looks at: so the oracle knows zeroes and trims, too.
package sim
