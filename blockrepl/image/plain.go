package image

import (
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/blockrepl/blockrepl/journal/mutant"
)

// plain is a File as a disk. It knows neither holes nor vectors; what lies behind
// the file's end is zero, and stays unwritten when it is zeroed.
type plain struct {
	f    File
	size int64
	end  int64 // the file's end as far as known; bytes from here are zero
}

// openPlain finds the file's end by looking: a File cannot say.
func openPlain(f File, size int64) (*plain, error) {
	var failed error
	end := sort.Search(int(size), func(at int) bool {
		if failed != nil {
			return true
		}
		var p [1]byte
		n, err := f.ReadAt(p[:], int64(at))
		if err != nil && !errors.Is(err, io.EOF) {
			failed = fmt.Errorf("read byte %d: %w", at, err)
		}
		return n == 0
	})
	return &plain{f: f, size: size, end: int64(end)}, failed
}

func (d *plain) readAt(p []byte, off int64) error {
	n, err := d.f.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if n < len(p) && err == nil {
		return io.ErrNoProgress
	}
	clear(p[n:])
	return nil
}

func (d *plain) readNow([]byte, int64) (bool, error) { return false, nil }

func (d *plain) writev(bufs [][]byte, off int64) error {
	for _, b := range bufs {
		n, err := d.f.WriteAt(b, off)
		d.end = max(d.end, off+int64(n))
		if err != nil {
			return err
		}
		if n < len(b) {
			return io.ErrShortWrite
		}
		off += int64(n)
	}
	return nil
}

func (d *plain) zero(off, n int64, _ bool) error {
	if mutant.Is("zero more than was asked") {
		n = (n + 4095) &^ 4095
	}
	if mutant.Is("zero less than was asked") {
		n &^= 4095
	}
	n = min(n, d.end-off)
	for n > 0 {
		z := zeroes[:min(n, zeroBuffer)]
		if err := d.writev([][]byte{z}, off); err != nil {
			return err
		}
		off += int64(len(z))
		n -= int64(len(z))
	}
	return nil
}

// segment knows of one hole, behind the end. Its caller holds stripes up to end,
// but writev of others may move d.end; so nothing but the size is believed.
func (d *plain) segment(_, end int64) (int64, bool, error) { return end, false, nil }

func (d *plain) prepare(int64, func(done, total int64)) (bool, error) { return false, nil }

// resize zeroes what a smaller volume leaves behind its end: there is no truncate.
func (d *plain) resize(size int64) error {
	if size < d.size {
		if err := d.zero(size, d.size-size, true); err != nil {
			return err
		}
	}
	d.size = size
	return nil
}

func (d *plain) holds(int64) (int64, error) { return 0, nil }

func (d *plain) sync() error {
	if f, ok := d.f.(interface{ SyncData() error }); ok {
		return f.SyncData()
	}
	return d.f.Sync()
}

func (d *plain) usage() (Usage, error) { return Usage{Allocated: d.size, Free: 0}, nil }

// room is not known: all may still be to be allocated.
func (d *plain) room() (Room, error) { return Room{Left: d.size, Spare: unknownSpare}, nil }

func (d *plain) keepBlocks(bool) {}

func (d *plain) close() error { return d.f.Close() }

// zeroes is written where zeroes cannot be asked for. Never written to.
var zeroes = make([]byte, zeroBuffer)
