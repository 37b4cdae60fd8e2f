package nbdtest

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"github.com/blockrepl/blockrepl/nbd/internal/proto"
)

// Client is a small strict client: it sends exactly what it is told, sound or not, and refuses every answer that is not as
// the specification says. One goroutine uses it, except that Send and Recv may run at the same time.
type Client struct {
	Conn net.Conn
	// HandshakeFlags are those of the server.
	HandshakeFlags uint16
	// Structured is set once structured replies are negotiated.
	Structured bool
	// ContextID is the id of base:allocation once it is selected, else 0.
	ContextID uint32
	// Export is what the server said of the export in transmission.
	Export Export

	r       *bufio.Reader
	pending map[uint64]Request
	cookie  uint64
}

// Export is what INFO, GO and EXPORT_NAME tell.
type Export struct {
	Size                         uint64
	Flags                        uint16
	Name, Description            string
	MinBlock, Preferred, Maximum uint32 // zero: not told
}

// Has reports whether all transmission flags of f are set.
func (e Export) Has(f uint16) bool { return e.Flags&f == f }

// OptionError is an error reply to an option.
type OptionError struct {
	Option, Type uint32
	Text         string
}

// Error names the reply.
func (e *OptionError) Error() string {
	return fmt.Sprintf("option %d: error reply %#x %q", e.Option, e.Type, e.Text)
}

// OptReply is one reply to an option.
type OptReply struct {
	Type uint32
	Data []byte
}

// NewClient reads the greeting and sends the client flags.
func NewClient(conn net.Conn, flags uint32) (*Client, error) {
	c := &Client{Conn: conn, r: bufio.NewReaderSize(conn, 64<<10), pending: map[uint64]Request{}}
	b := make([]byte, proto.GreetingLen)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return nil, fmt.Errorf("read greeting: %w", err)
	}
	if m := binary.BigEndian.Uint64(b); m != proto.MagicInit {
		return nil, fmt.Errorf("greeting: magic %#x", m)
	}
	if m := binary.BigEndian.Uint64(b[8:]); m != proto.MagicOption {
		return nil, fmt.Errorf("greeting: option magic %#x", m)
	}
	c.HandshakeFlags = binary.BigEndian.Uint16(b[16:])
	if _, err := conn.Write(binary.BigEndian.AppendUint32(nil, flags)); err != nil {
		return nil, fmt.Errorf("send client flags: %w", err)
	}
	return c, nil
}

// FixedNewstyle are the flags of a modern client: fixed newstyle, no zeroes.
const FixedNewstyle = uint32(proto.FlagFixedNewstyle | proto.FlagNoZeroes)

// SendOption sends an option whatever its data.
func (c *Client) SendOption(opt uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, proto.MagicOption)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	if _, err := c.Conn.Write(append(b, data...)); err != nil {
		return fmt.Errorf("send option %d: %w", opt, err)
	}
	return nil
}

// RecvOption reads one reply to opt.
func (c *Client) RecvOption(opt uint32) (OptReply, error) {
	b := make([]byte, proto.OptReplyLen)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return OptReply{}, fmt.Errorf("read reply to option %d: %w", opt, err)
	}
	if m := binary.BigEndian.Uint64(b); m != proto.MagicOptReply {
		return OptReply{}, fmt.Errorf("reply to option %d: magic %#x", opt, m)
	}
	if o := binary.BigEndian.Uint32(b[8:]); o != opt {
		return OptReply{}, fmt.Errorf("reply to option %d when %d was sent", o, opt)
	}
	rep := OptReply{Type: binary.BigEndian.Uint32(b[12:])}
	n := binary.BigEndian.Uint32(b[16:])
	if n > 64<<10 {
		return rep, fmt.Errorf("reply to option %d of %d bytes", opt, n)
	}
	rep.Data = make([]byte, n)
	if _, err := io.ReadFull(c.r, rep.Data); err != nil {
		return rep, fmt.Errorf("read reply to option %d: %w", opt, err)
	}
	return rep, nil
}

// Option sends an option and reads its replies up to the final one. An error reply is an *OptionError.
func (c *Client) Option(opt uint32, data []byte) ([]OptReply, error) {
	if err := c.SendOption(opt, data); err != nil {
		return nil, err
	}
	var reps []OptReply
	for {
		rep, err := c.RecvOption(opt)
		switch {
		case err != nil:
			return reps, err
		case rep.Type&proto.RepErrBit != 0:
			return reps, &OptionError{opt, rep.Type, string(rep.Data)}
		case rep.Type == proto.RepAck && len(rep.Data) > 0:
			return reps, fmt.Errorf("option %d: ACK with %d bytes", opt, len(rep.Data))
		case rep.Type == proto.RepAck:
			return reps, nil
		}
		reps = append(reps, rep)
	}
}

// List gives the names the server tells.
func (c *Client) List() ([]string, error) {
	reps, err := c.Option(proto.OptList, nil)
	var names []string
	for _, r := range reps {
		if r.Type != proto.RepServer || len(r.Data) < 4 || uint64(binary.BigEndian.Uint32(r.Data)) > uint64(len(r.Data)-4) {
			return nil, fmt.Errorf("list: malformed reply %d of %d bytes", r.Type, len(r.Data))
		}
		names = append(names, string(r.Data[4:4+binary.BigEndian.Uint32(r.Data)]))
	}
	return names, err
}

