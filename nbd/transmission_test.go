package nbd_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/internal/proto"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

func TestReadGivesWhatWasWritten(t *testing.T) {
	eachSession(t, func(t *testing.T, c *nbdtest.Client, _ *nbdtest.MemDisk) {
		for i, tc := range []struct{ off, n int }{
			{0, 4096}, {diskSize - 512, 512}, {8193, 1}, {4096*5 + 777, 1535}, {0, 64 << 10}, {1 << 20, 100_000}, {512, 3 << 20}, {0, diskSize},
		} {
			data := pattern(tc.n, byte(i))
			write(t, c, uint64(tc.off), data)
			if got := read(t, c, uint64(tc.off), tc.n); !bytes.Equal(got, data) {
				t.Fatalf("%d at %d: read differs from what was written", tc.n, tc.off)
			}
		}
	})
}

func TestByteWriteKeepsItsNeighbours(t *testing.T) {
	eachSession(t, func(t *testing.T, c *nbdtest.Client, _ *nbdtest.MemDisk) {
		want := pattern(4096, 3)
		write(t, c, 8192, want)
		write(t, c, 8193, []byte("x"))
		want[1] = 'x'
		if got := read(t, c, 8192, 4096); !bytes.Equal(got, want) {
			t.Fatal("neighbours changed")
		}
	})
}

func TestLargestPayload(t *testing.T) {
	d := nbdtest.NewMemDisk(nbd.Info{Size: 40 << 20})
	for _, structured := range []bool{false, true} {
		c := attach(t, pipe(t, serveDisk(t, d), true), structured)
		data := pattern(nbd.MaxPayloadDefault, 5)
		write(t, c, 512, data)
		if got := read(t, c, 512, len(data)); !bytes.Equal(got, data) {
			t.Fatal("read differs from what was written")
		}
	}
}

func TestZeroesAreReadAsHoles(t *testing.T) {
	eachSession(t, func(t *testing.T, c *nbdtest.Client, _ *nbdtest.MemDisk) {
		const mib = 1 << 20
		for _, tc := range []struct {
			name          string
			off, n        int
			data          [][2]int // offset and length of what holds data
			chunks, holes int
		}{
			{"a small hole", 0, 4096, nil, 1, 1},
			{"a large hole", 0, 2 * mib, nil, 1, 1},
			{"hole, data, hole", 0, mib, [][2]int{{512 << 10, 4096}}, 3, 2},
			{"data, hole, data", 0, mib, [][2]int{{0, 4096}, {mib - 512, 512}}, 3, 1},
			{"data, hole", 0, 128 << 10, [][2]int{{0, 64 << 10}}, 2, 1},
			{"not aligned", 777, mib, [][2]int{{70_000, 10}, {300_000, 10}}, 5, 3},
		} {
			do(t, c, nbdtest.Request{Cmd: proto.CmdWriteZeroes, Length: 4 * mib}, 0)
			want := make([]byte, 4*mib)
			for _, e := range tc.data {
				copy(want[e[0]:], pattern(e[1], 1))
				write(t, c, uint64(e[0]), pattern(e[1], 1))
			}
			rep := do(t, c, nbdtest.Request{Cmd: proto.CmdRead, Off: uint64(tc.off), Length: uint32(tc.n)}, 0)
			if !bytes.Equal(rep.Data, want[tc.off:tc.off+tc.n]) {
				t.Fatalf("%s: wrong data", tc.name)
			}
			if c.Structured && (rep.Chunks != tc.chunks || rep.Holes != tc.holes) {
				t.Errorf("%s: %d chunks, %d of them holes, want %d, %d", tc.name, rep.Chunks, rep.Holes, tc.chunks, tc.holes)
			}
		}
	})
}

