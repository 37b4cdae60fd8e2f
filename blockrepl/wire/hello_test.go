package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/blockrepl/blockrepl/journal/record"
)

var abc = []record.ServerID{record.MustServerID("a"), record.MustServerID("b"), record.MustServerID("c")}

// side gives server id's side of a good handshake.
func side(id string) *Side {
	return &Side{
		Hello: Hello{
			VersionMin: 3, VersionMax: 4,
			Server:      record.MustServerID(id),
			Incarnation: record.Incarnation{id[0], 1},
			Nonce:       Nonce{id[0], 2},
			Cluster:     "lab",
			Software:    "blockrepl 0." + id,
		},
		Known: abc,
	}
}

// shake runs a handshake of the two sides over a pipe.
func shake(t *testing.T, dialler, acceptor *Side) (dialVersion uint16, dialErr error, acceptVersion uint16, acceptErr error) {
	t.Helper()
	p, q := net.Pipe()
	done := make(chan struct{})
	go func() { // ends with Accept; waited for below
		defer close(done)
		defer q.Close()
		_, acceptVersion, acceptErr = Accept(q, acceptor)
	}()
	theirs, dialVersion, dialErr := Dial(p, dialler)
	p.Close()
	<-done
	if dialErr == nil && theirs != acceptor.Hello {
		t.Errorf("dialler heard %+v, the other said %+v", theirs, acceptor.Hello)
	}
	return dialVersion, dialErr, acceptVersion, acceptErr
}

func TestBothSidesAgreeOnTheHighestCommonVersion(t *testing.T) {
	for _, c := range []struct{ aMin, aMax, bMin, bMax, want uint16 }{
		{1, 1, 1, 1, 1},
		{3, 4, 3, 4, 4},
		{3, 4, 4, 5, 4}, // an upgrade: one side is one version older
		{4, 5, 3, 4, 4},
		{1, 9, 2, 3, 3},
	} {
		a, b := side("a"), side("b")
		a.VersionMin, a.VersionMax, b.VersionMin, b.VersionMax = c.aMin, c.aMax, c.bMin, c.bMax
		a.Expect = b.Server
		v, err, w, err2 := shake(t, a, b)
		if err != nil || err2 != nil || v != c.want || w != c.want {
			t.Errorf("%+v: got %d, %v and %d, %v", c, v, err, w, err2)
		}
	}
}

func TestBothSidesHearWhyOneIsRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(a, b *Side)
		want error
		text []string
	}{
		{"other cluster", func(a, b *Side) { b.Cluster = "prod" }, ErrOtherCluster, []string{`"lab"`, `"prod"`}},
		{"same id", func(a, b *Side) { b.Server = a.Server }, ErrSameID, []string{"called a", "6101", "6201"}},
		{"itself", func(a, b *Side) { b.Hello = a.Hello }, ErrSelf, []string{"reached itself"}},
		{"dialler does not know the other", func(a, b *Side) { a.Known = abc[:1] }, ErrUnknownServer, []string{"server b is not in the configuration of server a"}},
		{"acceptor does not know the other", func(a, b *Side) { b.Known = abc[1:] }, ErrUnknownServer, []string{"server a is not in the configuration of server b"}},
		{"another server answers", func(a, b *Side) { a.Expect = abc[2] }, ErrWrongServer, []string{"server b answers", "dialled c"}},
		{"no common version", func(a, b *Side) { b.VersionMin, b.VersionMax = 5, 7 }, ErrNoCommonVersion, []string{"3 to 4", "5 to 7", "0.a", "0.b"}},
		{"no version at all", func(a, b *Side) { b.VersionMin, b.VersionMax = 0, 0; a.VersionMin = 0 }, ErrNoCommonVersion, []string{"0 to 0"}},
	} {
		for _, swap := range []bool{false, true} {
			a, b := side("a"), side("b")
			c.edit(a, b)
			d, e := a, b
			if swap {
				if !a.Expect.IsZero() {
					continue // only the dialler expects one
				}
				d, e = b, a
			}
			_, err, _, err2 := shake(t, d, e)
			var r, r2 *RefusedError
			if !errors.As(err, &r) || !errors.As(err2, &r2) || !errors.Is(err, c.want) || !errors.Is(err2, c.want) {
				t.Errorf("%s: dialler got %v, acceptor %v", c.name, err, err2)
				continue
			}
			for _, s := range c.text {
				if !strings.Contains(err.Error(), s) || !strings.Contains(err2.Error(), s) {
					t.Errorf("%s: %q is missing in %q or %q", c.name, s, err, err2)
				}
			}
			if r.ByPeer && r2.ByPeer {
				t.Errorf("%s: each says that the other refused", c.name)
			}
		}
	}
}

// talk is a link on which the other side has said in, whatever it hears.
type talk struct {
	in  io.Reader
	out bytes.Buffer
}

