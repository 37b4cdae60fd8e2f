package image

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
)

// File is what an image may be made of, besides files and devices by path. What
// lies behind its end reads as zeroes. pebble's vfs.File satisfies it, so that one
// simulated power cut takes journal and image together. If it also has a method
// SyncData() error, that is called instead of Sync.
//
// ReadAt, and Sync, may be called beside WriteAt. In a synctest bubble a File must
// not wait for time or events: its callers hold locks, which synctest does not
// count as waiting. Delays belong around the Image.
type File interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Close() error
}

// Image is an open image. Apply, Resize and ZeroAll are one caller's; everything
// else may run at once with them and with itself.
type Image struct {
	path    string
	disk    disk
	created bool
	blank   bool

	locks stripeLocks
	size  atomic.Int64 // changes under all stripes

	// halt is why nothing is read any more: failed, torn or closed; nil: all is
	// well. Read under any stripe, so that nothing touches disk after Close.
	halt atomic.Pointer[halt]

	// changing guards what follows, and is held through Apply, Resize and ZeroAll.
	changing sync.Mutex
	plan     plan
	torn     torn

	// syncing is held through Sync, so that Close does not take the file away from it.
	syncing sync.Mutex
}

// halt is why an image answers no more.
type halt struct {
	err   error
	final bool // false: until the torn changes are applied again
}

// torn remembers a group that stopped halfway for lack of space.
type torn struct {
	first Change // Data not kept; Len 0: the caller is beyond it
	left  int    // changes to be applied again before reads are let in; 0: not torn
}

// disk is what lies below: a file, a device, or a File. Extents are within size.
// Every method does all or gives an error.
type disk interface {
	readAt(p []byte, off int64) error
	// readNow is readAt without waiting for a device; false: it would have to.
	readNow(p []byte, off int64) (bool, error)
	// writev writes bufs one behind the other.
	writev(bufs [][]byte, off int64) error
	// zero makes the extent read as zeroes; with hole it may be deallocated.
	zero(off, n int64, hole bool) error
	// segment gives the run of data, or of known zeroes, that begins at off:
	// its end, at most end, and whether it is a hole.
	segment(off, end int64) (to int64, hole bool, err error)
	// prepare does for a resize what is long: it zeroes bytes behind the present size,
	// which nobody reads, beside reads and syncs, in steps of which progress hears.
	// wrote: a sync must come before resize.
	prepare(size int64, progress func(done, total int64)) (wrote bool, err error)
	resize(size int64) error
	// holds is resize without doing it; and how many bytes the file system lacks to
	// take all of it, where that is known.
	holds(size int64) (missing int64, err error)
	sync() error
	usage() (Usage, error)
	room() (Room, error)
	// keepBlocks says whether zero leaves allocated whatever is, hole or not.
	keepBlocks(keep bool)
	close() error
}

// Path is where the image lies.
func (im *Image) Path() string { return im.path }

// Size is the volume's size in bytes.
func (im *Image) Size() int64 { return im.size.Load() }

// Device reports whether the image is a block device.
func (im *Image) Device() bool {
	d, ok := im.disk.(*file)
	return ok && d.device
}

// Created reports whether Open made the file.
func (im *Image) Created() bool { return im.created }

// Blank reports whether Open knew the whole content to be zero: a file without
// data. A device never is: see ZeroAll and IsZero.
func (im *Image) Blank() bool { return im.blank }

// Usage is the space an image takes.
type Usage struct {
	Allocated int64 // bytes; all of them for a device, or where it is not known
	Free      int64 // bytes left in the file system below; 0 for a device
}

// Missing is how many bytes the file system lacks to take the whole volume:
// positive means that writes may come to ErrNoSpace.
func (u Usage) Missing(size int64) int64 { return size - u.Allocated - u.Free }

// Usage asks how much space the image takes, and how much is left for it.
func (im *Image) Usage() (Usage, error) {
	im.locks.rlock(1)
	defer im.locks.runlock(1)
	if h := im.halt.Load(); h != nil {
		return Usage{}, h.err
	}
	u, err := im.disk.usage()
	if err != nil {
		return Usage{}, im.wrap("examine", record.Extent{}, err)
	}
	return u, nil
}

// Sync makes everything applied before the call durable. A failure is final: what
// the kernel says after one is not believed.
func (im *Image) Sync() error {
	im.syncing.Lock()
	defer im.syncing.Unlock()
	if h := im.halt.Load(); h != nil && h.final {
		return h.err
	}
	if err := im.disk.sync(); err != nil && !mutant.Is("call a failed fsync of the image done") {
		return im.fail("sync", record.Extent{}, err)
	}
	return nil
}

