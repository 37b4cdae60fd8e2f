package blockrepl

import (
	"math"
	"os"
	"path/filepath"
	"sync"
	"testing"
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
