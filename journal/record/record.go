// Package record holds the words every other package counts with (Seq, Epoch,
// Pos, Extent, ServerID) and the update record: one numbered update of one
// volume, encoded once at the master and carried verbatim by the wire and by
// every server's journal.
//
// # Layout
//
// Little-endian. A fixed header of 128 bytes, then the stored payload.
//
//	  0  u32   magic "BRR" and the format version, 1
//	  4  u8    kind            KindWrite … ; zero is invalid
//	  5  u8    codec           CodecNone, CodecS2, CodecZstd
//	  6  u16   flags           none defined; must be zero
//	  8  u16   header length   128
//	 10  u16   zero
//	 12  u32   stored length   bytes of payload that follow the header
//	 16  [16]  volume          the volume's uuid
//	 32  u64   epoch counter
//	 40  [8]   epoch server    NUL padded
//	 48  u64   number          Seq; zero is invalid
//	 56  [8]   origin          the server whose client wrote
//	 64  u64   attachment      number of the attach record; 0 = none
//	 72  u64   operation       the attachment's operation; 0 = none
//	 80  i64   time            wall clock, ns since 1970; for people only
//	 88  i64   offset          bytes
//	 96  i64   length          bytes, uncompressed
//	104  u32   payload sum     CRC-32C of the stored payload
//	108  u32   zero
//	112  u64   prev            header sum of number-1; 0 for number 1
//	120  u64   header sum      XXH3-64 of bytes 0..119
//
// The header sum covers prev, so equal number and equal header sum mean equal
// history below.
package record

import (
	"bytes"
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Sizes of the format, in bytes.
const (
	HeaderSize = 128
	// MaxPayload bounds a record's payload, stored and uncompressed: the
	// largest NBD write that we accept.
	MaxPayload = 32 << 20
)

// Seq is a record's number within its volume: dense, from 1. Zero is none.
type Seq uint64

// ServerID names a server: 1 to 8 bytes of [a-z0-9-], NUL padded.
// The zero value is no server.
type ServerID [8]byte

// ParseServerID checks s and converts it.
func ParseServerID(s string) (ServerID, error) {
	var id ServerID
	if s == "" || len(s) > len(id) {
		return id, fmt.Errorf("server id %q: must have 1 to %d characters", s, len(id))
	}
	for _, c := range []byte(s) {
		if !validIDByte(c) {
			return id, fmt.Errorf("server id %q: only a-z, 0-9 and - are allowed", s)
		}
	}
	copy(id[:], s)
	return id, nil
}

func validIDByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-'
}

// MustServerID is ParseServerID for constants; it panics on a bad id.
func MustServerID(s string) ServerID {
	id, err := ParseServerID(s)
	if err != nil {
		panic(err)
	}
	return id
}

// String gives the id without padding, "" for none.
func (id ServerID) String() string {
	return string(bytes.TrimRight(id[:], "\x00"))
}

// IsZero reports whether id is no server.
func (id ServerID) IsZero() bool { return id == ServerID{} }

// Compare orders ids as their strings.
func (id ServerID) Compare(o ServerID) int { return bytes.Compare(id[:], o[:]) }

// MarshalText gives String.
func (id ServerID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText parses what MarshalText gave; empty text is the zero id.
func (id *ServerID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = ServerID{}
		return nil
	}
	v, err := ParseServerID(string(b))
	if err == nil {
		*id = v
	}
	return err
}

// VolumeID is the volume's uuid.
type VolumeID [16]byte

// String gives the usual 8-4-4-4-12 form.
func (v VolumeID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", v[0:4], v[4:6], v[6:8], v[8:10], v[10:])
}

// IsZero reports whether v is no volume.
func (v VolumeID) IsZero() bool { return v == VolumeID{} }

// Incarnation is the random id drawn when a server's data directory is created.
type Incarnation [16]byte

// String gives 32 hex digits.
func (i Incarnation) String() string { return fmt.Sprintf("%x", i[:]) }

// IsZero reports whether i is unset.
func (i Incarnation) IsZero() bool { return i == Incarnation{} }

// Epoch is one mastership: a counter and the server that took it. Ordered by
// counter, then server. The zero value is none and lower than every other.
type Epoch struct {
	Counter uint64
	Server  ServerID
}

// Compare orders epochs.
func (e Epoch) Compare(o Epoch) int {
	if c := cmp.Compare(e.Counter, o.Counter); c != 0 {
		return c
	}
	return e.Server.Compare(o.Server)
}

// Less reports e < o.
func (e Epoch) Less(o Epoch) bool { return e.Compare(o) < 0 }

// IsZero reports whether e is none.
func (e Epoch) IsZero() bool { return e == Epoch{} }

// String gives "3.a", "0" for none.
func (e Epoch) String() string {
	if e.IsZero() {
		return "0"
	}
	return strconv.FormatUint(e.Counter, 10) + "." + e.Server.String()
}

