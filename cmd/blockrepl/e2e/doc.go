// Package e2e tests the program as its users meet it: real server processes on
// this host, real NBD clients, real file systems, kill -9, SIGSTOP and cut
// networks. It holds tests only.
//
// What it promises: every run ends with all servers stopped, all images equal
// byte by byte, all journals equal record by record and found whole by `blockrepl
// journal verify`. Every completed write is read back, from each server.
//
// The shapes: a cluster is a set of servers with their files below one temporary
// directory; a server is one process with its log; a history knows for each block
// which versions a read may return; a load is clients that write and read and
// reconnect as a kernel would. Ports are taken below the range from which the
// kernel serves outgoing connections, so none is lost while its server is down.
//
// Environment:
//
//	BLOCKREPL_E2E_RACE=1   build the program with the race detector
//	BLOCKREPL_PROGRAM=PATH test this program and build none
//	BLOCKREPL_NO_FUSE=1    leave out what needs root, /dev/fuse and loop devices
//	BLOCKREPL_NO_NETNS=1   leave out what needs network namespaces
//	BLOCKREPL_CHAOS=30m    how long chaos goes on (default 30s)
//	BLOCKREPL_VM=1         also test the kernel's client, in a virtual machine
//	BLOCKREPL_SEED=N       the seed of random tests
//	CI=true                chaos fails, and does not go on without, where others' clients
//	                       are not installed
//
// With -short each test does less; all together take about a minute.
//
// Goroutines: each load starts one a client and its stop waits for them; each
// process has one that waits for its end.
package e2e