func TestDFReadIsOneChunkWithoutHoles(t *testing.T) {
	eachSession(t, func(t *testing.T, c *nbdtest.Client, _ *nbdtest.MemDisk) {
		if !c.Structured {
			do(t, c, nbdtest.Request{Cmd: proto.CmdRead, Flags: proto.CmdFlagDF, Length: 4096}, proto.EINVAL)
			return
		}
		write(t, c, 1<<20, pattern(4096, 1))
		for _, n := range []uint32{4096, 64 << 10, 2 << 20, 4 << 20} {
			rep := do(t, c, nbdtest.Request{Cmd: proto.CmdRead, Flags: proto.CmdFlagDF, Length: n}, 0)
			if rep.Chunks != 1 || rep.Holes != 0 {
				t.Errorf("DF read of %d: %d chunks, %d holes, want one of data", n, rep.Chunks, rep.Holes)
			}
		}
	})
}

// calls records what a disk is asked.
func calls(d *nbdtest.MemDisk) <-chan nbdtest.Call {
	ch := make(chan nbdtest.Call, 64)
	d.SetFault(func(_ context.Context, c nbdtest.Call) error { ch <- c; return nil })
	return ch
}

func TestFlagsOfChangesReachTheDisk(t *testing.T) {
	eachSession(t, func(t *testing.T, c *nbdtest.Client, d *nbdtest.MemDisk) {
		got := calls(d)
		for _, tc := range []struct {
			r    nbdtest.Request
			want nbdtest.Call
		}{
			{nbdtest.Request{Cmd: proto.CmdWrite, Off: 5, Data: []byte("data")}, nbdtest.Call{Op: "write", Off: 5, N: 4}},
			{nbdtest.Request{Cmd: proto.CmdWrite, Flags: proto.CmdFlagFUA, Off: 5, Data: []byte("data")}, nbdtest.Call{Op: "write", Off: 5, N: 4, FUA: true}},
			{nbdtest.Request{Cmd: proto.CmdTrim, Off: 4096, Length: 4096}, nbdtest.Call{Op: "trim", Off: 4096, N: 4096}},
			{nbdtest.Request{Cmd: proto.CmdTrim, Flags: proto.CmdFlagFUA, Off: 4096, Length: 1}, nbdtest.Call{Op: "trim", Off: 4096, N: 1, FUA: true}},
			{nbdtest.Request{Cmd: proto.CmdWriteZeroes, Off: 1, Length: 9}, nbdtest.Call{Op: "write zeroes", Off: 1, N: 9}},
			{nbdtest.Request{Cmd: proto.CmdWriteZeroes, Flags: proto.CmdFlagNoHole, Length: 9}, nbdtest.Call{Op: "write zeroes", N: 9, NoHole: true}},
			{nbdtest.Request{Cmd: proto.CmdWriteZeroes, Flags: proto.CmdFlagFastZero | proto.CmdFlagFUA, Length: 9}, nbdtest.Call{Op: "write zeroes", N: 9, Fast: true, FUA: true}},
			{nbdtest.Request{Cmd: proto.CmdFlush}, nbdtest.Call{Op: "flush"}},
			{nbdtest.Request{Cmd: proto.CmdFlush, Flags: proto.CmdFlagFUA}, nbdtest.Call{Op: "flush"}},
			{nbdtest.Request{Cmd: proto.CmdCache, Off: 7, Length: 4096}, nbdtest.Call{Op: "cache", Off: 7, N: 4096}},
			{nbdtest.Request{Cmd: proto.CmdRead, Flags: proto.CmdFlagFUA, Off: 7, Length: 11}, nbdtest.Call{Op: "read", Off: 7, N: 11}},
		} {
			do(t, c, tc.r, 0)
			if call := <-got; call != tc.want {
				t.Errorf("%+v: the disk was asked %+v, want %+v", tc.r, call, tc.want)
			}
		}
		if d.Allocs() != 0 {
			t.Errorf("%d buffers are still out", d.Allocs())
		}
	})
}