// ParseEpoch parses String's form.
func ParseEpoch(s string) (Epoch, error) {
	if s == "0" {
		return Epoch{}, nil
	}
	n, id, ok := strings.Cut(s, ".")
	c, err := strconv.ParseUint(n, 10, 64)
	if !ok || err != nil {
		return Epoch{}, fmt.Errorf("epoch %q: want COUNTER.SERVER", s)
	}
	sid, err := ParseServerID(id)
	if err != nil {
		return Epoch{}, fmt.Errorf("epoch %q: %w", s, err)
	}
	return Epoch{c, sid}, nil
}

// MarshalText gives String.
func (e Epoch) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText parses what MarshalText gave.
func (e *Epoch) UnmarshalText(b []byte) error {
	v, err := ParseEpoch(string(b))
	if err == nil {
		*e = v
	}
	return err
}

// Pos is a place in a volume's history: a number and that record's header sum.
// Two equal positions have equal histories below. The zero value is the
// beginning: before number 1.
type Pos struct {
	Seq Seq
	Sum uint64
}

// String gives "1240/89abcdef01234567".
func (p Pos) String() string { return fmt.Sprintf("%d/%016x", p.Seq, p.Sum) }

// Extent is the byte range [Lo, Hi).
type Extent struct{ Lo, Hi int64 }

// Len is the number of bytes.
func (x Extent) Len() int64 { return x.Hi - x.Lo }

// Overlaps reports whether the two ranges share a byte.
func (x Extent) Overlaps(o Extent) bool { return x.Lo < o.Hi && o.Lo < x.Hi }

// String gives "[lo,hi)".
func (x Extent) String() string { return fmt.Sprintf("[%d,%d)", x.Lo, x.Hi) }

// Kind is the type of update. Zero is invalid.
type Kind uint8

// The kinds. Write, Zero and Trim change bytes of the image; the others do not.
const (
	KindWrite   Kind = 1 // payload replaces the extent
	KindZero    Kind = 2 // the extent reads as zeroes and stays allocated; no payload
	KindTrim    Kind = 3 // the extent reads as zeroes and may become a hole; no payload
	KindMembers Kind = 4 // payload: the volume's state c, after a change of the in-sync set
	KindEpoch   Kind = 5 // first record of an epoch; payload: the volume's state c
	KindResize  Kind = 6 // Length is the volume's new size; no payload
	KindMark    Kind = 7 // attachment table: an identity attached or detached; payload says which
)

// String gives the kind's name, as people and JSON see it.
func (k Kind) String() string {
	switch k {
	case KindWrite:
		return "write"
	case KindZero:
		return "zero"
	case KindTrim:
		return "trim"
	case KindMembers:
		return "members"
	case KindEpoch:
		return "epoch"
	case KindResize:
		return "resize"
	case KindMark:
		return "mark"
	}
	return "kind-" + strconv.Itoa(int(k))
}

// ChangesImage reports whether records of this kind change bytes of the image.
func (k Kind) ChangesImage() bool { return k == KindWrite || k == KindZero || k == KindTrim }

// Codec is how the payload is stored.
type Codec uint8

// The codecs.
const (
	CodecNone Codec = 0
	CodecS2   Codec = 1
	CodecZstd Codec = 2 // decoded, never written yet
)

// String gives the codec's name.
func (c Codec) String() string {
	switch c {
	case CodecNone:
		return "none"
	case CodecS2:
		return "s2"
	case CodecZstd:
		return "zstd"
	}
	return "codec-" + strconv.Itoa(int(c))
}

// Header is the decoded header of a record.
type Header struct {
	Kind       Kind
	Codec      Codec
	Flags      uint16
	Volume     VolumeID
	Epoch      Epoch
	Seq        Seq
	Origin     ServerID
	Attachment uint64
	Operation  uint64
	Time       int64 // wall clock, ns since 1970
	Offset     int64 // bytes
	Length     int64 // bytes, uncompressed
	Stored     uint32
	PayloadSum uint32 // CRC-32C of the stored payload
	Prev       uint64 // header sum of Seq-1
	Sum        uint64 // XXH3-64 of the first 120 bytes; 0 until sealed
}

// Pos is the record's place in the history.
func (h *Header) Pos() Pos { return Pos{h.Seq, h.Sum} }

// Extent is the byte range that the record changes; meaningful where
// Kind.ChangesImage.
func (h *Header) Extent() Extent { return Extent{h.Offset, h.Offset + h.Length} }

// PlainBytes is what the record writes into the image, in bytes, uncompressed: zeroes
// that stay allocated too, trims not.
func (h *Header) PlainBytes() int64 {
	if h.Kind == KindWrite || h.Kind == KindZero {
		return h.Length
	}
	return 0
}

// Record is one update: its header, and the bytes that journal and wire carry.
// A sealed record may be read by any number of goroutines at once.
//
// Invariant: once sealed, Raw is the encoded header followed by Stored bytes of
// payload, and is never written again. Before, it is a draft: Seq is 0 and the
// first HeaderSize bytes of Raw are undefined.
type Record struct {
	Header
	Raw []byte
}
