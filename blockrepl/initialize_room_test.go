package blockrepl

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/image"
)

// Once an init had found no room, no later one worked: the image waited for the very
// change that did not fit.
func TestInitWorksAfterOneThatFoundNoRoom(t *testing.T) {
	c := newCluster(t, 2, nil) // the other one is not there: nobody creates the volume
	full := &roomless{}
	c.change = func(o *Options) { o.OpenImage = full.open }
	c.start(0)
	src := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(src, bytes.Repeat([]byte("old!"), 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	full.on.Store(true)
	body := func() *strings.Reader { return strings.NewReader(`{"content":"copy","from":"` + src + `"}`) }
	if _, err := handleInit(t.Context(), c.vol(0), body()); err == nil {
		t.Fatal("init on a full disk succeeds")
	} else {
		t.Logf("init on a full disk: %v", err)
	}
	full.on.Store(false)
	if _, err := handleInit(t.Context(), c.vol(0), body()); err != nil {
		t.Errorf("init after room was made: %v", err)
	}
}

// roomless is an image on a file system that is full while on is set.
type roomless struct{ on atomic.Bool }

func (r *roomless) open(o image.Options) (*image.Image, error) {
	o.OpenFile = func() (image.File, error) {
		f, err := os.OpenFile(o.Path, os.O_RDWR|os.O_CREATE, 0o600)
		return &roomlessFile{f, r}, err
	}
	return image.Open(o)
}

type roomlessFile struct {
	image.File
	r *roomless
}

func (f *roomlessFile) WriteAt(p []byte, off int64) (int, error) {
	if f.r.on.Load() && off >= 1<<20 {
		return 0, syscall.ENOSPC
	}
	return f.File.WriteAt(p, off)
}
