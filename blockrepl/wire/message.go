package wire

import (
	"fmt"
	"strconv"
)

// coded is what fields.go gives every Message.
type coded interface {
	Message
	fields(*coder)
}

// newMessage gives an empty message of type t, nil for an unknown type.
func newMessage(t Type) coded {
	switch t {
	case TypeGreeting:
		return new(Greeting)
	case TypePrepare:
		return new(Prepare)
	case TypePromise:
		return new(Promise)
	case TypeJoin:
		return new(Join)
	case TypeJoined:
		return new(Joined)
	case TypeAppend:
		return new(Append)
	case TypeAck:
		return new(Ack)
	case TypeRequest:
		return new(Request)
	case TypeHeartbeat:
		return new(Heartbeat)
	case TypeHeartbeatAck:
		return new(HeartbeatAck)
	case TypeReadIndex:
		return new(ReadIndex)
	case TypeReadIndexOK:
		return new(ReadIndexOK)
	case TypeForward:
		return new(Forward)
	case TypeRefuse:
		return new(Refuse)
	case TypeStateUpdate:
		return new(StateUpdate)
	case TypeStateAck:
		return new(StateAck)
	case TypeHandover:
		return new(Handover)
	case TypeHandoverReady:
		return new(HandoverReady)
	case TypeTakeOver:
		return new(TakeOver)
	case TypeQuery:
		return new(Query)
	case TypeHashQuery:
		return new(HashQuery)
	case TypeExtentData:
		return new(ExtentData)
	case TypeLeaving:
		return new(Leaving)
	case TypeFetch:
		return new(Fetch)
	case TypeFetched:
		return new(Fetched)
	case TypeSizeQuery:
		return new(SizeQuery)
	case TypeSizeAnswer:
		return new(SizeAnswer)
	}
	return nil
}

// String gives the message's name.
func (t Type) String() string {
	if m := newMessage(t); m != nil {
		return fmt.Sprintf("%T", m)[len("*wire."):]
	}
	return "type " + strconv.Itoa(int(t))
}

// TypeOf gives the type that tags m's frame.
func TypeOf(m Message) Type { return m.messageType() }

// Encode appends m's body to dst, records included; a Writer does it without
// copying them. ErrTooLarge if a bound of this package is exceeded; then dst is
// returned as it was.
func Encode(dst []byte, m Message) ([]byte, error) {
	c := coder{enc: true, b: dst}
	if err := c.encode(m); err != nil {
		return dst, err
	}
	for _, r := range c.raws {
		c.b = append(c.b, r...)
	}
	return c.b, nil
}

// Decode decodes the body of a frame of type t. It is total: any bytes give a
// message or ErrCorrupt, and no more is allocated than a small multiple of
// len(b). Records and the data of chunks are parts of b, which the caller must
// not write to again.
func Decode(t Type, b []byte) (Message, error) {
	m, _, err := decode(t, b)
	return m, err
}

// encode appends the fields to c.b and collects the records in c.raws. The whole
// body, counted from where c.b ended before, is bounded.
func (c *coder) encode(m Message) error {
	k, ok := m.(coded)
	if !ok {
		panic(fmt.Sprintf("wire: bug: %T is no message", m))
	}
	start, raws := len(c.b), len(c.raws)
	c.head = -1
	k.fields(c)
	if c.head < 0 {
		c.head = len(c.b)
	}
	n := len(c.b) - start
	for _, r := range c.raws[raws:] {
		n += len(r)
	}
	if c.err == nil && n > MaxBody {
		c.fail("body", "%d bytes, at most %d are allowed", n, MaxBody)
	}
	if c.err != nil {
		return fmt.Errorf("encode %s: %w", m.messageType(), c.err)
	}
	return nil
}

// decode also gives the length of the head: the part before the records.
func decode(t Type, b []byte) (Message, int, error) {
	m := newMessage(t)
	if m == nil {
		return nil, 0, fmt.Errorf("decode message: %w: unknown %s", ErrCorrupt, t)
	}
	c := coder{b: b, head: -1}
	m.fields(&c)
	if len(c.b) != 0 {
		c.fail("end", "%d bytes too many", len(c.b))
	}
	if c.err != nil {
		return nil, 0, fmt.Errorf("decode %s of %d bytes: %w", t, len(b), c.err)
	}
	if c.head < 0 {
		c.head = len(b)
	}
	return m, c.head, nil
}

// stateVersion is the first byte of an encoded State that is kept.
const stateVersion = 1

// AppendState appends s as it is kept in records and in the journal's metadata:
// a version byte, then State as in the package comment. It panics if s exceeds a
// bound of this package: states are checked where they are made.
func AppendState(dst []byte, s *State) []byte {
	c := coder{enc: true, b: append(dst, stateVersion)}
	if s.fields(&c); c.err != nil {
		panic(fmt.Sprintf("wire: bug: state %d of volume %q: %v", s.Number, s.Name, c.err))
	}
	return c.b
}

// DecodeState decodes what AppendState made.
func DecodeState(b []byte) (State, error) {
	var s State
	c := coder{b: b}
	var v uint8
	if c.u8("state version", &v); v != stateVersion {
		c.fail("state version", "%d is unknown, this program knows %d", v, stateVersion)
	}
	s.fields(&c)
	if len(c.b) != 0 {
		c.fail("end", "%d bytes too many", len(c.b))
	}
	if c.err != nil {
		return State{}, fmt.Errorf("decode state of %d bytes: %w", len(b), c.err)
	}
	return s, nil
}
