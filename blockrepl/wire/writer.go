package wire

import (
	"hash/crc32"
	"slices"
)

// Writer collects frames for one write to the link. Records are not copied: the
// frames come out as a list of slices, some of which are the records' own bytes,
// so that one writev sends many frames. The zero value is ready. It belongs to
// one goroutine.
//
//	w.Add(tag, msg) …            any number of times
//	bufs := net.Buffers(w.Buffers())
//	bufs.WriteTo(conn)           or, where there is no writev: conn.Write(w.AppendTo(buf[:0]))
//	w.Reset()
type Writer struct {
	// heads holds frame headers and fields, of several frames without records
	// between them one behind the other. Invariant: heads[:done] is in bufs.
	heads []byte
	done  int
	bufs  [][]byte
	n     int
	c     coder // of the current Add; kept for its list of records
}

// Add appends m as a frame about the volume named by tag. ErrTooLarge if it
// exceeds a bound; then nothing of it was added. The records' bytes must stay
// unchanged until Reset.
func (w *Writer) Add(tag uint64, m Message) error {
	start := len(w.heads)
	c := &w.c
	if data, ok := m.(*ExtentData); ok {
		w.heads = slices.Grow(w.heads, HeaderSize+data.room()) // not in steps of two, copied each time
	}
	*c = coder{enc: true, b: append(w.heads, make([]byte, HeaderSize)...), raws: c.raws[:0]}
	defer func() { clear(c.raws) }()
	if err := c.encode(m); err != nil {
		return err
	}
	w.heads = c.b
	body := w.heads[start+HeaderSize:]
	h := header{typ: m.messageType(), tag: tag, length: len(body), head: len(body)}
	for _, r := range c.raws {
		h.length += len(r)
	}
	h.sum = crc32.Checksum(body, castagnoli)
	h.put(w.heads[start:])
	w.n += HeaderSize + h.length
	if len(c.raws) > 0 {
		w.cut()
		w.bufs = append(w.bufs, c.raws...)
	}
	return nil
}

// cut moves what is new in heads to bufs. A later growth of heads leaves these
// bytes behind in the old array, where they stay as they are.
func (w *Writer) cut() {
	if n := len(w.heads); n > w.done {
		w.bufs = append(w.bufs, w.heads[w.done:n:n])
		w.done = n
	}
}

// Len is the number of bytes collected since Reset.
func (w *Writer) Len() int { return w.n }

// Buffers gives all frames in order, valid until the next Add or Reset. The
// caller may consume the list, as net.Buffers does, but must not write to the bytes.
func (w *Writer) Buffers() [][]byte {
	w.cut()
	return w.bufs
}

// AppendTo appends all frames to dst, copying: for links that have no writev,
// where each slice would become a packet or a TLS record of its own.
func (w *Writer) AppendTo(dst []byte) []byte {
	for _, b := range w.Buffers() {
		dst = append(dst, b...)
	}
	return dst
}

// Reset forgets all frames and the records in them.
func (w *Writer) Reset() {
	clear(w.bufs)
	w.bufs, w.heads = w.bufs[:0], w.heads[:0]
	w.done, w.n = 0, 0
	if cap(w.heads) > keepHead {
		w.heads = nil
	}
	if cap(w.bufs) > keepBuffers {
		w.bufs = nil
	}
	w.c.b = nil
	if cap(w.c.raws) > keepBuffers {
		w.c.raws = nil
	}
}
