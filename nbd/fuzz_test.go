package nbd_test

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/internal/proto"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// fuzzServer serves a small disk with small limits, so that a fuzzer reaches them.
func fuzzServer(f *testing.F, d *nbdtest.MemDisk) *nbd.Server {
	return serve(f, nbd.Options{Exports: nbdtest.Exports{"disk": d}, Logger: slog.New(slog.DiscardHandler),
		Limits: nbd.Limits{MaxRequests: 16, MaxOptions: 32}})
}

// tape is a connection whose peer has sent everything already, closed its side, and reads whatever comes.
type tape struct {
	mu     sync.Mutex
	in     []byte
	out    []byte
	closed bool
}

func (p *tape) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, net.ErrClosed
	}
	if len(p.in) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.in)
	p.in = p.in[n:]
	return n, nil
}

func (p *tape) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, net.ErrClosed
	}
	p.out = append(p.out, b...)
	return len(b), nil
}

func (p *tape) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return nil
}

func (p *tape) LocalAddr() net.Addr              { return nil }
func (p *tape) RemoteAddr() net.Addr             { return nil }
func (p *tape) SetDeadline(time.Time) error      { return nil }
func (p *tape) SetReadDeadline(time.Time) error  { return nil }
func (p *tape) SetWriteDeadline(time.Time) error { return nil }

// play sends bytes to a server and gives all it said.
func play(t *testing.T, s *nbd.Server, d *nbdtest.MemDisk, input []byte) []byte {
	t.Helper()
	p := &tape{in: input}
	_ = s.ServeConn(context.Background(), p) // returns when the connection has ended
	if d.Allocs() != 0 {
		t.Fatalf("%d buffers are out after the connection ended", d.Allocs())
	}
	return p.out
}

// FuzzOptions plays any bytes as the negotiation after the client flags.
func FuzzOptions(f *testing.F) {
	d := memDisk()
	s := fuzzServer(f, d)
	for _, o := range []uint32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11} {
		f.Add(option(o, nil))
		f.Add(option(o, nbdtest.GoData("disk", 0, 1, 2, 3)))
	}
	meta := append(nbdtest.GoData("disk")[:8], 0, 0, 0, 1, 0, 0, 0, 5, 'b', 'a', 's', 'e', ':')
	f.Add(append(option(proto.OptStructuredReply, nil), append(option(proto.OptListMetaContext, meta), option(proto.OptSetMetaContext, meta)...)...))
	f.Fuzz(func(t *testing.T, options []byte) {
		out := play(t, s, d, append([]byte{0, 0, 0, 3}, options...))
		if len(out) < proto.GreetingLen {
			t.Fatalf("%d bytes of a greeting", len(out))
		}
		checkOptionReplies(t, out[proto.GreetingLen:])
	})
}

// checkOptionReplies reads well-formed option replies as long as they last: an EXPORT_NAME reply or transmission may follow.
func checkOptionReplies(t *testing.T, b []byte) {
	for len(b) >= proto.OptReplyLen && binary.BigEndian.Uint64(b) == proto.MagicOptReply {
		n := binary.BigEndian.Uint32(b[16:])
		if b = b[proto.OptReplyLen:]; uint64(n) > uint64(len(b)) {
			t.Fatalf("a reply announces %d bytes, %d follow", n, len(b))
		}
		b = b[n:]
	}
}

// attachBytes is a negotiation that ends in transmission.
func attachBytes(structured bool) []byte {
	b := []byte{0, 0, 0, 3}
	if structured {
		b = append(b, option(proto.OptStructuredReply, nil)...)
		meta := append(nbdtest.GoData("disk")[:8], 0, 0, 0, 1, 0, 0, 0, 15)
		b = append(b, option(proto.OptSetMetaContext, append(meta, proto.ContextAllocation...))...)
	}
	return append(b, option(proto.OptGo, nbdtest.GoData("disk"))...)
}

