// Package bubble tries to break the promises with the whole server: shell,
// journal on real pebble, image and frames, several of them in one bubble of
// testing/synctest, on file systems that lose what was not synced and a network
// that delays, cuts and damages. It holds tests only.
//
// # Promise
//
// A schedule is drawn from a seed, which a failure prints together with the last
// things that happened. Faults, delays, damage and losses come from generators
// that depend on the seed alone; goroutines of the servers that run at one instant
// of virtual time may still take turns differently, so a seed tells what was tried
// and nearly always, but not surely, repeats it.
//
// # Shape
//
//	world     the servers, the log, the end of a run        world_test.go
//	machine   one server's disk, process, crashes           machine_test.go
//	disk      a crashable file system with faults           disk_test.go
//	network   connections; one driver delivers              net_test.go
//	port      what a server sees of the network             port_test.go
//	client    writes, moves elsewhere, sends again          client_test.go
//	operator  commands by the rules that status states      operator_test.go
//	history   what clients saw; is it one disk?             history_test.go
//	schedule  which faults come when                        schedule_test.go
//	fault     what each of them does                        fault_test.go
//	pause     a server that sleeps and wakes up             pause_test.go
//	upset     one disk loses what it had called durable     upset_test.go
//	careless  an operator who does not look                 careless_test.go
//	cover     which fault met which state                   cover_test.go
//	shorten   what a failing schedule needs                 shorten_test.go
//	rows      one test for each fault users are told about  row_*_test.go
//
// # Rules that make a bubble work
//
// Nothing that holds a mutex may sleep: whoever waits for that mutex is not
// durably blocked, so virtual time stands still for ever. Slow disks therefore
// sleep only in the fsyncs of the journal's log file and of the marks, which hold
// none. The driver releases one delivery, waits until every goroutine is blocked,
// collects all that was sent meanwhile, sorts it, and only then draws its delays.
package bubble
