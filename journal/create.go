package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal/mutant"
)

// creatingName is a file that is there from before pebble's first file until the
// first Open returns. A power cut in between can leave a database that names files
// which are gone; this file is the proof that nothing was ever promised by it.
const creatingName = "CREATING"

// makeDir creates a directory and makes it durable, with those above it that it
// had to create.
func makeDir(f vfs.FS, dir string) error {
	var parents []string
	for d := dir; ; d = f.PathDir(d) {
		if _, err := f.Stat(d); err == nil || f.PathDir(d) == d {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look at %s: %w", d, err)
		}
		parents = append(parents, f.PathDir(d))
	}
	if err := f.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create directory %s: %w", dir, err)
	}
	for _, p := range parents {
		if mutant.Is("forget the directory of a new journal") {
			break
		}
		if err := syncDir(f, p); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(f vfs.FS, dir string) error {
	d, err := f.OpenDir(dir)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// beginCreation prepares an empty directory, or one whose creation was cut short,
// for a new database. The directory is locked.
func (j *Journal) beginCreation() error {
	names, err := j.fs.List(j.o.Dir)
	if err != nil {
		return fmt.Errorf("list directory: %w", err)
	}
	creating := j.fs.PathJoin(j.o.Dir, creatingName)
	_, err = j.fs.Stat(creating)
	started := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look at %s: %w", creating, err)
	}
	for _, n := range names {
		if n == "LOCK" || n == creatingName {
			continue
		}
		if !started {
			return nil // a journal that was completely created, or pebble will say what else
		}
		if err := j.fs.RemoveAll(j.fs.PathJoin(j.o.Dir, n)); err != nil {
			return fmt.Errorf("remove what an unfinished creation left: %w", err)
		}
	}
	if !started {
		w, err := j.fs.Create(creating, vfs.WriteCategoryUnspecified)
		if err == nil {
			err = errors.Join(w.Sync(), w.Close())
		}
		if err != nil {
			return fmt.Errorf("create %s: %w", creating, err)
		}
	}
	j.creating = true
	return syncDir(j.fs, j.o.Dir)
}

// wasCreated gives fs.ErrNotExist for what beginCreation would begin with.
func (j *Journal) wasCreated() error {
	names, err := j.fs.List(j.o.Dir)
	if err != nil {
		return fmt.Errorf("list directory: %w", err)
	}
	names = slices.DeleteFunc(names, func(n string) bool { return n == "LOCK" })
	if len(names) == 0 || slices.Contains(names, creatingName) {
		return fmt.Errorf("the directory is empty, or its creation was cut short: %w", fs.ErrNotExist)
	}
	return nil
}

// endCreation makes the new database count.
func (j *Journal) endCreation() error {
	if !j.creating {
		return nil
	}
	// First the names of pebble's files, then the end of the proof.
	if err := syncDir(j.fs, j.o.Dir); err != nil {
		return err
	}
	if err := j.fs.Remove(j.fs.PathJoin(j.o.Dir, creatingName)); err != nil {
		return fmt.Errorf("end creation: %w", err)
	}
	j.creating = false
	if mutant.Is("forget the end of a journal's creation") {
		return nil
	}
	return syncDir(j.fs, j.o.Dir)
}
