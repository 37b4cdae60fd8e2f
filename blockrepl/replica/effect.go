package replica

import (
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Effects is what one or several Steps want done, each list in order. The shell
// carries it out and then calls Reset. Between lists: Stores are handed to the
// journal before anything else; no message here promises what a Store of the
// same Effects makes durable (such messages come after Stored).
type Effects struct {
	Stores  []Store
	Sends   []Send
	Streams []Stream
	// Apply is the number through which records may go to the image, in order;
	// zero: no change. They are durable here and committed.
	Apply record.Seq
	// SyncImage asks for an image fsync once everything through this number is
	// applied (end of a resync or of an orderly stop); zero: no.
	SyncImage record.Seq
	// Trim is the number through which kept records may go; zero: no change.
	Trim record.Seq
	// Complete are operations that are answered now.
	Complete []Completion
	// Reads are the IDs of Read events that may look at the image now.
	Reads []uint64
	// Abort are clients' connections to be closed without a reply.
	Abort []Abort
	// CloseLinks are sessions to be closed, for Reason.
	CloseLinks []CloseLink
	Lookups    []Lookup
	// Resync is non-nil when the copying of extents must start, restart or stop.
	Resync *ResyncOrder
	// Fail is non-nil when this server cannot go on: as if the shell had found it.
	Fail    *Failed
	Results []Result
	Notes   []Note
	// Wake is when the next Tick is due at the latest; zero: the usual.
	Wake Time
}

// Lookup asks for the header sum of a number (Looked). Of a record that is not kept, but
// the next is, that one's Prev tells it.
type Lookup struct {
	Seq record.Seq
	// Mend: where both are damaged the other servers are asked for them first.
	Mend bool
}

// Reset empties e for reuse.
func (e *Effects) Reset() {
	clear(e.Stores)
	clear(e.Sends)
	clear(e.Complete)
	*e = Effects{
		Stores: e.Stores[:0], Sends: e.Sends[:0], Streams: e.Streams[:0],
		Complete: e.Complete[:0], Reads: e.Reads[:0], Abort: e.Abort[:0],
		CloseLinks: e.CloseLinks[:0], Lookups: e.Lookups[:0],
		Results: e.Results[:0], Notes: e.Notes[:0],
	}
}

// Store is one atomic journal batch: first Cut, then Reset, then the Records, with
// the metadata that is not nil.
type Store struct {
	ID      uint64 // ascending by one
	Cut     *record.Pos
	Reset   *record.Pos // drop all records; the journal begins behind this
	Records []*record.Record
	Hard    *Hard
	Table   *Table
	// Memory is the whole list when it changed enough to be written.
	Memory []wire.Memory
}

// Hard is the small durable state of a volume on a server, always written whole.
type Hard struct {
	State    wire.State
	Promised record.Epoch
	// Rivals were promised before, the newest to each other server, which may have
	// begun it since.
	Rivals    []record.Epoch `json:",omitempty"`
	Following record.Epoch   // whose stream the tail belongs to
	History   []wire.EpochStart
	// Checkpoint: the image is fsynced with everything through this.
	// Invariant: Checkpoint <= applied <= committed.
	Checkpoint record.Seq
	Resync     *ResyncMark
	// Proposed is the newest change of State that this master asked for and whose
	// outcome it may not have learned; it binds nobody until it is in force, which a
	// grow is from the next start on.
	Proposed *wire.State
	// Match is where the journal agreed with the epoch that is followed when that
	// began: it held as much then.
	Match record.Seq
	// Vow is the epoch under whose master this server stopped in order: that master
	// may go on answering reads without its lease (Leaving.Vow). Zero: none.
	Vow record.Epoch
	// Lease is at least as long as any lease lasts that this server has granted and that
	// may not have run out, in ns; 0: none was. A restart waits for it.
	Lease time.Duration `json:",omitempty"`
	// Image are blocks of the image as they were at Checkpoint, so that another
	// image is not taken for it (the shell compares them at a start).
	Image []Sample
	// Forgot says why this server's past is not believed, "" when it is. Durable,
	// so that a second restart does not take what is left for the whole.
	Forgot string
}

// Sample is what a block of the image held: Sum is the shell's to make and compare.
type Sample struct {
	Off, Len int64 // bytes
	Sum      uint64
}

// ResyncMark says that the image is a mixture until everything through Target is applied.
type ResyncMark struct {
	Base   record.Seq // S0: the journal begins behind it
	Target record.Seq // S1; zero until the last extent was read
	Offset int64      // extents below are copied and fsynced
	// High is the highest number applied at the master when any extent so far was read.
	High record.Seq
}

// Send is one message.
type Send struct {
	To      record.ServerID
	Session uint64
	Msg     wire.Message
}

// Stream moves the sender's cursor of one session: send the records From..To, in
// Append frames of Epoch with the current commit number and floor, as fast as
// the link takes them. From zero: go on where the cursor is, to the new end.
type Stream struct {
	To        record.ServerID
	Session   uint64
	Epoch     record.Epoch
	From, End record.Seq
}

// Completion answers one operation. Err nil: committed and applied here.
type Completion struct {
	Op  *Op
	Err error
}

// Abort closes a client's connection without a reply.
type Abort struct {
	Conn   uint64
	Reason string
}

// CloseLink ends a session.
type CloseLink struct {
	Peer    record.ServerID
	Session uint64
	Reason  string
}

// ResyncOrder starts the copying at From, from the server To; Stop ends it.
type ResyncOrder struct {
	ID      uint64 // for ResyncProgress; never used again
	To      record.ServerID
	Session uint64
	Epoch   record.Epoch
	From    int64
	Size    int64 // bytes that the image must have before
	High    record.Seq
	Stop    bool
}

// Result answers a command event.
type Result struct {
	ID     uint64
	Err    error
	Report *PromoteReport // of Promote
	Note   string         // a warning for the operator
}

// Note is a state change that an operator would want to read: one log line.
type Note struct {
	Text string
	Args []any // slog key-value pairs
	Warn bool
}
