package image

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// preallocated makes a file whose blocks are all there, where dir's file system can.
func preallocated(t *testing.T, dir string, size int64) *Image {
	t.Helper()
	path := filepath.Join(dir, "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		t.Skipf("needs a file system that allocates: %v", err)
	}
	return at(t, Options{Path: path, Size: size})
}

func left(t *testing.T, im *Image) int64 {
	t.Helper()
	r, ok := im.Room()
	if !ok {
		t.Fatal("Room of an image that nobody uses: not known")
	}
	return r.Left
}

func TestRoomIsWhatIsNotAllocated(t *testing.T) {
	const size = 8 << 20
	im := sparse(t, size)
	if got := left(t, im); got != size {
		t.Errorf("an empty file: %d bytes are left, want %d", got, size)
	}
	if err := im.Apply([]Change{write(0, fill(size/2, 1))}); err != nil {
		t.Fatal(err)
	}
	if got := left(t, im); got < size/4 || got > size/2 {
		t.Errorf("half a file: %d bytes are left", got)
	}
	if got := left(t, preallocated(t, t.TempDir(), size)); got != 0 {
		t.Errorf("a preallocated file: %d bytes are left", got)
	}
	if got := RoomOf(filepath.Join(t.TempDir(), "none"), size); got.Left != size || got.Spare == 0 {
		t.Errorf("no file: %+v", got)
	}
	dev := at(t, Options{Path: loop(t, size)})
	if r, ok := dev.Room(); !ok || r.Left != 0 || r.Spare != 0 {
		t.Errorf("a device: %+v, %t", r, ok)
	}
}

func TestRoomDoesNotWaitForWhatIsApplied(t *testing.T) {
	im := sparse(t, 1<<20)
	im.locks.lock(1)
	if r, ok := im.Room(); ok {
		t.Errorf("beside a change: %+v", r)
	}
	im.locks.unlock(1)
	if _, ok := im.Room(); !ok {
		t.Error("after it: not known")
	}
}

func TestBlocksAreKeptWhereTheyShallBe(t *testing.T) {
	const size = 4 << 20
	for name, dir := range map[string]func() string{
		"file":  t.TempDir,
		"tmpfs": func() string { return tmpfs(t, 2*size) }, // cannot zero a range in place
	} {
		t.Run(name, func(t *testing.T) {
			im := preallocated(t, dir(), size)
			model := fill(size, 7)
			changes := []Change{write(0, fill(size, 7)), trim(8192, 4096), trim(1<<20, 2<<20), zero(size-(512<<10), 512<<10)}
			im.KeepBlocks(true)
			if err := im.Apply(changes); err != nil {
				t.Fatal(err)
			}
			replay(model, changes)
			whole(t, im, model)
			if got := left(t, im); got != 0 {
				t.Errorf("%d bytes were given back", got)
			}
			im.KeepBlocks(false)
			if err := im.Apply([]Change{trim(1<<20, 2<<20)}); err != nil {
				t.Fatal(err)
			}
			whole(t, im, model)
			if got := left(t, im); im.FastZero() && got != 2<<20 {
				t.Errorf("%d bytes were given back, want %d", got, 2<<20)
			}
		})
	}
}

// What the guard relies on: a full file system takes every write to blocks that it gave.
func TestPreallocatedImageIsWrittenOnAFullFileSystem(t *testing.T) {
	dir := tmpfs(t, 4<<20)
	const size = 3 << 20
	im := preallocated(t, dir, size)
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if u, err := im.Usage(); err != nil || u.Free != 0 {
		t.Fatalf("usage of a full file system: %+v, %v", u, err)
	}
	im.KeepBlocks(true)
	changes := []Change{write(0, fill(size, 1)), trim(0, size), write(4096, fill(size-4096, 2))}
	for i := range changes { // as they come: together the trim would not be seen
		if err := im.Apply(changes[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	model := make([]byte, size)
	replay(model, changes)
	whole(t, im, model)
}
