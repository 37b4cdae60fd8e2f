package record

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/zeebo/xxh3"
)

// A record is made in two steps, so that the costly one runs in parallel:
//
//	connection's goroutine   NewWrite …   payload compressed and summed, Raw laid out
//	                         (sets Volume, Origin, Attachment, Operation)
//	volume's goroutine       Seal         number, epoch, prev, time; header sum of 120 bytes
//
// In between it is a draft: Raw has room for the header, which is not yet valid.
// SealDraft makes the header of a draft valid for the way to the master, which
// calls Seal on what DecodeDraft gave.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// NewWrite makes the draft of a write of data at offset, 1 <= len(data) <=
// MaxPayload. It takes data over: the caller must not use it again, whether it
// came from Alloc (then it is not copied if it does not compress) or not. Data
// of zeroes only becomes a KindZero.
func NewWrite(offset int64, data []byte) *Record {
	length := int64(len(data))
	checkExtent(offset, length, MaxPayload)
	if IsZero(data) {
		Free(data)
		return NewZero(offset, length)
	}
	codec, stored := Pack(data)
	if codec != CodecNone {
		Free(data)
	}
	return draft(Header{Kind: KindWrite, Codec: codec, Offset: offset, Length: length}, stored)
}

// NewStored makes the draft of a write whose payload is already stored with
// codec c, as a Chunk or another record carries it: length bytes when
// uncompressed. It takes stored over as NewWrite does. ErrCorrupt if stored does
// not claim length bytes.
func NewStored(offset, length int64, c Codec, stored []byte) (*Record, error) {
	h := Header{Kind: KindWrite, Codec: c, Offset: offset, Length: length, Stored: uint32(len(stored))}
	if len(stored) > MaxPayload {
		return nil, fmt.Errorf("%w: payload of %d bytes, at most %d are allowed", ErrCorrupt, len(stored), MaxPayload)
	}
	if err := h.validateKind(); err != nil {
		return nil, err
	}
	if err := checkPacked(c, stored, length); err != nil {
		return nil, err
	}
	return draft(h, stored), nil
}

// NewZero makes the draft of a record that zeroes length bytes at offset.
func NewZero(offset, length int64) *Record {
	checkExtent(offset, length, MaxSize)
	return draft(Header{Kind: KindZero, Offset: offset, Length: length}, nil)
}

// NewTrim is NewZero for bytes that may become a hole.
func NewTrim(offset, length int64) *Record {
	checkExtent(offset, length, MaxSize)
	return draft(Header{Kind: KindTrim, Offset: offset, Length: length}, nil)
}

// NewResize makes the draft of a change of the volume's size, in bytes.
func NewResize(size int64) *Record {
	if size < 0 || size > MaxSize {
		panic(fmt.Sprintf("record: bug: resize to %d", size))
	}
	return draft(Header{Kind: KindResize, Length: size}, nil)
}

// NewState makes the draft of a record of kind k (KindMembers, KindEpoch or
// KindMark) with a copy of payload, at most MaxState bytes.
func NewState(k Kind, payload []byte) *Record {
	if k != KindMembers && k != KindEpoch && k != KindMark || len(payload) > MaxState {
		panic(fmt.Sprintf("record: bug: %s record with %d bytes", k, len(payload)))
	}
	return draft(Header{Kind: k, Length: int64(len(payload))}, append([]byte(nil), payload...))
}

func checkExtent(offset, length, lengthMax int64) {
	if offset < 0 || length < 1 || length > lengthMax || offset > MaxSize-length {
		panic(fmt.Sprintf("record: bug: extent of %d bytes at %d", length, offset))
	}
}

// draft lays out Raw around stored and sums the payload.
func draft(h Header, stored []byte) *Record {
	h.Stored = uint32(len(stored))
	h.PayloadSum = crc32.Checksum(stored, castagnoli)
	raw, ok := withRoom(stored)
	if !ok {
		p := Alloc(len(stored))
		copy(p, stored)
		raw, _ = withRoom(p)
	}
	return &Record{Header: h, Raw: raw}
}

// Seal numbers a draft: it becomes the record after prev, in the given epoch, at
// time now (wall clock, ns since 1970). Volume, Origin, Attachment and Operation
// must be set before. It touches no payload, and the record is never written
// again after it.
func (r *Record) Seal(e Epoch, prev Pos, now int64) {
	if r.Seq != 0 || len(r.Raw) != HeaderSize+int(r.Stored) {
		panic(fmt.Sprintf("record: bug: seal of record %d", r.Seq))
	}
	r.Epoch, r.Seq, r.Prev, r.Time = e, prev.Seq+1, prev.Sum, now
	if err := r.validate(); err != nil {
		panic(fmt.Sprintf("record: bug: seal of record %d: %v", r.Seq, err))
	}
	r.Sum = putHeader(r.Raw, &r.Header)
}

// SealDraft makes Raw valid for DecodeDraft: everything but epoch, number and
// prev. It may be called again after a change of Origin, Attachment or Operation.
func (r *Record) SealDraft() {
	if r.Seq != 0 {
		panic(fmt.Sprintf("record: bug: record %d is no draft", r.Seq))
	}
	r.Sum = 0
	if err := r.validateDraft(); err != nil {
		panic(fmt.Sprintf("record: bug: seal of a draft: %v", err))
	}
	putHeader(r.Raw, &r.Header)
}

// putHeader encodes h into the first HeaderSize bytes of b and gives the header sum.
func putHeader(b []byte, h *Header) uint64 {
	b = b[:HeaderSize]
	le := binary.LittleEndian
	le.PutUint32(b[0:], magic)
	b[4] = byte(h.Kind)
	b[5] = byte(h.Codec)
	le.PutUint16(b[6:], h.Flags)
	le.PutUint16(b[8:], HeaderSize)
	le.PutUint16(b[10:], 0)
	le.PutUint32(b[12:], h.Stored)
	copy(b[16:32], h.Volume[:])
	le.PutUint64(b[32:], h.Epoch.Counter)
	copy(b[40:48], h.Epoch.Server[:])
	le.PutUint64(b[48:], uint64(h.Seq))
	copy(b[56:64], h.Origin[:])
	le.PutUint64(b[64:], h.Attachment)
	le.PutUint64(b[72:], h.Operation)
	le.PutUint64(b[80:], uint64(h.Time))
	le.PutUint64(b[88:], uint64(h.Offset))
	le.PutUint64(b[96:], uint64(h.Length))
	le.PutUint32(b[104:], h.PayloadSum)
	le.PutUint32(b[108:], 0)
	le.PutUint64(b[112:], h.Prev)
	sum := xxh3.Hash(b[:120])
	le.PutUint64(b[120:], sum)
	return sum
}
