package nbdtest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/blockrepl/blockrepl/nbd"
)

// MemDisk is a disk in memory that keeps count, fails and waits on command. Holes are pages that were never written, or
// trimmed. The zero value is not usable; see NewMemDisk.
//
// Fault, if set, is asked before every call with the call and its range, from the goroutine of the call. It may wait: a
// test that holds a channel decides when the call goes on. Its error is the answer.
type MemDisk struct {
	Fault     func(ctx context.Context, call Call) error
	described nbd.Info

	inject atomic.Pointer[Fault]

	mu    sync.Mutex
	pages map[int64][]byte

	writes  atomic.Uint64
	flushes atomic.Uint64
	allocs  atomic.Int64 // buffers that are out
	closed  atomic.Int32
}

// Call is what a disk was asked.
type Call struct {
	Op     string // "read", "write", "trim", "write zeroes", "flush", "cache", "extents"
	Off, N int64
	FUA    bool
	NoHole bool
	Fast   bool
}

// Fault is asked before every call of a disk, from the goroutine of the call. It may wait: a test that holds a channel
// decides when the call goes on. Its error is the answer.
type Fault func(ctx context.Context, call Call) error

const pageBytes = 4096

// NewMemDisk makes a disk; the size is info.Size.
func NewMemDisk(info nbd.Info) *MemDisk {
	return &MemDisk{described: info, pages: map[int64][]byte{}}
}

// SetFault sets, or with nil removes, what decides about calls that begin from now on.
func (d *MemDisk) SetFault(f Fault) {
	if f == nil {
		d.inject.Store(nil)
		return
	}
	d.inject.Store(&f)
}

// Info describes the disk.
func (d *MemDisk) Info() nbd.Info { return d.described }

// Allocs is how many buffers of Alloc are neither submitted and done nor freed: 0 when all is well and idle.
func (d *MemDisk) Allocs() int64 { return d.allocs.Load() }

// Flushes is how many flushes were done, Writes how many changes.
func (d *MemDisk) Flushes() uint64 { return d.flushes.Load() }

// Writes is how many changes were done.
func (d *MemDisk) Writes() uint64 { return d.writes.Load() }

// Closed is how often Close was called.
func (d *MemDisk) Closed() int { return int(d.closed.Load()) }

func (d *MemDisk) fault(ctx context.Context, c Call) error {
	if f := d.inject.Load(); f != nil {
		return (*f)(ctx, c)
	}
	return nil
}

// ReadAt implements nbd.Disk.
func (d *MemDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.fault(ctx, Call{Op: "read", Off: off, N: int64(len(p))}); err != nil {
		return err
	}
	d.read(p, off)
	return nil
}

func (d *MemDisk) read(p []byte, off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(p) > 0 {
		at := off % pageBytes
		n := min(int64(len(p)), pageBytes-at)
		if page := d.pages[off/pageBytes]; page != nil {
			copy(p[:n], page[at:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

// Alloc implements nbd.Disk.
func (d *MemDisk) Alloc(n int) []byte {
	d.allocs.Add(1)
	return make([]byte, n)
}

// Free implements nbd.Disk.
func (d *MemDisk) Free([]byte) { d.allocs.Add(-1) }

// Submit implements nbd.Disk: in a goroutine if a Fault may wait, else at once.
func (d *MemDisk) Submit(ctx context.Context, w *nbd.Write) {
	if d.inject.Load() == nil {
		w.Done(d.change(ctx, w))
		return
	}
	go func() { w.Done(d.change(ctx, w)) }()
}

func (d *MemDisk) change(ctx context.Context, w *nbd.Write) error {
	if w.Op == nbd.OpWrite {
		defer d.allocs.Add(-1)
	}
	if err := d.fault(ctx, Call{w.Op.String(), w.Off, w.Len, w.FUA, w.NoHole, w.FastZero}); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writes.Add(1)
	for off, end := w.Off, w.Off+w.Len; off < end; {
		at := off % pageBytes
		n := min(end-off, pageBytes-at)
		page := d.pages[off/pageBytes]
		switch {
		case w.Op == nbd.OpWrite || page != nil || w.NoHole:
			if page == nil {
				page = make([]byte, pageBytes)
				d.pages[off/pageBytes] = page
			}
			if w.Op == nbd.OpWrite {
				copy(page[at:at+n], w.Data[off-w.Off:])
			} else if clear(page[at : at+n]); n == pageBytes && !w.NoHole {
				delete(d.pages, off/pageBytes)
			}
		}
		off += n
	}
	return nil
}

// Flush implements nbd.Disk.
func (d *MemDisk) Flush(ctx context.Context) error {
	if err := d.fault(ctx, Call{Op: "flush"}); err != nil {
		return err
	}
	d.flushes.Add(1)
	return nil
}

// Cache implements nbd.Disk.
func (d *MemDisk) Cache(ctx context.Context, off, n int64) error {
	return d.fault(ctx, Call{Op: "cache", Off: off, N: n})
}

// Extents implements nbd.Disk.
func (d *MemDisk) Extents(ctx context.Context, off, n int64, limit int) ([]nbd.Extent, error) {
	if err := d.fault(ctx, Call{Op: "extents", Off: off, N: n}); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var exts []nbd.Extent
	for end := off + n; off < end; {
		k := min(end-off, pageBytes-off%pageBytes)
		hole := d.pages[off/pageBytes] == nil
		if l := len(exts); l > 0 && exts[l-1].Hole == hole {
			exts[l-1].Len += k
		} else if l == limit {
			break
		} else {
			exts = append(exts, nbd.Extent{Len: k, Hole: hole, Zero: hole})
		}
		off += k
	}
	return exts, nil
}

// Close implements nbd.Disk.
func (d *MemDisk) Close() error {
	d.closed.Add(1)
	return nil
}

// Instant is a MemDisk that serves reads without waiting, except where Busy says that it cannot.
type Instant struct {
	*MemDisk
	Busy func(off int64) bool
}

// ReadNow implements nbd.NowReader.
func (d Instant) ReadNow(p []byte, off int64) (bool, error) {
	if d.Busy != nil && d.Busy(off) {
		return false, nil
	}
	if err := d.fault(context.Background(), Call{Op: "read", Off: off, N: int64(len(p))}); err != nil {
		return true, err
	}
	d.read(p, off)
	return true, nil
}

// FailNth gives a Fault that fails the nth call (from 1) of an operation with err.
func FailNth(op string, nth int64, err error) Fault {
	var n atomic.Int64
	return func(_ context.Context, c Call) error {
		if c.Op == op && n.Add(1) == nth {
			return fmt.Errorf("injected: %s %d at %d: %w", op, c.N, c.Off, err)
		}
		return nil
	}
}

// Hold gives a Fault that holds every call of an operation until release is closed or the connection ends, and a channel
// that tells of each call that arrived.
func Hold(op string, release <-chan struct{}) (fault Fault, arrived <-chan Call) {
	ch := make(chan Call, 1024)
	return func(ctx context.Context, c Call) error {
		if c.Op != op {
			return nil
		}
		ch <- c
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", op, ctx.Err())
		}
	}, ch
}

// ErrDisk is an error of a broken disk, for tests.
var ErrDisk = fmt.Errorf("the disk is broken: %w", syscall.EIO)
