package blockrepl

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/blockrepl/blockrepl/journal/mutant"
)

// ErrInUse says that another process has the data directory open.
var ErrInUse = errors.New("in use by another process")

// File is an open small file.
type File interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Close() error
}

// Files is what the server needs of a file system, beside the journal and the
// images: identity, marks and the lock. The simulator gives one that loses what
// was not synced.
type Files interface {
	// MkdirAll makes dir and its parents, durable in their parents.
	MkdirAll(dir string) error
	// Lock takes path as a lock that the process loses when it dies; ErrInUse
	// when another one has it.
	Lock(path string) (io.Closer, error)
	// Create makes or empties a file, Open opens one that exists (fs.ErrNotExist).
	Create(path string) (File, error)
	Open(path string) (File, error)
	Rename(from, to string) error
	SyncDir(dir string) error
	// Free is how many bytes can still be written to path's file system.
	Free(path string) (int64, error)
}

// osFiles is the real one.
type osFiles struct{}

// MkdirAll syncs each parent that got a new entry, from the top.
func (f osFiles) MkdirAll(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := f.MkdirAll(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return f.SyncDir(parent)
}

func (osFiles) Lock(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %s: %w", path, ErrInUse)
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

func (osFiles) Create(path string) (File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o640)
}

func (osFiles) Open(path string) (File, error) { return os.OpenFile(path, os.O_RDWR, 0) }

func (osFiles) Rename(from, to string) error { return os.Rename(from, to) }

func (osFiles) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (osFiles) Free(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", path, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// readFile reads a small file whole.
func readFile(files Files, path string) ([]byte, error) {
	f, err := files.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	n, err := io.Copy(&b, io.NewSectionReader(f, 0, smallFileMax+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if n > smallFileMax {
		return nil, fmt.Errorf("read %s: larger than %d bytes", path, smallFileMax)
	}
	return b.Bytes(), nil
}

// writeFile makes or replaces a small file at once: after a crash it is there
// whole, or the old one is.
func writeFile(files Files, path string, b []byte) error {
	temp := path + ".new"
	f, err := files.Create(temp)
	if err != nil {
		return fmt.Errorf("create %s: %w", temp, err)
	}
	_, err = f.WriteAt(b, 0)
	if err == nil && !mutant.Is("rename a new identity before it is fsynced") {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = files.Rename(temp, path)
	}
	if err == nil && !mutant.Is("forget the directory of a new identity") {
		err = files.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
