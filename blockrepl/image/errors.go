package image

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/blockrepl/blockrepl/journal/record"
)

// What callers branch on. All but ErrRange come within an [*Error].
var (
	// ErrInUse: another process, or this one, has the image open.
	ErrInUse = errors.New("image is in use")
	// ErrNoSpace: the file system below is full. Reads are refused until the
	// same changes were applied again and fitted.
	ErrNoSpace = errors.New("no space for the image")
	// ErrFailed: a write or an fsync failed. Final: open the image anew and apply
	// everything after the last checkpoint.
	ErrFailed = errors.New("image failed")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("image is closed")
	// ErrSize: the file or device is smaller than the volume.
	ErrSize = errors.New("image is too small")
	// ErrRange: an extent is not within the volume; nothing was done.
	ErrRange = errors.New("extent outside of the volume")
)

// Error says what was done to which bytes of which file, and what came of it.
type Error struct {
	Op     string
	Path   string
	Extent record.Extent // empty: the whole image
	Err    error
}

// Error gives "apply image /p, [0,512): why".
func (e *Error) Error() string {
	if e.Extent.Len() == 0 {
		return fmt.Sprintf("%s image %s: %v", e.Op, e.Path, e.Err)
	}
	return fmt.Sprintf("%s image %s, %s: %v", e.Op, e.Path, e.Extent, e.Err)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes what the kernel calls a full file system ErrNoSpace.
func (e *Error) Is(target error) bool {
	return target == ErrNoSpace && isNoSpace(e.Err)
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
