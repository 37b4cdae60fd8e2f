package nbdtest

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/blockrepl/blockrepl/nbd/internal/proto"
)

// Request is one command. Length is that of Data if there is any and Length is 0.
type Request struct {
	Cmd, Flags uint16
	Off        uint64
	Length     uint32
	Data       []byte
}

// Descriptor is one extent of a BLOCK_STATUS reply.
type Descriptor struct{ Length, Flags uint32 }

// Reply is the whole answer to one request.
type Reply struct {
	Cookie  uint64
	Request Request
	Errno   uint32
	Message string // of a structured error
	ErrOff  uint64 // of a structured error with an offset
	Located bool   // ErrOff is set
	Data    []byte // of a read
	Chunks  int    // content chunks of a structured read
	Holes   int    // of them holes
	Extents []Descriptor

	covered []span
}

type span struct{ lo, hi uint64 }

// AppendRequest appends a request as it goes over the wire.
func AppendRequest(b []byte, cookie uint64, r Request) []byte {
	if r.Length == 0 {
		r.Length = uint32(len(r.Data))
	}
	b = binary.BigEndian.AppendUint32(b, proto.MagicRequest)
	b = binary.BigEndian.AppendUint16(b, r.Flags)
	b = binary.BigEndian.AppendUint16(b, r.Cmd)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, r.Off)
	b = binary.BigEndian.AppendUint32(b, r.Length)
	return append(b, r.Data...)
}

// Send sends requests in one write, without waiting for replies, and gives their cookies.
func (c *Client) Send(rs ...Request) ([]uint64, error) {
	var b []byte
	var cookies []uint64
	for _, r := range rs {
		if r.Length == 0 {
			r.Length = uint32(len(r.Data))
		}
		c.cookie++
		b = AppendRequest(b, c.cookie, r)
		c.pending[c.cookie] = r
		cookies = append(cookies, c.cookie)
	}
	if _, err := c.Conn.Write(b); err != nil {
		return cookies, fmt.Errorf("send requests: %w", err)
	}
	return cookies, nil
}

// Do sends one request and reads replies up to its own; an error is a broken stream, not an errno.
func (c *Client) Do(r Request) (*Reply, error) {
	cookies, err := c.Send(r)
	if err != nil {
		return nil, err
	}
	rep, err := c.Recv()
	if err == nil && rep.Cookie != cookies[0] {
		err = fmt.Errorf("reply to cookie %d when %d was sent", rep.Cookie, cookies[0])
	}
	return rep, err
}

// Disconnect sends DISC and expects the end of the stream.
func (c *Client) Disconnect() error {
	if _, err := c.Conn.Write(AppendRequest(nil, 0, Request{Cmd: proto.CmdDisc})); err != nil {
		return fmt.Errorf("send disconnect: %w", err)
	}
	if n, err := c.r.Read(make([]byte, 1)); err != io.EOF {
		return fmt.Errorf("after disconnect: %d bytes, %w", n, err)
	}
	return nil
}

// Recv reads one whole reply, whichever request it is for. Chunks of other replies in between are refused: this server
// does not interleave.
func (c *Client) Recv() (*Reply, error) {
	var rep *Reply
	for {
		b := make([]byte, 4)
		if _, err := io.ReadFull(c.r, b); err != nil {
			return nil, fmt.Errorf("read reply: %w", err)
		}
		var done bool
		var err error
		switch m := binary.BigEndian.Uint32(b); m {
		case proto.MagicSimple:
			if rep != nil {
				return nil, fmt.Errorf("simple reply among the chunks of %d", rep.Cookie)
			}
			rep, err = c.recvSimple()
			done = true
		case proto.MagicStructured:
			rep, done, err = c.recvChunk(rep)
		default:
			return nil, fmt.Errorf("reply: magic %#x", m)
		}
		if err != nil {
			return rep, err
		}
		if done {
			delete(c.pending, rep.Cookie)
			return rep, rep.complete()
		}
	}
}

