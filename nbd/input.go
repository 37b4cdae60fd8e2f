package nbd

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// input reads a connection through one buffer: a system call brings many requests. Comes from: the socket. Goes to:
// handshake.go, then transmit.go; both use the same input, so nothing is lost between the phases.
//
// Only the connection's own goroutine uses it; the counters are for the reaper.
type input struct {
	conn net.Conn
	buf  []byte
	r, w int // Invariant: buf[r:w] is read and not consumed

	reading atomic.Bool   // inside conn.Read: an end of the stream will be noticed
	mid     atomic.Bool   // the client owes the rest of a message
	total   atomic.Uint64 // bytes read

	look   func(fd uintptr) bool // poll's call of the kernel, made once: a closure would be made for each poll
	looked int                   // what it got
}

// buffered is how many bytes are there without a system call.
func (in *input) buffered() int { return in.w - in.r }

// fill reads until n bytes are buffered, n <= len(buf). io.EOF means that the stream ended between two messages.
func (in *input) fill(n int) error {
	if in.r == in.w {
		in.r, in.w = 0, 0
	} else if in.r+n > len(in.buf) {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	for in.buffered() < n {
		k, err := in.read(in.buf[in.w:], in.buffered() > 0)
		in.w += k
		if err != nil && in.buffered() < n {
			return in.cut(err, in.buffered() > 0)
		}
	}
	return nil
}

// poll reads what the socket holds now, without waiting; false if that is nothing. An end or an error of the stream is
// left to the next fill.
func (in *input) poll(raw syscall.RawConn) bool {
	if in.r == in.w {
		in.r, in.w = 0, 0
	}
	if in.w == len(in.buf) {
		return false
	}
	if in.look == nil {
		in.look = func(fd uintptr) bool {
			in.looked, _ = unix.Read(int(fd), in.buf[in.w:])
			return true
		}
	}
	in.looked = 0
	if err := raw.Read(in.look); err != nil || in.looked <= 0 {
		return false
	}
	in.w += in.looked
	in.total.Add(uint64(in.looked))
	return true
}

// take consumes n buffered bytes; they are valid until the next fill.
func (in *input) take(n int) []byte {
	p := in.buf[in.r : in.r+n]
	in.r += n
	return p
}

// readFull fills p, the middle of a message: first what is buffered, the rest straight from the socket.
func (in *input) readFull(p []byte) error {
	n := copy(p, in.buf[in.r:in.w])
	in.r += n
	for n < len(p) {
		k, err := in.read(p[n:], true)
		n += k
		if err != nil && n < len(p) {
			return in.cut(err, true)
		}
	}
	return nil
}

// discard skips n bytes, the middle of a message.
func (in *input) discard(n int64) error {
	k := min(n, int64(in.buffered()))
	in.r += int(k)
	for n -= k; n > 0; n -= k {
		in.r, in.w = 0, 0
		got, err := in.read(in.buf[:min(n, int64(len(in.buf)))], true)
		if k = int64(got); err != nil && k < n {
			return in.cut(err, true)
		}
	}
	return nil
}

func (in *input) read(p []byte, mid bool) (int, error) {
	in.mid.Store(mid)
	in.reading.Store(true)
	n, err := in.conn.Read(p)
	in.reading.Store(false)
	in.mid.Store(false)
	in.total.Add(uint64(n))
	if n > 0 {
		err = nil // a persistent error comes again
	} else if err == nil {
		err = io.ErrNoProgress
	}
	return n, err
}

// cut says how a stream ended: in the middle of a message it is never a plain end.
func (in *input) cut(err error, mid bool) error {
	if mid && errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
