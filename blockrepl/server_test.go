package blockrepl

import (
	"bytes"
	"errors"
	"testing"
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
