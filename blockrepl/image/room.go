package image

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// comes from: stat and statfs of the image's file
// does:       says what the image may still ask of its file system
// goes to:    the space watch, which refuses clients before the disk is full

// Room is what an image may still take from its file system.
type Room struct {
	// Left is what is not allocated yet, in bytes; 0 for a device. It follows the
	// file: TRIM that punches makes it grow again.
	Left int64
	// Spare is what writes to allocated blocks may take all the same, in bytes.
	Spare int64
	// FileSystem is equal for images that take from the same one.
	FileSystem uint64
}

// Room asks without waiting; false: something is being applied, or the image answers
// no more.
func (im *Image) Room() (Room, bool) {
	if !im.locks.tryRLock(1) {
		return Room{}, false
	}
	defer im.locks.runlock(1)
	if im.halt.Load() != nil {
		return Room{}, false
	}
	r, err := im.disk.room()
	return r, err == nil
}

// KeepBlocks says, until it says otherwise, whether zeroes and trims leave allocated
// what is. It has no effect on a device.
func (im *Image) KeepBlocks(keep bool) { im.disk.keepBlocks(keep) }

func (d *file) keepBlocks(keep bool) { d.keeps.Store(keep) }

func (d *file) room() (Room, error) {
	if d.device {
		return Room{}, nil // what lies below a thin one is not known here
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return Room{}, fmt.Errorf("stat: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(d.fd, &fs); err != nil {
		return Room{}, fmt.Errorf("statfs: %w", err)
	}
	return roomOf(d.size, &st, &fs), nil
}

// RoomOf is Room of a file that is not open, for a volume of size bytes. Where nothing
// can be looked at all of it is left.
func RoomOf(path string, size int64) Room {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Stat(path, &st) != nil || unix.Statfs(path, &fs) != nil {
		return Room{Left: size, Spare: unknownSpare}
	}
	return roomOf(size, &st, &fs)
}

func roomOf(size int64, st *unix.Stat_t, fs *unix.Statfs_t) Room {
	return Room{
		// A file longer than its volume may have its blocks behind the volume's end.
		Left:       max(0, max(size, st.Size)-st.Blocks*512),
		Spare:      spareOf(int64(fs.Type)),
		FileSystem: st.Dev,
	}
}

// spareOf tells, by a file system's magic number, whether it overwrites in place. ext4
// and tmpfs do, and ext4 keeps blocks of its own back for the extents of preallocated
// space. xfs does unless the file was cloned (cp --reflink), which cannot be asked
// cheaply: what is on its way to the image must fit. btrfs, zfs, f2fs and bcachefs
// take new blocks for old ones; of all others nothing is known.
func spareOf(magic int64) int64 {
	switch magic {
	case unix.EXT4_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return 0
	case unix.XFS_SUPER_MAGIC:
		return cloneSpare
	}
	return unknownSpare
}