func (c *Client) recvSimple() (*Reply, error) {
	b := make([]byte, proto.SimpleLen-4)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return nil, fmt.Errorf("read simple reply: %w", err)
	}
	rep := &Reply{Errno: binary.BigEndian.Uint32(b), Cookie: binary.BigEndian.Uint64(b[4:])}
	req, ok := c.pending[rep.Cookie]
	if !ok {
		return nil, fmt.Errorf("simple reply to unknown cookie %#x", rep.Cookie)
	}
	rep.Request = req
	switch {
	case c.Structured && req.Cmd == proto.CmdRead, c.Structured && req.Cmd == proto.CmdBlockStatus && rep.Errno == 0:
		return rep, fmt.Errorf("simple reply to command %d although structured replies are negotiated", req.Cmd)
	case req.Cmd == proto.CmdRead && rep.Errno == 0:
		rep.Data = make([]byte, req.Length)
		if _, err := io.ReadFull(c.r, rep.Data); err != nil {
			return rep, fmt.Errorf("read %d bytes of data: %w", req.Length, err)
		}
	}
	return rep, nil
}

func (c *Client) recvChunk(rep *Reply) (*Reply, bool, error) {
	b := make([]byte, proto.ChunkLen-4)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return rep, false, fmt.Errorf("read chunk: %w", err)
	}
	flags, typ, cookie, n := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint64(b[4:]), binary.BigEndian.Uint32(b[12:])
	if rep == nil {
		req, ok := c.pending[cookie]
		if !ok {
			return nil, false, fmt.Errorf("chunk for unknown cookie %#x", cookie)
		}
		rep = &Reply{Cookie: cookie, Request: req}
	}
	switch {
	case !c.Structured:
		return rep, false, fmt.Errorf("chunk although structured replies are not negotiated")
	case cookie != rep.Cookie:
		return rep, false, fmt.Errorf("chunk for %#x among those of %#x", cookie, rep.Cookie)
	case flags&^proto.ChunkFlagDone != 0:
		return rep, false, fmt.Errorf("chunk flags %#x", flags)
	case n > 33<<20:
		return rep, false, fmt.Errorf("chunk of %d bytes", n)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(c.r, p); err != nil {
		return rep, false, fmt.Errorf("read chunk of %d: %w", n, err)
	}
	done := flags&proto.ChunkFlagDone != 0
	return rep, done, c.content(rep, typ, p, done)
}

// content takes one chunk into the reply.
func (c *Client) content(rep *Reply, typ uint16, p []byte, done bool) error {
	bad := func() error {
		return fmt.Errorf("chunk type %#x of %d bytes for command %d", typ, len(p), rep.Request.Cmd)
	}
	read := rep.Request.Cmd == proto.CmdRead
	switch typ {
	case proto.ChunkNone:
		if len(p) != 0 || !done {
			return bad()
		}
	case proto.ChunkOffsetData:
		if !read || len(p) < 9 {
			return bad()
		}
		return rep.place(binary.BigEndian.Uint64(p), p[8:])
	case proto.ChunkOffsetHole:
		if !read || len(p) != 12 {
			return bad()
		}
		n := binary.BigEndian.Uint32(p[8:])
		if n == 0 || n > rep.Request.Length {
			return fmt.Errorf("hole of %d bytes", n)
		}
		rep.Holes++
		return rep.place(binary.BigEndian.Uint64(p), make([]byte, n))
	case proto.ChunkBlockStatus:
		return c.status(rep, p)
	case proto.ChunkError, proto.ChunkErrorOffset:
		return rep.failed(typ, p)
	default:
		return bad()
	}
	return nil
}

