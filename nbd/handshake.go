package nbd

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/blockrepl/blockrepl/nbd/internal/proto"
)

// handshake is the state of a negotiation. Everything the client has negotiated is wiped at STARTTLS.
type handshake struct {
	fixed    bool // the client speaks fixed newstyle
	noZeroes bool
	deadline time.Time
	attached bool // negotiation succeeded
	reply    []byte

	metaSet    bool   // SET_META_CONTEXT selected base:allocation
	metaExport string // for this name
}

// allocationID is the id that base:allocation gets. Any number does; it is not 0, which means "not selected" here.
const allocationID = 1

// negotiate is the handshake phase: greeting, client flags, options until one opens an export. nil means that the
// connection is in transmission, with c.session and c.disk set.
func (c *conn) negotiate() error {
	c.deadline = time.Now().Add(c.server.limits.HandshakeTimeout)
	if err := c.sock.SetDeadline(c.deadline); err != nil {
		return fmt.Errorf("set handshake deadline: %w", err)
	}
	if err := c.greet(); err != nil {
		return err
	}
	for n := 0; !c.attached; n++ {
		if n == c.server.limits.MaxOptions {
			return fmt.Errorf("negotiate: %d options without an end: %w", n, ErrLimit)
		}
		if err := c.in.fill(proto.OptionLen); err != nil {
			return fmt.Errorf("read option %d: %w", n, c.ended(err))
		}
		b := c.in.take(proto.OptionLen)
		if binary.BigEndian.Uint64(b) != proto.MagicOption {
			return fmt.Errorf("read option %d: wrong magic: %w", n, ErrProtocol)
		}
		if err := c.option(binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])); err != nil {
			return c.ended(err)
		}
	}
	if err := c.in.conn.SetDeadline(time.Time{}); err != nil {
		err = fmt.Errorf("clear handshake deadline: %w", err)
		_ = c.disk.Close() // nothing was asked of it
		c.server.leave(c)
		return c.ended(err)
	}
	return nil
}

func (c *conn) greet() error {
	b := binary.BigEndian.AppendUint64(nil, proto.MagicInit)
	b = binary.BigEndian.AppendUint64(b, proto.MagicOption)
	b = binary.BigEndian.AppendUint16(b, proto.FlagFixedNewstyle|proto.FlagNoZeroes)
	if _, err := c.sock.Write(b); err != nil {
		return fmt.Errorf("greet: %w", c.ended(err))
	}
	if err := c.in.fill(proto.ClientFlagsLen); err != nil {
		return fmt.Errorf("read client flags: %w", c.ended(err))
	}
	flags := binary.BigEndian.Uint32(c.in.take(proto.ClientFlagsLen))
	if flags&^uint32(proto.FlagFixedNewstyle|proto.FlagNoZeroes) != 0 {
		return fmt.Errorf("read client flags: unknown flags %#x: %w", flags, ErrProtocol)
	}
	c.fixed = flags&uint32(proto.FlagFixedNewstyle) != 0
	c.noZeroes = flags&uint32(proto.FlagNoZeroes) != 0
	return nil
}

// option takes the data of one option and answers it. An error ends the connection.
func (c *conn) option(opt, length uint32) error {
	if !c.fixed && opt != proto.OptExportName {
		return fmt.Errorf("option %d from a client without fixed newstyle: %w", opt, ErrProtocol)
	}
	if length > maxOptionBytes {
		return c.skipOption(opt, length)
	}
	if err := c.in.fill(int(length)); err != nil {
		return fmt.Errorf("read %d bytes of option %d: %w", length, opt, err)
	}
	data := c.in.take(int(length))
	c.reply = c.reply[:0]

	if c.server.tlsMode == TLSRequire && !c.client.TLS {
		switch opt {
		case proto.OptStartTLS, proto.OptAbort:
		case proto.OptExportName:
			return fmt.Errorf("export name without TLS: %w", ErrTLSRequired)
		default:
			return c.answerOption(opt, proto.RepErrTLSReqd, "this server requires TLS")
		}
	}
	switch opt {
	case proto.OptExportName:
		return c.optExportName(data)
	case proto.OptAbort:
		_ = c.answerOption(opt, proto.RepAck, "") // it may already have closed
		return errDisconnect
	case proto.OptList:
		return c.optList(data)
	case proto.OptStartTLS:
		return c.optStartTLS(data)
	case proto.OptInfo, proto.OptGo:
		return c.optGo(opt, data)
	case proto.OptStructuredReply:
		if len(data) > 0 {
			return c.answerOption(opt, proto.RepErrInvalid, "the option takes no data")
		}
		c.structured = true
		return c.answerOption(opt, proto.RepAck, "")
	case proto.OptListMetaContext, proto.OptSetMetaContext:
		return c.optMetaContext(opt, data)
	}
	return c.answerOption(opt, proto.RepErrUnsup, "option not supported")
}

// skipOption passes over data that is longer than any option needs.
func (c *conn) skipOption(opt, length uint32) error {
	if length > maxOptionSkip || opt == proto.OptExportName {
		return fmt.Errorf("option %d of %d bytes: %w", opt, length, ErrLimit)
	}
	if err := c.in.discard(int64(length)); err != nil {
		return fmt.Errorf("skip %d bytes of option %d: %w", length, opt, err)
	}
	c.reply = c.reply[:0]
	if c.server.tlsMode == TLSRequire && !c.client.TLS {
		return c.answerOption(opt, proto.RepErrTLSReqd, "this server requires TLS")
	}
	if opt == proto.OptSetMetaContext {
		c.metaSet = false // a failing SET unselects as well
	}
	return c.answerOption(opt, proto.RepErrTooBig, "option too long")
}

// appendReply adds one reply of an option to what is sent with the final one:
//
//	 0               8        12       16       20
//	+---------------+--------+--------+--------+
//	| magic         | option | type   | length | then length bytes
//	+---------------+--------+--------+--------+
func (c *conn) appendReply(opt, typ uint32, data ...string) {
	n := 0
	for _, d := range data {
		n += len(d)
	}
	b := binary.BigEndian.AppendUint64(c.reply, proto.MagicOptReply)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, typ)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	for _, d := range data {
		b = append(b, d...)
	}
	c.reply = b
}

// answerOption sends the final reply of an option, with what was appended before.
func (c *conn) answerOption(opt, typ uint32, text string) error {
	c.appendReply(opt, typ, text)
	if _, err := c.in.conn.Write(c.reply); err != nil {
		return fmt.Errorf("answer option %d: %w", opt, err)
	}
	return nil
}

// ask calls the program. However long it takes, the client's own time for negotiation does not run meanwhile.
func (c *conn) ask(call func() error) error {
	start := time.Now()
	err := call()
	c.deadline = c.deadline.Add(time.Since(start))
	if e := c.in.conn.SetDeadline(c.deadline); e != nil && err == nil {
		err = fmt.Errorf("set handshake deadline: %w", e)
	}
	return err
}
