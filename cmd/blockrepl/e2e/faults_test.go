package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"golang.org/x/sys/unix"
)

// smallDisk makes a directory on a small file system of its own.
func smallDisk(t *testing.T, mib int64) string {
	t.Helper()
	base, err := os.MkdirTemp("", "blockrepl-e2e-disk-")
	if err != nil {
		t.Fatal(err)
	}
	file, dir := filepath.Join(base, "disk"), filepath.Join(base, "mnt")
	t.Cleanup(func() { os.RemoveAll(base) })
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, mib<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	tool(t, "mkfs.ext4", "-q", "-F", "-m", "0", file)
	tool(t, "mount", "-o", "loop", file, dir)
	t.Cleanup(func() {
		if out, err := tryTool("umount", dir); err != nil {
			t.Logf("umount: %v %s", err, out)
			tryTool("umount", "-l", dir)
		}
	})
	return dir
}

// ballast fills a file system but for the bytes that shall stay free.
func ballast(t *testing.T, dir string, leave int64) (path string) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp(dir, "ballast")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// In steps: ext4 keeps what a refused call had got, and needs blocks for itself.
	n, step := int64(st.Bavail)*st.Bsize-leave, int64(16<<20)
	for at := int64(0); n-at > 0 && step >= 4096; {
		size := min(step, n-at)
		switch err := unix.Fallocate(int(f.Fd()), 0, at, size); {
		case err == nil:
			at += size
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		case !errors.Is(err, unix.EINTR):
			t.Fatal(err)
		}
	}
	return f.Name()
}

// awaitRefusals waits until clients hear that there is no space.
func (l *load) awaitRefusals(c *cluster, id string) {
	l.t.Helper()
	from := l.space.Load()
	c.await(time.Minute, "writes are refused for lack of space on "+id, func() (bool, string) {
		v, err := c.server(id).volume()
		if err != nil {
			return false, err.Error()
		}
		return l.space.Load() > from+20, summary(v)
	})
}

