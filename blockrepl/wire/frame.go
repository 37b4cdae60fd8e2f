package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/zeebo/xxh3"

	"github.com/blockrepl/blockrepl/journal/mutant"
)

// HeaderSize is the size of a frame's header, in bytes.
const HeaderSize = 32

// The magic is the bytes 'B' 'R' 'F' and the version of the frame's layout.
const frameMagic = 'B' | 'R'<<8 | 'F'<<16 | 1<<24

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Tag is what a frame names its volume by: XXH3-64 of the volume's name.
func Tag(volume string) uint64 { return xxh3.HashString(volume) }

// header is a frame's header, decoded.
type header struct {
	typ    Type
	tag    uint64
	length int // bytes of body
	head   int // bytes of body that sum covers; Invariant: head <= length
	sum    uint32
}

// put encodes h into b[:HeaderSize].
func (h *header) put(b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], frameMagic)
	b[4] = byte(h.typ)
	b[5], b[6], b[7] = 0, 0, 0
	le.PutUint64(b[8:], h.tag)
	le.PutUint32(b[16:], uint32(h.length))
	le.PutUint32(b[20:], uint32(h.head))
	le.PutUint32(b[24:], h.sum)
	le.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
}

// parse decodes and checks b[:HeaderSize]. Its own sum is checked first, so that
// nobody waits for, or allocates, a length that a flipped bit made up.
func (h *header) parse(b []byte) error {
	le := binary.LittleEndian
	if m := le.Uint32(b); m != frameMagic {
		return fmt.Errorf("%w: magic is %08x, want %08x", ErrCorrupt, m, uint32(frameMagic))
	}
	if got, want := crc32.Checksum(b[:28], castagnoli), le.Uint32(b[28:]); got != want && !mutant.Is("ignore the sum of a frame's header") {
		return fmt.Errorf("%w: header sum is %08x, the header says %08x", ErrCorrupt, got, want)
	}
	length, head := le.Uint32(b[16:]), le.Uint32(b[20:])
	*h = header{Type(b[4]), le.Uint64(b[8:]), int(length), int(head), le.Uint32(b[24:])}
	switch {
	case b[5] != 0 || b[6] != 0 || b[7] != 0:
		return fmt.Errorf("%w: flags %x are unknown", ErrCorrupt, b[5:8])
	case newMessage(h.typ) == nil:
		return fmt.Errorf("%w: unknown %s", ErrCorrupt, h.typ)
	case length > MaxBody:
		return fmt.Errorf("%w: %s of %d bytes, at most %d are allowed", ErrCorrupt, h.typ, length, MaxBody)
	case head > length:
		return fmt.Errorf("%w: %s sums %d of its %d bytes", ErrCorrupt, h.typ, head, length)
	}
	return nil
}