// StructuredReplies negotiates them.
func (c *Client) StructuredReplies() error {
	_, err := c.Option(proto.OptStructuredReply, nil)
	c.Structured = c.Structured || err == nil
	return err
}

// StartTLS switches to TLS; what was negotiated before is forgotten.
func (c *Client) StartTLS(conf *tls.Config) error {
	if _, err := c.Option(proto.OptStartTLS, nil); err != nil {
		return err
	}
	if n := c.r.Buffered(); n > 0 {
		return fmt.Errorf("starttls: %d bytes in plain text behind the reply", n)
	}
	t := tls.Client(c.Conn, conf)
	if err := t.Handshake(); err != nil {
		return fmt.Errorf("starttls: %w", err)
	}
	c.Conn, c.r, c.Structured, c.ContextID = t, bufio.NewReaderSize(t, 64<<10), false, 0
	return nil
}

// MetaContext sends LIST_META_CONTEXT or SET_META_CONTEXT and gives the names in the replies.
func (c *Client) MetaContext(opt uint32, name string, queries ...string) ([]string, error) {
	b := appendString(nil, name)
	b = binary.BigEndian.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = appendString(b, q)
	}
	reps, err := c.Option(opt, b)
	c.ContextID = 0
	var names []string
	for _, r := range reps {
		if r.Type != proto.RepMetaContext || len(r.Data) < 5 {
			return nil, fmt.Errorf("metadata context: malformed reply %d of %d bytes", r.Type, len(r.Data))
		}
		names = append(names, string(r.Data[4:]))
		if opt == proto.OptSetMetaContext && err == nil {
			if c.ContextID = binary.BigEndian.Uint32(r.Data); c.ContextID == 0 {
				return nil, fmt.Errorf("metadata context: id 0 for %q", r.Data[4:])
			}
		}
	}
	return names, err
}

// GoData is the data of INFO and GO.
func GoData(name string, infos ...uint16) []byte {
	b := appendString(nil, name)
	b = binary.BigEndian.AppendUint16(b, uint16(len(infos)))
	for _, i := range infos {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return b
}

// Info asks about an export without opening it.
func (c *Client) Info(name string, infos ...uint16) (Export, error) {
	reps, err := c.Option(proto.OptInfo, GoData(name, infos...))
	if err != nil {
		return Export{}, err
	}
	return parseInfos(reps)
}

// Go opens an export; transmission follows.
func (c *Client) Go(name string, infos ...uint16) error {
	reps, err := c.Option(proto.OptGo, GoData(name, infos...))
	if err != nil {
		return err
	}
	c.Export, err = parseInfos(reps)
	return err
}

func parseInfos(reps []OptReply) (e Export, err error) {
	seen := map[uint16]bool{}
	for _, r := range reps {
		if r.Type != proto.RepInfo || len(r.Data) < 2 {
			return e, fmt.Errorf("information: malformed reply %d of %d bytes", r.Type, len(r.Data))
		}
		typ, d := binary.BigEndian.Uint16(r.Data), r.Data[2:]
		if seen[typ] {
			return e, fmt.Errorf("information %d was sent twice", typ)
		}
		seen[typ] = true
		switch {
		case typ == proto.InfoExport && len(d) == 10:
			e.Size, e.Flags = binary.BigEndian.Uint64(d), binary.BigEndian.Uint16(d[8:])
		case typ == proto.InfoName:
			e.Name = string(d)
		case typ == proto.InfoDescription:
			e.Description = string(d)
		case typ == proto.InfoBlockSize && len(d) == 12:
			e.MinBlock, e.Preferred, e.Maximum = binary.BigEndian.Uint32(d), binary.BigEndian.Uint32(d[4:]), binary.BigEndian.Uint32(d[8:])
		default:
			return e, fmt.Errorf("information %d of %d bytes", typ, len(d))
		}
	}
	if !seen[proto.InfoExport] || !e.Has(proto.FlagHasFlags) {
		return e, fmt.Errorf("information: no sound EXPORT item in %v", reps)
	}
	return e, nil
}

// ExportName opens an export as old clients do; zeroes says whether 124 of them are due.
func (c *Client) ExportName(name string, zeroes bool) error {
	if err := c.SendOption(proto.OptExportName, []byte(name)); err != nil {
		return err
	}
	b := make([]byte, proto.ExportNameReplyLen)
	if zeroes {
		b = make([]byte, proto.ExportNameReplyLen+proto.ZeroesLen)
	}
	if _, err := io.ReadFull(c.r, b); err != nil {
		return fmt.Errorf("read reply to export name: %w", err)
	}
	for _, z := range b[proto.ExportNameReplyLen:] {
		if z != 0 {
			return fmt.Errorf("export name: the reserved bytes are not zero")
		}
	}
	c.Export = Export{Size: binary.BigEndian.Uint64(b), Flags: binary.BigEndian.Uint16(b[8:])}
	return nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}
