package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/blockrepl/blockrepl/nbd/internal/proto"
)

// optExportName opens an export for an old client. It cannot be told about an error: the connection ends.
func (c *conn) optExportName(data []byte) error {
	name := string(data)
	if !validName(name) {
		return fmt.Errorf("export name of %d bytes: %w", len(data), ErrProtocol)
	}
	if err := c.open(name); err != nil {
		return fmt.Errorf("open export %q: %w", name, err)
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(c.info.Size))
	b = binary.BigEndian.AppendUint16(b, c.transmissionFlags())
	if !c.noZeroes {
		b = append(b, make([]byte, proto.ZeroesLen)...)
	}
	if _, err := c.in.conn.Write(b); err != nil {
		c.unopen()
		return fmt.Errorf("answer export name %q: %w", name, err)
	}
	c.attached = true
	return nil
}

func (c *conn) optList(data []byte) error {
	if len(data) > 0 {
		return c.answerOption(proto.OptList, proto.RepErrInvalid, "the option takes no data")
	}
	var names []string
	err := c.ask(func() (err error) {
		names, err = c.server.exports.List(c.ctx, c.client)
		return err
	})
	if err != nil {
		return c.refuseOption(proto.OptList, "", err)
	}
	if len(names) > maxListed {
		c.log.Warn("list: too many exports for one reply", "exports", len(names), "listed", maxListed)
		names = names[:maxListed]
	}
	for _, n := range names {
		if validName(n) {
			c.appendReply(proto.OptList, proto.RepServer, string(binary.BigEndian.AppendUint32(nil, uint32(len(n)))), n)
		}
	}
	return c.answerOption(proto.OptList, proto.RepAck, "")
}

// goRequest is the data of INFO and GO.
type goRequest struct {
	name  string
	infos []uint16
}

func parseGo(data []byte) (g goRequest, ok bool) {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 2 {
		return g, false
	}
	n := int(binary.BigEndian.Uint16(rest))
	if rest = rest[2:]; len(rest) != 2*n {
		return g, false
	}
	g.name = name
	for ; len(rest) > 0; rest = rest[2:] {
		g.infos = append(g.infos, binary.BigEndian.Uint16(rest))
	}
	return g, validName(name)
}

func (g *goRequest) wants(info uint16) bool {
	for _, i := range g.infos {
		if i == info {
			return true
		}
	}
	return false
}

// optGo answers INFO and GO. GO that ends with ACK begins transmission.
func (c *conn) optGo(opt uint32, data []byte) error {
	g, ok := parseGo(data)
	if !ok {
		return c.answerOption(opt, proto.RepErrInvalid, "malformed option")
	}
	s := c.session
	var err error
	if opt == proto.OptGo {
		err = c.open(g.name)
		s = c.session
	} else {
		s.info, err = c.describe(g.name)
	}
	if err != nil {
		return c.refuseOption(opt, g.name, err)
	}
	c.appendInfos(opt, &g, &s)
	if err := c.answerOption(opt, proto.RepAck, ""); err != nil {
		if opt == proto.OptGo {
			c.unopen()
		}
		return err
	}
	c.attached = opt == proto.OptGo
	return nil
}

// appendInfos adds the information items: EXPORT always, the others when asked for. Block sizes are told unasked where
// they are not what every client may assume.
func (c *conn) appendInfos(opt uint32, g *goRequest, s *session) {
	item := func(info uint16, rest ...byte) {
		c.appendReply(opt, proto.RepInfo, string(append(binary.BigEndian.AppendUint16(nil, info), rest...)))
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(s.info.Size))
	item(proto.InfoExport, binary.BigEndian.AppendUint16(b, s.transmissionFlags())...)
	if g.wants(proto.InfoName) {
		item(proto.InfoName, []byte(s.info.Name)...)
	}
	if g.wants(proto.InfoDescription) && s.info.Description != "" {
		item(proto.InfoDescription, []byte(s.info.Description)...)
	}
	if g.wants(proto.InfoBlockSize) || s.info.MinBlock > 1 || s.info.MaxPayload < MaxPayloadDefault {
		b := binary.BigEndian.AppendUint32(nil, s.info.MinBlock)
		b = binary.BigEndian.AppendUint32(b, s.info.PreferredBlock)
		item(proto.InfoBlockSize, binary.BigEndian.AppendUint32(b, s.info.MaxPayload)...)
	}
}

// metaRequest is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaRequest struct {
	name    string
	queries []string
	tooMany bool
}

func parseMeta(data []byte) (m metaRequest, ok bool) {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 4 {
		return m, false
	}
	m.name = name
	n := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	if m.tooMany = n > maxQueries; m.tooMany {
		return m, validName(name)
	}
	for range n {
		var q string
		if q, rest, ok = cutString(rest); !ok {
			return m, false
		}
		m.queries = append(m.queries, q)
	}
	return m, len(rest) == 0 && validName(name)
}

