package image

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/blockrepl/blockrepl/journal/record"
)

// memFile is a File in memory, with a fault at a chosen call.
type memFile struct {
	mu     sync.Mutex
	b      []byte
	closed bool

	calls int               // ReadAt, WriteAt, Sync so far
	fault func(n int) error // asked at call n; a faulty write writes half
}

func (f *memFile) next() error {
	f.calls++
	if f.fault != nil {
		return f.fault(f.calls)
	}
	return nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.next(); err != nil {
		return 0, err
	}
	if off >= int64(len(f.b)) {
		return 0, io.EOF
	}
	n := copy(p, f.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.next()
	if err != nil {
		p = p[:len(p)/2]
	}
	if end := off + int64(len(p)); end > int64(len(f.b)) {
		f.b = append(f.b, make([]byte, end-int64(len(f.b)))...)
	}
	return copy(f.b[off:], p), err
}

func (f *memFile) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.next()
}

func (f *memFile) Close() error {
	f.closed = true
	return nil
}

// mem opens an image on f.
func mem(t testing.TB, f *memFile, size int64) *Image {
	t.Helper()
	im, err := Open(Options{Path: "mem", Size: size, OpenFile: func() (File, error) { return f, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return im
}

// sparse makes and opens an image in a file of the test's directory.
func sparse(t testing.TB, size int64) *Image {
	t.Helper()
	return at(t, Options{Path: filepath.Join(t.TempDir(), "image"), Size: size, Create: true})
}

func at(t testing.TB, o Options) *Image {
	t.Helper()
	im, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return im
}

// loop gives a loop device of size bytes, where this machine lets us have one.
func loop(t testing.TB, size int64) string {
	t.Helper()
	backing := filepath.Join(t.TempDir(), "backing")
	if err := os.WriteFile(backing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(backing, size); err != nil {
		t.Fatal(err)
	}
	return loopOver(t, backing)
}

// loopOver gives a loop device over a file.
func loopOver(t testing.TB, backing string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", backing).CombinedOutput()
	if err != nil {
		t.Skipf("needs loop devices: losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

// tmpfs mounts a file system of size bytes, where this machine lets us.
func tmpfs(t testing.TB, size int64) string {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size))
	if errors.Is(err, unix.EPERM) {
		t.Skip("needs the right to mount")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// unable makes a file or device as one whose kernel can neither punch nor zero.
func unable(im *Image) *Image {
	d := im.disk.(*file)
	d.noPunch, d.noZero = true, true
	d.noSeek.Store(true)
	return im
}

// kinds runs a test on every kind of image, each of size bytes.
func kinds(t *testing.T, size int64, run func(t *testing.T, open func(testing.TB) *Image)) {
	t.Run("file", func(t *testing.T) { run(t, func(t testing.TB) *Image { return sparse(t, size) }) })
	t.Run("file without holes", func(t *testing.T) {
		run(t, func(t testing.TB) *Image { return unable(sparse(t, size)) })
	})
	t.Run("device without zero-out", func(t *testing.T) {
		dev := loop(t, size+(1<<20))
		run(t, func(t testing.TB) *Image { return unable(at(t, Options{Path: dev, Size: size})) })
	})
	t.Run("mem", func(t *testing.T) { run(t, func(t testing.TB) *Image { return mem(t, &memFile{}, size) }) })
	t.Run("tmpfs", func(t *testing.T) {
		path := filepath.Join(tmpfs(t, 2*size), "image")
		run(t, func(t testing.TB) *Image { return at(t, Options{Path: path, Size: size, Create: true}) })
	})
	t.Run("device", func(t *testing.T) {
		dev := loop(t, size+(1<<20))
		run(t, func(t testing.TB) *Image { return at(t, Options{Path: dev, Size: size}) })
	})
}

func seeded(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func write(off int64, data []byte) Change {
	return Change{Kind: record.KindWrite, Off: off, Len: int64(len(data)), Data: data}
}

func zero(off, n int64) Change { return Change{Kind: record.KindZero, Off: off, Len: n} }
func trim(off, n int64) Change { return Change{Kind: record.KindTrim, Off: off, Len: n} }

// fill gives n bytes of v.
func fill(n int64, v byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = v
	}
	return b
}

// replay does to model what Apply does to the image.
func replay(model []byte, changes []Change) {
	for _, c := range changes {
		if c.Kind == record.KindWrite {
			copy(model[c.Off:], c.Data)
		} else {
			clear(model[c.Off : c.Off+c.Len])
		}
	}
}
