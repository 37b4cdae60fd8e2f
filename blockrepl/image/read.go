package image

import "github.com/blockrepl/blockrepl/journal/record"

// comes from: an NBD read that may look at the image now
// does:       takes the stripes of the extent, reads
// goes to:    the reply

// ReadAt fills p from off. It waits for a group of changes that is being applied
// to the same stripes, and for the disk.
func (im *Image) ReadAt(p []byte, off int64) error {
	s := stripesOf(off, int64(len(p)))
	im.locks.rlock(s)
	defer im.locks.runlock(s)
	if err := im.readable("read", off, int64(len(p))); err != nil {
		return err
	}
	if err := im.disk.readAt(p, off); err != nil {
		return im.wrap("read", record.Extent{Lo: off, Hi: off + int64(len(p))}, err)
	}
	return nil
}

// ReadUnlessHole is ReadAt, but where the whole extent is a hole it says so and leaves
// p as it is.
func (im *Image) ReadUnlessHole(p []byte, off int64) (hole bool, err error) {
	return im.readPiece("read", p, off)
}

// ReadNow is ReadAt for callers that must not wait: false if a lock or the disk
// would have to be waited for; then p holds nothing of use, and ReadAt must be
// called where waiting is allowed. Files by path only; else it is always false.
func (im *Image) ReadNow(p []byte, off int64) (bool, error) {
	if len(p) > readNowMax {
		return false, nil
	}
	s := stripesOf(off, int64(len(p)))
	if !im.locks.tryRLock(s) {
		return false, nil
	}
	defer im.locks.runlock(s)
	if err := im.readable("read", off, int64(len(p))); err != nil {
		return false, err
	}
	ok, err := im.disk.readNow(p, off)
	if err != nil {
		return false, im.wrap("read", record.Extent{Lo: off, Hi: off + int64(len(p))}, err)
	}
	return ok, nil
}

// readable is asked under the stripes: before, Close could come between.
func (im *Image) readable(op string, off, n int64) error {
	if h := im.halt.Load(); h != nil {
		return h.err
	}
	return im.check(op, off, n)
}
