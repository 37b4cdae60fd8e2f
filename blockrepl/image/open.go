package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Options say which image to open.
type Options struct {
	// Path of a regular file or block device; with OpenFile, only a name.
	Path string
	// Size of the volume in bytes, a multiple of 512. Zero takes that of the file
	// or device.
	Size int64
	// Create makes the file, sparse, where nothing is at Path, or an empty file,
	// as a crash of Create leaves it; where MayCreate has no objection.
	Create bool
	// OnCreate, when set, is called before Create makes a file, or takes the empty one
	// that is there; its error is Open's.
	OnCreate func(empty bool) error
	// Grow allows a file shorter than Size, after a crash between a resize and the
	// next Sync; else that is ErrSize, as the missing end is somebody's data.
	Grow bool
	// OpenFile, when set, gives the File instead of opening Path. Size is
	// required then, and locks and holes are its business.
	OpenFile func() (File, error)
	// SyncDir, when set, makes the names in a directory durable for OpenFile, whose
	// empty file is taken for a new one. Without it nothing is synced.
	SyncDir func(dir string) error
}

// Open opens an image for this process alone. ErrInUse names who has it; ErrSize
// where it is too small; fs.ErrNotExist without Create. Nothing is written before
// all checks have passed.
func Open(o Options) (*Image, error) {
	im := &Image{path: o.Path}
	if o.Size < 0 || o.Size > record.MaxSize || o.Size%sector != 0 || o.Size == 0 && (o.Create || o.OpenFile != nil) {
		return nil, im.wrap("open", record.Extent{}, fmt.Errorf("%w: size %d: must be a multiple of %d, from %d to %d",
			ErrRange, o.Size, sector, sector, int64(record.MaxSize)))
	}
	var err error
	if o.OpenFile != nil {
		err = im.openFile(&o)
	} else {
		err = im.openPath(&o)
	}
	if err != nil {
		return nil, im.wrap("open", record.Extent{}, err)
	}
	return im, nil
}

func (im *Image) openFile(o *Options) error {
	f, err := o.OpenFile()
	if err != nil {
		return err
	}
	d, err := openPlain(f, o.Size)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	im.disk, im.blank = d, d.end == 0
	if im.blank && o.SyncDir != nil {
		if err := o.durable(f, o.SyncDir); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	im.size.Store(o.Size)
	return nil
}

func (im *Image) openPath(o *Options) error {
	st, err := os.Stat(o.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && o.Create:
		return im.createFile(o)
	case err != nil:
		return err
	case st.Mode().IsRegular():
		return im.openRegular(o)
	case st.Mode()&fs.ModeDevice != 0 && st.Mode()&fs.ModeCharDevice == 0:
		return im.openDevice(o)
	}
	return fmt.Errorf("is a %s: must be a regular file or a block device", st.Mode().Type())
}

// MayCreate says why no file may be made at path, nil when it may: what lies among the
// devices is the host's memory, and gone with the next boot. The name is that of a
// device that is not there. /dev/shm is another file system.
func MayCreate(path string) error {
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return err
	}
	if to, err := os.Readlink(path); err == nil { // to nothing: through a loop nothing is missing
		if !filepath.IsAbs(to) {
			to = filepath.Join(dir, to)
		}
		return MayCreate(to)
	}
	for { // a missing directory may be one of a device mapper's
		real, err := filepath.EvalSymlinks(dir)
		if err == nil {
			dir = real
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return nil // whoever makes the file will say what is wrong
		}
		dir = filepath.Dir(dir)
	}
	var dev, at unix.Stat_t
	if dir != "/dev" && !strings.HasPrefix(dir, "/dev/") || unix.Stat("/dev", &dev) != nil || unix.Stat(dir, &at) != nil || dev.Dev != at.Dev {
		return nil
	}
	return fmt.Errorf("%w: no device %s, and no file is made below /dev, where the next boot would lose it: attach or activate the device, or correct the name", fs.ErrNotExist, path)
}

