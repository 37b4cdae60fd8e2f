package journal

import (
	"errors"
	"fmt"

	"github.com/blockrepl/blockrepl/journal/record"
)

// What callers branch on.
var (
	// ErrLocked says that another process has the journal open.
	ErrLocked = errors.New("journal is in use by another process")
	// ErrFormat says that a directory holds something else than this version's journal.
	ErrFormat = errors.New("not a journal of this version")
	// ErrTrimmed says that a record is not kept any more.
	ErrTrimmed = errors.New("record is trimmed")
	// ErrNotYet says that a record is behind the log's end.
	ErrNotYet = errors.New("record is not there yet")
	// ErrNoSpace says that a write was refused, and nothing was done, because
	// free space would fall below the reserve.
	ErrNoSpace = errors.New("no space left for the journal")
	// ErrFailed says that a write or sync failed. Nothing written since then is
	// durable and nothing succeeds until the journal is opened again.
	ErrFailed = errors.New("journal failed")
	// ErrClosed says that the journal was closed.
	ErrClosed = errors.New("journal is closed")
	// ErrReadOnly says that the journal was opened by OpenReadOnly.
	ErrReadOnly = errors.New("journal is read-only")
	// ErrNoVolume says that a read-only journal does not know a volume.
	ErrNoVolume = errors.New("journal has no such volume")
	// ErrIncomplete says that damage may hide more than what is given.
	ErrIncomplete = errors.New("there may be more, hidden by damage")
	// ErrMissing says that a record between First and Last is not there.
	ErrMissing = errors.New("record is missing")
	// ErrProof says that Replace was given a record that the chain does not expect.
	ErrProof = errors.New("record is not the one that the chain expects")
)

// CorruptError says that a record is damaged or missing. It unwraps to
// ErrMissing, record.ErrCorrupt, record.ErrVersion or pebble's error.
type CorruptError struct {
	Volume record.VolumeID
	Seq    record.Seq // 0: the log's state itself
	Err    error
}

func (e *CorruptError) Error() string {
	if e.Seq == 0 {
		return fmt.Sprintf("journal of volume %s: state is corrupt: %v", e.Volume, e.Err)
	}
	return fmt.Sprintf("journal of volume %s: record %d is corrupt: %v", e.Volume, e.Seq, e.Err)
}

// Unwrap gives what was wrong.
func (e *CorruptError) Unwrap() error { return e.Err }

// GapError says that a Batch does not follow the log's end.
type GapError struct {
	Volume record.VolumeID
	Last   record.Pos // the log's end, or the record before in the batch
	Got    record.Pos // what should follow: its number and its prev
}

func (e *GapError) Error() string {
	return fmt.Sprintf("journal of volume %s: record %d with prev %016x does not follow %s", e.Volume, e.Got.Seq, e.Got.Sum, e.Last)
}

// FatalError is the panic of a journal whose database cannot go on, when
// Options.Fatal is unset or returns. The process must not survive it.
type FatalError struct{ Reason string }

func (e *FatalError) Error() string { return "journal: pebble cannot go on: " + e.Reason }
