package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// rotate gives every server keys of a new authority, in files; nobody is told.
func rotate(t *testing.T, c *cluster, pki string) {
	t.Helper()
	fresh := filepath.Join(t.TempDir(), "pki")
	args := []string{"cert", "--dir", fresh, "--cluster", "e2e"}
	for _, s := range c.servers {
		args = append(args, "--server", s.id+"=127.0.0.1")
	}
	wantExit(t, cli(t, args...), 0)
	for _, s := range c.servers {
		dir := filepath.Join(pki, "server-"+s.id)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(dir, os.DirFS(filepath.Join(fresh, "server-"+s.id))); err != nil {
			t.Fatal(err)
		}
	}
}

// reload sends SIGHUP and waits until the log says that it was taken.
func (c *cluster) reload(s *server) {
	c.t.Helper()
	taken := func() int { return strings.Count(s.tail(1000), "configuration reloaded") }
	before := taken()
	s.signal(syscall.SIGHUP)
	c.await(soon, "server "+s.id+" reloads", func() (bool, string) { return taken() > before, s.tail(5) })
}

// TestKeysOfPeersRotateWithoutARestart: a link that stands goes on, one that is made
// anew uses the new keys, whoever dials.
func TestKeysOfPeersRotateWithoutARestart(t *testing.T) {
	pki := t.TempDir()
	c := newCluster(t, setup{servers: []string{"a", "b"}, size: "16MiB", tables: func(s *server) string {
		dir := filepath.Join(pki, "server-"+s.id)
		return fmt.Sprintf("\n[peer_tls]\ncert = %q\nkey = %q\nca = %q\n", dir+"/server-cert.pem", dir+"/server-key.pem", dir+"/ca-cert.pem")
	}})
	rotate(t, c, pki)
	for _, s := range c.servers {
		s.start()
	}
	c.awaitHealthy()
	a, b := c.server("a"), c.server("b")
	write := func() {
		t.Helper()
		cl, err := dial(c.master(), "client=db1")
		if err != nil {
			t.Fatal(err)
		}
		defer cl.close()
		cl.deadline(soon)
		if err := cl.write(0, make([]byte, 4096)); err != nil {
			t.Error(err)
		}
	}

	// Both at once: the link does not notice.
	rotate(t, c, pki)
	session := linksUp(a)
	c.reload(a)
	c.reload(b)
	write()
	if got := linksUp(a); got != session {
		t.Errorf("%d links were made, want the %d of before the reload", got, session)
	}
	for _, s := range c.servers {
		if log := s.tail(1000); !strings.Contains(log, `changed="[peer_tls.cert peer_tls.ca]"`) {
			t.Errorf("%s does not log what changed: %s", s.id, log)
		}
	}

	// One starts with keys that the other has not read: no link, until it has.
	for _, again := range []*server{b, a} {
		other := c.others(again)[0]
		refused := func() int { return strings.Count(a.tail(1000), "certificate") } // a dials
		before := refused()
		rotate(t, c, pki)
		again.kill()
		again.start()
		c.await(soon, again.id+" is not trusted", func() (bool, string) { return refused() > before, a.tail(5) })
		c.awaitVolume(again, soon, "no link", func(v *blockrepl.VolumeStatus) bool { return v.State != blockrepl.StateHealthy })
		c.reload(other)
		c.awaitHealthy()
		write()
	}
	c.finish()
}

// linksUp counts the links that a server has had.
func linksUp(s *server) int { return strings.Count(s.tail(1000), `msg="link up"`) }
