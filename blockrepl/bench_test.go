package blockrepl

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"testing"
)

// BenchmarkWrite is the way of a 4 KiB write through the whole server, without the
// NBD door: depth writes under way, over loopback, on the test's file system.
func BenchmarkWrite(b *testing.B) {
	for _, servers := range []int{1, 3} {
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("servers=%d/depth=%d", servers, depth), func(b *testing.B) { benchWrite(b, servers, depth) })
		}
	}
}

func benchCluster(b *testing.B, servers int) *Conn {
	c := &cluster{b: b, dir: b.TempDir(), servers: make([]*Server, servers)}
	c.volume = VolumeOptions{Name: "vol0", Size: 1 << 30}
	for i := range servers {
		c.addrs = append(c.addrs, ServerAddr{ID: mustID(string(rune('a' + i))), Addr: freeAddr(b)})
		c.volume.Servers = append(c.volume.Servers, c.addrs[i].ID)
	}
	for i := range servers {
		o := c.options(i)
		o.Logger, o.OpenJournal = slog.New(slog.NewTextHandler(io.Discard, nil)), nil
		s, err := NewServer(o)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Start(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { s.Close() })
		c.servers[i] = s
	}
	conn, err := c.vol(0).Connect(b.Context(), ClientInfo{Identity: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	return conn
}

func benchWrite(b *testing.B, servers, depth int) {
	conn := benchCluster(b, servers)
	payload := noise(rand.New(rand.NewPCG(1, 1)), 4096)
	slots := make(chan *Write, depth)
	for range depth {
		w := &Write{Kind: OpWrite, Len: 4096}
		w.Done = func(err error) {
			if err != nil {
				b.Error(err)
			}
			slots <- w
		}
		slots <- w
	}
	r := rand.New(rand.NewPCG(2, 2))
	b.SetBytes(4096)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		w := <-slots
		w.Data, w.Off = conn.Alloc(4096), 4096*r.Int64N(1<<18)
		copy(w.Data, payload)
		conn.Submit(b.Context(), w)
	}
	for range depth {
		<-slots
	}
}

// BenchmarkReadNow is a 4 KiB read on the master, under its lease.
func BenchmarkReadNow(b *testing.B) {
	conn := benchCluster(b, 1)
	p := make([]byte, 4096)
	b.SetBytes(4096)
	b.ReportAllocs()
	for n := range b.N {
		for {
			ok, err := conn.ReadNow(p, 4096*int64(n%1000))
			if err != nil {
				b.Fatal(err)
			}
			if ok {
				break
			}
			if err := conn.ReadAt(b.Context(), p, 4096*int64(n%1000)); err != nil { // into the page cache
				b.Fatal(err)
			}
		}
	}
}
