package nbd_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/internal/proto"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of a test; a test that reaches it has failed.
const patience = 30 * time.Second

const diskSize = 8 << 20

// logLines keeps what a server logs, for tests that look at it.
type logLines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// serve starts a server that the test's end closes.
func serve(t testing.TB, o nbd.Options) *nbd.Server {
	t.Helper()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s, err := nbd.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		done := make(chan struct{})
		go func() { _ = s.Close(); close(done) }()
		select {
		case <-done:
		case <-time.After(patience):
			buf := make([]byte, 1<<20)
			panic("the server does not close:\n" + string(buf[:runtime.Stack(buf, true)]))
		}
	})
	return s
}

// serveDisk serves one disk under the name "disk".
func serveDisk(t testing.TB, d nbdtest.Informed) *nbd.Server {
	t.Helper()
	return serve(t, nbd.Options{Exports: nbdtest.Exports{"disk": d}})
}

func memDisk() *nbdtest.MemDisk {
	return nbdtest.NewMemDisk(nbd.Info{Size: diskSize, MultiConn: true, FastZero: true})
}

// listen serves a TCP socket on loopback and gives its address.
func listen(t testing.TB, s *nbd.Server) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, s, ln)
	return ln.Addr().String()
}

func serveOn(t testing.TB, s *nbd.Server, ln net.Listener) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), ln) }()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
}

// pipe connects to s through a pipe without a socket, or a pair of unix sockets.
func pipe(t testing.TB, s *nbd.Server, socket bool) net.Conn {
	t.Helper()
	var ours, theirs net.Conn
	if socket {
		ours, theirs = socketPair(t)
	} else {
		ours, theirs = net.Pipe()
	}
	go func() { _ = s.ServeConn(context.Background(), theirs) }()
	t.Cleanup(func() { _ = ours.Close() })
	if err := ours.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return ours
}

func socketPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return conns[0], conns[1]
}

// dial connects over TCP.
func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// greeted gives a client that is about to negotiate.
func greeted(t testing.TB, conn net.Conn) *nbdtest.Client {
	t.Helper()
	c, err := nbdtest.NewClient(conn, nbdtest.FixedNewstyle)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// attach negotiates structured replies and base:allocation, or neither, and opens "disk".
func attach(t testing.TB, conn net.Conn, structured bool) *nbdtest.Client {
	t.Helper()
	c := greeted(t, conn)
	if structured {
		if err := c.StructuredReplies(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.MetaContext(proto.OptSetMetaContext, "disk", proto.ContextAllocation); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Go("disk", proto.InfoBlockSize); err != nil {
		t.Fatal(err)
	}
	return c
}

// eachSession runs a test over both kinds of transport and both kinds of replies, each with a disk of its own.
func eachSession(t *testing.T, run func(t *testing.T, c *nbdtest.Client, d *nbdtest.MemDisk)) {
	for _, socket := range []bool{false, true} {
		for _, structured := range []bool{false, true} {
			for _, instant := range []bool{false, true} {
				t.Run(fmt.Sprintf("socket=%v,structured=%v,now=%v", socket, structured, instant), func(t *testing.T) {
					d := memDisk()
					var served nbdtest.Informed = d
					if instant {
						served = nbdtest.Instant{MemDisk: d}
					}
					run(t, attach(t, pipe(t, serveDisk(t, served), socket), structured), d)
				})
			}
		}
	}
}

// do sends one request and fails the test unless it is answered with errno.
func do(t testing.TB, c *nbdtest.Client, r nbdtest.Request, errno uint32) *nbdtest.Reply {
	t.Helper()
	rep, err := c.Do(r)
	if err != nil {
		t.Fatalf("%+v: %v", brief(r), err)
	}
	if rep.Errno != errno {
		t.Fatalf("%+v: errno %d (%q), want %d", brief(r), rep.Errno, rep.Message, errno)
	}
	return rep
}

func brief(r nbdtest.Request) nbdtest.Request {
	if len(r.Data) > 16 {
		r.Data = r.Data[:16]
	}
	return r
}

func write(t testing.TB, c *nbdtest.Client, off uint64, data []byte) {
	t.Helper()
	do(t, c, nbdtest.Request{Cmd: proto.CmdWrite, Off: off, Data: data}, 0)
}

func read(t testing.TB, c *nbdtest.Client, off uint64, n int) []byte {
	t.Helper()
	return do(t, c, nbdtest.Request{Cmd: proto.CmdRead, Off: off, Length: uint32(n)}, 0).Data
}

// pattern gives n bytes without a zero among them, different for each seed.
func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7)%251 + 1 ^ seed<<4
		if p[i] == 0 {
			p[i] = 0xff
		}
	}
	return p
}

// await waits until a condition that another goroutine brings about holds.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
