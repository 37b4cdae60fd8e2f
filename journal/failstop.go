package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// failStop stands between pebble and the file system. The first changing call that
// fails is the last that reaches the disk: from then on the files on disk stay as
// they are, as if the process had been killed at that moment, while pebble is told
// that all went well, on files in memory.
//
// Why not let pebble see the error: it dies of many (a WAL that cannot be closed or
// created ends the process by a throw that nothing can recover), goes on after
// others, and a process that dies takes all volumes and the reason with it. The
// journal sees the failure here first, refuses everything that comes later, lets no
// Wait succeed any more, and can still be closed in order.
//
// One error passes: a table that does not fit on a full disk. Pebble keeps what it
// has and tries again; the guard of free space keeps clients out meanwhile.
type failStop struct {
	vfs.FS
	failed func(error) // called once, before the failing call returns
	dead   atomic.Bool
	memory *vfs.MemFS // of what is written after the failure
}

func newFailStop(fs vfs.FS, failed func(error)) *failStop {
	return &failStop{FS: fs, failed: failed, memory: vfs.NewMem()}
}

// Unwrap is part of vfs.FS.
func (f *failStop) Unwrap() vfs.FS { return f.FS }

// check takes the outcome of a changing call and gives what pebble is told.
func (f *failStop) check(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if strings.HasSuffix(name, ".sst") && errors.Is(err, syscall.ENOSPC) {
		time.Sleep(fullRetry) // pebble tries again at once
		return err
	}
	f.fail(fmt.Errorf("%s %s: %w", op, name, err))
	return nil
}

func (f *failStop) fail(err error) {
	f.failed(err)
	f.dead.Store(true)
}

// create runs a call that makes a file, or makes one in memory after the failure.
func (f *failStop) create(op, name string, make func() (vfs.File, error)) (vfs.File, error) {
	if !f.dead.Load() {
		file, err := make()
		if err == nil {
			return &failStopFile{File: file, fs: f, name: name}, nil
		}
		if err := f.check(op, name, err); err != nil {
			return nil, err
		}
	}
	if err := f.memory.MkdirAll(f.memory.PathDir(name), 0o700); err != nil {
		return nil, err
	}
	file, err := f.memory.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	return inMemory{file}, nil
}

// change runs a call that changes names.
func (f *failStop) change(op, name string, fn func() error) error {
	if f.dead.Load() {
		return nil
	}
	return f.check(op, name, fn())
}

// Create is part of vfs.FS.
//
// Pebble's markers are empty files whose names say which manifest or format counts.
// Pebble creates the manifest, then its marker, removes the old marker, and syncs
// the directory once: a power cut in between, on a file system that does not keep
// the order of names, leaves a marker of a manifest that is not there, or no marker
// at all, which is a new and empty database. So the directory is synced before a
// marker appears and before pebble goes on.
func (f *failStop) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.create("create", name, func() (vfs.File, error) {
		if !strings.HasPrefix(f.FS.PathBase(name), "marker.") {
			return f.FS.Create(name, c)
		}
		if err := f.syncDirOf(name); err != nil {
			return nil, err
		}
		file, err := f.FS.Create(name, c)
		if err != nil {
			return nil, err
		}
		if err := f.syncDirOf(name); err != nil {
			return nil, errors.Join(err, file.Close())
		}
		return file, nil
	})
}

func (f *failStop) syncDirOf(name string) error {
	d, err := f.FS.OpenDir(f.FS.PathDir(name))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ReuseForWrite is part of vfs.FS.
func (f *failStop) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.create("reuse", newname, func() (vfs.File, error) { return f.FS.ReuseForWrite(oldname, newname, c) })
}

// OpenReadWrite is part of vfs.FS.
func (f *failStop) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return f.create("open", name, func() (vfs.File, error) { return f.FS.OpenReadWrite(name, c, opts...) })
}

// OpenDir is part of vfs.FS.
func (f *failStop) OpenDir(name string) (vfs.File, error) {
	d, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &failStopFile{File: d, fs: f, name: name}, nil
}

// Open is part of vfs.FS.
func (f *failStop) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if f.dead.Load() {
		if file, err := f.memory.Open(name); err == nil {
			return inMemory{file}, nil
		}
	}
	return f.FS.Open(name, opts...)
}

// Stat is part of vfs.FS.
func (f *failStop) Stat(name string) (vfs.FileInfo, error) {
	if f.dead.Load() {
		if i, err := f.memory.Stat(name); err == nil {
			return i, nil
		}
	}
	return f.FS.Stat(name)
}

// Remove is part of vfs.FS.
func (f *failStop) Remove(name string) error {
	if f.dead.Load() {
		return nil
	}
	// A file that cannot be removed takes space and does no harm.
	return f.FS.Remove(name)
}

// RemoveAll is part of vfs.FS.
func (f *failStop) RemoveAll(name string) error {
	return f.change("remove", name, func() error { return f.FS.RemoveAll(name) })
}

// Link is part of vfs.FS.
func (f *failStop) Link(oldname, newname string) error {
	return f.change("link", newname, func() error { return f.FS.Link(oldname, newname) })
}

// Rename is part of vfs.FS.
func (f *failStop) Rename(oldname, newname string) error {
	return f.change("rename", newname, func() error { return f.FS.Rename(oldname, newname) })
}

// MkdirAll is part of vfs.FS.
func (f *failStop) MkdirAll(dir string, perm os.FileMode) error {
	return f.change("make directory", dir, func() error { return f.FS.MkdirAll(dir, perm) })
}

// failStopFile is a file or directory on disk.
type failStopFile struct {
	vfs.File
	fs   *failStop
	name string
}

// Write is part of vfs.File.
func (f *failStopFile) Write(p []byte) (int, error) {
	return f.put(len(p), func() (int, error) { return f.File.Write(p) })
}

// WriteAt is part of vfs.File.
func (f *failStopFile) WriteAt(p []byte, off int64) (int, error) {
	return f.put(len(p), func() (int, error) { return f.File.WriteAt(p, off) })
}

func (f *failStopFile) put(want int, fn func() (int, error)) (int, error) {
	if f.fs.dead.Load() {
		return want, nil
	}
	n, err := fn()
	if err == nil && n < want {
		err = io.ErrShortWrite
	}
	if err := f.fs.check("write", f.name, err); err != nil {
		return n, err
	}
	return want, nil
}

// Sync is part of vfs.File.
func (f *failStopFile) Sync() error { return f.sync(f.File.Sync) }

// SyncData is part of vfs.File.
func (f *failStopFile) SyncData() error { return f.sync(f.File.SyncData) }

func (f *failStopFile) sync(fn func() error) error {
	if f.fs.dead.Load() {
		return nil
	}
	return f.fs.check("sync", f.name, fn())
}

// SyncTo is part of vfs.File. Its error counts like that of Sync: the kernel tells
// a lost write only once.
func (f *failStopFile) SyncTo(n int64) (full bool, err error) {
	if f.fs.dead.Load() {
		return true, nil
	}
	full, err = f.File.SyncTo(n)
	return full, f.fs.check("sync", f.name, err)
}

// Close is part of vfs.File.
func (f *failStopFile) Close() error {
	err := f.File.Close()
	if f.fs.dead.Load() {
		return nil
	}
	return f.fs.check("close", f.name, err)
}

// inMemory is a file that was made after the failure. It shows no descriptor.
type inMemory struct{ vfs.File }

// Fd is part of vfs.File.
func (inMemory) Fd() uintptr { return vfs.InvalidFd }
