package blockrepl

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// spoilMeta flips a bit in the value of a small key of a stopped server's journal.
func (c *cluster) spoilMeta(i int, key []byte) {
	c.t.Helper()
	db, err := pebble.Open(filepath.Join(c.dir, c.addrs[i].ID.String(), "journal"), &pebble.Options{FormatMajorVersion: pebble.FormatNewest})
	if err != nil {
		c.t.Fatal(err)
	}
	defer db.Close()
	v, closer, err := db.Get(key)
	if err != nil {
		c.t.Fatal(err)
	}
	v = append([]byte(nil), v...)
	if err := closer.Close(); err != nil {
		c.t.Fatal(err)
	}
	v[len(v)/2] ^= 1
	if err := db.Set(key, v, pebble.Sync); err != nil {
		c.t.Fatal(err)
	}
}

// wantFailed looks at vol1 of the server b, which could not be opened, beside vol0.
func (c *cluster) wantFailed(reason string) {
	c.t.Helper()
	c.awaitHealthy(0, 1)
	c.connectTo(0, "vol0").write(0, []byte("2"))
	v := c.servers[1].Volume("vol1")
	if st := v.Status(c.t.Context()); st.State != StateFailed || !strings.Contains(st.Reason, reason) || st.Next == "" {
		c.t.Errorf("vol1 is %s: %q, next %q; want failed: %q", st.State, st.Reason, st.Next, reason)
	}
	if _, err := v.Connect(c.t.Context(), ClientInfo{Identity: "db2", StaleOK: true}); !errors.Is(err, ErrAborted) {
		c.t.Errorf("vol1 lets a client in: %v", err)
	}
	if _, err := v.verify(c.t.Context(), false); err == nil {
		c.t.Error("vol1 verifies")
	}
	master := c.servers[0].Volume("vol1")
	c.awaitOf(master, "the reason from b", func(s VolumeStatus) bool { return strings.Contains(s.Peers[0].Reason, reason) })
	if a := v.holds(1 << 30); a.OK {
		c.t.Error("vol1 can be made larger")
	}
}

// awaitOf is await for any volume.
func (c *cluster) awaitOf(v *Volume, what string, ok func(VolumeStatus) bool) {
	c.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(testTimeout); time.Now().Before(deadline); <-tick.C {
		if ok(v.Status(c.t.Context())) {
			return
		}
	}
	c.t.Fatalf("volume %s of server %s never got to: %s; it is %+v", v.name, v.s.opt.ID, what, v.Status(c.t.Context()))
}

// One image that could not be opened, as on a disk that did not come back after a boot,
// kept a server from starting, with all its volumes.
func TestImageThatCannotBeOpenedLeavesTheOtherVolumesAlone(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.two()
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	c.connectTo(0, "vol0").write(0, []byte("1"))
	c.connectTo(0, "vol1").write(0, []byte("1"))
	c.kill(1)
	image := filepath.Join(c.options(1).DataDir, "images", "vol1.img")
	if err := os.Rename(image, image+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(image, 0o700); err != nil {
		t.Fatal(err)
	}
	c.start(1)
	c.wantFailed("open image")
	c.stop(1, true)
	if err := errors.Join(os.Remove(image), os.Rename(image+".away", image)); err != nil {
		t.Fatal(err)
	}
	c.start(1)
	c.awaitOf(c.servers[1].Volume("vol1"), "healthy", func(s VolumeStatus) bool { return s.State == StateHealthy })
}

// A flipped bit in what the journal keeps beside one volume's records kept the server
// from starting, with all its volumes; one in its records did not.
func TestDamagedStateOfAVolumeLeavesTheOthersAlone(t *testing.T) {
	for _, key := range []string{keyHard, keyTable, keyMemory} { // the volume's name is in the first
		t.Run(key, func(t *testing.T) {
			c := newCluster(t, 2, nil)
			c.two()
			c.start(0, 1)
			c.awaitHealthy(0, 1)
			c.connectTo(0, "vol0").write(0, []byte("1"))
			c.connectTo(0, "vol1").write(0, []byte("1"))
			v := c.servers[1].Volume("vol1")
			c.awaitOf(v, "the state stored", func(VolumeStatus) bool {
				_, ok, err := v.log.Load().Meta(key)
				return ok && err == nil
			})
			uuid := *v.uuid.Load()
			c.stop(1, false)
			c.spoilMeta(1, append(append([]byte{'m'}, uuid[:]...), key...))
			for range 2 { // the first start changed nothing
				c.start(1)
				c.wantFailed("saved state is damaged")
				c.stop(1, true)
			}
		})
	}
}

// A server with nothing to serve says so by not starting; whoever started it may try
// again.
func TestServerOfWhichAllVolumesFailedDoesNotStart(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.two()
	c.start(0)
	c.awaitHealthy(0)
	c.kill(0)
	images := filepath.Join(c.options(0).DataDir, "images")
	for _, image := range []string{"vol0.img", "vol1.img"} {
		image = filepath.Join(images, image)
		if err := errors.Join(os.Rename(image, image+".away"), os.Mkdir(image, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := NewServer(c.options(0))
	if err != nil {
		t.Fatal(err)
	}
	err = s.Start(t.Context())
	if err == nil {
		c.servers[0] = s
		t.Fatal("a server starts without any image")
	}
	for _, volume := range []string{"vol0", "vol1"} {
		if !strings.Contains(err.Error(), volume) {
			t.Errorf("Start says nothing of %s: %v", volume, err)
		}
		image := filepath.Join(images, volume+".img")
		if err := errors.Join(os.Remove(image), os.Rename(image+".away", image)); err != nil {
			t.Fatal(err)
		}
	}
	c.start(0)
	c.awaitHealthy(0)
}

// Stop may be called at any time. After a Start that had failed it closed everything a
// second time, and panicked.
func TestStopAfterAFailedStart(t *testing.T) {
	c := newCluster(t, 2, nil)
	ln, err := net.Listen("tcp", c.addrs[0].Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s, err := NewServer(c.options(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err == nil {
		t.Fatal("Start with its address in use succeeds")
	}
	if err := s.Stop(t.Context(), false); err != nil {
		t.Errorf("Stop: %v", err)
	}
}

// A Stop that came before Start was forgotten: the server started, and no later Stop did
// anything.
func TestStopBeforeStart(t *testing.T) {
	c := newCluster(t, 1, nil)
	s, err := NewServer(c.options(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err == nil {
		s.closeAll(false)
		t.Error("a server that was stopped starts")
	}
}
