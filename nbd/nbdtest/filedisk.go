package nbdtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/blockrepl/blockrepl/nbd"
)

// FileDisk serves a plain file: what nbdkit's file plugin and qemu-nbd do, and the measure for this server's own cost.
// Reads that the page cache holds are served without waiting. Many connections may share one.
type FileDisk struct {
	f    *os.File
	size int64
	pool sync.Pool // of *[]byte, payloads up to poolBytes
}

const poolBytes = 1 << 20

// OpenFile opens an existing file as a disk of its size.
func OpenFile(path string) (*FileDisk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("size of %s: %w", path, err)
	}
	d := &FileDisk{f: f, size: size}
	d.pool.New = func() any { b := make([]byte, poolBytes); return &b }
	return d, nil
}

// Info describes the file.
func (d *FileDisk) Info() nbd.Info {
	return nbd.Info{Size: d.size, MultiConn: true, FastZero: true}
}

// Shutdown closes the file, after all connections.
func (d *FileDisk) Shutdown() error { return d.f.Close() }

// ReadAt implements nbd.Disk.
func (d *FileDisk) ReadAt(_ context.Context, p []byte, off int64) error {
	if _, err := d.f.ReadAt(p, off); err != nil {
		return fmt.Errorf("read %d at %d: %w", len(p), off, err)
	}
	return nil
}

// ReadNow implements nbd.NowReader by preadv2 with RWF_NOWAIT: what is not in the page cache is refused by the kernel.
func (d *FileDisk) ReadNow(p []byte, off int64) (bool, error) {
	n, err := preadNow(d.f, p, off)
	return err == nil && n == len(p), nil // whatever else it is, ReadAt will meet it
}

// Alloc implements nbd.Disk.
func (d *FileDisk) Alloc(n int) []byte {
	if n > poolBytes {
		return make([]byte, n)
	}
	return (*d.pool.Get().(*[]byte))[:n]
}

// Free implements nbd.Disk.
func (d *FileDisk) Free(p []byte) {
	if cap(p) == poolBytes {
		p = p[:poolBytes]
		d.pool.Put(&p)
	}
}

// Submit implements nbd.Disk. Writes go into the page cache at once; what waits for the disk does so in a goroutine.
func (d *FileDisk) Submit(_ context.Context, w *nbd.Write) {
	if w.Op == nbd.OpWrite && !w.FUA {
		_, err := d.f.WriteAt(w.Data, w.Off)
		d.Free(w.Data)
		w.Done(err)
		return
	}
	go func() { w.Done(d.change(w)) }() // ends with Done, before Close
}

func (d *FileDisk) change(w *nbd.Write) error {
	var err error
	switch w.Op {
	case nbd.OpWrite:
		_, err = d.f.WriteAt(w.Data, w.Off)
		d.Free(w.Data)
	case nbd.OpTrim:
		err = unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, w.Off, w.Len)
	case nbd.OpZero:
		err = d.zero(w)
	}
	if err == nil && w.FUA {
		err = unix.Fdatasync(int(d.f.Fd()))
	}
	if err != nil {
		return fmt.Errorf("%v %d at %d: %w", w.Op, w.Len, w.Off, err)
	}
	return nil
}

func (d *FileDisk) zero(w *nbd.Write) error {
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	if w.NoHole {
		mode = unix.FALLOC_FL_ZERO_RANGE
	}
	err := unix.Fallocate(int(d.f.Fd()), mode, w.Off, w.Len)
	if !errors.Is(err, unix.EOPNOTSUPP) || w.FastZero {
		return err
	}
	zeroes := make([]byte, min(w.Len, poolBytes))
	for off := w.Off; off < w.Off+w.Len; off += int64(len(zeroes)) {
		if _, err := d.f.WriteAt(zeroes[:min(w.Off+w.Len-off, int64(len(zeroes)))], off); err != nil {
			return err
		}
	}
	return nil
}

// Flush implements nbd.Disk.
func (d *FileDisk) Flush(context.Context) error {
	if err := unix.Fdatasync(int(d.f.Fd())); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// Cache implements nbd.Disk.
func (d *FileDisk) Cache(_ context.Context, off, n int64) error {
	if err := unix.Fadvise(int(d.f.Fd()), off, n, unix.FADV_WILLNEED); err != nil {
		return fmt.Errorf("cache %d at %d: %w", n, off, err)
	}
	return nil
}

// Extents implements nbd.Disk: the holes of the file.
func (d *FileDisk) Extents(_ context.Context, off, n int64, limit int) ([]nbd.Extent, error) {
	var exts []nbd.Extent
	for end := off + n; off < end && len(exts) < limit; {
		next, err := unix.Seek(int(d.f.Fd()), off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // a hole to the end
			next = end
		case err != nil:
			return nil, fmt.Errorf("extents of %d at %d: %w", n, off, err)
		}
		if next > off {
			exts = append(exts, nbd.Extent{Len: min(next, end) - off, Hole: true, Zero: true})
			off = next
			continue
		}
		if next, err = unix.Seek(int(d.f.Fd()), off, unix.SEEK_HOLE); err != nil {
			return nil, fmt.Errorf("extents of %d at %d: %w", n, off, err)
		}
		exts = append(exts, nbd.Extent{Len: min(next, end) - off})
		off = next
	}
	return exts, nil
}

// Close implements nbd.Disk; the file stays open for other connections until Shutdown.
func (d *FileDisk) Close() error { return nil }
