package nbd

import (
	"encoding/binary"
	"math/bits"
	"sync"

	"github.com/blockrepl/blockrepl/nbd/internal/proto"
)

// header is one request as it came:
//
//	 0       4       6       8              16              24       28
//	+-------+-------+-------+---------------+---------------+--------+
//	| magic | flags | type  | cookie        | offset        | length | then length bytes if the type is WRITE
//	+-------+-------+-------+---------------+---------------+--------+
type header struct {
	flags, cmd uint16
	cookie     uint64
	off        uint64
	length     uint32
}

// parseHeader decodes a request; false is a broken stream.
func parseHeader(b []byte) (header, bool) {
	_ = b[proto.RequestLen-1]
	h := header{
		flags:  binary.BigEndian.Uint16(b[4:]),
		cmd:    binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]),
		off:    binary.BigEndian.Uint64(b[16:]),
		length: binary.BigEndian.Uint32(b[24:]),
	}
	return h, binary.BigEndian.Uint32(b) == proto.MagicRequest
}

var cmdNames = [...]string{"read", "write", "disc", "flush", "trim", "cache", "write zeroes", "block status"}

func cmdName(cmd uint16) string {
	if int(cmd) < len(cmdNames) {
		return cmdNames[cmd]
	}
	return "unknown"
}

// refusal is why a request is answered without reaching the disk. The zero value is none.
type refusal struct {
	errno uint32
	why   string // told to clients with structured replies, and logged
}

// session is what negotiation settled; it does not change in transmission.
type session struct {
	info       Info
	structured bool
	contextID  uint32 // base:allocation was selected; 0 = not
}

// check decides once whether a request is sound; everything after it trusts offset and length. The errnos are those of
// the specification, "Error values".
func (s *session) check(h *header) refusal {
	if h.cmd > proto.CmdBlockStatus {
		return refusal{proto.EINVAL, "unknown command"}
	}
	if h.flags&^s.validFlags(h.cmd) != 0 {
		return refusal{proto.EINVAL, "command flag not known or not negotiated"}
	}
	switch h.cmd {
	case proto.CmdFlush:
		if h.off != 0 || h.length != 0 {
			return refusal{proto.EINVAL, "flush with an offset or a length"}
		}
		return refusal{}
	case proto.CmdBlockStatus:
		if s.contextID == 0 {
			return refusal{proto.EINVAL, "no metadata context was negotiated"}
		}
	case proto.CmdWrite, proto.CmdTrim, proto.CmdWriteZeroes:
		if s.info.ReadOnly {
			return refusal{proto.EPERM, "the export is read-only"}
		}
	}
	return s.checkRange(h)
}

func (s *session) checkRange(h *header) refusal {
	if h.length == 0 {
		return refusal{proto.EINVAL, "length is zero"}
	}
	if h.length > s.info.MaxPayload {
		switch {
		case h.cmd == proto.CmdRead && s.structured:
			return refusal{proto.EOVERFLOW, "longer than the maximum payload"}
		case h.cmd == proto.CmdRead, h.cmd == proto.CmdWrite:
			return refusal{proto.EINVAL, "longer than the maximum payload"}
		}
	}
	size := uint64(s.info.Size)
	if h.off > size || uint64(h.length) > size-h.off {
		if h.cmd == proto.CmdWrite || h.cmd == proto.CmdWriteZeroes {
			return refusal{proto.ENOSPC, "beyond the end of the export"}
		}
		return refusal{proto.EINVAL, "beyond the end of the export"}
	}
	if mask := uint64(s.info.MinBlock - 1); (h.off|uint64(h.length))&mask != 0 {
		return refusal{proto.EINVAL, "not aligned to the minimum block size"}
	}
	return refusal{}
}

// validFlags are the flags a command takes in this session. FUA is valid on every command, although it means something
// for three only: the specification asks for it because clients set it everywhere.
func (s *session) validFlags(cmd uint16) uint16 {
	switch cmd {
	case proto.CmdRead:
		if s.structured {
			return proto.CmdFlagFUA | proto.CmdFlagDF
		}
	case proto.CmdWriteZeroes:
		if s.info.FastZero {
			return proto.CmdFlagFUA | proto.CmdFlagNoHole | proto.CmdFlagFastZero
		}
		return proto.CmdFlagFUA | proto.CmdFlagNoHole
	case proto.CmdBlockStatus:
		return proto.CmdFlagFUA | proto.CmdFlagReqOne
	}
	return proto.CmdFlagFUA
}

// transmissionFlags are exactly the features that the tests of this package prove.
func (s *session) transmissionFlags() uint16 {
	f := proto.FlagHasFlags | proto.FlagSendFlush | proto.FlagSendFUA | proto.FlagSendCache
	if s.structured {
		f |= proto.FlagSendDF
	}
	if s.info.ReadOnly {
		f |= proto.FlagReadOnly
	} else {
		f |= proto.FlagSendTrim | proto.FlagSendWriteZeroes
		if s.info.FastZero {
			f |= proto.FlagSendFastZero
		}
	}
	if s.info.Rotational {
		f |= proto.FlagRotational
	}
	if s.info.MultiConn {
		f |= proto.FlagCanMultiConn
	}
	return f
}

// settle fills the defaults of an Info and reports whether its sizes obey the specification, "Size constraints".
func (i *Info) settle() bool {
	def(&i.MinBlock, 1)
	def(&i.PreferredBlock, max(4096, i.MinBlock))
	def(&i.MaxPayload, MaxPayloadDefault)
	i.MaxPayload = min(i.MaxPayload, MaxPayloadDefault)
	power2 := func(n uint32) bool { return bits.OnesCount32(n) == 1 }
	return i.Size >= 0 && power2(i.MinBlock) && i.MinBlock <= 1<<16 && power2(i.PreferredBlock) &&
		i.PreferredBlock >= max(512, i.MinBlock) && i.MaxPayload >= i.PreferredBlock && i.MaxPayload%i.MinBlock == 0
}

// request is one request on its way through the disk. Pooled; for changes the disk holds the Write inside it.
type request struct {
	header
	conn *conn
	cost int64 // what it holds of the quota besides itself
	w    Write
}

var requests = sync.Pool{}

func newRequest(c *conn, h *header, cost int64) *request {
	r, _ := requests.Get().(*request)
	if r == nil {
		r = &request{}
		r.w.Done = r.done // bound once, so that a write allocates nothing
	}
	r.header, r.conn, r.cost = *h, c, cost
	return r
}

// free gives the request back to the pool; its last user calls it.
func (r *request) free() {
	r.conn, r.w.Data = nil, nil
	requests.Put(r)
}
