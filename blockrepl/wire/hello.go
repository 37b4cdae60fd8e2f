package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/blockrepl/blockrepl/journal/record"
)

// The versions of the protocol (the messages and what they mean) that this
// program speaks. A release may raise the first by one and must then still speak
// the one before, so that servers are upgraded one after the other.
const (
	Version       = 1
	OldestVersion = 1
)

// Nonce is drawn at each start of a server. Two processes never have the same,
// even on copies of one data directory: equal means that a server reached itself.
type Nonce [16]byte

// Hello is what each side says of itself before anything else.
type Hello struct {
	VersionMin, VersionMax uint16 // the versions that it speaks
	Server                 record.ServerID
	Incarnation            record.Incarnation
	Nonce                  Nonce
	Cluster                string
	Software               string // name and version, for people
}

// Verdict is each side's answer to the other's Hello.
type Verdict struct {
	Cause   Cause  // CauseNone: accepted
	Version uint16 // when accepted: the version both will speak
	Reason  string // when refused, for people
}

// OK reports whether the Verdict accepts.
func (v *Verdict) OK() bool { return v.Cause == CauseNone }

// Cause is why a server was refused, on the wire.
type Cause uint8

// The causes. Numbers are never reused; one that is not known counts as CauseOther.
const (
	CauseNone        Cause = 0
	CauseOther       Cause = 1
	CauseCluster     Cause = 2
	CauseSameID      Cause = 3
	CauseUnknown     Cause = 4
	CauseVersion     Cause = 5
	CauseWrongServer Cause = 6
	CauseSelf        Cause = 7
)

// Why a server is refused. A RefusedError is one of them, at both sides.
var (
	ErrOtherCluster    = errors.New("server is of another cluster")
	ErrSameID          = errors.New("two servers have the same id")
	ErrUnknownServer   = errors.New("server is not in the configuration")
	ErrNoCommonVersion = errors.New("no common protocol version")
	ErrWrongServer     = errors.New("another server answers at this address")
	ErrSelf            = errors.New("server reached itself")
	ErrRefused         = errors.New("server was refused")
	// ErrNoPeer says that what speaks at the other end is no blockrepl server.
	ErrNoPeer = errors.New("not a blockrepl server")
)

// err gives the sentinel that c stands for.
func (c Cause) err() error {
	switch c {
	case CauseCluster:
		return ErrOtherCluster
	case CauseSameID:
		return ErrSameID
	case CauseUnknown:
		return ErrUnknownServer
	case CauseVersion:
		return ErrNoCommonVersion
	case CauseWrongServer:
		return ErrWrongServer
	case CauseSelf:
		return ErrSelf
	}
	return ErrRefused
}

// RefusedError says that one side refused the other, and why. errors.Is tells
// the cause by the sentinels above, on both sides alike.
type RefusedError struct {
	Peer   record.ServerID // the other side, as it calls itself
	ByPeer bool            // false: this side refused
	Cause  Cause
	Reason string
}

// Error names who refused whom, and the reason.
func (e *RefusedError) Error() string {
	if e.ByPeer {
		return fmt.Sprintf("server %q refused this server: %s", e.Peer, e.Reason)
	}
	return fmt.Sprintf("server %q refused: %s", e.Peer, e.Reason)
}

// Unwrap gives the sentinel.
func (e *RefusedError) Unwrap() error { return e.Cause.err() }

// Side is one side of a handshake: what it says, and whom it expects.
type Side struct {
	Hello
	// Known are the servers of the configuration.
	Known []record.ServerID
	// Expect is the server that was dialled; zero when accepting: any known one.
	Expect record.ServerID
	// Admit, when set, may refuse by a RefusedError what is fit to be a peer but not
	// now. It is part of this side's verdict, so that the other side hears it.
	Admit func(theirs *Hello) error
}

// verdict is what this side says of theirs.
func (s *Side) verdict(theirs *Hello) (version uint16, err error) {
	version, err = Check(s, theirs)
	if err == nil && s.Admit != nil {
		err = s.Admit(theirs)
	}
	return version, err
}

