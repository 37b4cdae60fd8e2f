package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/blockrepl/blockrepl/journal/record"
)

// ErrCorrupt says that bytes are no valid frame, message, Hello or Verdict. The
// link they came over must be closed: what follows cannot be found.
var ErrCorrupt = errors.New("frame is corrupt")

// ErrTooLarge says that a message exceeds a bound of limits.go and was not encoded.
var ErrTooLarge = errors.New("message is too large")

// coder walks the fields of a message, in one direction: either it appends them
// to b, or it takes them from b. Both directions run the same list of calls (see
// fields.go), so that they cannot drift apart. After the first error it does
// nothing more, and err says which field.
type coder struct {
	enc bool
	b   []byte // encoding: what was appended; decoding: what is left
	off int    // decoding: bytes taken so far
	err error

	// head is where the fields end and the records begin.
	head int
	// raws are the records' bytes, encoded: they follow b and are not copied.
	raws [][]byte

	// trace, for tests that annotate bytes, hears of every field while encoding.
	trace func(name string, b []byte)
}

func (c *coder) fail(name, format string, args ...any) {
	if c.err != nil {
		return
	}
	why := fmt.Sprintf(format, args...)
	if c.enc {
		c.err = fmt.Errorf("%w: %s: %s", ErrTooLarge, name, why)
	} else {
		c.err = fmt.Errorf("%w: %s at byte %d: %s", ErrCorrupt, name, c.off, why)
	}
}

// room gives the n bytes of a field: to be filled when encoding, to be read when
// decoding. Nil after an error.
func (c *coder) room(name string, n int) []byte {
	if c.err != nil {
		return nil
	}
	if c.enc {
		at := len(c.b)
		c.b = append(c.b, make([]byte, n)...)
		return c.b[at:]
	}
	if len(c.b) < n {
		c.fail(name, "needs %d bytes, %d are left", n, len(c.b))
		return nil
	}
	p := c.b[:n:n]
	c.b = c.b[n:]
	c.off += n
	return p
}

func (c *coder) traced(name string, p []byte) {
	if c.trace != nil {
		c.trace(name, p)
	}
}

func (c *coder) u8(name string, v *uint8) {
	p := c.room(name, 1)
	switch {
	case p == nil:
	case c.enc:
		p[0] = *v
		c.traced(name, p)
	default:
		*v = p[0]
	}
}

// enum is a u8 that may be 0 (unset) up to last.
func (c *coder) enum(name string, v *uint8, last uint8) {
	if c.u8(name, v); *v > last {
		c.fail(name, "%d is unknown, the last is %d", *v, last)
	}
}

func (c *coder) flag(name string, v *bool) {
	var b uint8
	if *v {
		b = 1
	}
	c.enum(name, &b, 1)
	*v = b == 1
}

func (c *coder) u16(name string, v *uint16) {
	p := c.room(name, 2)
	switch {
	case p == nil:
	case c.enc:
		binary.LittleEndian.PutUint16(p, *v)
		c.traced(name, p)
	default:
		*v = binary.LittleEndian.Uint16(p)
	}
}

func (c *coder) u32(name string, v *uint32) {
	p := c.room(name, 4)
	switch {
	case p == nil:
	case c.enc:
		binary.LittleEndian.PutUint32(p, *v)
		c.traced(name, p)
	default:
		*v = binary.LittleEndian.Uint32(p)
	}
}

func (c *coder) u64(name string, v *uint64) {
	p := c.room(name, 8)
	switch {
	case p == nil:
	case c.enc:
		binary.LittleEndian.PutUint64(p, *v)
		c.traced(name, p)
	default:
		*v = binary.LittleEndian.Uint64(p)
	}
}

// clock is an i64 of any value.
func (c *coder) clock(name string, v *int64) {
	u := uint64(*v)
	c.u64(name, &u)
	*v = int64(u)
}

// size is an i64 in 0..record.MaxSize: a number of bytes or an offset.
func (c *coder) size(name string, v *int64) {
	c.clock(name, v)
	if *v < 0 || *v > record.MaxSize {
		c.fail(name, "%d is outside of 0..%d", *v, int64(record.MaxSize))
	}
}

func (c *coder) fixed(name string, v []byte) {
	p := c.room(name, len(v))
	switch {
	case p == nil:
	case c.enc:
		copy(p, v)
		c.traced(name, p)
	default:
		copy(v, p)
	}
}

func (c *coder) seq(name string, v *record.Seq)              { c.u64(name, (*uint64)(v)) }
func (c *coder) volume(name string, v *record.VolumeID)      { c.fixed(name, v[:]) }
func (c *coder) incarnation(n string, v *record.Incarnation) { c.fixed(n, v[:]) }