// selects reports whether base:allocation is what the queries ask for. Unknown names and namespaces are ignored; a
// wildcard, or no query at all, lists but does not select.
func (m *metaRequest) selects(opt uint32) bool {
	list := opt == proto.OptListMetaContext
	if list && len(m.queries) == 0 {
		return true
	}
	for _, q := range m.queries {
		if q == proto.ContextAllocation || (list && q == "base:") {
			return true
		}
	}
	return false
}

func (c *conn) optMetaContext(opt uint32, data []byte) error {
	set := opt == proto.OptSetMetaContext
	if set {
		c.metaSet = false // a failing SET unselects as well
	}
	if !c.structured {
		return c.answerOption(opt, proto.RepErrInvalid, "structured replies were not negotiated")
	}
	m, ok := parseMeta(data)
	switch {
	case !ok:
		return c.answerOption(opt, proto.RepErrInvalid, "malformed option")
	case m.tooMany:
		return c.answerOption(opt, proto.RepErrTooBig, "too many queries")
	}
	if _, err := c.describe(m.name); err != nil {
		return c.refuseOption(opt, m.name, err)
	}
	if m.selects(opt) {
		id := uint32(0)
		if set {
			id = allocationID
			c.metaSet, c.metaExport = true, m.name
		}
		c.appendReply(opt, proto.RepMetaContext, string(binary.BigEndian.AppendUint32(nil, id)), proto.ContextAllocation)
	}
	return c.answerOption(opt, proto.RepAck, "")
}

// describe asks the program about an export.
func (c *conn) describe(name string) (info Info, err error) {
	err = c.ask(func() (err error) {
		info, err = c.server.exports.Describe(c.ctx, c.client, name)
		return err
	})
	if err == nil {
		err = c.settle(&info, name)
	}
	return info, err
}

// open asks the program to open an export and takes the session from it.
func (c *conn) open(name string) error {
	if err := c.server.enter(c); err != nil {
		return err
	}
	err := c.ask(func() (err error) {
		c.disk, c.info, err = c.server.exports.Open(c.ctx, c.client, name)
		return err
	})
	if err == nil {
		err = c.settle(&c.info, name)
	}
	if err == nil {
		err = c.server.attach(c)
	}
	if err != nil {
		c.unopen()
		return err
	}
	c.now, _ = c.disk.(NowReader)
	if c.metaSet && c.metaExport == name {
		c.contextID = allocationID
	}
	return nil
}

// unopen takes back an open that the client was not told of.
func (c *conn) unopen() {
	c.server.leave(c)
	if c.disk == nil {
		return
	}
	if err := c.disk.Close(); err != nil {
		c.log.Warn("close export", "export", c.info.Name, "err", err)
	}
	c.disk, c.now = nil, nil
}

func (c *conn) settle(info *Info, name string) error {
	def(&info.Name, name)
	if !info.settle() || !validName(info.Name) || len(info.Description) > proto.StringMax {
		return fmt.Errorf("export %q: sizes or strings against the specification: %+v", name, *info)
	}
	return nil
}

// refuseOption answers an option that the program refused, or closes the connection if that is what it wants. What the
// program says goes to the client only if it was said for the client.
func (c *conn) refuseOption(opt uint32, name string, err error) error {
	if hangs(err) || errors.Is(err, ErrServerClosed) {
		return err
	}
	c.reply = c.reply[:0]
	typ, text := proto.RepErrUnknown, "the export is not available"
	switch {
	case errors.Is(err, ErrNotPermitted):
		typ, text = proto.RepErrPolicy, err.Error()
	case errors.Is(err, ErrTLSRequired) && !c.client.TLS:
		typ, text = proto.RepErrTLSReqd, "the export requires TLS"
	case errors.Is(err, ErrUnknownExport):
		text = err.Error()
	case errors.Is(err, ErrLimit):
		typ, text = proto.RepErrPolicy, "too many clients"
	}
	if c.server.logLimit.allow() {
		c.log.Warn("nbd export refused", "export", name, "option", opt, "err", err, "unlogged", c.server.logLimit.skipped())
	}
	return c.answerOption(opt, typ, strings.ToValidUTF8(text[:min(len(text), 1024)], ""))
}

// cutString takes a 32 bit length and so many bytes from the front of b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if b = b[4:]; uint64(n) > uint64(len(b)) {
		return "", nil, false
	}
	return string(b[:n]), b[n:], true
}

// validName reports whether s is a string as the specification wants it.
func validName(s string) bool {
	return len(s) <= proto.StringMax && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}