func (l *talk) Read(p []byte) (int, error)  { return l.in.Read(p) }
func (l *talk) Write(p []byte) (int, error) { return l.out.Write(p) }

// said gives what b sends in a good handshake.
func said(t *testing.T, b *Side) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := writeHello(&out, &b.Hello); err != nil {
		t.Fatal(err)
	}
	if err := writeVerdict(&out, 4, nil); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestHandshakeReadsNoByteBeyondItself(t *testing.T) {
	for name, run := range map[string]func(io.ReadWriter, *Side) (Hello, uint16, error){"dial": Dial, "accept": Accept} {
		l := &talk{in: bytes.NewReader(append(said(t, side("b")), "frames"...))}
		if _, v, err := run(l, side("a")); err != nil || v != 4 {
			t.Errorf("%s: version %d, %v", name, v, err)
		}
		if rest, _ := io.ReadAll(l.in); string(rest) != "frames" {
			t.Errorf("%s: left %q", name, rest)
		}
	}
}

func TestBrokenHandshakesEndInAnError(t *testing.T) {
	good := said(t, side("b"))
	cut := errors.New("cable cut")
	for name, run := range map[string]func(io.ReadWriter, *Side) (Hello, uint16, error){"dial": Dial, "accept": Accept} {
		for n := range good {
			_, _, err := run(&talk{in: iotest.OneByteReader(bytes.NewReader(good[:n]))}, side("a"))
			if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrNoPeer) {
				t.Errorf("%s: %d bytes: %v", name, n, err)
			}
			_, _, err = run(&talk{in: io.MultiReader(bytes.NewReader(good[:n]), iotest.ErrReader(cut))}, side("a"))
			if !errors.Is(err, cut) && !errors.Is(err, ErrNoPeer) {
				t.Errorf("%s: broken after %d bytes: %v", name, n, err)
			}
			b := bytes.Clone(good)
			b[n] ^= 0x20
			_, _, err = run(&talk{in: bytes.NewReader(b)}, side("a"))
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNoPeer) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s: flipped bit in byte %d: %v", name, n, err)
			}
		}
		for _, s := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "NBDMAGICIHAVEOPT", "hi"} {
			l := &talk{in: strings.NewReader(s)}
			if _, _, err := run(l, side("a")); !errors.Is(err, ErrNoPeer) {
				t.Errorf("%s: %q: %v", name, s, err)
			}
			if name == "accept" && l.out.Len() > 0 {
				t.Errorf("%q was answered", s)
			}
		}
	}
}

func TestFailedSendEndsTheHandshake(t *testing.T) {
	full := errors.New("no buffers")
	for name, run := range map[string]func(io.ReadWriter, *Side) (Hello, uint16, error){"dial": Dial, "accept": Accept} {
		for n := range 2 { // Hello, Verdict
			l := &failingWriter{talk: talk{in: bytes.NewReader(said(t, side("b")))}, after: n, err: full}
			if _, _, err := run(l, side("a")); !errors.Is(err, full) {
				t.Errorf("%s: write %d fails: %v", name, n, err)
			}
		}
	}
}

type failingWriter struct {
	talk
	after int
	err   error
}

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.after--; w.after < 0 {
		return 0, w.err
	}
	return w.talk.Write(p)
}

func TestLaterVersionsMayAddToHello(t *testing.T) {
	b := side("b")
	c := coder{enc: true}
	b.fields(&c)
	c.b = append(c.b, "a field of the year 2040"...)
	var out bytes.Buffer
	if err := sendGreeting(&out, helloMagic, &c); err != nil {
		t.Fatal(err)
	}
	got, err := readHello(&out)
	if err != nil || got != b.Hello {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestUnknownCauseIsStillARefusal(t *testing.T) {
	var out bytes.Buffer
	refusal := &RefusedError{Cause: 99, Reason: "of the year 2040"}
	if err := writeVerdict(&out, 0, refusal); err != nil {
		t.Fatal(err)
	}
	if err := readVerdict(&out, &side("b").Hello, 4); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "2040") {
		t.Errorf("got %v", err)
	}
}

func TestVerdictMustNameTheCommonVersion(t *testing.T) {
	var out bytes.Buffer
	if err := writeVerdict(&out, 3, nil); err != nil {
		t.Fatal(err)
	}
	if err := readVerdict(&out, &side("b").Hello, 4); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func FuzzHandshake(f *testing.F) {
	var out bytes.Buffer
	b := side("b")
	if err := errors.Join(writeHello(&out, &b.Hello), writeVerdict(&out, 4, nil)); err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.Clone(out.Bytes()))
	f.Fuzz(func(t *testing.T, in []byte) {
		theirs, v, err := Accept(&talk{in: bytes.NewReader(in)}, side("a"))
		if err == nil && (v != 4 && v != 3 || theirs.Server.IsZero()) {
			t.Fatalf("accepted %+v with version %d", theirs, v)
		}
	})
}