// server is an id or none. Ids reach logs, paths and keys: what is no id is refused.
func (c *coder) server(name string, v *record.ServerID) {
	c.fixed(name, v[:])
	if c.err != nil || v.IsZero() {
		return
	}
	if id, err := record.ParseServerID(v.String()); err != nil || id != *v {
		c.fail(name, "%x is no server id", v[:])
	}
}

func (c *coder) epoch(name string, v *record.Epoch) {
	c.u64(name, &v.Counter)
	c.server(name, &v.Server)
}

func (c *coder) pos(name string, v *record.Pos) {
	c.seq(name, &v.Seq)
	c.u64(name, &v.Sum)
}

// text is a u16 length and that many bytes of UTF-8.
func (c *coder) text(name string, v *string, lenMax int) {
	n := uint16(min(len(*v), 1<<16-1))
	c.u16(name, &n)
	if int(n) > lenMax {
		c.fail(name, "%d bytes, at most %d are allowed", n, lenMax)
		return
	}
	p := c.room(name, int(n))
	switch {
	case p == nil:
	case c.enc:
		copy(p, *v)
		c.traced(name, p)
	default:
		*v = string(p)
	}
	if !utf8.ValidString(*v) {
		c.fail(name, "%q is no UTF-8", *v)
	}
}

// reason is a text for people; the sender cuts it to fit.
func (c *coder) reason(name string, v *string) {
	if !c.enc {
		c.text(name, v, MaxReason)
		return
	}
	s := strings.ToValidUTF8(*v, "?")
	if len(s) > MaxReason {
		n := MaxReason
		for !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
	c.text(name, &s, MaxReason)
}

// blob is a u32 length and that many bytes.
func (c *coder) blob(name string, v *[]byte) {
	c.part(name, v)
	if !c.enc {
		*v = bytes.Clone(*v) // the frame's buffer is used again
	}
}

// part is a blob that, decoded, is a part of the frame. Only for messages that
// own their frame's buffer (header.ownsBody).
func (c *coder) part(name string, v *[]byte) {
	n := uint32(min(len(*v), MaxBody+1))
	c.u32(name, &n)
	if n > MaxBody {
		c.fail(name, "%d bytes, at most %d are allowed", len(*v), MaxBody)
		return
	}
	p := c.room(name, int(n))
	switch {
	case p == nil:
	case c.enc:
		copy(p, *v)
		c.traced(name, p)
	case n > 0:
		*v = p
	}
}

// list is a u32 count and the entries. size is the least that one takes in
// bytes: no count is believed that what is left cannot hold.
func list[T any](c *coder, name string, v *[]T, countMax, size int, entry func(*coder, *T)) {
	n := uint32(min(len(*v), 1<<32-1))
	c.u32(name, &n)
	switch {
	case c.err != nil:
		return
	case int64(n) > int64(countMax):
		c.fail(name, "%d entries, at most %d are allowed", n, countMax)
		return
	case !c.enc && int64(n)*int64(size) > int64(len(c.b)):
		c.fail(name, "%d entries need %d bytes, %d are left", n, int64(n)*int64(size), len(c.b))
		return
	case !c.enc && n > 0:
		*v = make([]T, n)
	}
	for i := range *v {
		entry(c, &(*v)[i])
	}
}

// records is a u32 count, the end of the head, and the records one behind the
// other up to the end of the body.
func (c *coder) records(v *[]*record.Record, next func([]byte) (*record.Record, []byte, error)) {
	n := uint32(min(len(*v), 1<<32-1))
	c.u32("records", &n)
	if c.err == nil && n > MaxRecords {
		c.fail("records", "%d, at most %d are allowed", n, MaxRecords)
	}
	if c.err != nil {
		return
	}
	if c.enc {
		c.head = len(c.b)
		for i, r := range *v {
			if len(r.Raw) != record.HeaderSize+int(r.Stored) {
				panic(fmt.Sprintf("wire: bug: record %d of %d has %d encoded bytes", i, n, len(r.Raw)))
			}
			c.raws = append(c.raws, r.Raw)
		}
		return
	}
	c.head = c.off
	if int64(n)*record.HeaderSize > int64(len(c.b)) {
		c.fail("records", "%d need %d bytes, %d are left", n, int64(n)*record.HeaderSize, len(c.b))
		return
	}
	if n > 0 {
		*v = make([]*record.Record, n)
	}
	for i := range *v {
		r, rest, err := next(c.b)
		if err != nil {
			c.err = fmt.Errorf("%w: record %d of %d at byte %d: %w", ErrCorrupt, i+1, n, c.off, err)
			*v = nil
			return
		}
		(*v)[i] = r
		c.off += len(c.b) - len(rest)
		c.b = rest
	}
}