// FuzzRequests plays any bytes as transmission, with a disconnect behind them so that what was begun is answered.
func FuzzRequests(f *testing.F) {
	d := memDisk()
	s := fuzzServer(f, d)
	for cmd := range uint16(10) {
		r := nbdtest.Request{Cmd: cmd, Off: 4096, Length: 512}
		if cmd == proto.CmdWrite {
			r.Data = pattern(512, 1)
		}
		f.Add(true, nbdtest.AppendRequest(nil, 1, r))
		f.Add(false, nbdtest.AppendRequest(nbdtest.AppendRequest(nil, 1, r), 2, r))
	}
	f.Add(true, nbdtest.AppendRequest(nil, 1, nbdtest.Request{Cmd: proto.CmdRead, Length: 1<<32 - 1}))
	bye := nbdtest.AppendRequest(nil, 0, nbdtest.Request{Cmd: proto.CmdDisc})
	f.Fuzz(func(t *testing.T, structured bool, requests []byte) {
		hello := attachBytes(structured)
		silence := len(play(t, s, d, append(hello, bye...)))
		out := play(t, s, d, append(append(hello, requests...), bye...))
		if structured {
			checkReplies(t, out[silence:])
		}
	})
}

// checkReplies reads well-formed replies to the end. With structured replies they can be told apart without the requests.
func checkReplies(t *testing.T, b []byte) {
	for len(b) > 0 {
		switch {
		case len(b) >= proto.SimpleLen && binary.BigEndian.Uint32(b) == proto.MagicSimple:
			b = b[proto.SimpleLen:]
		case len(b) >= proto.ChunkLen && binary.BigEndian.Uint32(b) == proto.MagicStructured:
			n := binary.BigEndian.Uint32(b[16:])
			if b = b[proto.ChunkLen:]; uint64(n) > uint64(len(b)) {
				return // cut off with the connection
			}
			b = b[n:]
		case len(b) < proto.ChunkLen:
			return // cut off
		default:
			t.Fatalf("a reply begins with % x", b[:proto.ChunkLen])
		}
	}
}

// FuzzSession takes bytes as a script of sound and unsound requests for the strict client, which checks every answer, and a
// plain array that says what reads must give.
func FuzzSession(f *testing.F) {
	const size = 1 << 20
	f.Add([]byte("\x00\x00\x00\x10\x01\x00\x00\x10\x00\x00\x00\x10"))
	f.Add([]byte("\x06\x02\x10\x00\x07\x08\x00\xff\x00\x04\x00\xff\x04\x00\x00\x01\x05\x00\x00\x01\x03\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, script []byte) {
		d := nbdtest.NewMemDisk(nbd.Info{Size: size, FastZero: true})
		s := serve(t, nbd.Options{Exports: nbdtest.Exports{"disk": nbdtest.Instant{MemDisk: d, Busy: func(off int64) bool { return off/4096%2 == 0 }}}})
		structured := len(script)%2 == 0
		c := attach(t, pipe(t, s, len(script)%3 == 0), structured)
		model := make([]byte, size)
		for i := 0; i+4 <= len(script) && i < 400; i += 4 {
			step(t, c, model, script[i:i+4], byte(i))
		}
		if err := c.Disconnect(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil || d.Allocs() != 0 || d.Closed() != 1 {
			t.Fatalf("close %v, %d buffers out, closed %d times", err, d.Allocs(), d.Closed())
		}
	})
}

// step does one request of a script: command, flags, offset and length of its four bytes.
func step(t *testing.T, c *nbdtest.Client, model []byte, b []byte, seed byte) {
	r := nbdtest.Request{Cmd: uint16(b[0] % 9), Flags: uint16(b[1] % 40), Off: uint64(b[2]) * 4111, Length: uint32(b[3]) * 1031}
	if r.Cmd == proto.CmdDisc {
		return
	}
	if r.Cmd == proto.CmdWrite {
		r.Data = pattern(int(r.Length), seed)
	}
	rep, err := c.Do(r)
	if err != nil {
		t.Fatalf("%+v: %v", brief(r), err)
	}
	end := r.Off + uint64(r.Length)
	sound := r.Length > 0 && end <= uint64(len(model))
	if rep.Errno == 0 && !sound && r.Cmd != proto.CmdFlush {
		t.Fatalf("%+v was accepted", brief(r))
	}
	if rep.Errno != 0 {
		return
	}
	switch r.Cmd {
	case proto.CmdRead:
		if string(rep.Data) != string(model[r.Off:end]) {
			t.Fatalf("%+v differs from the model", r)
		}
	case proto.CmdWrite:
		copy(model[r.Off:], r.Data)
	case proto.CmdTrim, proto.CmdWriteZeroes:
		clear(model[r.Off:end])
	}
}
