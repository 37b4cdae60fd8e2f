package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the operator's init. Does: brings a volume that does not exist yet
// into being from this server's image: as it is, zeroed, or filled from a file or
// device. Goes to: the state machine, which creates it with this server alone.

// initStep is how much is copied at a time, in bytes.
const initStep = 4 << 20

func handleInit(ctx context.Context, v *Volume, body io.Reader) (any, error) {
	var q InitRequest
	if err := readBody(body, &q); err != nil {
		return nil, err
	}
	switch q.Content {
	case InitKeep, InitZero, InitCopy:
	default:
		return nil, fmt.Errorf("%w: content %q; want %q, %q or %q", errBadRequest, q.Content, InitKeep, InitZero, InitCopy)
	}
	view, err := v.viewSoon(ctx)
	if err != nil {
		return nil, err
	}
	if !view.Blank {
		return nil, fmt.Errorf("%w: the volume exists, in epoch %v", replica.ErrRefused, view.Epoch)
	}
	if !v.initializing.TryLock() {
		return nil, fmt.Errorf("%w: another init is under way", replica.ErrRefused)
	}
	defer v.initializing.Unlock()
	defer v.in.post(replica.InitEnd{}) // however it ends, also when only its answer did not come
	if _, err := v.command(ctx, func(id uint64) replica.Event { return replica.InitStart{ID: id} }); err != nil {
		return nil, err
	}
	if err := v.prepareImage(ctx, &q); err != nil {
		return nil, err
	}
	if _, err := v.command(ctx, func(id uint64) replica.Event { return replica.Init{ID: id} }); err != nil {
		return nil, err
	}
	v.check.ask(1) // before the first checkpoint another image in its place is not noticed
	return InitReport{Volume: v.name, Content: q.Content, SizeBytes: v.size.Load()}, nil
}

// prepareImage gives the image its content. Nothing else touches it: the volume does
// not exist here, and since InitStart it neither comes into being here nor is joined
// when another server's init made it. Should a record to be applied or a resync come
// all the same it would wait here: a resync begins with the applier's reset.
func (v *Volume) prepareImage(ctx context.Context, q *InitRequest) error {
	v.app.hold()
	defer v.app.release()
	switch q.Content {
	case InitZero:
		return v.img.ZeroAll(ctx, nil)
	case InitCopy:
		return v.fillFrom(ctx, q.From)
	}
	return v.img.Sync() // who wrote it may not have
}

// fillFrom copies a file or device into the image; what the volume has beyond it
// reads as zeroes.
func (v *Volume) fillFrom(ctx context.Context, path string) error {
	if st, err := os.Stat(path); err != nil {
		return fmt.Errorf("init from: %w", err)
	} else if m := st.Mode(); !m.IsRegular() && m&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice {
		return fmt.Errorf("%w: %s is a %s; want a regular file or a block device", replica.ErrRefused, path, m.Type())
	}
	src, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("init from: %w", err)
	}
	defer src.Close()
	if same, err := v.isImage(src); err != nil {
		return fmt.Errorf("init from %s: %w", path, err)
	} else if same {
		return fmt.Errorf("%w: %s is the image itself, which would be zeroed first; content %q takes it as it is", replica.ErrRefused, path, InitKeep)
	}
	size, err := src.Seek(0, io.SeekEnd) // of devices too
	if err != nil {
		return fmt.Errorf("init from %s: %w", path, err)
	}
	if size > v.img.Size() {
		return fmt.Errorf("%w: %s has %d bytes, the volume %d", replica.ErrRefused, path, size, v.img.Size())
	}
	if err := v.img.ZeroAll(ctx, nil); err != nil {
		return err
	}
	w := v.begin("init", size)
	defer v.end(w)
	buf := make([]byte, initStep)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("init from %s: stopped at byte %d: %w", path, off, err)
		}
		n, err := src.ReadAt(buf[:min(initStep, size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) || n == 0 {
			return fmt.Errorf("init from %s: read at byte %d: %w", path, off, errors.Join(err, io.ErrUnexpectedEOF))
		}
		if !record.IsZero(buf[:n]) {
			if err := v.img.Apply([]image.Change{{Kind: record.KindWrite, Off: off, Len: int64(n), Data: buf[:n]}}); err != nil {
				return err
			}
		}
		off += int64(n)
		w.done.Store(off)
	}
	return v.img.Sync()
}

// isImage reports whether an open file is the volume's image, under whatever name.
func (v *Volume) isImage(f *os.File) (bool, error) {
	a, err := f.Stat()
	if err != nil {
		return false, err
	}
	b, err := os.Stat(v.opt.Image)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // Options.OpenImage gave one from elsewhere
	}
	if err != nil {
		return false, err
	}
	x, y := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
	device := x.Mode&syscall.S_IFMT == syscall.S_IFBLK && y.Mode&syscall.S_IFMT == syscall.S_IFBLK
	return os.SameFile(a, b) || device && x.Rdev == y.Rdev, nil
}
