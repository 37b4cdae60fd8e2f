package blockrepl

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
)

// gated is an image file whose first write waits.
type gated struct {
	image.File
	once  *sync.Once
	began chan struct{} // closed by the first write
	open  chan struct{} // closed by the test
}

func (f gated) WriteAt(p []byte, off int64) (int, error) {
	f.once.Do(func() {
		close(f.began)
		<-f.open
	})
	return f.File.WriteAt(p, off)
}

// twoWithContent starts a and b whose images hold something; b's is opened by openB
// when that is not nil.
func twoWithContent(t *testing.T, openB func(path string) (image.File, error)) (c *cluster, from string) {
	c = newCluster(t, 2, nil)
	c.change = func(o *Options) {
		if openB == nil || o.ID.String() != "b" {
			return
		}
		o.OpenImage = func(i image.Options) (*image.Image, error) {
			i.OpenFile = func() (image.File, error) { return openB(i.Path) }
			return image.Open(i)
		}
	}
	r := seeded(t)
	from = filepath.Join(t.TempDir(), "disk.img")
	for _, path := range []string{c.imagePath(0), c.imagePath(1), from} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, noise(r, testSize), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.start(0, 1)
	c.awaitLinks(0, 1)
	return c, from
}

// With an init under way on each server the resync from the one that was done first
// wrote to the image that the other one was still filling: what was filled in last
// stayed in an image that counted as in sync.
func TestInitOnEveryServerLeavesOneVolume(t *testing.T) {
	gate := gated{once: new(sync.Once), began: make(chan struct{}), open: make(chan struct{})}
	c, from := twoWithContent(t, func(path string) (image.File, error) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		g := gate
		g.File = f
		return g, err
	})
	open := sync.OnceFunc(func() { close(gate.open) })
	defer open()
	late := make(chan error, 1)
	go func() {
		_, err := handleInit(t.Context(), c.vol(1), strings.NewReader(`{"content":"copy","from":"`+from+`"}`))
		late <- err
	}()
	<-gate.began
	if _, err := handleInit(t.Context(), c.vol(0), strings.NewReader(`{"content":"keep"}`)); err != nil {
		t.Fatal(err)
	}
	c.await(0, "refused by b", func(s VolumeStatus) bool {
		return strings.Contains(s.Reason, "an init is preparing its image")
	})
	if st := c.status(1); st.Resync != nil {
		t.Errorf("b is being resynced while its image is filled: %+v", st.Resync)
	}
	open()
	if err := <-late; !errors.Is(err, replica.ErrRefused) || !strings.Contains(err.Error(), "exists on server a") {
		t.Errorf("init b: %v; want it refused, with the server that has the volume", err)
	}
	c.awaitHealthy(0, 1)
	c.equalImages(0, 1)
}

// A server joins the volume after an init of its own that failed in the middle.
func TestServerJoinsAfterItsInitFailed(t *testing.T) {
	c, from := twoWithContent(t, nil)
	if _, err := handleInit(t.Context(), c.vol(1), strings.NewReader(`{"content":"copy","from":"`+from+`x"}`)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("init b from a missing file: %v", err)
	}
	if _, err := handleInit(t.Context(), c.vol(0), strings.NewReader(`{"content":"keep"}`)); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(0, 1)
	c.equalImages(0, 1)
}

// Before the first checkpoint nobody missed the image: one of zeroes was made in its place,
// believed, and served.
func TestMissingImageAfterInitIsWaitedFor(t *testing.T) {
	c := newCluster(t, 1, nil)
	if err := os.MkdirAll(filepath.Dir(c.imagePath(0)), 0o755); err != nil {
		t.Fatal(err)
	}
	precious := bytes.Repeat([]byte("precious"), testSize/8)
	if err := os.WriteFile(c.imagePath(0), precious, 0o600); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	if _, err := handleInit(t.Context(), c.vol(0), strings.NewReader(`{"content":"keep"}`)); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(0)
	c.kill(0)
	if err := os.Rename(c.imagePath(0), c.imagePath(0)+".away"); err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(c.options(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		c.servers[0] = s
		t.Fatalf("start without the image: %v, want ErrNotExist", err)
	}
	if err := os.Rename(c.imagePath(0)+".away", c.imagePath(0)); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	c.awaitHealthy(0)
	c.connect(0, "client").wantRead(0, precious[:4096])
}

// Nothing was noted of the image before the first write: another one in its place was
// taken for it.
func TestOtherImageAfterInitIsNoticed(t *testing.T) {
	c := newCluster(t, 1, nil)
	if err := os.MkdirAll(filepath.Dir(c.imagePath(0)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.imagePath(0), bytes.Repeat([]byte("precious"), testSize/8), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	if _, err := handleInit(t.Context(), c.vol(0), strings.NewReader(`{"content":"keep"}`)); err != nil {
		t.Fatal(err)
	}
	c.await(0, "a checkpoint", func(s VolumeStatus) bool { return s.Checkpoint > 0 })
	c.kill(0)
	if err := os.WriteFile(c.imagePath(0), bytes.Repeat([]byte("another."), testSize/8), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	c.await(0, "not believed", func(s VolumeStatus) bool { return s.State == StateDiverged })
}
