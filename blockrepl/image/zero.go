package image

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blockrepl/blockrepl/journal/mutant"
)

// zero makes n bytes at off read as zeroes, by the cheapest way that the kernel
// knows here:
//
//	file, keep     ZERO_RANGE, else PUNCH_HOLE, else written
//	file, hole     PUNCH_HOLE, else written
//	device, keep   zero-out without unmap, else written
//	device, hole   zero-out with unmap, else without, else written
//	file, keeps    ZERO_RANGE, else written
//
// Each of them defines what is read afterwards; a device's discard alone does not
// and is not used. Few bytes that stay allocated are written: that costs less.
func (d *file) zero(off, n int64, hole bool) error {
	if n <= 0 {
		return nil
	}
	keeps := !d.device && d.keeps.Load()
	if n < zeroByWriting && (!hole || keeps) {
		return d.writeZeroes(off, n)
	}
	if d.device {
		return d.zeroDevice(off, n, hole)
	}
	if keeps {
		return d.zeroKeeping(off, n)
	}
	if !hole && !d.noZero {
		err := d.fallocate(unix.FALLOC_FL_ZERO_RANGE, off, n)
		// Zeroes that do not fit as allocated blocks fit as a hole.
		if err == nil || !unsupported(err) && !isNoSpace(err) {
			return err
		}
		d.noZero = unsupported(err)
	}
	if !d.noPunch {
		err := d.fallocate(unix.FALLOC_FL_PUNCH_HOLE, off, n)
		if err == nil || !unsupported(err) {
			return err
		}
		d.noPunch = true
	}
	return d.writeZeroes(off, n)
}

// zeroKeeping never punches: zeroes that the file system has no room to note are
// written, for which the blocks are there.
func (d *file) zeroKeeping(off, n int64) error {
	if !d.noZero {
		err := d.fallocate(unix.FALLOC_FL_ZERO_RANGE, off, n)
		if err == nil || !unsupported(err) && !isNoSpace(err) {
			return err
		}
		d.noZero = unsupported(err)
	}
	return d.writeZeroes(off, n)
}

// zeroDevice leaves the parts of blocks at both ends, which zero-out does not
// take, to writing.
func (d *file) zeroDevice(off, n int64, hole bool) error {
	lo := (off + d.block - 1) / d.block * d.block
	hi := (off + n) / d.block * d.block
	if lo >= hi {
		return d.writeZeroes(off, n)
	}
	if err := d.writeZeroes(off, lo-off); err != nil {
		return err
	}
	if err := d.writeZeroes(hi, off+n-hi); err != nil {
		return err
	}
	for lo < hi {
		step := min(hi-lo, zeroStep)
		if err := d.zeroOut(lo, step, hole); err != nil {
			return err
		}
		lo += step
	}
	return nil
}

func (d *file) zeroOut(off, n int64, hole bool) error {
	if hole && !d.noPunch {
		err := d.fallocate(unix.FALLOC_FL_PUNCH_HOLE, off, n)
		if err == nil || !unsupported(err) {
			return err
		}
		d.noPunch = true
	}
	if !d.noZero {
		err := d.blkZeroOut(off, n)
		if err == nil || !unsupported(err) {
			return err
		}
		d.noZero = true
	}
	return d.writeZeroes(off, n)
}

func (d *file) blkZeroOut(off, n int64) error {
	extent := [2]uint64{uint64(off), uint64(n)}
	_, err := ignoringEINTR(func() (int, error) {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&extent)))
		if errno != 0 {
			return 0, errno
		}
		return 0, nil
	})
	return err
}

func (d *file) fallocate(mode uint32, off, n int64) error {
	_, err := ignoringEINTR(func() (int, error) {
		return 0, unix.Fallocate(d.fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	return err
}

func (d *file) writeZeroes(off, n int64) error {
	for n > 0 {
		if n < zeroBuffer && mutant.Is("write zeroes in whole pieces only") {
			return nil
		}
		z := zeroes[:min(n, zeroBuffer)]
		if err := d.write(z, off); err != nil {
			return err
		}
		off += int64(len(z))
		n -= int64(len(z))
	}
	return nil
}

func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) ||
		errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV)
}

// FastZero reports whether zeroes of any length take a moment here: the file
// system can punch holes. A device's zero-out may be as slow as writing.
func (im *Image) FastZero() bool {
	d, ok := im.disk.(*file)
	return ok && d.punches
}

// probe asks behind the file's end, where a hole changes nothing; the file may be
// longer than the volume.
func (d *file) probe() {
	st, err := d.f.Stat()
	d.punches = err == nil && !d.device && d.fallocate(unix.FALLOC_FL_PUNCH_HOLE, max(st.Size(), d.size), 4096) == nil
}
