package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

const volumeName = "vol0"

// setup is how a cluster differs from the usual: servers a, b and c, 64 MiB,
// suspend, a peer timeout of one second.
type setup struct {
	servers     []string
	size        string
	keep        string
	onDegraded  string
	shared      bool
	peerTimeout time.Duration
	ioTimeout   time.Duration
	// top gives more lines for a server's configuration, before its tables; tables
	// gives more tables.
	top, tables func(s *server) string
	// host and prefix place a server elsewhere than on loopback.
	host   func(id string) string
	prefix func(id string) []string
	// data places a server's data directory, "" = the usual.
	data func(id string) string
}

// cluster is servers that hold one volume.
type cluster struct {
	t       *testing.T
	dir     string
	setup   setup
	servers []*server
}

// newCluster writes the configurations and starts nothing. What still runs at the
// end of the test is killed; logs are printed when it failed.
func newCluster(t *testing.T, o setup) *cluster {
	t.Helper()
	if o.servers == nil {
		o.servers = []string{"a", "b", "c"}
	}
	if o.size == "" {
		o.size = "64MiB"
	}
	if o.keep == "" {
		o.keep = "1GiB"
	}
	if o.onDegraded == "" {
		o.onDegraded = "suspend"
	}
	if o.peerTimeout == 0 {
		o.peerTimeout = time.Second
	}
	if o.ioTimeout == 0 {
		o.ioTimeout = time.Minute
	}
	c := &cluster{t: t, dir: t.TempDir(), setup: o}
	for _, id := range o.servers {
		s := &server{t: t, id: id, dir: filepath.Join(c.dir, id), conf: filepath.Join(c.dir, id+".toml"), log: filepath.Join(c.dir, id+".log")}
		host := "127.0.0.1"
		if o.host != nil {
			host = o.host(id)
		}
		if o.prefix != nil {
			s.prefix = o.prefix(id)
		}
		if o.data != nil && o.data(id) != "" {
			s.dir = o.data(id)
		}
		at := func() string { return fmt.Sprintf("%s:%d", host, freePort(t)) }
		s.nbd, s.peers, s.admin = at(), at(), at()
		c.servers = append(c.servers, s)
	}
	for _, s := range c.servers {
		if err := os.WriteFile(s.conf, []byte(c.toml(s)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(c.end)
	return c
}

// toml is a server's configuration file.
func (c *cluster) toml(s *server) string {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster = \"e2e\"\nid = %q\ndata = %q\nnbd = [%q]\npeers = %q\nadmin = %q\npeer_timeout = %q\nio_timeout = %q\n",
		s.id, s.dir, s.nbd, s.peers, s.admin, c.setup.peerTimeout, c.setup.ioTimeout)
	if c.setup.top != nil {
		b.WriteString(c.setup.top(s))
	}
	for _, o := range c.servers {
		fmt.Fprintf(&b, "\n[[server]]\nid = %q\naddr = %q\n", o.id, o.peers)
	}
	fmt.Fprintf(&b, "\n[[volume]]\nname = %q\nsize = %q\nservers = [\"%s\"]\non_degraded = %q\nkeep = %q\nshared = %t\n",
		volumeName, c.setup.size, strings.Join(c.setup.servers, `", "`), c.setup.onDegraded, c.setup.keep, c.setup.shared)
	if c.setup.tables != nil {
		b.WriteString(c.setup.tables(s))
	}
	return b.String()
}

// startCluster starts all servers and waits until the volume is healthy on each.
func startCluster(t *testing.T, o setup) *cluster {
	t.Helper()
	c := newCluster(t, o)
	for _, s := range c.servers {
		s.start()
	}
	c.awaitHealthy()
	return c
}

// end kills what still runs.
func (c *cluster) end() {
	for _, s := range c.servers {
		if s.cmd != nil {
			s.cmd.Process.Signal(syscall.SIGCONT) // a stopped process dies too, but its children may not
			s.kill()
		}
	}
	for _, s := range c.servers {
		// Of a killed server the exit status says nothing; its log does.
		if text, err := os.ReadFile(s.log); err == nil && (bytes.Contains(text, []byte("DATA RACE")) || bytes.Contains(text, []byte("\npanic: "))) {
			c.t.Errorf("server %s: a data race or a panic, see its log:\n%s", s.id, s.tail(200))
		}
	}
	if !c.t.Failed() {
		return
	}
	for _, s := range c.servers {
		c.t.Logf("the end of %s's log:\n%s", s.id, s.tail(40))
	}
}

// server finds one by id.
func (c *cluster) server(id string) *server {
	c.t.Helper()
	for _, s := range c.servers {
		if s.id == id {
			return s
		}
	}
	c.t.Fatalf("no server %s", id)
	return nil
}

// others are all servers but s.
func (c *cluster) others(s *server) []*server {
	var list []*server
	for _, o := range c.servers {
		if o != s {
			list = append(list, o)
		}
	}
	return list
}

// await polls until ok says that it is so, and fails the test when it never does;
// what names it and ok's text says how it stands.
func (c *cluster) await(within time.Duration, what string, ok func() (bool, string)) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		done, how := ok()
		if done {
			return
		}
		for _, s := range c.servers {
			if s.died() {
				c.t.Fatalf("%s: server %s ended by itself: %v\n%s", what, s.id, s.exit, s.tail(30))
			}
		}
		select {
		case <-ctx.Done():
			c.t.Fatalf("%s: not after %v: %s", what, within, how)
		case <-tick.C:
		}
	}
}

