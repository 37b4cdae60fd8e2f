package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"golang.org/x/sys/unix"
)

// Each server's data on a small file system of its own, which chaos fills, freezes
// (every write and fsync hangs; nothing fails) and empties.

const (
	diskMiB  = 1200
	fiFreeze = 0xc0045877 // FIFREEZE, linux/fs.h
	fiThaw   = 0xc0045878 // FITHAW
)

// disk is the file system below a server's data directory.
type disk struct {
	dir string

	mu     sync.Mutex
	frozen bool
}

// newDisks gives each server one.
func newDisks(t *testing.T, ids ...string) map[string]*disk {
	t.Helper()
	leftOut(t, "BLOCKREPL_NO_FUSE", exists("/dev/loop-control"), "loop devices")
	need(t, "mkfs.ext4", "mount", "umount")
	disks := map[string]*disk{}
	for _, id := range ids {
		disks[id] = &disk{dir: smallDisk(t, diskMiB)}
	}
	return disks
}

func (d *disk) data() string { return filepath.Join(d.dir, "data") }

// freeze makes whatever would write wait, until thaw.
func (d *disk) freeze(t *testing.T) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.frozen {
		return
	}
	if err := d.ioctl(fiFreeze); err != nil {
		t.Fatalf("freeze %s: %v", d.dir, err)
	}
	d.frozen = true
}

func (d *disk) thaw(t *testing.T) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.frozen {
		return
	}
	if err := d.ioctl(fiThaw); err != nil {
		t.Errorf("thaw %s: %v", d.dir, err)
	}
	d.frozen = false
}

func (d *disk) ioctl(request uint) error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetInt(int(f.Fd()), request, 0)
}

// freeze makes a server's disk hang: for so short that nobody notices, or until the
// round ends.
func (x *chaos) freeze(s *server) {
	d := x.disks[s.id]
	d.freeze(x.t)
	if x.rng.IntN(2) == 0 {
		x.done["disk slow"]++
		x.pass(20, 400)
		d.thaw(x.t)
		return
	}
	x.done["disk hangs"]++
	x.mend = append(x.mend, func() { d.thaw(x.t) })
}

// fill leaves so little on a server's disk that the volume may take no more writes.
func (x *chaos) fill(s *server) {
	d := x.disks[s.id]
	if x.full[s.id] || d.frozen {
		return
	}
	x.done["disk full"]++
	path := ballast(x.t, d.dir, int64(100+x.rng.IntN(300))<<20)
	x.full[s.id] = true
	x.mend = append(x.mend, func() {
		d.thaw(x.t) // else removing it hangs
		if err := os.Remove(path); err != nil {
			x.t.Error(err)
		}
		x.full[s.id] = false
	})
}

// replace takes a server's data away, while all are healthy, and does what an operator
// does who gives it a new disk: whoever remembers it forgets what it had, and it is
// filled from the others.
func (x *chaos) replace() {
	c := x.c
	c.awaitHealthyWithin(time.Minute)
	s := c.servers[x.rng.IntN(len(c.servers))]
	m := c.master()
	what := "data of a slave removed"
	s.kill()
	if err := os.RemoveAll(s.dir); err != nil {
		c.t.Fatal(err)
	}
	early := x.rng.IntN(2) == 0
	if early {
		x.start(s) // it comes back blank before anyone does anything
	}
	if s == m {
		what = "data of the master removed"
		m = x.other(s)
		c.promote(m)
	}
	x.done[what]++
	forget := []string{"forget", volumeName, s.id, "--timeout", "3s"}
	c.await(time.Minute, m.id+" forgets what "+s.id+" had", func() (bool, string) {
		o := m.command(forget...)
		if o.code == 0 {
			return true, ""
		}
		if !early && o.code == 3 && strings.Contains(o.stderr, "add --force") {
			// Of two servers none but it could note that it is out, and it will not be
			// promoted: it has nothing. Once it is back, blank, no force is needed.
			forget = append(forget, "--force")
			return false, o.String()
		}
		// Nothing to forget: the promotion left it out, or it is filled already.
		v, err := m.volume()
		return err == nil && v.State != blockrepl.StateSuspended, o.String()
	})
	if !early {
		x.start(s)
	}
	c.awaitHealthyWithin(time.Minute)
}
