package nbd_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/blockrepl/blockrepl/nbd/internal/proto"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

func TestFileDiskIsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, diskSize); err != nil {
		t.Fatal(err)
	}
	d, err := nbdtest.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Shutdown() }) // after the server
	c := attach(t, pipe(t, serveDisk(t, d), true), true)
	want := make([]byte, diskSize)
	put := func(flags uint16, off, n int) {
		data := pattern(n, byte(off))
		copy(want[off:], data)
		do(t, c, nbdtest.Request{Cmd: proto.CmdWrite, Flags: flags, Off: uint64(off), Data: data}, 0)
	}
	put(0, 0, 1<<20)
	put(proto.CmdFlagFUA, 3<<20, 2<<20)
	put(0, diskSize-1, 1)
	for off, r := range map[int]nbdtest.Request{
		4096:          {Cmd: proto.CmdWriteZeroes, Length: 8192},
		100 << 10:     {Cmd: proto.CmdWriteZeroes, Flags: proto.CmdFlagNoHole | proto.CmdFlagFUA, Length: 9000},
		3<<20 + 12345: {Cmd: proto.CmdTrim, Length: 70_000},
	} {
		r.Off = uint64(off)
		do(t, c, r, 0)
		clear(want[off : off+int(r.Length)])
	}
	do(t, c, nbdtest.Request{Cmd: proto.CmdCache, Length: diskSize}, 0)
	do(t, c, nbdtest.Request{Cmd: proto.CmdFlush}, 0)
	if got := read(t, c, 0, diskSize); !bytes.Equal(got, want) {
		t.Error("the export differs from what was written")
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file differs from what was written: %v", err)
	}
	rep := do(t, c, nbdtest.Request{Cmd: proto.CmdBlockStatus, Off: 6 << 20, Length: 1 << 20}, 0)
	if len(rep.Extents) != 1 || rep.Extents[0].Flags != proto.StateHole|proto.StateZero {
		t.Errorf("what was never written is %v, want one hole", rep.Extents)
	}
}
