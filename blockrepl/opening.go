package blockrepl

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: newVolume. Does: reads what journal, marks and image hold of a volume, and
// says what of it is not believed. Goes to: the state machine, as Saved.

// open reads what the journal holds and opens the image. Of a journal that cannot be
// read nothing is given; of a volume without its image, what the journal says.
func (v *Volume) open(logs *foundLogs) (replica.Saved, *failure) {
	var saved replica.Saved
	var expect expected
	log, err := logs.of(v.name)
	if err == nil {
		saved, expect, err = v.load(log)
	}
	if err == nil {
		err = v.finding.load(v.log.Load(), v.logr)
	}
	if err != nil {
		return replica.Saved{}, &failure{"journal", fmt.Errorf("%w; put the data directory back, or start with an empty one", err)}
	}
	if err := v.openImage(&saved, &expect); err != nil {
		return saved, &failure{"image", err}
	}
	return saved, nil
}

// load reads what the journal holds and compares it with the marks.
func (v *Volume) load(log *journal.Log) (replica.Saved, expected, error) {
	if log == nil {
		// Before the volume exists there is no uuid to keep things under.
		var err error
		if log, err = v.s.journal.Log(nameID(v.name)); err != nil {
			return replica.Saved{}, expected{}, fmt.Errorf("open journal: %w", err)
		}
		saved, _, err := loadSaved(log)
		if err != nil {
			return saved, expected{}, err
		}
		v.log.Store(log)
		return saved, expected{}, nil
	}
	saved, expect, err := loadSaved(log)
	if err != nil {
		return saved, expect, err
	}
	v.log.Store(log)
	v.uuid.Store(&saved.Hard.State.UUID)
	k := v.s.marks.get(saved.Hard.State.UUID)
	saved.Forgot = k.forgot(&saved.Hard, saved.Last, func(seq record.Seq) (uint64, bool) {
		if sum, ok := sumOf(&saved, seq); ok {
			return sum, true
		}
		pos, err := log.Position(seq)
		return pos.Sum, err == nil
	})
	if saved.Forgot != "" {
		v.logr.Warn("this server forgot what it had acknowledged; it must be resynced", "reason", saved.Forgot)
	}
	return saved, expect, nil
}

// openImage opens the image, or makes that of a new volume. Where that of a known one is
// missing, its disk may not be mounted yet: nothing is made in its place. An image that is
// empty, that has bytes of which the journal knows nothing, or that is not like the
// samples of the last checkpoint, is not believed.
func (v *Volume) openImage(saved *replica.Saved, expect *expected) error {
	known := !saved.Hard.State.Epoch.IsZero()
	size := v.opt.Size
	if known {
		if size = sizeOf(saved); size != v.opt.Size {
			v.logr.Info("the volume has another size than the configuration names, which counts at its creation only; `blockrepl resize` changes it",
				"bytes", size, "configured", v.opt.Size)
		}
	}
	o := image.Options{Path: v.opt.Image, Size: size, Create: true, Grow: expect.short}
	if known {
		o.OnCreate = func(empty bool) error {
			if !empty {
				return imageLost(v.opt.Image)
			}
			return v.emptied(saved)
		}
	}
	img, err := v.s.opt.OpenImage(o)
	if err != nil {
		return err
	}
	v.img, v.imageDir = img, dirOf(v.opt.Image)
	switch {
	case o.OnCreate != nil && img.Created(): // emptied says so
	case !known && !img.Blank() && saved.Forgot == "":
		saved.Unlike = fmt.Sprintf("the image %s has content, and the journal knows nothing of it; use `blockrepl init` or another image", v.opt.Image)
	default:
		why := v.unlike(expect.samples, saved.Hard.Checkpoint)
		if v.seen.begin(saved.Hard.Image); why == "" || saved.Forgot != "" {
			return nil
		}
		saved.Unlike = why
	}
	v.logr.Warn("image is not believed", "reason", cmp.Or(saved.Forgot, saved.Unlike))
	return nil
}

// sizeOf is a known volume's size in its image's file, in bytes.
func sizeOf(s *replica.Saved) int64 { return cmp.Or(s.Table.Size, s.Hard.State.Size) }

func imageLost(path string) error {
	return fmt.Errorf("%w: mount its disk or correct the path, and start again; if it is lost, make an empty file, as the user that the server runs as, to be filled from another server: touch %s", fs.ErrNotExist, path)
}

// ImageThere is an error where no image is at path, though a journal knows the volume.
func ImageThere(path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && image.MayCreate(path) == nil {
		return imageLost(path)
	}
	return nil
}

// emptied notes, durably before there is an image again, that it was empty: should this
// start fail, the next one finds an image.
func (v *Volume) emptied(saved *replica.Saved) error {
	if saved.Forgot != "" {
		return nil // it is not believed anyway
	}
	saved.Forgot = fmt.Sprintf("the image %s was empty", v.opt.Image)
	h := saved.Hard
	h.Forgot = saved.Forgot
	p, err := v.log.Load().Write(journal.Batch{Meta: metaOps(&replica.Store{Hard: &h}), Urgent: true})
	if err == nil {
		err = p.Wait()
	}
	if err != nil {
		return fmt.Errorf("note that it was empty: %w", err)
	}
	return nil
}
