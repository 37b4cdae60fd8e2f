package image

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/blockrepl/blockrepl/journal/record"
)

// randomChange gives a change of up to maxLen bytes, often beside the last one.
func randomChange(rnd *rand.Rand, size, maxLen int64, last *Change) Change {
	n := 1 + rnd.Int64N(maxLen)
	off := rnd.Int64N(size - n + 1)
	switch rnd.IntN(4) {
	case 0:
		off, n = off/512*512, max(n/512*512, 512)
		off = min(off, size-n)
	case 1:
		if o := last.Off + last.Len; o+n <= size {
			off = o
		}
	}
	switch rnd.IntN(5) {
	case 0:
		return zero(off, n)
	case 1:
		return trim(off, n)
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return write(off, b)
}

func TestEveryWayOfReadingSeesWhatWasApplied(t *testing.T) {
	const size = 6<<20 + 512
	kinds(t, size, func(t *testing.T, open func(testing.TB) *Image) {
		rnd := seeded(t)
		im := open(t)
		if err := im.ZeroAll(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		model := make([]byte, size)
		var last Change
		for round := range 40 {
			maxLen := int64(1) << (9 + rnd.IntN(12))
			var batch []Change
			for range rnd.IntN(12) {
				last = randomChange(rnd, size, maxLen, &last)
				batch = append(batch, last)
			}
			if err := im.Apply(batch); err != nil {
				t.Fatal(err)
			}
			replay(model, batch)
			compare(t, im, model, rnd)
			if t.Failed() {
				t.Fatalf("after round %d", round)
			}
		}
		whole(t, im, model)
		if err := im.Sync(); err != nil {
			t.Fatal(err)
		}
	})
}

// whole compares the image with model, byte by byte.
func whole(t *testing.T, im *Image, model []byte) {
	t.Helper()
	got := make([]byte, len(model))
	if err := im.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if got[i] != model[i] {
			t.Fatalf("byte %d is %02x, want %02x", i, got[i], model[i])
		}
	}
}

// compare looks at a random extent in every way there is.
func compare(t *testing.T, im *Image, model []byte, rnd *rand.Rand) {
	t.Helper()
	off := rnd.Int64N(int64(len(model)))
	n := rnd.Int64N(min(int64(len(model))-off, 300<<10) + 1)
	want := model[off : off+n]
	x := record.Extent{Lo: off, Hi: off + n}
	got := make([]byte, n)
	if err := im.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ReadAt %s: wrong bytes, or %v", x, err)
	}
	clear(got)
	if ok, err := im.ReadNow(got, off); err != nil || ok && !bytes.Equal(got, want) {
		t.Errorf("ReadNow %s: wrong bytes, or %v", x, err)
	}
	if zero, err := im.IsZero(off, n); err != nil || zero != record.IsZero(want) {
		t.Errorf("IsZero %s is %t, %v", x, zero, err)
	}
	block := int64(512) << rnd.IntN(8)
	hashes, err := im.HashBlocks([]uint64{7}, off, n, block)
	var wantHashes []uint64
	for b := range slices.Chunk(want, int(block)) {
		wantHashes = append(wantHashes, xxh3.Hash(b))
	}
	if err != nil || !slices.Equal(hashes[1:], wantHashes) {
		t.Errorf("HashBlocks %s by %d: wrong hashes (%d, want %d), or %v", x, block, len(hashes)-1, len(wantHashes), err)
	}
	segments, err := im.Extents(off, n, 1000)
	if err != nil {
		t.Error(err)
	}
	pos := off
	for i, s := range segments {
		if s.Lo != pos || s.Len() <= 0 || i > 0 && s.Hole == segments[i-1].Hole {
			t.Errorf("Extents %s: %+v", x, segments)
		}
		if s.Zero && !record.IsZero(model[s.Lo:s.Hi]) {
			t.Errorf("Extents %s: %+v is not zero", x, s)
		}
		pos = s.Hi
	}
	if pos != off+n {
		t.Errorf("Extents %s end at %d", x, pos)
	}
}

