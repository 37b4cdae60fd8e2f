package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/zeebo/xxh3"

	"github.com/blockrepl/blockrepl/journal/mutant"
)

// ErrCorrupt says that bytes are no valid record: a sum does not match, a length
// is out of bounds, a field has no meaning.
var ErrCorrupt = errors.New("record is corrupt")

// ErrVersion says that bytes are a record of a format version this program does
// not know.
var ErrVersion = errors.New("record has an unknown format version")

// The magic is the bytes 'B' 'R' 'R' and the version.
const (
	version   = 1
	magicBRR  = 'B' | 'R'<<8 | 'R'<<16
	magic     = magicBRR | version<<24
	magicMask = 1<<24 - 1
)

// Decode decodes b, which must be one record and nothing else. Any bytes give a
// record or an error that is ErrCorrupt or ErrVersion. Both sums are verified
// and the payload's decoded length is compared with the header's. Raw is b: the
// caller must not write to it again.
func Decode(b []byte) (*Record, error) {
	r, rest, err := DecodeNext(b)
	if err == nil && len(rest) != 0 {
		return nil, fmt.Errorf("%w: %d bytes behind record %d", ErrCorrupt, len(rest), r.Seq)
	}
	return r, err
}

// DecodeNext decodes the record at the start of b and gives what is behind it.
func DecodeNext(b []byte) (r *Record, rest []byte, err error) {
	return decode(b, (*Header).validate)
}

// DecodeDraft is DecodeNext for a draft: a record that has no number yet, as
// SealDraft left it. Seal may then be called on it.
func DecodeDraft(b []byte) (r *Record, rest []byte, err error) {
	r, rest, err = decode(b, (*Header).validateDraft)
	if err == nil {
		r.Sum = 0
	}
	return r, rest, err
}

func decode(b []byte, validate func(*Header) error) (*Record, []byte, error) {
	r := new(Record)
	if err := r.Header.decode(b); err != nil {
		return nil, nil, err
	}
	if err := validate(&r.Header); err != nil {
		return nil, nil, err
	}
	n := HeaderSize + int(r.Stored)
	if len(b) < n {
		return nil, nil, fmt.Errorf("%w: record %d has %d bytes, its header says %d", ErrCorrupt, r.Seq, len(b), n)
	}
	r.Raw = b[:n:n]
	if err := r.CheckPayload(); err != nil {
		return nil, nil, err
	}
	return r, b[n:], nil
}

// DecodeHeader decodes and verifies the header at the start of b without a look
// at the payload, of which b may hold none.
func DecodeHeader(b []byte) (Header, error) {
	var h Header
	if err := h.decode(b); err != nil {
		return Header{}, err
	}
	if err := h.validate(); err != nil {
		return Header{}, err
	}
	return h, nil
}

// CheckPayload verifies the payload's sum and the decoded length that it claims.
func (r *Record) CheckPayload() error {
	p := r.StoredPayload()
	if got := crc32.Checksum(p, castagnoli); got != r.PayloadSum && !mutant.Is("ignore the sum of a payload") {
		return fmt.Errorf("%w: record %d: payload sum is %08x, the header says %08x", ErrCorrupt, r.Seq, got, r.PayloadSum)
	}
	if len(p) == 0 {
		return nil
	}
	if err := checkPacked(r.Codec, p, r.Length); err != nil {
		return fmt.Errorf("record %d: %w", r.Seq, err)
	}
	return nil
}

// StoredPayload is the payload as stored, compressed or not.
func (r *Record) StoredPayload() []byte { return r.Raw[HeaderSize:] }

// AppendPayload appends the uncompressed payload to dst. Kinds without payload
// append nothing: a zero is not written out.
func (r *Record) AppendPayload(dst []byte) ([]byte, error) {
	if r.Stored == 0 {
		return dst, nil
	}
	out, err := Unpack(dst, r.Codec, r.StoredPayload(), int(r.Length))
	if err != nil {
		return out, fmt.Errorf("record %d: %w", r.Seq, err)
	}
	return out, nil
}

// Payload gives the uncompressed payload: a part of Raw where it is stored so,
// else decompressed into buf, or into a new buffer where buf is too small. The
// caller must not write to it.
func (r *Record) Payload(buf []byte) ([]byte, error) {
	if r.Codec == CodecNone {
		p := r.StoredPayload()
		return p[:len(p):len(p)], nil
	}
	return r.AppendPayload(buf[:0])
}

// decode reads the fields and checks what makes them readable: magic, version,
// header length and sum.
func (h *Header) decode(b []byte) error {
	if len(b) < HeaderSize {
		return fmt.Errorf("%w: %d bytes, a header has %d", ErrCorrupt, len(b), HeaderSize)
	}
	b = b[:HeaderSize]
	le := binary.LittleEndian
	switch m := le.Uint32(b); {
	case m&magicMask != magicBRR:
		return fmt.Errorf("%w: magic is %08x", ErrCorrupt, m)
	case m != magic:
		return fmt.Errorf("%w: %d, this program knows %d", ErrVersion, m>>24, version)
	}
	h.Sum = le.Uint64(b[120:])
	if got := xxh3.Hash(b[:120]); got != h.Sum && !mutant.Is("ignore the sum of a record's header") {
		return fmt.Errorf("%w: header sum is %016x, the header says %016x", ErrCorrupt, got, h.Sum)
	}
	h.Kind = Kind(b[4])
	h.Codec = Codec(b[5])
	h.Flags = le.Uint16(b[6:])
	h.Stored = le.Uint32(b[12:])
	copy(h.Volume[:], b[16:32])
	h.Epoch.Counter = le.Uint64(b[32:])
	copy(h.Epoch.Server[:], b[40:48])
	h.Seq = Seq(le.Uint64(b[48:]))
	copy(h.Origin[:], b[56:64])
	h.Attachment = le.Uint64(b[64:])
	h.Operation = le.Uint64(b[72:])
	h.Time = int64(le.Uint64(b[80:]))
	h.Offset = int64(le.Uint64(b[88:]))
	h.Length = int64(le.Uint64(b[96:]))
	h.PayloadSum = le.Uint32(b[104:])
	h.Prev = le.Uint64(b[112:])
	if n := le.Uint16(b[8:]); n != HeaderSize {
		return fmt.Errorf("%w: header length %d", ErrCorrupt, n)
	}
	if le.Uint16(b[10:]) != 0 || le.Uint32(b[108:]) != 0 {
		return fmt.Errorf("%w: reserved bytes are not zero", ErrCorrupt)
	}
	return nil
}