func TestZeroesAndTrimReadBackAsZeroes(t *testing.T) {
	eachSession(t, func(t *testing.T, c *nbdtest.Client, _ *nbdtest.MemDisk) {
		for _, r := range []nbdtest.Request{
			{Cmd: proto.CmdTrim}, {Cmd: proto.CmdWriteZeroes}, {Cmd: proto.CmdWriteZeroes, Flags: proto.CmdFlagNoHole}, {Cmd: proto.CmdWriteZeroes, Flags: proto.CmdFlagFastZero},
		} {
			write(t, c, 0, pattern(16384, 2))
			r.Off, r.Length = 4096, 8192
			do(t, c, r, 0)
			got := read(t, c, 0, 16384)
			want := pattern(16384, 2)
			clear(want[4096:12288])
			if !bytes.Equal(got, want) {
				t.Errorf("command %d flags %#x: wrong data afterwards", r.Cmd, r.Flags)
			}
		}
	})
}

// A reference server zeroes only the first 64 MiB of a larger request.
func TestZeroOfWholeDeviceIsOneRequest(t *testing.T) {
	for _, cmd := range []uint16{proto.CmdWriteZeroes, proto.CmdTrim} {
		const size = 4<<30 - 512 // the longest that a Linux client sends
		d := nbdtest.NewMemDisk(nbd.Info{Size: size})
		c := attach(t, pipe(t, serveDisk(t, d), false), true)
		for _, off := range []uint64{0, 68 << 20, size - 4096} {
			write(t, c, off, pattern(4096, 1))
		}
		do(t, c, nbdtest.Request{Cmd: cmd, Length: size}, 0)
		for _, off := range []uint64{0, 68 << 20, size - 4096} {
			if got := read(t, c, off, 4096); !bytes.Equal(got, make([]byte, 4096)) {
				t.Errorf("command %d: data left at %d", cmd, off)
			}
		}
		if d.Writes() != 4 {
			t.Errorf("command %d: %d changes reached the disk, want 3 writes and 1", cmd, d.Writes())
		}
	}
}

func TestBlockStatusTellsHolesAndData(t *testing.T) {
	for _, socket := range []bool{false, true} {
		c := attach(t, pipe(t, serveDisk(t, memDisk()), socket), true)
		write(t, c, 64<<10, pattern(64<<10, 1))
		hole, data := proto.StateHole|proto.StateZero, uint32(0)
		for _, tc := range []struct {
			off, n uint32
			flags  uint16
			want   []nbdtest.Descriptor
		}{
			{0, 192 << 10, 0, []nbdtest.Descriptor{{Length: 64 << 10, Flags: hole}, {Length: 64 << 10, Flags: data}, {Length: 64 << 10, Flags: hole}}},
			{0, 192 << 10, proto.CmdFlagReqOne, []nbdtest.Descriptor{{Length: 64 << 10, Flags: hole}}},
			{65 << 10, 1 << 10, 0, []nbdtest.Descriptor{{Length: 1 << 10, Flags: data}}},
			{65 << 10, 1 << 10, proto.CmdFlagReqOne, []nbdtest.Descriptor{{Length: 1 << 10, Flags: data}}},
			{0, diskSize, 0, []nbdtest.Descriptor{{Length: 64 << 10, Flags: hole}, {Length: 64 << 10, Flags: data}, {Length: diskSize - 128<<10, Flags: hole}}},
		} {
			rep := do(t, c, nbdtest.Request{Cmd: proto.CmdBlockStatus, Flags: tc.flags, Off: uint64(tc.off), Length: tc.n}, 0)
			if fmt.Sprint(rep.Extents) != fmt.Sprint(tc.want) {
				t.Errorf("status of %d at %d, flags %d: %v, want %v", tc.n, tc.off, tc.flags, rep.Extents, tc.want)
			}
		}
	}
}

// extentsDisk answers Extents with what the test wants, sound or not.
type extentsDisk struct {
	*nbdtest.MemDisk
	exts []nbd.Extent
}

func (d extentsDisk) Extents(context.Context, int64, int64, int) ([]nbd.Extent, error) {
	return d.exts, nil
}

