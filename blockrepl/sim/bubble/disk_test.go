package bubble

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/blockrepl/image"
)

// dataDir is every server's data directory; each has a file system of its own.
const (
	dataDir   = "/data"
	imagePath = dataDir + "/images/vol0.img"
)

// disk is a machine's file system as one process sees it: journal, image, marks
// and identity together, so that one cut of the power cuts all of them.
type disk struct {
	mem  *vfs.MemFS
	fs   vfs.FS
	free atomic.Int64 // bytes; what statfs says
	slow atomic.Int64 // nanoseconds up to which an fsync of log and marks takes
	hung atomic.Int64 // until when none of them ends, in nanoseconds since 1970

	mu     sync.Mutex
	rng    *rand.Rand
	calls  map[string]int // changing calls so far, by place
	faults []*fault
}

// roomy is how much is free on a disk that is not full, in bytes.
const roomy = 1 << 40

// fault happens at a changing call of a place: "journal", "images" or "other".
type fault struct {
	place string
	kinds []errorfs.OpKind // nil: any that changes something
	after int              // calls of these kinds that still go well
	times int              // then so many fail; 0: one
	err   error
	do    func() // instead of an error: runs before the call
	hits  int
}

func newDisk(mem *vfs.MemFS, seed, boot uint64) *disk {
	d := &disk{mem: mem, rng: rand.New(rand.NewPCG(seed, 'd'<<32|boot)), calls: map[string]int{}}
	d.free.Store(roomy)
	d.fs = errorfs.Wrap(mem, errorfs.InjectorFunc(d.inject))
	return d
}

func placeOf(name string) string {
	switch {
	case strings.HasPrefix(name, dataDir+"/journal"):
		return "journal"
	case strings.HasPrefix(name, dataDir+"/images"):
		return "images"
	}
	return "other"
}

func (d *disk) arm(f *fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = append(d.faults, f)
}

func (d *disk) disarm() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = nil
}

func (d *disk) hits(f *fault) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return f.hits
}

var syncs = []errorfs.OpKind{errorfs.OpFileSync, errorfs.OpFileSyncData}

func isSync(k errorfs.OpKind) bool { return k == errorfs.OpFileSync || k == errorfs.OpFileSyncData }

// inject is asked before every call.
func (d *disk) inject(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() == errorfs.OpIsRead || op.Kind == errorfs.OpFileClose || op.Kind == errorfs.OpFilePreallocate {
		return nil
	}
	place := placeOf(op.Path)
	d.mu.Lock()
	d.calls[place]++
	var err error
	var do func()
	for _, f := range d.faults {
		if f.place != place || f.kinds != nil && !contains(f.kinds, op.Kind) {
			continue
		}
		if f.after > 0 {
			f.after--
			continue
		}
		if f.hits >= max(1, f.times) {
			continue
		}
		f.hits++
		if f.do != nil {
			do = f.do
		} else {
			err = fmt.Errorf("injected at %s: %w", op.Path, f.err)
		}
		break
	}
	var wait time.Duration
	slow, hung := d.slow.Load(), time.Until(time.Unix(0, d.hung.Load()))
	if (slow > 0 || hung > 0) && isSync(op.Kind) && mayWait(op.Path) && !closingWAL() {
		wait = max(0, hung)
		if slow > 0 {
			wait += time.Duration(d.rng.Int64N(slow))
		}
	}
	d.mu.Unlock()
	if do != nil {
		do()
	}
	if wait > 0 {
		time.Sleep(wait)
	}
	return err
}

// closingWAL reports whether pebble ends a WAL, which it does under the mutex that each
// write needs. Whoever waits for a mutex is not at rest for a bubble, so that its time
// would stand still, and the sleep under the mutex would never end.
func closingWAL() bool {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "record.(*LogWriter).closeInternal") {
			return true
		}
		if !more {
			return false
		}
	}
}

// mayWait: no mutex that others need is held over these fsyncs, but for the last of a WAL.
func mayWait(name string) bool { return strings.HasSuffix(name, ".log") || path.Base(name) == "marks" }

func contains(kinds []errorfs.OpKind, k errorfs.OpKind) bool {
	for _, x := range kinds {
		if x == k {
			return true
		}
	}
	return false
}

// cut is what a crash leaves: keep percent of what was not synced.
func (d *disk) cut(keep int, rng *rand.Rand) *vfs.MemFS {
	return d.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: rng})
}

// smallFiles is blockrepl.Files on a disk.
type smallFiles struct{ d *disk }

func (s smallFiles) MkdirAll(dir string) error {
	if _, err := s.d.fs.Stat(dir); err == nil {
		return nil
	}
	parent := path.Dir(dir)
	if parent != dir {
		if err := s.MkdirAll(parent); err != nil {
			return err
		}
	}
	if err := s.d.fs.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	return s.SyncDir(parent)
}

func (s smallFiles) Lock(name string) (io.Closer, error) {
	c, err := s.d.fs.Lock(name)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w: %w", name, blockrepl.ErrInUse, err)
	}
	return c, nil
}

func (s smallFiles) Create(name string) (blockrepl.File, error) {
	return s.d.fs.Create(name, vfs.WriteCategoryUnspecified)
}

func (s smallFiles) Open(name string) (blockrepl.File, error) {
	if _, err := s.d.fs.Stat(name); err != nil {
		return nil, err
	}
	return s.d.fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
}

func (s smallFiles) Rename(from, to string) error { return s.d.fs.Rename(from, to) }

func (s smallFiles) SyncDir(dir string) error {
	f, err := s.d.fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (s smallFiles) Free(string) (int64, error) { return s.d.free.Load(), nil }

// openImage is image.Open on a disk.
func (d *disk) openImage(o image.Options) (*image.Image, error) {
	o.SyncDir = smallFiles{d}.SyncDir
	o.OpenFile = func() (image.File, error) { return d.fs.OpenReadWrite(o.Path, vfs.WriteCategoryUnspecified) }
	return image.Open(o)
}

// contents reads a whole file of a file system in memory.
func contents(mem *vfs.MemFS, name string) ([]byte, error) {
	f, err := mem.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}
