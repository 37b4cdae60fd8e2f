package blockrepl

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/journal/record"
)

func TestOneServerKeepsWritesOverRestarts(t *testing.T) {
	for _, how := range []string{"stop", "kill"} {
		t.Run(how, func(t *testing.T) {
			c := newCluster(t, 1, nil)
			r := seeded(t)
			c.start(0)
			a, b, z := noise(r, 4096), text(r, 100000), make([]byte, 8192)
			cl := c.connect(0, "client")
			cl.write(0, a)
			cl.write(512, b)
			cl.write(4096*3, z)
			if err := cl.change(OpTrim, 65536, nil, 4096); err != nil {
				t.Fatal(err)
			}
			want := make([]byte, 1<<20)
			copy(want, a)
			copy(want[512:], b)
			clear(want[4096*3 : 4096*3+8192])
			clear(want[65536 : 65536+4096])
			cl.wantRead(0, want)
			if how == "stop" {
				c.stop(0, true)
			} else {
				c.kill(0)
			}
			c.start(0)
			cl = c.connect(0, "client")
			cl.wantRead(0, want)
			cl.write(7, []byte("after"))
			copy(want[7:], "after")
			cl.wantRead(0, want)
		})
	}
}

func TestThreeServersHoldTheSame(t *testing.T) {
	c := newCluster(t, 3, nil)
	r := seeded(t)
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	want := make([]byte, 1<<20)
	for range 200 {
		p := noise(r, 512*(1+r.IntN(16)))
		off := r.IntN(len(want) - len(p))
		cl.write(int64(off), p)
		copy(want[off:], p)
	}
	cl.wantRead(0, want)
	for i := range 3 {
		c.connectAs(i, ClientInfo{Identity: "reader", ReadOnly: true}).wantRead(0, want)
	}
	c.awaitHealthy(0, 1, 2)
	c.equalImages(0, 1, 2)
}

func TestWritesThroughASlave(t *testing.T) {
	c := newCluster(t, 3, nil)
	r := seeded(t)
	c.start(0, 1, 2)
	cl := c.connect(1, "client")
	p := noise(r, 4096)
	cl.write(4096, p)
	cl.wantRead(4096, p)
	c.connectAs(0, ClientInfo{Identity: "reader", ReadOnly: true}).wantRead(4096, p)
	c.connectAs(2, ClientInfo{Identity: "reader", ReadOnly: true}).wantRead(4096, p)
	c.equalImages(0, 1, 2)
}

func TestStaleExportReadsWithoutAMaster(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	p := bytes.Repeat([]byte("x"), 4096)
	cl.write(0, p)
	c.equalImages(0, 1, 2)
	c.kill(0)
	c.connectAs(1, ClientInfo{Identity: "client", StaleOK: true}).wantRead(0, p)
	stale := c.connectAs(1, ClientInfo{Identity: "client", StaleOK: true})
	if err := stale.change(OpWrite, 0, p, 0); err == nil {
		t.Fatal("a stale export took a write")
	}
}