// Check says which version to speak with theirs, or gives a RefusedError. It is pure.
func Check(mine *Side, theirs *Hello) (version uint16, err error) {
	refuse := func(c Cause, format string, args ...any) (uint16, error) {
		return 0, &RefusedError{Peer: theirs.Server, Cause: c, Reason: fmt.Sprintf(format, args...)}
	}
	version = min(mine.VersionMax, theirs.VersionMax)
	switch {
	case version == 0 || version < max(mine.VersionMin, theirs.VersionMin):
		return refuse(CauseVersion, "server %s (%s) speaks protocol versions %d to %d, server %s (%s) speaks %d to %d; upgrade the older one",
			mine.Server, mine.Software, mine.VersionMin, mine.VersionMax,
			theirs.Server, theirs.Software, theirs.VersionMin, theirs.VersionMax)
	case theirs.Cluster != mine.Cluster:
		return refuse(CauseCluster, "server %s is of cluster %q, server %s is of cluster %q; check `cluster` and the addresses in both configurations",
			mine.Server, mine.Cluster, theirs.Server, theirs.Cluster)
	case theirs.Nonce == mine.Nonce:
		return refuse(CauseSelf, "server %s has reached itself; check the addresses of the other servers in its configuration", mine.Server)
	case theirs.Server == mine.Server:
		return refuse(CauseSameID, "two servers are called %s (data directories %s and %s); give one another id",
			mine.Server, mine.Incarnation, theirs.Incarnation)
	case !slices.Contains(mine.Known, theirs.Server):
		return refuse(CauseUnknown, "server %s is not in the configuration of server %s; add a [[server]] entry or correct its id",
			theirs.Server, mine.Server)
	case !mine.Expect.IsZero() && theirs.Server != mine.Expect:
		return refuse(CauseWrongServer, "server %s answers where server %s dialled %s; check the addresses in its configuration",
			theirs.Server, mine.Server, mine.Expect)
	}
	return version, nil
}

// Dial is the handshake of the side that opened the link: Hello, their Hello,
// Verdict, their Verdict. The deadline is the caller's. It reads not one byte
// beyond, so that a Reader may begin on rw. Errors: RefusedError from either
// side, ErrNoPeer, ErrCorrupt, or rw's own.
func Dial(rw io.ReadWriter, mine *Side) (theirs Hello, version uint16, err error) {
	if err := writeHello(rw, &mine.Hello); err != nil {
		return Hello{}, 0, err
	}
	if theirs, err = readHello(rw); err != nil {
		return Hello{}, 0, err
	}
	version, refusal := mine.verdict(&theirs)
	if err := writeVerdict(rw, version, refusal); err != nil {
		return theirs, 0, errors.Join(refusal, err)
	}
	if refusal != nil {
		return theirs, 0, refusal
	}
	return theirs, version, readVerdict(rw, &theirs, version)
}

// Accept is the handshake of the other side: their Hello, Hello, their Verdict,
// Verdict. Who is no server is not answered.
func Accept(rw io.ReadWriter, mine *Side) (theirs Hello, version uint16, err error) {
	if theirs, err = readHello(rw); err != nil {
		return Hello{}, 0, err
	}
	if err := writeHello(rw, &mine.Hello); err != nil {
		return theirs, 0, err
	}
	// The dialler says its Verdict before it hears ours; where both refuse, each
	// reports its own reason, which is the one its operator can act on.
	version, refusal := mine.verdict(&theirs)
	byPeer := readVerdict(rw, &theirs, version)
	if isRefusal(byPeer) && refusal == nil {
		return theirs, 0, byPeer
	}
	if byPeer != nil && !isRefusal(byPeer) {
		return theirs, 0, errors.Join(refusal, byPeer)
	}
	if byPeer == nil {
		if err := writeVerdict(rw, version, refusal); err != nil {
			return theirs, 0, errors.Join(refusal, err)
		}
	}
	return theirs, version, refusal
}

func isRefusal(err error) bool {
	var r *RefusedError
	return errors.As(err, &r)
}

var (
	helloMagic   = [8]byte{'b', 'l', 'o', 'c', 'k', 'r', 'e', 'p'}
	verdictMagic = [8]byte{'b', 'r', 'v', 'e', 'r', 'd', 'i', 'c'}
)

func (h *Hello) fields(c *coder) {
	c.u16("version min", &h.VersionMin)
	c.u16("version max", &h.VersionMax)
	c.server("server", &h.Server)
	c.incarnation("incarnation", &h.Incarnation)
	c.fixed("nonce", h.Nonce[:])
	c.text("cluster", &h.Cluster, MaxName)
	c.text("software", &h.Software, MaxName)
}

