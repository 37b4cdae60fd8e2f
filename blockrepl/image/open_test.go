package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/blockrepl/blockrepl/journal/record"
)

// TestMain lets the test binary be the other process that has an image open.
func TestMain(m *testing.M) {
	if path := os.Getenv("IMAGE_TEST_HOLD"); path != "" {
		im, err := Open(Options{Path: path})
		fmt.Println("held", err)
		os.Stdin.Read(make([]byte, 1)) // until the test closes it
		if err == nil {
			im.Close()
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// hold has another process open the image until the test's end; it gives its pid.
func hold(t *testing.T, path string) int {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "IMAGE_TEST_HOLD="+path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "held <nil>\n" {
		t.Fatalf("the other process: %s", line)
	}
	return cmd.Process.Pid
}

func TestAnImageInUseNamesItsHolder(t *testing.T) {
	inUse := func(t *testing.T, path, holder string) {
		t.Helper()
		im, err := Open(Options{Path: path, Size: 512})
		if err == nil {
			im.Close()
		}
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), holder) || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v, want ErrInUse by %s", err, holder)
		}
	}
	file := func(t *testing.T) string {
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, fill(1<<20, 1), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Run("a file, by this process", func(t *testing.T) {
		path := file(t)
		at(t, Options{Path: path})
		inUse(t, path, "this process")
	})
	t.Run("a file, by another process", func(t *testing.T) {
		path := file(t)
		inUse(t, path, fmt.Sprintf("process %d (", hold(t, path)))
	})
	t.Run("a file, by flock", func(t *testing.T) {
		path := file(t)
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
			t.Fatal(err)
		}
		inUse(t, path, "this process")
	})
	t.Run("a file, by a loop device", func(t *testing.T) {
		dev := loop(t, 1<<20)
		backing, err := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/loop/backing_file")
		if err != nil {
			t.Fatal(err)
		}
		inUse(t, strings.TrimSpace(string(backing)), dev)
	})
	t.Run("a device, by this process", func(t *testing.T) {
		dev := loop(t, 1<<20)
		at(t, Options{Path: dev})
		inUse(t, dev, "this process")
	})
	t.Run("a device, by another process", func(t *testing.T) {
		dev := loop(t, 1<<20)
		inUse(t, dev, fmt.Sprintf("process %d (", hold(t, dev)))
	})
	t.Run("a device, by a mount", func(t *testing.T) {
		dev := loop(t, 8<<20)
		if out, err := exec.Command("mkfs.ext4", "-q", dev).CombinedOutput(); err != nil {
			t.Skipf("needs mkfs.ext4: %v: %s", err, out)
		}
		dir := t.TempDir()
		if err := unix.Mount(dev, dir, "ext4", 0, ""); err != nil {
			t.Skipf("needs the right to mount: %v", err)
		}
		defer unix.Unmount(dir, 0)
		inUse(t, dev, "mounted at "+dir)
	})
	t.Run("not after close", func(t *testing.T) {
		path := file(t)
		for range 2 {
			im := at(t, Options{Path: path})
			if err := im.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	small := filepath.Join(dir, "small")
	if err := os.WriteFile(small, fill(4096, 7), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no such thing")
	for _, c := range []struct {
		name string
		o    Options
		want error
		text string
	}{
		{"nothing there", Options{Path: filepath.Join(dir, "none"), Size: 512}, fs.ErrNotExist, "none"},
		{"no directory", Options{Path: filepath.Join(dir, "none", "image"), Size: 512, Create: true}, fs.ErrNotExist, "none"},
		{"a shorter file", Options{Path: small, Size: 8192, Create: true}, ErrSize, "4096 bytes, the volume 8192"},
		{"an empty file", Options{Path: empty}, ErrSize, "name a size"},
		{"a size in bytes", Options{Path: small, Size: 1000}, ErrRange, "1000"},
		{"a negative size", Options{Path: small, Size: -512}, ErrRange, "-512"},
		{"creation without size", Options{Path: filepath.Join(dir, "none"), Create: true}, ErrRange, "size 0"},
		{"a directory", Options{Path: dir, Size: 512}, nil, "must be a regular file or a block device"},
		{"a character device", Options{Path: "/dev/null", Size: 512}, nil, "must be a regular file or a block device"},
		{"a File that does not open", Options{Path: "x", Size: 512, OpenFile: func() (File, error) { return nil, broken }}, broken, "x"},
		{"a File without size", Options{Path: "x", OpenFile: func() (File, error) { return &memFile{}, nil }}, ErrRange, "size 0"},
	} {
		im, err := Open(c.o)
		if err == nil {
			im.Close()
		}
		var e *Error
		if !errors.As(err, &e) || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want %v with %q", c.name, err, c.want, c.text)
		}
	}
	if b, err := os.ReadFile(small); err != nil || string(b) != string(fill(4096, 7)) {
		t.Errorf("a refused file was changed: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 2 {
		t.Errorf("files were left: %v, %v", names, err)
	}
	dev := loop(t, 1<<20)
	if _, err := Open(Options{Path: dev, Size: 2 << 20}); !errors.Is(err, ErrSize) || !strings.Contains(err.Error(), "the device has 1048576 bytes") {
		t.Errorf("a smaller device: %v", err)
	}
}

func TestFailedCreationLeavesNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	im, err := Open(Options{Path: path, Size: 1 << 60, Create: true}) // no file system has files this long
	if err == nil {
		im.Close()
		t.Skip("this file system has files of 1 EiB")
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

func TestWhatIsKnownToBeZero(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	const size = 1 << 20
	im := at(t, Options{Path: path, Size: size, Create: true})
	if !im.Created() || !im.Blank() || im.Size() != size || im.Path() != path {
		t.Errorf("a new file: created %t, blank %t, %d bytes", im.Created(), im.Blank(), im.Size())
	}
	reopen := func(size int64, grow bool) *Image {
		im.Close()
		im = at(t, Options{Path: path, Size: size, Grow: grow, Create: size > 0})
		return im
	}
	if reopen(size, false); im.Created() || !im.Blank() {
		t.Errorf("a file without data: created %t, blank %t", im.Created(), im.Blank())
	}
	if err := im.Apply([]Change{write(size-512, fill(512, 1))}); err != nil {
		t.Fatal(err)
	}
	if reopen(size, false); im.Blank() {
		t.Error("a file with data is blank")
	}
	if reopen(0, false); im.Size() != size {
		t.Errorf("size from the file: %d", im.Size())
	}
	if reopen(2*size, true); im.Size() != 2*size {
		t.Errorf("grown to %d", im.Size())
	}
	model := make([]byte, 2*size)
	copy(model[size-512:], fill(512, 1))
	whole(t, im, model)
	if mem := mem(t, &memFile{}, size); !mem.Blank() {
		t.Error("an empty File is not blank")
	}
	if mem := mem(t, &memFile{b: []byte{0}}, size); mem.Blank() {
		t.Error("a File with a byte is blank")
	}
}

func TestFileKeepsItsBytes(t *testing.T) {
	f := &memFile{b: fill(1000, 3)}
	im := mem(t, f, 4096)
	model := make([]byte, 4096)
	copy(model, f.b)
	whole(t, im, model)
	batch := []Change{zero(500, 3000)}
	if err := im.Apply(batch); err != nil {
		t.Fatal(err)
	}
	replay(model, batch)
	whole(t, im, model)
	if len(f.b) != 1000 {
		t.Errorf("zeroing behind the end made the file %d bytes long", len(f.b))
	}
}

func TestZeroAll(t *testing.T) {
	const size = 4<<20 + 512
	kinds(t, size, func(t *testing.T, open func(testing.TB) *Image) {
		im := open(t)
		if err := im.Apply([]Change{write(0, fill(size, 1))}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := im.ZeroAll(ctx, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		var done int64
		if err := im.ZeroAll(t.Context(), func(d, s int64) {
			if d <= done || s != size {
				t.Errorf("progress %d of %d after %d", d, s, done)
			}
			done = d
		}); err != nil {
			t.Fatal(err)
		}
		if done != size {
			t.Errorf("progress ended at %d of %d", done, size)
		}
		whole(t, im, make([]byte, size))
	})
}

// A crash between the making of a file and its first size left an empty one, and the
// server did not start any more.
func TestEmptyFileIsAMissingOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Path: path, Size: 1 << 20}); !errors.Is(err, ErrSize) {
		t.Errorf("without Create: %v, want ErrSize", err)
	}
	im := at(t, Options{Path: path, Size: 1 << 20, Create: true})
	if !im.Created() || !im.Blank() || im.Size() != 1<<20 {
		t.Errorf("created %t, blank %t, size %d", im.Created(), im.Blank(), im.Size())
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 1<<20 {
		t.Errorf("the file: %v, %v", st, err)
	}
}

func TestWhoWantsToKnowIsAskedBeforeAFileIsMade(t *testing.T) {
	for _, empty := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "image")
		if empty {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		o := Options{Path: path, Size: 1 << 20, Create: true, OnCreate: func(bool) error {
			if st, err := os.Stat(path); err == nil && st.Size() > 0 {
				t.Errorf("empty %t: the file was made before", empty)
			}
			return errPlug
		}}
		if _, err := Open(o); !errors.Is(err, errPlug) {
			t.Errorf("empty %t: %v, want the error of OnCreate", empty, err)
		}
		if st, err := os.Stat(path); err == nil && st.Size() > 0 {
			t.Errorf("empty %t: the file was made all the same", empty)
		}
		asked := 0
		o.OnCreate = func(e bool) error {
			if asked++; e != empty {
				t.Errorf("told that a file is there: %t, want %t", e, empty)
			}
			return nil
		}
		if err := at(t, o).Close(); err != nil || asked != 1 {
			t.Errorf("empty %t: asked %d times, %v", empty, asked, err)
		}
		at(t, o)
		if asked != 1 {
			t.Errorf("empty %t: asked for a file that was there", empty)
		}
	}
}

// A device that is not there (not attached, not activated yet, or mistyped) was made: a
// file in the memory of the host, under the device's name. Everything was healthy, the
// records were trimmed behind its fsync, and the next boot had none of it.
func TestMissingDeviceIsNotMadeAFile(t *testing.T) {
	name := fmt.Sprintf("blockrepl-test-%d", os.Getpid())
	path := filepath.Join("/dev", name)
	f, err := os.Create(path)
	if err != nil {
		t.Skipf("needs a writable /dev: %v", err)
	}
	f.Close()
	t.Cleanup(func() { os.Remove(path) })
	links := t.TempDir()
	if err := os.Symlink("/dev", filepath.Join(links, "dev")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, filepath.Join(links, "disk")); err != nil {
		t.Fatal(err)
	}
	refused := func(path string) {
		t.Helper()
		asked := false
		im, err := Open(Options{Path: path, Size: 1 << 20, Create: true, OnCreate: func(bool) error { asked = true; return nil }})
		if err == nil {
			im.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(fmt.Sprint(err), "attach or activate the device") || asked {
			t.Errorf("open %s: %v, asked to create %v", path, err, asked)
		}
	}
	refused(path) // an empty file, which counts as none
	os.Remove(path)
	refused(path)
	refused(filepath.Join("/dev", name+"-vg", "lv"))
	refused(filepath.Join(links, "dev", name))
	refused(filepath.Join(links, "disk"))
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there: %v", path, err)
	}
}

func TestFileOfAMemoryFileSystemBelowDevIsMade(t *testing.T) {
	var dev, shm unix.Stat_t
	if unix.Stat("/dev", &dev) != nil || unix.Stat("/dev/shm", &shm) != nil || dev.Dev == shm.Dev {
		t.Skip("needs /dev/shm as a file system of its own")
	}
	if err := MayCreate(fmt.Sprintf("/dev/shm/blockrepl-test-%d/image", os.Getpid())); err != nil {
		t.Error(err)
	}
}

// What an fsync failed to write is shown by the page cache as if it were on the disk, also
// to the next process: an image is read from its disk after a start.
func TestOpenedImageIsReadFromItsDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	const size = 1 << 20
	im, err := Open(Options{Path: path, Size: size, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := im.Apply([]Change{{Kind: record.KindWrite, Len: size, Data: bytes.Repeat([]byte{7}, size)}}); err != nil {
		t.Fatal(err)
	}
	if err := im.Sync(); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	f := im.disk.(*file)
	cached := func(f *file) bool {
		t.Helper()
		now, err := f.readNow(p, 128<<10)
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	if !cached(f) {
		t.Skip("this file system does not say what is in the page cache")
	}
	dropCache(f.fd)
	if cached(f) {
		t.Skip("this file system keeps its pages")
	}
	if err := im.ReadAt(make([]byte, size), 0); err != nil { // into the cache again
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if im, err = Open(Options{Path: path}); err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if cached(im.disk.(*file)) {
		t.Error("it is still in the page cache")
	}
	if err := im.ReadAt(p, 128<<10); err != nil || p[0] != 7 {
		t.Errorf("it reads as %d, %v, want 7", p[0], err)
	}
	if !cached(im.disk.(*file)) {
		t.Fatal("what was read is not in the page cache")
	}
	if im.DropCache(); cached(im.disk.(*file)) {
		t.Error("DropCache left it in the page cache")
	}
}