// TestFullDiskRefusesWritesAndRecovers fills the disk of a slave, then of the
// master: clients get ENOSPC, every server lives, and when there is room again
// writes go on. Nothing that completed is lost.
func TestFullDiskRefusesWritesAndRecovers(t *testing.T) {
	leftOut(t, "BLOCKREPL_NO_FUSE", os.Getuid() == 0 && exists("/dev/loop-control"), "root and loop devices")
	need(t, "mkfs.ext4", "mount", "umount")
	rng := newRand(t)
	disks := map[string]string{"a": smallDisk(t, 1200), "b": smallDisk(t, 1200)}
	c := startCluster(t, setup{size: "16MiB", keep: "64MiB", data: func(id string) string {
		if disks[id] == "" {
			return ""
		}
		return filepath.Join(disks[id], "data")
	}})
	h := newHistory(rng, killBlocks)
	l := startLoad(t, h, rng, loadSetup{clients: 1, depth: 8, reads: 2, only: "db", full: true, pause: time.Millisecond, wait: 3 * time.Second}, c.servers...)
	l.awaitWrites(c, 100, soon)
	for _, id := range []string{"b", "a"} {
		var full []string
		if id == "a" {
			// Slowly: below what is kept in reserve, but above what records that are
			// numbered already may use; then to the last byte.
			full = append(full, ballast(t, disks[id], 300<<20))
			l.awaitRefusals(c, id)
			full = append(full, ballast(t, disks[id], 0))
			l.awaitRefusals(c, id)
		} else {
			// At once: what is numbered already waits in memory, and all that comes
			// behind it.
			full = append(full, ballast(t, disks[id], 150<<20))
			c.awaitVolume(c.server(id), soon, "says that its disk is full", func(v *blockrepl.VolumeStatus) bool {
				return v.State == blockrepl.StateSuspended && strings.Contains(v.Reason, "full")
			})
		}
		for _, s := range c.servers {
			if v, err := s.volume(); err != nil || v.State == blockrepl.StateFailed {
				t.Fatalf("with the disk of %s full, server %s: %+v, %v", id, s.id, v, err)
			}
		}
		for _, path := range full {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		l.awaitWrites(c, 100, soon)
		if err := h.readAll(c.slave(), ""); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d writes completed, %d were refused", l.writes.Load(), l.space.Load())
	c.ended(l)
}

// TestHungSlaveDoesNotLoseWrites stops a slave with SIGSTOP. With suspend writes
// wait for it and go on when it wakes; with continue they go on without it.
func TestHungSlaveDoesNotLoseWrites(t *testing.T) {
	for _, onDegraded := range []string{"suspend", "continue"} {
		t.Run(onDegraded, func(t *testing.T) {
			c := startCluster(t, setup{size: "16MiB", onDegraded: onDegraded})
			l := alone(t, c)
			m, hung := c.master(), c.slave()
			l.moveTo(m, c.others(m)[1])
			hung.signal(syscall.SIGSTOP)
			if onDegraded == "continue" {
				c.awaitDropped(m, hung.id)
				l.awaitWrites(c, 100, soon)
			} else {
				c.awaitVolume(m, soon, "waits for "+hung.id, func(v *blockrepl.VolumeStatus) bool {
					return v.State == blockrepl.StateSuspended && strings.Contains(v.Reason, hung.id)
				})
			}
			hung.signal(syscall.SIGCONT)
			l.awaitWrites(c, 100, soon)
			c.ended(l)
		})
	}
}

// TestHungMasterIsReplacedAndItsStaleWritesAreDiscarded stops the master with
// SIGSTOP, promotes another, and wakes it: what it held is of an old epoch.
func TestHungMasterIsReplacedAndItsStaleWritesAreDiscarded(t *testing.T) {
	c := startCluster(t, setup{size: "16MiB", onDegraded: "continue"})
	rng := newRand(t)
	h := newHistory(rng, killBlocks)
	l := startLoad(t, h, rng, loadSetup{clients: 1, depth: 16, reads: 1, only: "db", wait: 3 * time.Second}, c.servers...)
	l.awaitWrites(c, 100, soon)
	for range short(3, 1) {
		m := c.master()
		next := c.others(m)[0]
		l.moveTo(m)
		l.awaitWrites(c, 50, soon)
		m.signal(syscall.SIGSTOP) // with requests in its sockets
		l.moveTo(c.others(m)...)
		began := time.Now()
		c.promote(next)
		l.awaitWrites(c, 100, soon)
		t.Logf("stopped to 100 writes elsewhere: %v", time.Since(began).Round(time.Millisecond))
		m.signal(syscall.SIGCONT)
		c.awaitVolume(m, soon, "it follows", func(v *blockrepl.VolumeStatus) bool { return v.Role == "slave" && v.Master == next.id })
		for _, s := range c.servers {
			if err := h.readAll(s, ""); err != nil {
				t.Error(err)
			}
		}
		c.awaitHealthy()
		l.moveTo(c.servers...)
	}
	c.ended(l)
}

// TestServerWithoutItsDataIsNotBelieved removes a slave's data directory: it comes
// back as a stranger, is not in sync, and is resynced after forget.
func TestServerWithoutItsDataIsNotBelieved(t *testing.T) {
	c := startCluster(t, setup{size: "16MiB"})
	l := alone(t, c)
	m, lost := c.master(), c.slave()
	lost.kill()
	if err := os.RemoveAll(lost.dir); err != nil {
		t.Fatal(err)
	}
	lost.start()
	c.awaitVolume(m, soon, "waits for "+lost.id, func(v *blockrepl.VolumeStatus) bool { return v.State == blockrepl.StateSuspended })
	if o := lost.command("promote", volumeName); o.code == 0 {
		t.Fatalf("a blank server was promoted: %v", o)
	}
	wantExit(t, m.command("forget", volumeName, lost.id), 0)
	l.awaitWrites(c, 100, soon)
	c.awaitInSync(m, lost.id, soon)
	c.ended(l)
}
