package wire

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/blockrepl/blockrepl/journal/mutant"
)

// Frame is one message and the volume it speaks of.
type Frame struct {
	Tag     uint64
	Message Message
}

// Reader reads frames from a link. It belongs to one goroutine. What it holds is
// bounded by its buffer and one frame.
type Reader struct {
	r   *bufio.Reader
	err error
}

// NewReader gives a Reader of r, through one large buffer.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, readBuffer)}
}

// Next reads one frame: sums verified, decoded. The message is the caller's:
// records and chunk data lie in a buffer of their own frame, which lives as long
// as they do. io.EOF at the end between two frames, io.ErrUnexpectedEOF within
// one, ErrCorrupt for bytes that are no frame, else the link's own error. After
// an error the stream is lost: Next gives it again, and the link must be closed.
func (r *Reader) Next() (Frame, error) {
	if r.err != nil {
		return Frame{}, r.err
	}
	f, err := r.next()
	if err != nil {
		r.err = err
		return Frame{}, err
	}
	return f, nil
}

func (r *Reader) next() (Frame, error) {
	b, err := r.r.Peek(HeaderSize)
	if err != nil {
		if len(b) > 0 {
			err = unexpected(err)
		}
		if errors.Is(err, io.EOF) {
			return Frame{}, io.EOF
		}
		return Frame{}, fmt.Errorf("read frame header, %d of %d bytes: %w", len(b), HeaderSize, err)
	}
	var h header
	if err := h.parse(b); err != nil {
		return Frame{}, fmt.Errorf("read frame: %w", err)
	}
	if _, err := r.r.Discard(HeaderSize); err != nil {
		return Frame{}, fmt.Errorf("read frame header: %w", err)
	}

	// What decodes to copies is decoded where it lies in the buffer. What
	// decodes to parts of the body gets a body of its own, exactly as large: a
	// record that is kept must not keep a buffer of its neighbours.
	if !h.ownsBody() && h.length <= r.r.Size() {
		b, err = r.r.Peek(h.length)
		if err == nil {
			var m Message
			if m, err = h.decode(b); err != nil {
				return Frame{}, err
			}
			_, err = r.r.Discard(h.length)
			return Frame{h.tag, m}, err
		}
		return Frame{}, fmt.Errorf("read %s, %d of %d bytes: %w", h.typ, len(b), h.length, unexpected(err))
	}
	body := make([]byte, h.length)
	if n, err := io.ReadFull(r.r, body); err != nil {
		return Frame{}, fmt.Errorf("read %s, %d of %d bytes: %w", h.typ, n, h.length, unexpected(err))
	}
	m, err := h.decode(body)
	return Frame{h.tag, m}, err
}

// ownsBody reports whether parts of the body live on in the message.
func (h *header) ownsBody() bool { return h.head < h.length || h.typ == TypeExtentData }

// decode verifies the sum of the head and decodes the body. What lies behind the
// head are records, which carry sums of their own: their bytes are passed once.
func (h *header) decode(body []byte) (Message, error) {
	if got := crc32.Checksum(body[:h.head], castagnoli); got != h.sum && !mutant.Is("ignore the sum of a frame") {
		return nil, fmt.Errorf("read %s of %d bytes: %w: sum is %08x, the header says %08x",
			h.typ, h.length, ErrCorrupt, got, h.sum)
	}
	m, head, err := decode(h.typ, body)
	if err == nil && head != h.head {
		return nil, fmt.Errorf("read %s: %w: %d bytes are summed, %d must be", h.typ, ErrCorrupt, h.head, head)
	}
	return m, err
}

// unexpected turns the end of a stream into one in the middle of a frame.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
