package nbd

import (
	"context"
	"errors"
)

// Exports decides what a client sees and opens. The program implements it; its methods are called concurrently, one call
// at a time for each connection, and may wait as long as ctx lives (ctx ends when the client goes away).
type Exports interface {
	// List gives the names this client may see.
	List(ctx context.Context, c *Client) ([]string, error)
	// Describe answers INFO and the negotiation of metadata contexts. Nothing is opened.
	Describe(ctx context.Context, c *Client, name string) (Info, error)
	// Open answers GO and EXPORT_NAME. The Info is what the client is told; after it the connection uses the Disk
	// until its Close. Errors: ErrUnknownExport, ErrNotPermitted, ErrTLSRequired, ErrHang; any other is logged and told
	// to the client as an export that is not available.
	Open(ctx context.Context, c *Client, name string) (Disk, Info, error)
}

// Info describes an export. The zero value of each size means its default.
type Info struct {
	Name        string // canonical name, told to clients that ask; "" = the name the client used
	Description string // for people, told to clients that ask
	Size        int64  // bytes

	ReadOnly   bool // writes are refused with EPERM before they reach the disk
	Rotational bool // a hint for the client's scheduler
	MultiConn  bool // a flush on one connection covers the completed writes of all connections
	FastZero   bool // OpZero with FastZero set is answered at once: done, or ENOTSUP with nothing changed

	MinBlock       uint32 // power of two; 0 = 1. Requests that are not aligned to it get EINVAL
	PreferredBlock uint32 // power of two, at least 512; 0 = 4096
	MaxPayload     uint32 // longest READ or WRITE in bytes; 0 = MaxPayloadDefault, and never more than that
}

// Disk is one open export as one connection sees it. Every method but Close is called concurrently. Ranges passed in are
// inside the export and not empty.
//
// An error is answered with the errno it wraps (EPERM, ENOSPC, EINVAL, ENOMEM, ENOTSUP where that is allowed, else EIO);
// see Errno. ErrHang and the errors of a finished context are never answered: the connection is closed without a reply,
// and the client sends the request again elsewhere.
type Disk interface {
	// ReadAt fills p. It waits as long as ctx lives.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// Alloc gives a buffer of n bytes for the payload of one write. It belongs to the disk again with Submit, so that
	// the disk may keep room before it for its own header and never copy. It must not wait.
	Alloc(n int) []byte
	// Free gives back a buffer of Alloc that is not submitted: the request was refused or the connection cut.
	Free(p []byte)
	// Submit starts a write, trim or zero and returns at once or after back-pressure. w.Done is called exactly once, from
	// any goroutine, perhaps before Submit returns; after that the disk must not touch w. ctx is the connection's: when
	// it ends nobody waits for the answer any more, and Submit must return and Done follow soon. While Submit waits the
	// connection reads no further request.
	Submit(ctx context.Context, w *Write)
	// Flush returns when every write of this server's connections to the export (MultiConn), or of this connection,
	// whose Done was called before Flush is on stable storage.
	Flush(ctx context.Context) error
	// Cache is a hint that the range will be read.
	Cache(ctx context.Context, off, n int64) error
	// Extents describes [off, off+n) from its beginning with at most max extents; it may stop early.
	Extents(ctx context.Context, off, n int64, max int) ([]Extent, error)
	// Close is the last call, after all requests have ended.
	Close() error
}

// NowReader is what a Disk may add: reads that need not wait.
type NowReader interface {
	// ReadNow fills p if that is possible without waiting (page cache, lease held) and else reports false, leaving p
	// undefined; the server then uses ReadAt. It runs in the goroutine that reads the connection: whatever time it takes,
	// all requests behind it lose.
	ReadNow(p []byte, off int64) (done bool, err error)
}

// Op says what a Write does.
type Op uint8

// The operations of a Write; zero is none.
const (
	OpWrite Op = iota + 1 // Data to [Off, Off+Len)
	OpTrim                // the range is no longer needed; it may read back as anything
	OpZero                // the range reads back as zeroes
)

// String names the operation as the protocol does.
func (o Op) String() string {
	switch o {
	case OpWrite:
		return "write"
	case OpTrim:
		return "trim"
	case OpZero:
		return "write zeroes"
	}
	return "none"
}

// Write is one change of the disk. The server owns and reuses it: a disk may read it between Submit and the call of Done.
type Write struct {
	Op       Op
	Off, Len int64
	Data     []byte // Len bytes for OpWrite, from Alloc; owned by the disk
	FUA      bool   // Done only when the change is on stable storage
	NoHole   bool   // OpZero: keep the space allocated
	FastZero bool   // OpZero: fail with ENOTSUP, changing nothing, unless faster than writing
	// Done ends the request. nil is success; for errors see Disk. Never blocks.
	Done func(error)
}

// Extent is a run of bytes of one kind, following the previous one.
type Extent struct {
	Len  int64
	Hole bool // not allocated
	Zero bool // reads as zeroes
}

// What Exports and Disk may answer, and what ends a connection.
var (
	// ErrUnknownExport answers a name that this client cannot have.
	ErrUnknownExport = errors.New("no such export")
	// ErrNotPermitted answers a name the client may know of but not use now. The text of the error that wraps it goes to
	// the client.
	ErrNotPermitted = errors.New("not permitted")
	// ErrTLSRequired answers a name that is served under TLS only.
	ErrTLSRequired = errors.New("TLS required")
	// ErrHang closes the connection without a reply. It is the answer while stopping, fencing and demoting: any error
	// reply would become an I/O error in the client's file system, an unanswered request is sent again.
	ErrHang = errors.New("close the connection without a reply")

	// ErrPeerClosed ends a connection whose client has gone away.
	ErrPeerClosed = errors.New("the client closed the connection")
	// ErrProtocol ends a connection whose client broke the stream.
	ErrProtocol = errors.New("protocol violation")
	// ErrStalled ends a connection whose client stopped in the middle of a message, or stopped reading replies.
	ErrStalled = errors.New("the client stalled")
	// ErrLimit ends a connection, or refuses one, at a bound of limits.go.
	ErrLimit = errors.New("limit reached")
	// ErrServerClosed is what Serve returns after Shutdown or Close.
	ErrServerClosed = errors.New("server closed")
)