// Changes that overlap keep their order, and neighbours become one run in any order.
func TestNeighboursBecomeOneRun(t *testing.T) {
	a, b, c, d := fill(512, 1), fill(512, 2), fill(1024, 3), fill(512, 4)
	for _, tc := range []struct {
		name  string
		group []Change
		want  string
	}{
		{"in order", []Change{write(0, a), write(512, b), write(1024, c)}, "write[0,2048)x3"},
		{"out of order", []Change{write(1024, c), write(0, a), write(512, b)}, "write[0,2048)x3"},
		{"two streams", []Change{write(0, a), write(8192, b), write(512, d), write(8704, a)}, "write[0,1024)x2 write[8192,9216)x2"},
		{"overlap", []Change{write(512, c), write(0, a), write(1024, b)}, "write[512,1536)x1 write[0,512)x1 write[1024,1536)x1"},
		{"overlap with followers", []Change{write(0, a), write(512, b), write(0, d)}, "write[0,1024)x2 write[0,512)x1"},
		{"zeroes", []Change{zero(512, 512), zero(0, 512), trim(1024, 512)}, "zero[0,1024)x0 trim[1024,1536)x0"},
		{"kinds differ", []Change{write(0, a), zero(512, 512), write(1024, b)}, "write[0,512)x1 zero[512,1024)x0 write[1024,1536)x1"},
		{"nothing", []Change{zero(5, 0)}, ""},
	} {
		var p plan
		for range 2 { // the second uses the memory of the first
			got := ""
			for _, r := range p.runsOf(tc.group) {
				if got != "" {
					got += " "
				}
				got += fmt.Sprintf("%s%sx%d", r.kind, r.extent(), len(r.bufs))
			}
			if got != tc.want {
				t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
			}
			p.forget()
		}
	}
}

func TestGroupsAreBounded(t *testing.T) {
	big := write(0, make([]byte, groupBytes+1))
	small := write(0, make([]byte, 512))
	many := make([]Change, 3*groupChanges)
	for i := range many {
		many[i] = small
	}
	for _, c := range []struct {
		name    string
		changes []Change
		cheap   int // where zeroes need not be written
		written int
	}{
		{"one that is larger", []Change{big, small}, 1, 1},
		{"one before a larger", []Change{small, small, big}, 2, 2},
		{"many", many, groupChanges, groupChanges},
		{"zeroes of any length", []Change{zero(0, 1<<50), zero(0, 1<<50), small}, 3, 1},
		{"short zeroes", slices.Repeat([]Change{zero(0, zeroByWriting-1)}, groupChanges), groupBytes / zeroByWriting, groupBytes / zeroByWriting},
	} {
		if cheap, written := groupLen(c.changes, true), groupLen(c.changes, false); cheap != c.cheap || written != c.written {
			t.Errorf("%s: %d, and %d where zeroes are written; want %d and %d", c.name, cheap, written, c.cheap, c.written)
		}
	}
}

func TestStripesOfAnExtent(t *testing.T) {
	rnd := seeded(t)
	for range 2000 {
		off, n := rnd.Int64N(200<<20), rnd.Int64N(1<<(1+rnd.IntN(28)))
		var want stripeSet
		for at := off >> 20 << 20; at < off+n; at += 1 << 20 {
			if n > 0 {
				want |= 1 << (at >> 20 % 64)
			}
		}
		if got := stripesOf(off, n); got != want {
			t.Fatalf("%d bytes at %d: %064b, want %064b", n, off, got, want)
		}
	}
	for _, x := range [][2]int64{{record.MaxSize - 512, 512}, {0, record.MaxSize}} {
		if stripesOf(x[0], x[1]) == 0 {
			t.Errorf("%d bytes at %d: none", x[1], x[0])
		}
	}
}

// history is changes in order, and which of them touch each sector.
type history struct {
	changes []Change
	touch   [][]int // by sector: numbers of the changes, ascending, from 1
}

// newHistory makes changes of whole sectors; change k fills its extent with k, or
// zeroes it. Extents cross stripes.
func newHistory(rnd *rand.Rand, size int64, count int) *history {
	h := &history{touch: make([][]int, size/sector)}
	for k := 1; k <= count; k++ {
		n := sector * (1 + rnd.Int64N(64))
		off := rnd.Int64N((size-n)/sector+1) * sector
		if rnd.IntN(3) == 0 { // around the border of two stripes
			off = min(1<<20-n/sector/2*sector, size-n)
		}
		c := write(off, nil)
		for s := off; s < off+n; s += sector {
			c.Data = append(c.Data, numbered(k)...)
			h.touch[s/sector] = append(h.touch[s/sector], k)
		}
		c.Len = n
		h.changes = append(h.changes, c)
	}
	return h
}

