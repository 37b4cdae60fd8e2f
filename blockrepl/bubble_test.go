package blockrepl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// The whole server must run in a testing/synctest bubble, on a file system that
// can lose its power and a network in memory: the simulator is built on that.

// memNet is a network in memory.
type memNet struct {
	mu  sync.Mutex
	lns map[string]*memListener
}

type memListener struct {
	n     *memNet
	addr  string
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (n *memNet) Listen(_ context.Context, addr string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &memListener{n: n, addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
	n.lns[addr] = l
	return l, nil
}

func (n *memNet) Dial(ctx context.Context, addr string) (net.Conn, error) {
	n.mu.Lock()
	l := n.lns[addr]
	n.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("dial %s: nobody listens", addr)
	}
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.done:
	case <-ctx.Done():
	}
	return nil, errors.Join(ours.Close(), theirs.Close(), errors.New("nobody accepts"))
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.n.mu.Lock()
		defer l.n.mu.Unlock()
		if l.n.lns[l.addr] == l {
			delete(l.n.lns, l.addr)
		}
	})
	return nil
}

func (l *memListener) Addr() net.Addr { return &net.UnixAddr{Name: l.addr} }

// memFiles is Files on pebble's file system in memory.
type memFiles struct{ fs vfs.FS }

func (f memFiles) MkdirAll(dir string) error {
	if err := f.fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for dir != "/" {
		dir = filepath.Dir(dir)
		if err := f.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}
func (f memFiles) Lock(path string) (io.Closer, error) {
	return f.fs.Lock(path)
}
func (f memFiles) Create(path string) (File, error) { return f.fs.Create(path, "test") }
func (f memFiles) Open(path string) (File, error) {
	if _, err := f.fs.Stat(path); err != nil {
		return nil, err // OpenReadWrite would make it
	}
	return f.fs.OpenReadWrite(path, "test")
}
func (f memFiles) Rename(from, to string) error { return f.fs.Rename(from, to) }
func (f memFiles) SyncDir(dir string) error {
	d, err := f.fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
func (f memFiles) Free(string) (int64, error) { return 1 << 40, nil }

func (f memFiles) image(path string) (image.File, error) {
	if _, err := f.fs.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return f.fs.OpenReadWrite(path, "test")
	}
	file, err := f.fs.Create(path, "test")
	if err != nil {
		return nil, err
	}
	return file, errors.Join(file.Sync(), f.SyncDir(filepath.Dir(path)))
}

// inMemory makes a server's options those of a bubble.
func inMemory(o *Options, fs vfs.FS, n *memNet, seed uint64) {
	files := memFiles{fs}
	r := rand.New(rand.NewPCG(seed, uint64(o.ID[0])))
	var mu sync.Mutex
	o.Files, o.Net = files, n
	o.Clock = func() replica.Time { return replica.Time(time.Now().UnixNano()) }
	o.Rand = func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return r.Uint64()
	}
	o.OpenJournal = func(j journal.Options) (*journal.Journal, error) {
		j.FS, j.MemTableBytes, j.ReserveBytes = fs, 1<<20, -1
		return journal.Open(j)
	}
	o.OpenImage = func(i image.Options) (*image.Image, error) {
		i.OpenFile = func() (image.File, error) { return files.image(i.Path) }
		return image.Open(i)
	}
}

func TestPowerLossOfAllServersInABubble(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for round := range uint64(3) {
		synctest.Test(t, func(t *testing.T) { powerLoss(t, seed+round) })
	}
}

func powerLoss(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	n := &memNet{lns: map[string]*memListener{}}
	addrs := []ServerAddr{{mustID("a"), "a"}, {mustID("b"), "b"}, {mustID("c"), "c"}}
	disks := make([]*vfs.MemFS, 3)
	for i := range disks {
		disks[i] = vfs.NewCrashableMem()
	}
	begin := func() *cluster {
		c := &cluster{t: t, addrs: addrs, servers: make([]*Server, 3), volume: VolumeOptions{Name: "vol0", Size: 4 << 20,
			OnDegraded: wire.Suspend, Servers: []record.ServerID{addrs[0].ID, addrs[1].ID, addrs[2].ID}}}
		c.change = func(o *Options) {
			o.DataDir = "/data"
			inMemory(o, disks[o.ID[0]-'a'], n, seed)
		}
		c.start(0, 1, 2)
		return c
	}
	c := begin()
	want := make([]byte, 1<<20)
	for range 3 {
		cl := c.connect(r.IntN(3), "client")
		for range 30 {
			p := noise(r, 512*(1+r.IntN(16)))
			off := r.IntN(len(want) - len(p))
			cl.write(int64(off), p)
			copy(want[off:], p)
		}
		cl.Close()
		for i := range disks {
			disks[i] = disks[i].CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(100), RNG: rand.New(rand.NewPCG(seed, uint64(i)))})
		}
		for i := range c.servers {
			c.kill(i)
		}
		c = begin()
		for i := range c.servers {
			cl := c.connectAs(i, ClientInfo{Identity: "reader", ReadOnly: true})
			if got := cl.read(0, len(want)); !bytes.Equal(got, want) {
				t.Fatalf("seed %d: server %d lost writes", seed, i)
			}
			cl.Close()
		}
	}
	c.equalImages(0, 1, 2)
	for i := range c.servers {
		c.kill(i)
	}
}
