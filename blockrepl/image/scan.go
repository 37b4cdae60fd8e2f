package image

import (
	"context"
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Segment is a run of the image. A hole reads as zeroes and takes no space; what
// is no hole may read as anything.
type Segment struct {
	record.Extent
	Hole bool // not allocated
	Zero bool // reads as zeroes
}

// Extents gives the runs from off on, n bytes or countMax segments, whichever
// ends first: at least one for n > 0. Neighbours differ.
func (im *Image) Extents(off, n int64, countMax int) ([]Segment, error) {
	s := stripesOf(off, n)
	im.locks.rlock(s)
	defer im.locks.runlock(s)
	if err := im.readable("map", off, n); err != nil {
		return nil, err
	}
	var out []Segment
	for end := off + n; off < end; {
		to, hole, err := im.disk.segment(off, end)
		if err != nil {
			return nil, im.wrap("map", record.Extent{Lo: off, Hi: end}, err)
		}
		if last := len(out) - 1; last >= 0 && out[last].Hole == hole {
			out[last].Hi = to
		} else if len(out) >= max(countMax, 1) {
			break
		} else {
			out = append(out, Segment{record.Extent{Lo: off, Hi: to}, hole, hole})
		}
		off = to
	}
	return out, nil
}

// Hash is the hash of a block, as HashBlocks gives it.
func Hash(block []byte) uint64 {
	if mutant.Is("hash half of a block") {
		return xxh3.Hash(block[:len(block)/2])
	}
	return xxh3.Hash(block)
}

// HashBlocks appends the XXH3-64 of each block of the n bytes at off to dst; the
// last may be short. Each block is read at one moment, the blocks at different
// ones. Blocks within holes are not read.
func (im *Image) HashBlocks(dst []uint64, off, n, block int64) ([]uint64, error) {
	if block <= 0 || block > blockMax {
		return dst, im.wrap("hash", record.Extent{Lo: off, Hi: off + n},
			fmt.Errorf("%w: blocks of %d bytes, from 1 to %d are possible", ErrRange, block, blockMax))
	}
	buf := record.Alloc(int(max(scanBuffer/block*block, block)))
	defer record.Free(buf)
	zero, known := uint64(0), false // the hash of a whole block of zeroes
	err := im.scan("hash", off, n, buf, func(p []byte, hole bool) bool {
		for len(p) > 0 {
			b := p[:min(block, int64(len(p)))]
			switch {
			case !hole:
				dst = append(dst, Hash(b))
			case int64(len(b)) < block || !known:
				clear(b)
				dst = append(dst, Hash(b))
				if int64(len(b)) == block {
					zero, known = dst[len(dst)-1], true
				}
			default:
				dst = append(dst, zero)
			}
			p = p[len(b):]
		}
		return true
	})
	return dst, err
}

// IsZero reports whether the n bytes at off read as zeroes. Holes are not read.
func (im *Image) IsZero(off, n int64) (bool, error) {
	zero := true
	err := im.scan("check", off, n, make([]byte, min(max(n, 0), scanBuffer)), func(p []byte, hole bool) bool {
		zero = hole || record.IsZero(p)
		return zero
	})
	return zero && err == nil, err
}

// scan gives the extent to see in pieces of len(buf), each read under its
// stripes; of a piece that is a hole p may hold anything. It ends when see says false.
func (im *Image) scan(op string, off, n int64, buf []byte, see func(p []byte, hole bool) bool) error {
	if err := im.check(op, off, n); err != nil {
		return err
	}
	for end := off + n; off < end; {
		p := buf[:min(int64(len(buf)), end-off)]
		hole, err := im.readPiece(op, p, off)
		if err != nil {
			return err
		}
		if !see(p, hole) {
			return nil
		}
		off += int64(len(p))
	}
	return nil
}

// readPiece fills p, or leaves it alone where all of it is a hole.
func (im *Image) readPiece(op string, p []byte, off int64) (hole bool, err error) {
	n := int64(len(p))
	s := stripesOf(off, n)
	im.locks.rlock(s)
	defer im.locks.runlock(s)
	if err := im.readable(op, off, n); err != nil {
		return false, err
	}
	to, hole, err := im.disk.segment(off, off+n)
	if err == nil && hole && to == off+n {
		return true, nil
	}
	if err == nil {
		err = im.disk.readAt(p, off)
	}
	if err != nil {
		return false, im.wrap(op, record.Extent{Lo: off, Hi: off + n}, err)
	}
	return false, nil
}

// ZeroAll makes the whole image read as zeroes, durably: for a volume that is
// created on what held something else. progress, which may be nil, hears how far
// it came, in bytes. It stops with ctx's error between two steps. No one may
// read or apply meanwhile and expect sense. Changes that were torn by ErrNoSpace
// need not be applied again: nothing is left of them.
func (im *Image) ZeroAll(ctx context.Context, progress func(done, size int64)) error {
	im.forgetTorn()
	size := im.Size()
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return im.wrap("zero", record.Extent{Lo: off, Hi: size}, err)
		}
		// A hole of any length is one step: the file system's own, and quick.
		to, hole, err := im.segmentLocked(off, size)
		if err != nil {
			return err
		}
		if !hole {
			to = min(to, off+zeroStep)
			if err := im.Apply([]Change{{Kind: record.KindTrim, Off: off, Len: to - off}}); err != nil {
				return err
			}
		}
		off = to
		if progress != nil {
			progress(off, size)
		}
	}
	return im.Sync()
}

// segmentLocked is disk.segment under the stripes.
func (im *Image) segmentLocked(off, end int64) (int64, bool, error) {
	s := stripesOf(off, end-off)
	im.locks.rlock(s)
	defer im.locks.runlock(s)
	if err := im.readable("map", off, end-off); err != nil {
		return 0, false, err
	}
	to, hole, err := im.disk.segment(off, end)
	if err != nil {
		return 0, false, im.wrap("map", record.Extent{Lo: off, Hi: end}, err)
	}
	return to, hole, nil
}
