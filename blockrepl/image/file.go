package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// file is a regular file or a block device as a disk. It uses the descriptor
// itself: Image sees to it that nothing runs at Close.
type file struct {
	f      *os.File
	fd     int
	device bool
	size   int64 // of the volume; for segment and zero
	block  int64 // of a device: what zero-out must be aligned to; else 1

	keeps atomic.Bool // zero takes no block from the file

	// What the kernel said it cannot do here is not asked again.
	punches  bool // asked once, when it is opened
	noNowait atomic.Bool
	noPunch  bool
	noZero   bool
	noSeek   atomic.Bool
}

func (d *file) readAt(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := ignoringEINTR(func() (int, error) { return unix.Pread(d.fd, p, off) })
		if err != nil {
			return err
		}
		if n == 0 {
			// Only if someone cut the file meanwhile, against the lock.
			return io.ErrUnexpectedEOF
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// readNow asks with RWF_NOWAIT, which reads what is in the page cache. A raw
// system call: as it does not wait, the scheduler need not be told.
func (d *file) readNow(p []byte, off int64) (bool, error) {
	if len(p) == 0 {
		return true, nil
	}
	if d.noNowait.Load() {
		return false, nil
	}
	iov := unix.Iovec{Base: unsafe.SliceData(p)}
	iov.SetLen(len(p))
	n, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(d.fd), uintptr(unsafe.Pointer(&iov)), 1,
		uintptr(off), 0, unix.RWF_NOWAIT)
	switch errno {
	case 0:
		return int(n) == len(p), nil
	case unix.EAGAIN, unix.EINTR:
		return false, nil
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL:
		d.noNowait.Store(true)
	}
	// Any other error is told by the read that waits.
	return false, nil
}

// writev writes at most writeMax bytes a call: see there.
func (d *file) writev(bufs [][]byte, off int64) error {
	for len(bufs) > 0 {
		n := upTo(bufs, writeMax)
		if n <= 1 {
			if err := d.write(bufs[0], off); err != nil {
				return err
			}
			off += int64(len(bufs[0]))
			bufs = bufs[1:]
			continue
		}
		done, err := ignoringEINTR(func() (int, error) { return unix.Pwritev(d.fd, bufs[:n], off) })
		if err != nil {
			return err
		}
		if done == 0 {
			return io.ErrShortWrite
		}
		off += int64(done)
		for done > 0 && done >= len(bufs[0]) {
			done -= len(bufs[0])
			bufs = bufs[1:]
		}
		if done > 0 { // stopped within a buffer, as at the end of the space
			if err := d.write(bufs[0][done:], off); err != nil {
				return err
			}
			off += int64(len(bufs[0]) - done)
			bufs = bufs[1:]
		}
	}
	return nil
}

// upTo is how many of the slices have at most limit bytes together, and go into
// one call.
func upTo(bufs [][]byte, limit int) int {
	n := 0
	for n < min(len(bufs), iovMax) && len(bufs[n]) <= limit {
		limit -= len(bufs[n])
		n++
	}
	return n
}

func (d *file) write(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := ignoringEINTR(func() (int, error) { return unix.Pwrite(d.fd, p[:min(len(p), writeMax)], off) })
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrShortWrite
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// segment asks by SEEK_DATA and SEEK_HOLE. A device, and a file system that knows
// no holes, is data.
func (d *file) segment(off, end int64) (int64, bool, error) {
	if d.device || d.noSeek.Load() {
		return end, false, nil
	}
	data, err := unix.Seek(d.fd, off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // no data up to the end of the file
		return end, true, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		d.noSeek.Store(true)
		return end, false, nil
	case err != nil:
		return 0, false, fmt.Errorf("seek data: %w", err)
	case data > off:
		return min(data, end), true, nil
	}
	hole, err := unix.Seek(d.fd, off, unix.SEEK_HOLE)
	if err != nil {
		return 0, false, fmt.Errorf("seek hole: %w", err)
	}
	return min(max(hole, off+1), end), false, nil
}

// prepare zeroes what the volume left behind its end on a device when it shrank, or
// what the device held before it grew: it is not the volume's.
func (d *file) prepare(size int64, progress func(done, total int64)) (wrote bool, err error) {
	if !d.device {
		return false, nil
	}
	if err := d.deviceHolds(size); err != nil || size <= d.size {
		return false, err
	}
	for done, total := int64(0), size-d.size; done < total; {
		if progress != nil {
			progress(done, total)
		}
		step := min(total-done, zeroStep)
		if err := d.zero(d.size+done, step, true); err != nil {
			return true, err
		}
		done += step
	}
	return true, nil
}

func (d *file) resize(size int64) error {
	if d.device {
		d.size = size
		return nil
	}
	if size > d.size { // a file may be longer than its volume
		if err := d.truncate(d.size); err != nil {
			return err
		}
	}
	if err := d.truncate(size); err != nil {
		return err
	}
	d.size = size
	return nil
}

func (d *file) deviceHolds(size int64) error {
	have, err := deviceSize(d.fd)
	if err != nil {
		return err
	}
	if size > have {
		return fmt.Errorf("%w: the device has %d bytes, %d are wanted; enlarge it first", ErrSize, have, size)
	}
	return nil
}

// holds makes a file longer for a moment: nothing else knows the file system's
// largest file. If the host dies meanwhile it stays longer than its volume, as it may.
func (d *file) holds(size int64) (missing int64, err error) {
	if d.device {
		return 0, d.deviceHolds(size)
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return 0, fmt.Errorf("stat: %w", err)
	}
	if size > st.Size {
		err := d.truncate(size)
		if errors.Is(err, unix.EFBIG) {
			return 0, fmt.Errorf("%w: its file system has no files of %d bytes", ErrSize, size)
		}
		if err = errors.Join(err, d.truncate(st.Size)); err != nil {
			return 0, err
		}
	}
	u, err := d.usage()
	if err != nil {
		return 0, err
	}
	return max(0, u.Missing(size)), nil
}

func (d *file) truncate(size int64) error {
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.Ftruncate(d.fd, size) })
	return err
}

func (d *file) sync() error {
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.Fdatasync(d.fd) })
	return err
}

func (d *file) usage() (Usage, error) {
	if d.device {
		return Usage{Allocated: d.size}, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return Usage{}, fmt.Errorf("stat: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(d.fd, &fs); err != nil {
		return Usage{}, fmt.Errorf("statfs: %w", err)
	}
	return Usage{Allocated: st.Blocks * 512, Free: int64(fs.Bavail) * int64(fs.Bsize)}, nil
}

func (d *file) close() error { return d.f.Close() }

// ignoringEINTR calls again what a signal interrupted: the runtime sends itself some.
func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != syscall.EINTR {
			return n, err
		}
	}
}
