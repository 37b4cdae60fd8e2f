package blockrepl

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
)

// countLines lets server id's log lines with this text be counted.
func countLines(o *Options, id, text string, n *atomic.Int64) {
	if o.ID != mustID(id) {
		return
	}
	o.Logger = slog.New(slog.NewTextHandler(lineWriter(func(line []byte) {
		if bytes.Contains(line, []byte(text)) {
			n.Add(1)
		}
	}), nil))
}

// What was said of a volume that a server does not have was dropped without a word: the
// others took it for silent, and nothing told anyone why.
func TestServerThatLacksAVolumeSaysSo(t *testing.T) {
	var told atomic.Int64
	c := newCluster(t, 2, nil)
	c.two()
	both := c.change
	lacks := true
	c.change = func(o *Options) {
		both(o)
		if o.ID == mustID("b") && lacks {
			o.Volumes = o.Volumes[:1]
		}
		countLines(o, "b", "counts on this one", &told)
	}
	c.start(0, 1)
	c.awaitHealthy(0, 1) // vol0 goes on
	v := c.servers[0].Volume("vol1")
	named := func(s VolumeStatus) bool {
		return strings.Contains(s.Peers[0].Reason, `volume "vol1" is not in the configuration of server b`)
	}
	c.awaitOf(v, "blank, and why", named)
	lacks = false
	c.stop(1, false)
	c.start(1)
	c.awaitOf(v, "created", func(s VolumeStatus) bool { return s.State == StateHealthy })
	// The same of a volume that exists, after a configuration that has lost it.
	lacks = true
	c.stop(1, false)
	told.Store(0)
	c.start(1)
	c.awaitOf(v, "writes wait, and why", func(s VolumeStatus) bool {
		return s.State == StateSuspended && named(s) && strings.Contains(s.Next, "forget vol1 b")
	})
	c.stop(0, false) // a new link is no news
	c.start(0)
	v = c.servers[0].Volume("vol1")
	c.awaitOf(v, "why, after a restart", named)
	if n := told.Load(); n != 1 {
		t.Errorf("b told it %d times, want once", n)
	}
	lacks = false
	c.stop(1, false)
	c.start(1)
	c.awaitOf(v, "healthy", func(s VolumeStatus) bool { return s.State == StateHealthy })
}

// A volume that two of three servers have is no business of the third.
func TestServerThatIsNotCountedOnSaysNothing(t *testing.T) {
	var told atomic.Int64
	c := newCluster(t, 3, nil)
	c.two()
	both := c.change
	c.change = func(o *Options) {
		both(o)
		if o.ID == mustID("c") {
			o.Volumes = o.Volumes[:1]
		} else {
			o.Volumes[1].Servers = o.Volumes[1].Servers[:2]
		}
		countLines(o, "c", "counts on this one", &told)
	}
	c.start(2, 1) // b, blank, greets c too
	c.await(1, "linked", func(s VolumeStatus) bool { return s.Peers[1].State != "down" })
	c.start(0)
	c.awaitHealthy(0, 1, 2)
	c.awaitOf(c.servers[0].Volume("vol1"), "created", func(s VolumeStatus) bool { return s.State == StateHealthy })
	if n := told.Load(); n != 0 {
		t.Errorf("c told %d times that it is counted on", n)
	}
}

// A data directory of another volume of the same name, as of a cluster that was made
// anew: neither takes anything from the other.
func TestAnotherVolumeOfTheNameIsNamedAndLeftAlone(t *testing.T) {
	c := newCluster(t, 2, nil)
	dir, kept := c.options(1).DataDir, c.options(1).DataDir+".old"
	one, two := bytes.Repeat([]byte("1"), 4096), bytes.Repeat([]byte("2"), 4096)
	c.start(0, 1)
	c.connect(0, "client").write(0, one)
	c.equalImages(0, 1)
	c.stop(1, false)
	c.stop(0, false)
	if err := os.Rename(dir, kept); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(c.options(0).DataDir); err != nil {
		t.Fatal(err)
	}
	c.start(0, 1)
	c.connect(0, "client").write(0, two)
	c.equalImages(0, 1)
	c.stop(1, false)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(kept, dir); err != nil {
		t.Fatal(err)
	}
	c.start(1)
	for i := range 2 {
		c.await(i, "another volume named", func(s VolumeStatus) bool {
			return s.Peers[0].State == "down" && strings.Contains(s.Peers[0].Reason, "it holds another volume of this name")
		})
	}
	c.await(0, "writes wait", func(s VolumeStatus) bool {
		return s.State == StateSuspended && strings.Contains(s.Reason, "another volume of this name") && strings.Contains(s.Next, "forget vol0 b")
	})
	// The forgetting does not touch what b holds.
	if err := c.forget(0, "b", true); err != nil {
		t.Fatal(err)
	}
	c.await(0, "serving without b", func(s VolumeStatus) bool { return s.State == StateDegraded })
	if p := make([]byte, len(one)); c.vol(1).img.ReadAt(p, 0) != nil || !bytes.Equal(p, one) {
		t.Errorf("b's image begins with %q, want its own", p[:4])
	}
	// With an empty data directory it is filled.
	c.stop(1, false)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	c.start(1)
	c.awaitHealthy(0, 1)
	c.equalImages(0, 1)
}

// The size in the configuration is that of the creation. Another one later changed
// nothing, and nothing said so.
func TestAnotherSizeInTheConfigurationIsToldAndChangesNothing(t *testing.T) {
	var told atomic.Int64
	c := newCluster(t, 2, nil)
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	c.connect(0, "client").write(testSize-4096, make([]byte, 4096))
	c.change = func(o *Options) {
		if o.ID == mustID("b") {
			o.Volumes = []VolumeOptions{o.Volumes[0]}
			o.Volumes[0].Size = testSize / 2
		}
		countLines(o, "b", "another size than the configuration", &told)
	}
	c.stop(1, false)
	c.start(1)
	c.awaitHealthy(0, 1)
	c.connectAs(1, ClientInfo{Identity: "client", Takeover: true}).write(testSize-4096, bytes.Repeat([]byte("1"), 4096))
	if st := c.status(1); st.SizeBytes != testSize || told.Load() != 1 {
		t.Errorf("b says %d bytes, and tells it %d times", st.SizeBytes, told.Load())
	}
	c.equalImages(0, 1)
}