func (v *Verdict) fields(c *coder) {
	c.u8("cause", (*uint8)(&v.Cause))
	c.u16("version", &v.Version)
	c.reason("reason", &v.Reason)
}

func writeHello(w io.Writer, h *Hello) error {
	c := coder{enc: true}
	h.fields(&c)
	if err := sendGreeting(w, helloMagic, &c); err != nil {
		return fmt.Errorf("send hello: %w", err)
	}
	return nil
}

func readHello(r io.Reader) (Hello, error) {
	var h Hello
	b, err := receiveGreeting(r, helloMagic)
	if err != nil {
		return h, fmt.Errorf("receive hello: %w", err)
	}
	c := coder{b: b}
	h.fields(&c)
	if h.Server.IsZero() {
		c.fail("server", "is none")
	}
	if c.err != nil {
		return Hello{}, fmt.Errorf("receive hello: %w", c.err)
	}
	return h, nil
}

func writeVerdict(w io.Writer, version uint16, refusal error) error {
	v := Verdict{Version: version}
	var r *RefusedError
	if errors.As(refusal, &r) {
		v = Verdict{Cause: r.Cause, Reason: r.Reason}
	}
	c := coder{enc: true}
	v.fields(&c)
	if err := sendGreeting(w, verdictMagic, &c); err != nil {
		return fmt.Errorf("send verdict: %w", err)
	}
	return nil
}

// readVerdict gives nil if the other side accepts and means the same version.
func readVerdict(r io.Reader, peer *Hello, version uint16) error {
	b, err := receiveGreeting(r, verdictMagic)
	if err != nil {
		return fmt.Errorf("receive verdict of server %s: %w", peer.Server, err)
	}
	var v Verdict
	c := coder{b: b}
	v.fields(&c)
	switch {
	case c.err != nil:
		return fmt.Errorf("receive verdict of server %s: %w", peer.Server, c.err)
	case !v.OK():
		return &RefusedError{Peer: peer.Server, ByPeer: true, Cause: v.Cause, Reason: v.Reason}
	case v.Version != version && version != 0: // zero: this side refuses anyway
		return fmt.Errorf("receive verdict of server %s: %w: it chose version %d, the common one is %d",
			peer.Server, ErrCorrupt, v.Version, version)
	}
	return nil
}

// sendGreeting sends magic, length, c's fields and the sum of all that.
func sendGreeting(w io.Writer, magic [8]byte, c *coder) error {
	if c.err == nil && len(c.b) > maxHello {
		c.fail("greeting", "%d bytes, at most %d are allowed", len(c.b), maxHello)
	}
	if c.err != nil {
		return c.err
	}
	b := binary.LittleEndian.AppendUint32(append([]byte(nil), magic[:]...), uint32(len(c.b)))
	b = append(b, c.b...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	_, err := w.Write(b)
	return err
}

// receiveGreeting gives the bytes between length and sum. Callers take the
// fields they know; bytes behind them are of later versions and ignored.
func receiveGreeting(r io.Reader, magic [8]byte) ([]byte, error) {
	b := make([]byte, 12, 128)
	if n, err := io.ReadFull(r, b); err != nil {
		if n > 0 && [8]byte(b[:8]) != magic {
			return nil, fmt.Errorf("%w: it sent %q and closed", ErrNoPeer, b[:n])
		}
		return nil, fmt.Errorf("%d of %d bytes: %w", n, len(b), unexpected(err))
	}
	if [8]byte(b[:8]) != magic {
		return nil, fmt.Errorf("%w: it sent %q", ErrNoPeer, b[:8])
	}
	n := binary.LittleEndian.Uint32(b[8:])
	if n > maxHello {
		return nil, fmt.Errorf("%w: length %d, at most %d are allowed", ErrCorrupt, n, maxHello)
	}
	b = append(b, make([]byte, n+4)...)
	if got, err := io.ReadFull(r, b[12:]); err != nil {
		return nil, fmt.Errorf("%d of %d bytes: %w", 12+got, len(b), unexpected(err))
	}
	end := len(b) - 4
	if got, want := crc32.Checksum(b[:end], castagnoli), binary.LittleEndian.Uint32(b[end:]); got != want {
		return nil, fmt.Errorf("%w: sum is %08x, it says %08x", ErrCorrupt, got, want)
	}
	return b[12:end], nil
}