func TestBlockStatusIsBroughtIntoForm(t *testing.T) {
	long := make([]nbd.Extent, 5000)
	for i := range long {
		long[i] = nbd.Extent{Len: 512, Hole: i%2 == 0}
	}
	for _, tc := range []struct {
		name string
		exts []nbd.Extent
		n    uint32
		want int
		sum  uint32
	}{
		{"nothing known", nil, 4096, 1, 4096},
		{"empty ones", []nbd.Extent{{Len: 0}, {Len: -5, Hole: true}, {Len: 512}}, 4096, 1, 512},
		{"neighbours of a kind", []nbd.Extent{{Len: 512}, {Len: 512}, {Len: 512, Zero: true}}, 4096, 2, 1536},
		{"beyond the request", []nbd.Extent{{Len: 1 << 40}}, 4096, 1, 4096},
		{"too many", long, diskSize, 1024, 1024 * 512},
	} {
		c := attach(t, pipe(t, serveDisk(t, extentsDisk{memDisk(), tc.exts}), false), true)
		rep := do(t, c, nbdtest.Request{Cmd: proto.CmdBlockStatus, Length: tc.n}, 0)
		sum := uint32(0)
		for _, e := range rep.Extents {
			sum += e.Length
		}
		if len(rep.Extents) != tc.want || sum != tc.sum {
			t.Errorf("%s: %d descriptors of %d bytes, want %d of %d", tc.name, len(rep.Extents), sum, tc.want, tc.sum)
		}
	}
}

func TestDisconnectAnswersWhatWasBegun(t *testing.T) {
	for _, socket := range []bool{false, true} {
		d := memDisk()
		release := make(chan struct{})
		fault, arrived := nbdtest.Hold("write", release)
		d.SetFault(fault)
		c := attach(t, pipe(t, serveDisk(t, d), socket), true)
		for i := range 3 {
			if _, err := c.Send(nbdtest.Request{Cmd: proto.CmdWrite, Off: uint64(i) * 512, Data: pattern(512, 1)}); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			<-arrived
		}
		if _, err := c.Conn.Write(nbdtest.AppendRequest(nil, 99, nbdtest.Request{Cmd: proto.CmdDisc})); err != nil {
			t.Fatal(err)
		}
		close(release)
		for range 3 {
			if rep, err := c.Recv(); err != nil || rep.Errno != 0 {
				t.Fatalf("reply %+v, %v", rep, err)
			}
		}
		wantClosed(t, c)
		await(t, "the disk is closed", func() bool { return d.Closed() == 1 })
	}
}

func TestNothingAfterDisconnectIsDone(t *testing.T) {
	d := memDisk()
	c := attach(t, pipe(t, serveDisk(t, d), true), false)
	b := nbdtest.AppendRequest(nil, 1, nbdtest.Request{Cmd: proto.CmdDisc})
	b = nbdtest.AppendRequest(b, 2, nbdtest.Request{Cmd: proto.CmdWrite, Data: pattern(4096, 1)})
	if _, err := c.Conn.Write(b); err != nil {
		t.Fatal(err)
	}
	wantClosed(t, c)
	await(t, "the disk is closed", func() bool { return d.Closed() == 1 })
	if d.Writes() != 0 {
		t.Fatal("a write behind DISC was done")
	}
}

func TestMultiConnFlushCoversAllConnections(t *testing.T) {
	d := memDisk()
	s := serveDisk(t, d)
	a, b := attach(t, pipe(t, s, true), true), attach(t, pipe(t, s, true), true)
	if !a.Export.Has(proto.FlagCanMultiConn) {
		t.Fatal("CAN_MULTI_CONN is not offered")
	}
	for i := range 50 {
		data := pattern(4096, byte(i))
		write(t, a, 4096, data)
		do(t, a, nbdtest.Request{Cmd: proto.CmdFlush}, 0)
		if got := read(t, b, 4096, 4096); !bytes.Equal(got, data) {
			t.Fatalf("round %d: the other connection reads old data after the flush", i)
		}
		a, b = b, a
	}
}