// Fits is ErrSize where the file or device at path has not the bytes of a volume of size
// bytes. It opens nothing for writing. With Options.Grow, and where it is missing or empty,
// Open makes a file that long.
func Fits(path string, size int64, grow bool) error {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().IsRegular() {
		if have := st.Size(); have > 0 && have < size && !grow {
			return tooSmall("file", have, size)
		}
		return nil
	}
	if st.Mode()&fs.ModeDevice == 0 || st.Mode()&fs.ModeCharDevice != 0 {
		return nil // Open says what it is; a FIFO's open would wait for a writer
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	have, err := deviceSize(int(f.Fd()))
	if err == nil && have < size {
		err = tooSmall("device", have, size)
	}
	return err
}

func tooSmall(what string, have, size int64) error {
	return fmt.Errorf("%w: the %s has %d bytes, the volume %d", ErrSize, what, have, size)
}

// createFile makes the file under its lock and removes it if that fails halfway.
func (im *Image) createFile(o *Options) (err error) {
	if err := o.onCreate(false); err != nil {
		return err
	}
	f, err := os.OpenFile(o.Path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	locked := false
	defer func() {
		if err == nil {
			return
		}
		if locked { // else it is another's by now
			err = errors.Join(err, os.Remove(o.Path))
		}
		err = errors.Join(err, f.Close())
	}()
	if err := lockFile(f, o.Path); err != nil {
		return err
	}
	locked = true
	return im.useNew(f, o)
}

func (o *Options) onCreate(empty bool) error {
	if err := MayCreate(o.Path); err != nil || o.OnCreate == nil {
		return err
	}
	return o.OnCreate(empty)
}

// useNew gives an empty file its size, durably, and uses it.
func (im *Image) useNew(f *os.File, o *Options) error {
	if err := f.Truncate(o.Size); err != nil {
		return fmt.Errorf("make it %d bytes long: %w", o.Size, err)
	}
	if err := o.durable(f, syncDir); err != nil {
		return err
	}
	im.use(&file{f: f, fd: int(f.Fd()), size: o.Size, block: 1})
	im.created, im.blank = true, true
	return nil
}

// durable makes a file that is new, and its name, outlive a power cut.
func (o *Options) durable(f interface{ Sync() error }, syncDir func(dir string) error) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if mutant.Is("forget the directory of a new image") {
		return nil
	}
	return syncDir(filepath.Dir(o.Path))
}

func (im *Image) openRegular(o *Options) (err error) {
	f, err := os.OpenFile(o.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := lockFile(f, o.Path); err != nil {
		return err
	}
	st, err := f.Stat() // after the lock: before, another may have cut it
	if err != nil {
		return err
	}
	if st.Size() == 0 && o.Create {
		if err := o.onCreate(true); err != nil {
			return err
		}
		return im.useNew(f, o)
	}
	d := &file{f: f, fd: int(f.Fd()), size: o.Size, block: 1}
	if o.Size == 0 {
		d.size = st.Size() / sector * sector
	}
	switch {
	case d.size == 0:
		return fmt.Errorf("%w: the file is empty; name a size", ErrSize)
	case st.Size() >= d.size:
	case !o.Grow:
		return tooSmall("file", st.Size(), d.size)
	default:
		if err := d.truncate(d.size); err != nil {
			return fmt.Errorf("make it %d bytes long: %w", d.size, err)
		}
	}
	to, hole, err := d.segment(0, d.size)
	if err != nil {
		return err
	}
	im.use(d)
	im.blank = hole && to == d.size
	return nil
}

// openDevice claims the device: O_EXCL fails while it is mounted, part of another
// device, or claimed by somebody else.
func (im *Image) openDevice(o *Options) (err error) {
	f, err := os.OpenFile(o.Path, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w by %s", ErrInUse, deviceHolder(o.Path))
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	fd := int(f.Fd())
	have, err := deviceSize(fd)
	if err != nil {
		return err
	}
	block, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("ask for the device's block size: %w", err)
	}
	d := &file{f: f, fd: fd, device: true, size: o.Size, block: int64(max(block, sector))}
	if o.Size == 0 {
		d.size = have / sector * sector
	}
	if have < d.size || d.size == 0 {
		return tooSmall("device", have, d.size)
	}
	im.use(d)
	return nil
}

func (im *Image) use(d *file) {
	dropCache(d.fd)
	d.probe()
	im.disk = d
	im.size.Store(d.size)
}

// dropCache lets go of the pages that the kernel takes for clean. Those whose write-out
// failed in the run before are such, and show what never reached the disk: a resync or a
// scan for zeroes that believed them would leave it so (Rebello et al., "Can Applications
// Recover from fsync Failures?", USENIX ATC 2020). Advice: where it is not taken there is
// nothing else to do.
func dropCache(fd int) {
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
}

func deviceSize(fd int) (int64, error) {
	var n uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&n))); errno != 0 {
		return 0, fmt.Errorf("ask for the device's size: %w", errno)
	}
	return int64(min(n, record.MaxSize)), nil
}

// syncDir makes a new file's name durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