// awaitDoor waits until clients reach a server that was started just now. A write that
// completes does not say so: it may have been durable there before the server ended.
func (c *cluster) awaitDoor(s *server) {
	c.t.Helper()
	c.await(soon, fmt.Sprintf("server %s takes clients", s.id), func() (bool, string) {
		conn, err := net.DialTimeout("tcp", s.nbd, dialWait)
		if err != nil {
			return false, err.Error()
		}
		conn.Close()
		return true, ""
	})
}

// awaitVolume waits until a server's view of the volume is as ok says.
func (c *cluster) awaitVolume(s *server, within time.Duration, what string, ok func(*blockrepl.VolumeStatus) bool) *blockrepl.VolumeStatus {
	c.t.Helper()
	var last *blockrepl.VolumeStatus
	c.await(within, fmt.Sprintf("server %s: %s", s.id, what), func() (bool, string) {
		v, err := s.volume()
		if err != nil {
			return false, err.Error()
		}
		last = v
		return ok(v), summary(v)
	})
	return last
}

// summary is one line on a volume.
func summary(v *blockrepl.VolumeStatus) string {
	s := fmt.Sprintf("%s %s epoch %s last %d durable %d committed %d applied %d in sync %v master %s: %s", v.Role, v.State, v.Epoch, v.Last, v.Durable,
		v.Committed, v.Applied, v.InSync, v.Master, v.Reason)
	for _, p := range v.Peers {
		s += fmt.Sprintf("; %s %s (%s)", p.Server, p.State, p.Reason)
	}
	return s
}

// awaitHealthy waits until every server that runs says healthy. With all running
// that means: all in sync.
func (c *cluster) awaitHealthy() {
	c.t.Helper()
	c.awaitHealthyWithin(soon)
}

func (c *cluster) awaitHealthyWithin(within time.Duration) {
	c.t.Helper()
	for _, s := range c.servers {
		if s.running() {
			c.awaitVolume(s, within, "healthy", func(v *blockrepl.VolumeStatus) bool { return v.State == blockrepl.StateHealthy })
		}
	}
}

// master waits for a server that serves as master, and gives it.
func (c *cluster) master() *server {
	c.t.Helper()
	var m *server
	c.await(soon, "a master", func() (bool, string) {
		how := ""
		for _, s := range c.servers {
			if !s.running() {
				continue
			}
			v, err := s.volume()
			if err != nil {
				how += err.Error() + "\n"
				continue
			}
			if how += s.id + ": " + summary(v) + "\n"; v.Role == "master" && v.State != blockrepl.StateSuspended {
				m = s
				return true, ""
			}
		}
		return false, how
	})
	return m
}

// slave is any running server that is not the master.
func (c *cluster) slave() *server {
	c.t.Helper()
	for _, s := range c.others(c.master()) {
		if s.running() {
			return s
		}
	}
	c.t.Fatal("no slave runs")
	return nil
}

// promote makes s the master, plainly, or saying that the old master is dead when
// the program asks for that. It gives the flags that were needed.
func (c *cluster) promote(s *server) []string {
	c.t.Helper()
	var flags []string
	var o outcome
	// The survivors may still be finding out that the master is gone.
	c.await(soon, "promote "+s.id, func() (bool, string) {
		o = s.command(append([]string{"promote", volumeName}, flags...)...)
		if o.code == 3 && len(flags) == 0 && strings.Contains(o.stderr, "--old-master-dead") {
			flags = []string{"--old-master-dead"}
		}
		return o.code == 0, o.String()
	})
	return flags
}
