package nbd

import (
	"encoding/binary"
	"errors"

	"github.com/blockrepl/blockrepl/nbd/internal/proto"
)

// appendSimple appends a simple reply:
//
//	 0       4       8               16
//	+-------+-------+---------------+
//	| magic | error | cookie        | then the data of a read
//	+-------+-------+---------------+
func appendSimple(b []byte, cookie uint64, errno uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, proto.MagicSimple)
	b = binary.BigEndian.AppendUint32(b, errno)
	return binary.BigEndian.AppendUint64(b, cookie)
}

// appendChunk appends the header of one chunk of a structured reply:
//
//	 0       4       6       8               16       20
//	+-------+-------+-------+---------------+--------+
//	| magic | flags | type  | cookie        | length | then length bytes
//	+-------+-------+-------+---------------+--------+
func appendChunk(b []byte, flags, typ uint16, cookie uint64, length int) []byte {
	b = binary.BigEndian.AppendUint32(b, proto.MagicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint64(b, cookie)
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// appendData appends the head of an OFFSET_DATA chunk of n bytes of data.
func appendData(b []byte, flags uint16, cookie, off uint64, n int) []byte {
	b = appendChunk(b, flags, proto.ChunkOffsetData, cookie, 8+n)
	return binary.BigEndian.AppendUint64(b, off)
}

// appendHole appends an OFFSET_HOLE chunk: n bytes that read as zeroes.
func appendHole(b []byte, flags uint16, cookie, off uint64, n int) []byte {
	b = appendChunk(b, flags, proto.ChunkOffsetHole, cookie, 12)
	b = binary.BigEndian.AppendUint64(b, off)
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

// appendReadHead appends what precedes the n bytes of a read answered in one piece.
func (s *session) appendReadHead(b []byte, h *header) []byte {
	if s.structured {
		return appendData(b, proto.ChunkFlagDone, h.cookie, h.off, int(h.length))
	}
	return appendSimple(b, h.cookie, 0)
}

// readHeadLen is the length of that.
func (s *session) readHeadLen() int {
	if s.structured {
		return proto.ChunkLen + 8
	}
	return proto.SimpleLen
}

// appendError appends an error reply, in the structured form (with why for the client's user) if that was negotiated. Never
// more than smallMax bytes.
func (s *session) appendError(b []byte, h *header, r refusal) []byte {
	if !s.structured {
		return appendSimple(b, h.cookie, r.errno)
	}
	why := r.why[:min(len(r.why), smallMax-proto.ChunkLen-4-2)]
	b = appendChunk(b, proto.ChunkFlagDone, proto.ChunkError, h.cookie, 4+2+len(why))
	b = binary.BigEndian.AppendUint32(b, r.errno)
	b = binary.BigEndian.AppendUint16(b, uint16(len(why)))
	return append(b, why...)
}

// appendReadError appends the reply to a read that failed in the disk; a structured one says at which offset.
func (s *session) appendReadError(b []byte, h *header, err error) []byte {
	errno := Errno(err, false)
	if !s.structured {
		return appendSimple(b, h.cookie, errno)
	}
	b = appendChunk(b, proto.ChunkFlagDone, proto.ChunkErrorOffset, h.cookie, 4+2+8)
	b = binary.BigEndian.AppendUint32(b, errno)
	b = binary.BigEndian.AppendUint16(b, 0)
	return binary.BigEndian.AppendUint64(b, errorOffset(h, err))
}

// errorOffset is where in the request err happened, if the disk said so, else its beginning.
func errorOffset(h *header, err error) uint64 {
	var oe *OffsetError
	if errors.As(err, &oe) && oe.Off >= 0 && uint64(oe.Off) >= h.off && uint64(oe.Off)-h.off < uint64(h.length) {
		return uint64(oe.Off)
	}
	return h.off
}

// appendStatus appends a whole BLOCK_STATUS reply for the extents of a request.
//
// The disk's answer is brought into the form that the specification asks for: no empty descriptor, neighbours of one kind
// joined, the sum not beyond the request, at least one descriptor.
func (s *session) appendStatus(b []byte, h *header, exts []Extent) []byte {
	limit := maxExtents
	if h.flags&proto.CmdFlagReqOne != 0 {
		limit = 1
	}
	head := len(b)
	b = appendChunk(b, proto.ChunkFlagDone, proto.ChunkBlockStatus, h.cookie, 0)
	b = binary.BigEndian.AppendUint32(b, s.contextID)
	left, count, run, state := int64(h.length), 0, int64(0), uint32(0)
	put := func() {
		b = binary.BigEndian.AppendUint32(b, uint32(run))
		b = binary.BigEndian.AppendUint32(b, state)
		count++
	}
	for _, e := range exts {
		n := min(e.Len, left)
		if n <= 0 {
			continue
		}
		next := uint32(0)
		if e.Hole {
			next |= proto.StateHole
		}
		if e.Zero {
			next |= proto.StateZero
		}
		if run > 0 && next != state {
			if count == limit-1 {
				break
			}
			put()
			run = 0
		}
		run, state, left = run+n, next, left-n
	}
	if run == 0 { // a disk that does not know: data is always a true answer
		run = int64(h.length)
	}
	put()
	binary.BigEndian.PutUint32(b[head+16:], uint32(len(b)-head-proto.ChunkLen))
	return b
}