// DropCache lets what comes be read from the disk, where the kernel does not hold changes
// that are not written out yet: a rotten sector hides below its page.
func (im *Image) DropCache() {
	im.syncing.Lock()
	defer im.syncing.Unlock()
	if h := im.halt.Load(); h != nil && h.final {
		return
	}
	if d, ok := im.disk.(*file); ok {
		dropCache(d.fd)
	}
}

// Resize changes the volume's size. New bytes read as zeroes. ErrSize where a
// device has not that many. It is durable with the next Sync; the zeroes of a device
// are before the size is seen, and reads go on while they are written. progress, which
// may be nil, hears how many of them are, in bytes; never where there is nothing to zero.
func (im *Image) Resize(size int64, progress func(done, total int64)) error {
	if size <= 0 || size > record.MaxSize || size%sector != 0 {
		return im.wrap("resize", record.Extent{}, fmt.Errorf("%w: %d bytes: must be a multiple of %d, from %d to %d",
			ErrRange, size, sector, sector, int64(record.MaxSize)))
	}
	im.changing.Lock()
	defer im.changing.Unlock()
	if h := im.halt.Load(); h != nil {
		return h.err
	}
	old := im.size.Load()
	wrote, err := im.disk.prepare(size, progress)
	if wrote && err == nil {
		// After a power cut the journal may know the new size, and a redo sees nothing
		// to zero then.
		if err := im.Sync(); err != nil {
			return err
		}
	}
	if err == nil {
		im.locks.lock(^stripeSet(0))
		defer im.locks.unlock(^stripeSet(0))
		if h := im.halt.Load(); h != nil { // a Sync failed meanwhile
			return h.err
		}
		// A shrunk file may be longer than the volume: what lies between is of no
		// use to anyone, and must be gone before it is the volume's again.
		err = im.disk.resize(size)
	}
	x := record.Extent{Lo: old, Hi: max(old, size)}
	switch {
	case err == nil:
		im.size.Store(size)
		return nil
	case isNoSpace(err), errors.Is(err, ErrSize):
		return im.wrap("resize", x, err)
	}
	return im.fail("resize", x, err)
}

// Holds is Resize without doing it: ErrSize where neither device nor file system can
// have that many bytes. A sparse file may have more than fit: missing of them.
func (im *Image) Holds(size int64) (missing int64, err error) {
	im.changing.Lock()
	defer im.changing.Unlock()
	im.locks.lock(^stripeSet(0))
	defer im.locks.unlock(^stripeSet(0))
	if h := im.halt.Load(); h != nil {
		return 0, h.err
	}
	missing, err = im.disk.holds(size)
	if err != nil {
		return 0, im.wrap("resize", record.Extent{}, err)
	}
	return missing, nil
}

// Close waits for what runs, then closes. Later calls get ErrClosed. It does not sync.
func (im *Image) Close() error {
	im.changing.Lock()
	defer im.changing.Unlock()
	im.syncing.Lock()
	defer im.syncing.Unlock()
	im.locks.lock(^stripeSet(0))
	defer im.locks.unlock(^stripeSet(0))
	if h := im.halt.Load(); h != nil && errors.Is(h.err, ErrClosed) {
		return nil
	}
	im.halt.Store(&halt{err: im.wrap("use", record.Extent{}, ErrClosed), final: true})
	if err := im.disk.close(); err != nil {
		return im.wrap("close", record.Extent{}, err)
	}
	return nil
}

func (im *Image) wrap(op string, x record.Extent, err error) error {
	return &Error{Op: op, Path: im.path, Extent: x, Err: err}
}

// fail ends the image's life: nothing is read, written or synced after it.
func (im *Image) fail(op string, x record.Extent, err error) error {
	err = im.wrap(op, x, fmt.Errorf("%w: %w; restart the server once the disk is well", ErrFailed, err))
	im.halt.Store(&halt{err: err, final: true})
	return err
}

// check gives ErrRange unless the n bytes at off are within the volume.
func (im *Image) check(op string, off, n int64) error {
	if size := im.size.Load(); off < 0 || n < 0 || off > size || n > size-off {
		return im.wrap(op, record.Extent{Lo: off, Hi: off + n}, fmt.Errorf("%w of %d bytes", ErrRange, size))
	}
	return nil
}
