package replica

import "errors"

var (
	// ErrRefused: a command cannot be carried out as it was asked; the text says why.
	ErrRefused = errors.New("refused")
	// ErrFenced: another mastership ended this one before the command was done.
	ErrFenced = errors.New("fenced by a newer epoch")
	// ErrFailed: this server's journal or image failed; it needs a restart.
	ErrFailed = errors.New("this server has failed")
	// ErrNoSpace: an in-sync server has no room to keep the record.
	ErrNoSpace = errors.New("no space in the journal of an in-sync server")
	// ErrHeld: another client identity holds the volume.
	ErrHeld = errors.New("another client holds the volume")
	// ErrRange: the extent lies outside the volume.
	ErrRange = errors.New("outside the volume")
	// ErrTimeout: the others did not answer in time.
	ErrTimeout = errors.New("timed out")
)
