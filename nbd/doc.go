// Package nbd serves block devices over the Network Block Device protocol.
//
// It knows the protocol and nothing of what is behind it: a program implements Exports (which names a client sees and
// opens) and Disk (reads, changes, flush), and gives both to a Server. It is built on the constants of go-nbd's
// pkg/protocol; the protocol is doc/proto.md of NetworkBlockDevice/nbd.
//
// # What it promises
//
//   - A reply is sent when the disk has said so, never before; a failed read is an error reply, never half a reply.
//   - While stopping, fencing or waiting nothing is answered with an error: the connection is held, or closed without a
//     reply (ErrHang, Client.Abort, Shutdown). An unanswered request is sent again by the client, an error is final.
//   - What a client sent before it closed the connection is not submitted any more once the close is known to the kernel.
//   - Whatever clients send or do not send, memory is bounded (Limits), the other clients are served, and only a broken
//     stream costs a client its connection.
//
// # Goroutines
//
// Each connection has one goroutine that negotiates and then reads requests, one that writes replies, and a worker for
// each request that has ever waited at the same time as the others (at most Limits.MaxRequests). A server has one that
// looks for dead and stalled connections. Close and Shutdown end them all.
//
// The path of a request: input (many requests a system call) → check → disk (ReadNow and Submit in the reader, what waits
// in a worker) → outbox (many replies a system call).
package nbd
