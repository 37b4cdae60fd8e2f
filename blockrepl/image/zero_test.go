package image

import (
	"testing"

	"github.com/blockrepl/blockrepl/journal/record"
)

// slow is a disk whose zeroing takes as long as it likes: it looks meanwhile whether a
// read of the first bytes would have to wait.
type slow struct {
	disk
	look func()
}

func (s *slow) zero(off, n int64, hole bool) error {
	s.look()
	return s.disk.zero(off, n, hole)
}

// A group is bounded by the bytes that are written. Zeroes counted nothing, although a
// device, or a file system without holes, writes them: 512 trims of 4 GiB, as mkfs
// sends them, were one group, and reads of all stripes waited for its end.
func TestReadsComeBetweenTrimsOfADiskWithoutHoles(t *testing.T) {
	const each, n = 8 << 20, 8 // on the NBD door one may have 4 GiB
	im, err := Open(Options{Path: "mem", Size: each * n, OpenFile: func() (File, error) { return new(memFile), nil }})
	if err != nil {
		t.Fatal(err)
	}
	read := false
	im.disk = &slow{im.disk, func() {
		if s := stripesOf(0, 4096); im.locks.tryRLock(s) {
			im.locks.runlock(s)
			read = true
		}
	}}
	var changes []Change
	for i := range int64(n) {
		changes = append(changes, Change{Kind: record.KindTrim, Off: (n - 1 - i) * each, Len: each})
	}
	if err := im.Apply(changes); err != nil {
		t.Fatal(err)
	}
	if !read {
		t.Errorf("%d trims of %d MiB were one group: no read came between", n, each>>20)
	}
}
