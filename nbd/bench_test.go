//go:build !race

package nbd_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"testing"

	"github.com/blockrepl/blockrepl/nbd/internal/proto"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// BenchmarkRequests is the loop of a connection over loopback TCP with a disk that costs nothing: depth requests are sent
// with one system call, as a busy client does, and their replies awaited. The client's half is in the figure.
func BenchmarkRequests(b *testing.B) {
	for _, bc := range []struct {
		name  string
		cmd   uint16
		bytes int
		depth int
	}{
		{"read", proto.CmdRead, 4096, 1},
		{"read", proto.CmdRead, 4096, 32},
		{"read", proto.CmdRead, 1 << 20, 4},
		{"write", proto.CmdWrite, 4096, 1},
		{"write", proto.CmdWrite, 4096, 32},
		{"write", proto.CmdWrite, 1 << 20, 4},
		{"flush", proto.CmdFlush, 0, 32},
	} {
		b.Run(fmt.Sprintf("%s/bytes=%d/depth=%d", bc.name, bc.bytes, bc.depth), func(b *testing.B) {
			d := &quietDisk{data: pattern(1<<20, 1), payload: make([]byte, 1<<20)}
			conn := dial(b, listen(b, serveDisk(b, d)))
			attach(b, conn, false)
			r := nbdtest.Request{Cmd: bc.cmd, Length: uint32(bc.bytes)}
			reply := proto.SimpleLen
			if bc.cmd == proto.CmdWrite {
				r.Data = pattern(bc.bytes, 1)
			} else {
				reply += bc.bytes
			}
			var requests []byte
			for i := range bc.depth {
				requests = nbdtest.AppendRequest(requests, uint64(i), r)
			}
			replies := make([]byte, bc.depth*reply)
			b.SetBytes(int64(bc.bytes))
			b.ReportAllocs()
			for done := 0; done < b.N; done += bc.depth {
				if _, err := conn.Write(requests); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(conn, replies); err != nil {
					b.Fatal(err)
				}
				for at := 0; at < len(replies); at += reply {
					if errno := binary.BigEndian.Uint32(replies[at+4:]); errno != 0 {
						b.Fatalf("a request was answered with errno %d", errno)
					}
				}
			}
		})
	}
}
