package blockrepl

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"golang.org/x/sys/unix"
)

// asked is osFiles that notes of which directories the free space is asked.
type asked struct {
	osFiles
	mu   *sync.Mutex
	dirs map[string]bool
}

func (a asked) Free(path string) (int64, error) {
	a.mu.Lock()
	a.dirs[path] = true
	a.mu.Unlock()
	return math.MaxInt64 / 4, nil
}

// An image under a symbolic link was taken to lie on the link's file system: the one
// that fills up was not looked at, and the server left the volume.
func TestFreeSpaceIsThatOfTheImageNotOfALinkToIt(t *testing.T) {
	far := t.TempDir()
	c := newCluster(t, 1, nil)
	a := asked{mu: new(sync.Mutex), dirs: map[string]bool{}}
	c.change = func(o *Options) { o.Files = a }
	link := c.imagePath(0)
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(far, "vol0"), make([]byte, testSize), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(far, "vol0"), link); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.dirs[far] || a.dirs[filepath.Dir(link)] {
		t.Errorf("free space was asked of %v, want %s", a.dirs, far)
	}
}

// scarce is osFiles with little free space.
type scarce struct {
	osFiles
	free *atomic.Int64
}

func (s scarce) Free(string) (int64, error) { return s.free.Load(), nil }

// An image of which every block was allocated was refused each write on a file system
// with less than 256 MiB free, although it asks for none of them.
func TestAllocatedImageNeedsNoReserve(t *testing.T) {
	var free atomic.Int64
	free.Store(1 << 40)
	c := newCluster(t, 1, nil)
	c.change = func(o *Options) { o.Files = scarce{free: &free} }
	path := c.imagePath(0)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, testSize); err != nil {
		t.Skipf("needs a file system that allocates: %v", err)
	}
	f.Close()
	if r := image.RoomOf(path, testSize); r.Left > 0 || r.Spare > 64<<20 {
		t.Skipf("needs a file system that overwrites in place: %+v", r)
	}
	free.Store(100 << 20)
	c.start(0)
	cl := c.connect(0, "client")
	one := bytes.Repeat([]byte("1"), 4096)
	cl.write(0, one)
	// It stays so: what is trimmed must not be had by others before it is written again.
	if err := cl.change(OpTrim, 0, nil, testSize); err != nil {
		t.Fatalf("trim: %v", err)
	}
	c.await(0, "applied", func(s VolumeStatus) bool { return s.Applied == s.Last })
	if r := image.RoomOf(path, testSize); r.Left > 0 {
		t.Errorf("a trim gave %d bytes back", r.Left)
	}
	cl.write(8192, one)
	cl.wantRead(8192, one)
	c.awaitHealthy(0)

	// With space it gives back what is trimmed, and then needs it again.
	free.Store(1 << 40)
	c.await(0, "blocks given back", func(VolumeStatus) bool {
		if err := cl.change(OpTrim, 0, nil, testSize); err != nil {
			t.Fatalf("trim: %v", err)
		}
		return image.RoomOf(path, testSize).Left > 0
	})
	free.Store(replica.SpaceReserve + 1<<20)
	c.await(0, "refused", func(VolumeStatus) bool {
		err := cl.change(OpWrite, 0, one, 0)
		if err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("write: %v", err)
		}
		return err != nil
	})
	// No more is needed than it can take.
	free.Store(replica.SpaceReserve + testSize + 1<<20)
	c.await(0, "taken again", func(VolumeStatus) bool { return cl.change(OpWrite, 0, one, 0) == nil })
}