// place puts the bytes of a content chunk where they belong; none may come twice.
func (rep *Reply) place(off uint64, data []byte) error {
	req := rep.Request
	if off < req.Off || off+uint64(len(data)) > req.Off+uint64(req.Length) {
		return fmt.Errorf("chunk of %d at %d outside the request of %d at %d", len(data), off, req.Length, req.Off)
	}
	s := span{off, off + uint64(len(data))}
	for _, o := range rep.covered {
		if s.lo < o.hi && o.lo < s.hi {
			return fmt.Errorf("chunk [%d, %d) overlaps [%d, %d)", s.lo, s.hi, o.lo, o.hi)
		}
	}
	rep.covered = append(rep.covered, s)
	if rep.Data == nil {
		rep.Data = make([]byte, req.Length)
	}
	copy(rep.Data[off-req.Off:], data)
	rep.Chunks++
	return nil
}

func (c *Client) status(rep *Reply, p []byte) error {
	req := rep.Request
	if req.Cmd != proto.CmdBlockStatus || len(p) < 12 || len(p)%8 != 4 || rep.Extents != nil {
		return fmt.Errorf("block status chunk of %d bytes for command %d", len(p), req.Cmd)
	}
	if id := binary.BigEndian.Uint32(p); id != c.ContextID || id == 0 {
		return fmt.Errorf("block status for context %d, selected is %d", id, c.ContextID)
	}
	sum := uint64(0)
	for p = p[4:]; len(p) > 0; p = p[8:] {
		d := Descriptor{binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:])}
		if d.Length == 0 || d.Flags&^(proto.StateHole|proto.StateZero) != 0 {
			return fmt.Errorf("block status descriptor %+v", d)
		}
		if sum >= uint64(req.Length) {
			return fmt.Errorf("block status: descriptor %+v behind the end of the request", d)
		}
		sum += uint64(d.Length)
		rep.Extents = append(rep.Extents, d)
	}
	if req.Flags&proto.CmdFlagReqOne != 0 && (len(rep.Extents) != 1 || sum > uint64(req.Length)) {
		return fmt.Errorf("block status: REQ_ONE answered with %v", rep.Extents)
	}
	return nil
}

func (rep *Reply) failed(typ uint16, p []byte) error {
	if len(p) < 6 {
		return fmt.Errorf("error chunk of %d bytes", len(p))
	}
	n := int(binary.BigEndian.Uint16(p[4:]))
	want := 6 + n
	if typ == proto.ChunkErrorOffset {
		want += 8
	}
	rep.Errno = binary.BigEndian.Uint32(p)
	if len(p) != want || rep.Errno == 0 {
		return fmt.Errorf("error chunk %#x of %d bytes, message of %d, errno %d", typ, len(p), n, rep.Errno)
	}
	rep.Message = string(p[6 : 6+n])
	if typ == proto.ChunkErrorOffset {
		rep.ErrOff, rep.Located = binary.BigEndian.Uint64(p[6+n:]), true
		if off := rep.ErrOff; off < rep.Request.Off || off-rep.Request.Off >= uint64(rep.Request.Length) {
			return fmt.Errorf("error at %d outside the request of %d at %d", off, rep.Request.Length, rep.Request.Off)
		}
	}
	return nil
}

// complete checks what can only be said of a whole reply.
func (rep *Reply) complete() error {
	req := rep.Request
	switch {
	case rep.Errno != 0:
	case req.Cmd == proto.CmdBlockStatus && len(rep.Extents) == 0:
		return fmt.Errorf("block status without a descriptor")
	case req.Cmd == proto.CmdRead && req.Flags&proto.CmdFlagDF != 0 && rep.Chunks > 1:
		return fmt.Errorf("read with DF in %d chunks", rep.Chunks)
	case req.Cmd == proto.CmdRead && rep.covered != nil:
		sum := uint64(0)
		for _, s := range rep.covered {
			sum += s.hi - s.lo
		}
		if sum != uint64(req.Length) {
			return fmt.Errorf("read of %d: %d bytes came", req.Length, sum)
		}
	case req.Cmd == proto.CmdRead && len(rep.Data) != int(req.Length):
		return fmt.Errorf("read of %d: no data came", req.Length)
	}
	return nil
}
