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

// smallFS is a file system of 512 MiB.
func smallFS(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a small file system")
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512m"); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillUp begins to write what compresses well, many writes at once, until the volume is
// full or each was refused.
func (tc *testConn) fillUp(all *sync.WaitGroup, writers int, size int64, refused *atomic.Int64) {
	one := bytes.Repeat([]byte{0xff}, 4<<20)
	next := new(atomic.Int64)
	for range writers {
		all.Go(func() {
			for {
				off := next.Add(int64(len(one))) - int64(len(one))
				if off >= size {
					return
				}
				err := tc.change(OpWrite, off, one, 0)
				if errors.Is(err, syscall.ENOSPC) {
					refused.Add(1)
					return
				}
				if err != nil {
					tc.c.t.Errorf("write at %d MiB, to a file system of 512: %v, want ENOSPC", off>>20, err)
					return
				}
			}
		})
	}
}

// Bug: each of several volumes with images on one file system promised all that was free
// there: together they filled it, and left.
func TestVolumesShareTheFreeSpaceOfAFileSystem(t *testing.T) {
	dir := smallFS(t)
	c := newCluster(t, 1, nil)
	c.change = func(o *Options) {
		for _, name := range []string{"vol1", "vol2", "vol3"} {
			v := c.volume
			v.Name, v.Image = name, filepath.Join(dir, name)
			o.Volumes = append(o.Volumes, v)
		}
	}
	c.volume.Size, c.volume.Image = 2<<30, filepath.Join(dir, "vol0")
	c.start(0)
	var refused atomic.Int64
	var all sync.WaitGroup
	for _, v := range c.servers[0].Volumes() {
		c.connectTo(0, v.name).fillUp(&all, 32, c.volume.Size, &refused)
	}
	all.Wait()
	for _, v := range c.servers[0].Volumes() {
		if st := v.Status(t.Context()); st.State == StateFailed {
			t.Errorf("volume %s failed: %s", v.name, st.Reason)
		}
	}
	if refused.Load() != 4*32 {
		t.Errorf("%d writes were refused, want the last of each of %d writers", refused.Load(), 4*32)
	}
}

// Space was reserved for an image by a record's encoded bytes. Of what compresses well
// far more was committed than the image's file system could take before anybody looked at
// it again: instead of ENOSPC for the client every server left the volume, and none
// came back before there was room.
func TestFullImageRefusesWhatCompressesWell(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.volume.Size, c.volume.Image = 2<<30, filepath.Join(smallFS(t), "vol0")
	c.start(0)
	cl := c.connect(0, "client")
	var refused atomic.Int64
	var all sync.WaitGroup
	cl.fillUp(&all, 8, c.volume.Size, &refused)
	all.Wait()
	if st := c.status(0); st.State == StateFailed || refused.Load() == 0 {
		t.Errorf("the volume is %s, %d writes were refused: %s", st.State, refused.Load(), st.Reason)
	}
	c.kill(0)
	s, err := NewServer(c.options(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.servers[0] = s
	st := c.await(0, "all applied, or failed", func(s VolumeStatus) bool { return s.Applied == s.Last && s.Last > 0 || s.State == StateFailed })
	if st.State == StateFailed {
		t.Errorf("after a restart the volume is %s: %s", st.State, st.Reason)
	}
	cl = c.connectAs(0, ClientInfo{Identity: "client", Takeover: true})
	cl.wantRead(0, bytes.Repeat([]byte{0xff}, 4<<20))
}