func numbered(k int) []byte {
	b := make([]byte, sector)
	for i := 0; i < sector; i += 4 {
		b[i], b[i+1], b[i+2], b[i+3] = byte(k), byte(k>>8), byte(k>>16), 1
	}
	return b
}

// check says whether p, read at off, is the state after one prefix of at least
// `applied` changes.
func (h *history) check(p []byte, off int64, applied int) error {
	newest := 0
	values := make([]int, len(p)/sector)
	for i := range values {
		b := p[i*sector : (i+1)*sector]
		k := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
		if b[3] == 0 {
			k = 0
		}
		if want := numbered(k); k != 0 && !bytes.Equal(b, want) || k == 0 && !record.IsZero(b) {
			return fmt.Errorf("sector %d is torn: begins as change %d", off/sector+int64(i), k)
		}
		values[i] = k
		newest = max(newest, k)
	}
	for i, k := range values {
		touch := h.touch[off/sector+int64(i)]
		at, _ := slices.BinarySearch(touch, max(newest, applied)+1)
		want := 0
		if at > 0 {
			want = touch[at-1]
		}
		if k != want {
			return fmt.Errorf("sector %d holds change %d, want %d: change %d is seen, %d were applied before", off/sector+int64(i), k, want, newest, applied)
		}
	}
	return nil
}

