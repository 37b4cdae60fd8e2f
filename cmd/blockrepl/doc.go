// Command blockrepl is the program: it serves replicated volumes over NBD and
// gives the operator the commands to look at them and to change them.
//
// It is the one place that knows both front doors, nbd and blockrepl, and it
// decides nothing about replication. What it holds:
//
//	main.go, fail.go, args.go      the command line: commands, exit codes, one-line errors
//	config*.go, size.go,
//	duration.go, addr.go           the configuration: TOML, flags, environment, checks
//	serve*.go, tls*.go, listen.go  a running server: listeners, TLS, signals, readiness
//	reload*.go, tls_rotate.go      what of it changes at SIGHUP
//	export*.go, disk.go            what NBD clients see: names, identities, permissions, disks
//	admin*.go                      the client of the admin address, and its door on the server
//	attach*.go                     the kernel's NBD client, kept attached across servers
//	one file a command             status, promote, forget, resolve, resize, verify, journal, …
//
// # Exit status
//
//	0  done
//	1  an error: disk, network, a server's answer
//	2  wrong usage or configuration; nothing was touched
//	3  refused: the message names the flag that would allow it, or what is to be done
//	4  status: a volume is not healthy
//	5  split brain: two masterships both went on, resolve is needed
//	6  the server does not answer at its admin address
//
// # Goroutines
//
// serve runs one goroutine a listener, one for the admin HTTP server and one for
// reloads; all end before serve returns, but for a reload that hangs in a file. Only main exits the process.
package main
