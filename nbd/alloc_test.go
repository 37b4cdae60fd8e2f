//go:build !race

package nbd_test

import (
	"context"
	"io"
	"testing"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/internal/proto"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// quietDisk serves from one buffer and allocates nothing, so that what is left is the server's.
type quietDisk struct {
	nbdtest.MemDisk
	data, payload []byte
	async         bool
}

func (d *quietDisk) Info() nbd.Info { return nbd.Info{Size: diskSize} }
func (d *quietDisk) ReadNow(p []byte, _ int64) (bool, error) {
	copy(p, d.data)
	return !d.async, nil
}
func (d *quietDisk) ReadAt(_ context.Context, p []byte, _ int64) error { copy(p, d.data); return nil }
func (d *quietDisk) Alloc(n int) []byte                                { return d.payload[:n] }
func (d *quietDisk) Free([]byte)                                       {}
func (d *quietDisk) Submit(_ context.Context, w *nbd.Write)            { w.Done(nil) }
func (d *quietDisk) Flush(context.Context) error                       { return nil }

// Not under the race detector, which makes sync.Pool forget at random.
func TestRequestsAllocateNothing(t *testing.T) {
	for _, tc := range []struct {
		name  string
		async bool
		r     nbdtest.Request
	}{
		{"read at once", false, nbdtest.Request{Cmd: proto.CmdRead, Length: 4096}},
		{"large read at once", false, nbdtest.Request{Cmd: proto.CmdRead, Length: 512 << 10}},
		{"read by a worker", true, nbdtest.Request{Cmd: proto.CmdRead, Length: 4096}},
		{"write", false, nbdtest.Request{Cmd: proto.CmdWrite, Data: pattern(4096, 1)}},
		{"large write", false, nbdtest.Request{Cmd: proto.CmdWrite, Data: pattern(512<<10, 1)}},
		{"zero", false, nbdtest.Request{Cmd: proto.CmdWriteZeroes, Length: 4096}},
		{"flush", false, nbdtest.Request{Cmd: proto.CmdFlush}},
	} {
		d := &quietDisk{data: pattern(1<<20, 1), payload: make([]byte, 1<<20), async: tc.async}
		conn := pipe(t, serveDisk(t, d), true)
		attach(t, conn, false)
		request := nbdtest.AppendRequest(nil, 1, tc.r)
		reply := make([]byte, proto.SimpleLen)
		if tc.r.Cmd == proto.CmdRead {
			reply = make([]byte, proto.SimpleLen+tc.r.Length)
		}
		got := testing.AllocsPerRun(500, func() {
			if _, err := conn.Write(request); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, reply); err != nil {
				t.Fatal(err)
			}
		})
		if got > 0.2 {
			t.Errorf("%s: %.1f allocations a request, want none", tc.name, got)
		}
	}
}