func TestReadsSeeSomePrefixWhileChangesAreApplied(t *testing.T) {
	const size, count, readers = 3 << 20, 4000, 3
	kinds(t, size, func(t *testing.T, open func(testing.TB) *Image) {
		rnd := seeded(t)
		im := open(t)
		if err := im.ZeroAll(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		h := newHistory(rnd, size, count)
		var applied atomic.Int64
		var done atomic.Bool
		var wg sync.WaitGroup
		var reads, now atomic.Int64
		for range readers {
			rnd := rand.New(rand.NewPCG(rnd.Uint64(), 1))
			wg.Go(func() {
				for !done.Load() {
					n := sector * (1 + rnd.Int64N(256))
					off := rnd.Int64N((size-n)/sector+1) * sector
					if rnd.IntN(4) > 0 { // close to the border
						n = sector * (1 + rnd.Int64N(32))
						off = 1<<20 + sector*(rnd.Int64N(40)-n/sector)
					}
					p := make([]byte, n)
					before := int(applied.Load())
					if rnd.IntN(2) == 0 {
						if ok, err := im.ReadNow(p, off); err != nil {
							t.Error(err)
							return
						} else if !ok {
							continue
						}
						now.Add(1)
					} else if err := im.ReadAt(p, off); err != nil {
						t.Error(err)
						return
					}
					reads.Add(1)
					if err := h.check(p, off, before); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for rest := h.changes; len(rest) > 0 && !t.Failed(); {
			n := 1 // alone, a change takes its own stripes only
			if rnd.IntN(2) == 0 {
				n = min(1+rnd.IntN(40), len(rest))
			}
			if err := im.Apply(rest[:n]); err != nil {
				t.Error(err)
				break
			}
			applied.Add(int64(n))
			rest = rest[n:]
		}
		for reads.Load() < 100 && !t.Failed() { // a slow machine still reads some
			if err := im.Apply(nil); err != nil {
				t.Error(err)
			}
		}
		done.Store(true)
		wg.Wait()
		t.Logf("%d reads, %d of them at once", reads.Load(), now.Load())
		model := make([]byte, size)
		replay(model, h.changes)
		whole(t, im, model)
	})
}

func TestHugeZeroesOnASparseFile(t *testing.T) {
	const size = 8 << 40
	im := sparse(t, size)
	edges := []int64{0, 1<<40 - 512, 5<<40 + 4096, size - 4096}
	for _, off := range edges {
		if err := im.Apply([]Change{write(off, fill(4096, 9))}); err != nil {
			t.Fatal(err)
		}
	}
	if err := im.Apply([]Change{trim(512, size-1024)}); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	for i, want := range []int{512, 0, 0, 512} {
		if err := im.ReadAt(p, edges[i]); err != nil {
			t.Fatal(err)
		}
		if got := bytes.Count(p, []byte{9}); got != want {
			t.Errorf("at %d: %d bytes are left, want %d", edges[i], got, want)
		}
	}
	if err := im.Apply([]Change{trim(0, size)}); err != nil {
		t.Fatal(err)
	}
	segments, err := im.Extents(0, size, 10)
	if err != nil || len(segments) != 1 || !segments[0].Hole {
		t.Errorf("after a trim of all: %+v, %v", segments, err)
	}
}

func TestZeroStaysAllocatedAndTrimFrees(t *testing.T) {
	const size = 8 << 20
	im := sparse(t, size)
	if err := im.Apply([]Change{write(0, fill(size, 1))}); err != nil {
		t.Fatal(err)
	}
	allocated := func() int64 {
		if err := im.Sync(); err != nil {
			t.Fatal(err)
		}
		u, err := im.Usage()
		if err != nil || u.Free <= 0 {
			t.Fatalf("usage %+v, %v", u, err)
		}
		return u.Allocated
	}
	full := allocated()
	if err := im.Apply([]Change{zero(0, size/2)}); err != nil {
		t.Fatal(err)
	}
	if got := allocated(); got < size {
		t.Errorf("%d bytes are allocated after a zero, %d before", got, full)
	}
	if err := im.Apply([]Change{trim(0, size/2)}); err != nil {
		t.Fatal(err)
	}
	if got := allocated(); got > size*3/4 {
		t.Errorf("%d bytes are allocated after a trim of the half", got)
	}
	if zero, err := im.IsZero(0, size/2); !zero || err != nil {
		t.Errorf("IsZero: %t, %v", zero, err)
	}
}

func TestFullFileSystemHoldsReadsUntilTheChangesFit(t *testing.T) {
	dir := tmpfs(t, 4<<20)
	ballast := at(t, Options{Path: dir + "/ballast", Size: 3 << 20, Create: true})
	if err := ballast.Apply([]Change{write(0, fill(3<<20, 1))}); err != nil {
		t.Fatal(err)
	}
	const size = 2 << 20
	im := at(t, Options{Path: dir + "/image", Size: size, Create: true})
	if err := im.Apply([]Change{write(0, fill(4096, 1))}); err != nil {
		t.Fatal(err)
	}
	batch := []Change{write(0, fill(8192, 2)), write(4096, fill(size-4096, 3))}
	p := make([]byte, 512)
	for range 2 {
		err := im.Apply(batch)
		if !errors.Is(err, ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrFailed) {
			t.Fatalf("apply: %v", err)
		}
		if err := im.ReadAt(p, 0); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("read of a half change: %v", err)
		}
		if ok, err := im.ReadNow(p, 0); ok || !errors.Is(err, ErrNoSpace) {
			t.Fatalf("read of a half change: %t, %v", ok, err)
		}
		if err := im.Apply([]Change{write(0, p)}); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("other changes: %v", err)
		}
	}
	if u, err := ballast.Usage(); err != nil || u.Free > 4096 {
		t.Errorf("usage of a full file system: %+v, %v", u, err)
	}
	if err := ballast.Apply([]Change{trim(0, 3<<20)}); err != nil {
		t.Fatal(err)
	}
	if err := im.Apply(batch[:1]); err != nil {
		t.Fatal(err)
	}
	if err := im.ReadAt(p, 0); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("read before all is made again: %v", err)
	}
	if err := im.Apply(batch[1:]); err != nil {
		t.Fatal(err)
	}
	model := make([]byte, size)
	replay(model, batch)
	whole(t, im, model)
}

func TestZeroesAreFastWhereHolesCanBePunched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	content := bytes.Repeat([]byte{7}, 64<<10)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	im, err := Open(Options{Path: path, Size: 32 << 10}) // the file is longer than the volume
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	want := unix.Fallocate(im.disk.(*file).fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 4096) == nil
	if got := im.FastZero(); got != want {
		t.Errorf("FastZero %v, the file system says %v", got, want)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("asking changed the file: %d bytes, %v", len(got), err)
	}
}