func TestDataDirectoryIsLocked(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	s, err := NewServer(c.options(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); !errors.Is(err, ErrInUse) {
		t.Fatalf("second server on one data directory: got %v, want ErrInUse", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	c := newCluster(t, 2, nil)
	for _, q := range []struct {
		want   string
		change func(*Options)
	}{
		{"cluster", func(o *Options) { o.Cluster = "" }},
		{"id", func(o *Options) { o.ID = record.ServerID{} }},
		{"data", func(o *Options) { o.DataDir = "" }},
		{"listed twice", func(o *Options) { o.Servers = append(o.Servers, o.Servers[0]) }},
		{"not in the list", func(o *Options) { o.ID = mustID("z") }},
		{"listen", func(o *Options) { o.Peers = "" }},
		{"insecure", func(o *Options) { o.Servers[1].Addr = "192.0.2.1:10810" }},
		{"insecure", func(o *Options) { o.Peers = "0.0.0.0:10810" }},
		{"multiple of 512", func(o *Options) { o.Volumes[0].Size = 1000 }},
		{"multiple of 512", func(o *Options) { o.Volumes[0].Size = 0 }},
		{"name", func(o *Options) { o.Volumes[0].Name = "../x" }},
		{"empty", func(o *Options) { o.Volumes[0].Servers = nil }},
		{"not in the list", func(o *Options) { o.Volumes[0].Servers = []record.ServerID{mustID("z")} }},
		{"listed twice", func(o *Options) { o.Volumes = append(o.Volumes, o.Volumes[0]) }},
		{"also that of", func(o *Options) {
			v := o.Volumes[0]
			v.Name, v.Image = "vol1", "/x"
			w := v
			w.Name = "vol2"
			o.Volumes = append(o.Volumes, v, w)
		}},
	} {
		o := c.options(0)
		o.Servers = slices.Clone(o.Servers)
		q.change(&o)
		if _, err := NewServer(o); err == nil || !strings.Contains(err.Error(), q.want) {
			t.Errorf("want an error about %q, got %v", q.want, err)
		}
	}
}

func TestDataOfAnotherServerIsRefused(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.start(0)
	c.kill(0)
	for _, change := range []func(*Options){
		func(o *Options) { o.ID = c.addrs[1].ID; o.Peers = c.addrs[1].Addr },
		func(o *Options) { o.Cluster = "other" },
	} {
		o := c.options(0)
		change(&o)
		s, err := NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start(t.Context()); !errors.Is(err, ErrIdentity) {
			t.Errorf("got %v, want ErrIdentity", err)
		}
	}
	path := filepath.Join(c.options(0).DataDir, "identity")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(b, []byte(`"incarnation": "`), []byte(`"incarnation": "0`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(c.options(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); !errors.Is(err, ErrIdentity) {
		t.Errorf("damaged identity: got %v, want ErrIdentity", err)
	}
}

func TestStopMayBeCalledAgainAndAtOnce(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	ends := make(chan error, 64)
	for n := range 64 {
		go func() { ends <- cl.change(OpWrite, int64(n*4096), bytes.Repeat([]byte("x"), 4096), 0) }()
	}
	var wg sync.WaitGroup
	for range 4 {
		for _, s := range c.servers {
			wg.Go(func() {
				if err := s.Stop(t.Context(), true); err != nil {
					t.Errorf("Stop: %v", err)
				}
			})
		}
	}
	wg.Wait()
	for range 64 {
		if err := <-ends; err != nil && !errors.Is(err, ErrAborted) {
			t.Errorf("write during a stop: got %v, want nil or ErrAborted", err)
		}
	}
	if _, err := c.vol(0).Connect(t.Context(), ClientInfo{}); !errors.Is(err, ErrStopped) {
		t.Errorf("Connect after Stop: got %v, want ErrStopped", err)
	}
	if s, err := NewServer(c.options(0)); err != nil || s.Close() != nil {
		t.Errorf("closing a server that was never started: %v", err)
	}
}

// A resync was slowed down for clients who did not write: the master's own records,
// such as that the in-sync set changed, were taken for theirs.
func TestOwnRecordsAreNoClientsWork(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	c.awaitHealthy(0)
	if st := c.status(0); st.Last == 0 || c.vol(0).busy() {
		t.Errorf("busy is %t after %d records of the server's own", c.vol(0).busy(), st.Last)
	}
	c.connect(0, "client").write(0, make([]byte, 512))
	if c.vol(0).busyAt.Load() == 0 {
		t.Error("a client's write does not make the volume busy")
	}
}

// The size that a resize had brought became durable with a checkpoint whose fsync had
// begun before it. After a power cut that took the longer end of the image's file the
// server did not start any more.
func TestPowerCutAfterAResizeLeavesAShortImage(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	cl := c.connect(0, "client")
	one := bytes.Repeat([]byte("1"), 4096)
	cl.write(0, one)
	v := c.vol(0)
	gen, before := v.in.generation(), record.Seq(v.app.applied.Load())
	if _, err := handleResize(t.Context(), v, strings.NewReader(`{"size_bytes":33554432}`)); err != nil {
		t.Fatal(err)
	}
	c.await(0, "resized", func(s VolumeStatus) bool { return s.SizeBytes == 2*testSize })
	cl.write(testSize, one)
	c.await(0, "applied", func(s VolumeStatus) bool { return s.Applied == s.Last })
	v.in.synced(gen, before, nil)
	c.await(0, "checkpoint", func(s VolumeStatus) bool { return s.Checkpoint == uint64(before) })
	c.kill(0)
	if err := os.Truncate(c.imagePath(0), testSize); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	cl = c.connect(0, "client")
	cl.wantRead(0, one)
	cl.wantRead(testSize, one)
	cl.wantRead(testSize+4096, make([]byte, 4096))
	c.vol(0).check.ask(1)
	c.await(0, "checkpoint", func(s VolumeStatus) bool { return s.Checkpoint == s.Last })
	c.stop(0, false)
	if err := os.Truncate(c.imagePath(0), testSize); err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(c.options(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); !errors.Is(err, image.ErrSize) {
		s.Close()
		t.Errorf("start with an image cut after the checkpoint: %v, want ErrSize", err)
	}
}
