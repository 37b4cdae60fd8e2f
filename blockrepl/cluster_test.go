package blockrepl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
	"go.uber.org/goleak"
)

// cluster is some servers of one process, over loopback, with real journals and
// images in temporary directories.
type cluster struct {
	t       *testing.T
	b       *testing.B // of a benchmark: then t is nil
	dir     string
	addrs   []ServerAddr
	volume  VolumeOptions
	servers []*Server // nil: not running
	change  func(*Options)
}

const (
	testSize    = 16 << 20
	testTimeout = 20 * time.Second
)

func newCluster(t *testing.T, n int, change func(*Options)) *cluster {
	t.Helper()
	t.Cleanup(func() {
		goleak.VerifyNone(t, goleak.IgnoreTopFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"))
	})
	c := &cluster{t: t, dir: t.TempDir(), servers: make([]*Server, n), change: change}
	for i := range n {
		id := record.MustServerID(string(rune('a' + i)))
		c.addrs = append(c.addrs, ServerAddr{ID: id, Addr: freeAddr(t)})
	}
	c.volume = VolumeOptions{Name: "vol0", Size: testSize, OnDegraded: wire.Suspend}
	for _, a := range c.addrs {
		c.volume.Servers = append(c.volume.Servers, a.ID)
	}
	t.Cleanup(func() {
		for i := range c.servers {
			c.kill(i)
		}
	})
	return c
}

func freeAddr(t testing.TB) string {
	t.Helper()
	portNext.CompareAndSwap(0, int64(os.Getpid()*61))
	for range portLast - portFirst {
		addr := fmt.Sprintf("127.0.0.1:%d", portFirst+portNext.Add(1)%(portLast-portFirst))
		if ln, err := net.Listen("tcp", addr); err == nil {
			ln.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

// Ports below those that the kernel gives outgoing connections: one that dials a
// port where nobody listens yet may be given that very port, and reach itself.
const (
	portFirst = 12000
	portLast  = 32000
)

var portNext atomic.Int64

// testLog writes a server's log to the test's.
type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(string(bytes.TrimSpace(p)))
	return len(p), nil
}

func (c *cluster) options(i int) Options {
	o := Options{
		Cluster: "lab", ID: c.addrs[i].ID, DataDir: filepath.Join(c.dir, c.addrs[i].ID.String()),
		Peers: c.addrs[i].Addr, Servers: c.addrs, Volumes: []VolumeOptions{c.volume},
		PeerTimeout: time.Second, Version: "test",
		Logger: slog.New(slog.NewTextHandler(testLog{c.t}, nil)).With("at", c.addrs[i].ID.String()),
		OpenJournal: func(o journal.Options) (*journal.Journal, error) {
			o.MemTableBytes, o.ReserveBytes = 4<<20, -1
			return journal.Open(o)
		},
	}
	if c.change != nil {
		c.change(&o)
	}
	return o
}

func (c *cluster) start(which ...int) {
	c.t.Helper()
	for _, i := range which {
		s, err := NewServer(c.options(i))
		if err != nil {
			c.t.Fatalf("NewServer %d: %v", i, err)
		}
		if err := s.Start(context.Background()); err != nil {
			c.t.Fatalf("Start %d: %v", i, err)
		}
		c.servers[i] = s
	}
}

// kill ends a server without handover, drain or checkpoint.
func (c *cluster) kill(i int) {
	c.t.Helper()
	s := c.servers[i]
	c.servers[i] = nil
	if s == nil {
		return
	}
	if err := s.Close(); err != nil && !errors.Is(err, journal.ErrFailed) {
		c.t.Errorf("Close %d: %v", i, err)
	}
}

// stop ends a server in order.
func (c *cluster) stop(i int, handover bool) {
	c.t.Helper()
	s := c.servers[i]
	c.servers[i] = nil
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if err := s.Stop(ctx, handover); err != nil {
		c.t.Errorf("Stop %d: %v", i, err)
	}
}

func (c *cluster) vol(i int) *Volume { return c.servers[i].Volume(c.volume.Name) }

func (c *cluster) status(i int) VolumeStatus {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	return c.vol(i).Status(ctx)
}

// await waits until server i's status satisfies ok.
func (c *cluster) await(i int, what string, ok func(VolumeStatus) bool) VolumeStatus {
	c.t.Helper()
	deadline := time.Now().Add(testTimeout)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		st := c.status(i)
		if ok(st) {
			return st
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("server %s never got to: %s; it is %s %s at %d/%d/%d: %s", c.addrs[i].ID, what, st.Role, st.State, st.Last, st.Committed, st.Applied, st.Reason+fmt.Sprintf(" checkpoint %d first %d", st.Checkpoint, st.FirstKept))
		}
		<-tick.C
	}
}

func (c *cluster) awaitHealthy(which ...int) {
	c.t.Helper()
	for _, i := range which {
		c.await(i, "healthy", func(s VolumeStatus) bool { return s.State == StateHealthy })
	}
}

// testConn is a client of a test: its calls wait for the outcome.
type testConn struct {
	*Conn
	c       *cluster
	mu      sync.Mutex
	aborted error
}

func (c *cluster) connect(i int, identity string) *testConn {
	return c.connectAs(i, ClientInfo{Identity: identity})
}

func (c *cluster) connectAs(i int, info ClientInfo) *testConn {
	c.t.Helper()
	tc := &testConn{c: c}
	info.Addr = "test"
	info.Abort = func(err error) {
		tc.mu.Lock()
		defer tc.mu.Unlock()
		tc.aborted = err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.t.Cleanup(cancel)
	late := time.AfterFunc(testTimeout, cancel)
	defer late.Stop()
	var err error
	if tc.Conn, err = c.vol(i).Connect(ctx, info); err != nil {
		c.t.Fatalf("Connect to %s: %v", c.addrs[i].ID, err)
	}
	return tc
}

// change submits one change and waits for its end.
func (tc *testConn) change(kind OpKind, off int64, data []byte, n int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	done := make(chan error, 1)
	w := &Write{Kind: kind, Off: off, Len: n, Done: func(err error) { done <- err }}
	if kind == OpWrite {
		w.Data, w.Len = tc.Alloc(len(data)), int64(len(data))
		copy(w.Data, data)
	}
	tc.Submit(ctx, w)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("no answer in %v", testTimeout)
	}
}

func (tc *testConn) write(off int64, data []byte) {
	tc.c.t.Helper()
	if err := tc.change(OpWrite, off, data, 0); err != nil {
		tc.c.t.Fatalf("write %d bytes at %d: %v", len(data), off, err)
	}
}

func (tc *testConn) read(off int64, n int) []byte {
	tc.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	p := make([]byte, n)
	if err := tc.ReadAt(ctx, p, off); err != nil {
		tc.c.t.Fatalf("read %d bytes at %d: %v", n, off, err)
	}
	return p
}

func (tc *testConn) wantRead(off int64, want []byte) {
	tc.c.t.Helper()
	if got := tc.read(off, len(want)); !bytes.Equal(got, want) {
		tc.c.t.Fatalf("read at %d: got %x…, want %x…", off, got[:min(16, len(got))], want[:min(16, len(want))])
	}
}

// noise is bytes that do not compress, text bytes that do.
func noise(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func text(r *rand.Rand, n int) []byte {
	return bytes.Repeat([]byte{byte(r.Uint32()), 'a', 'b', 'c'}, n/4+1)[:n]
}

// seeded gives a generator whose seed the test's log names.
func seeded(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, seed))
}

// equalImages waits until the servers have applied the same, then compares.
func (c *cluster) equalImages(which ...int) {
	c.t.Helper()
	st := c.status(which[0])
	for _, i := range which {
		c.await(i, fmt.Sprintf("applied %d", st.Committed), func(s VolumeStatus) bool { return s.Applied >= st.Committed && s.Last == s.Applied })
	}
	var first []uint64
	for _, i := range which {
		img := c.vol(i).img
		got, err := img.HashBlocks(nil, 0, img.Size(), 64<<10)
		if err != nil {
			c.t.Fatal(err)
		}
		if first == nil {
			first = got
		}
		for b := range got {
			if got[b] != first[b] {
				c.t.Fatalf("images of %s and %s differ in block %d", c.addrs[which[0]].ID, c.addrs[i].ID, b)
			}
		}
	}
}

func mustID(s string) record.ServerID { return record.MustServerID(s) }
