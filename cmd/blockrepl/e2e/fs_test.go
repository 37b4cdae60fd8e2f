package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestExt4OutlivesItsMaster puts ext4 on the volume, copies real files, kills the
// master in the middle and mounts at another server.
func TestExt4OutlivesItsMaster(t *testing.T) {
	fsOutlivesMaster(t, fileSystem{"ext4", []string{"mkfs.ext4", "-q", "-F"}, []string{"e2fsck", "-fn"}, "rw"})
}

// TestXFSOutlivesItsMaster does the same with xfs.
func TestXFSOutlivesItsMaster(t *testing.T) {
	fsOutlivesMaster(t, fileSystem{"xfs", []string{"mkfs.xfs", "-q", "-f"}, []string{"xfs_repair", "-n"}, "nouuid"})
}

// fileSystem is how one kind is made and checked.
type fileSystem struct {
	name        string
	mkfs, check []string
	options     string
}

func fsOutlivesMaster(t *testing.T, kind fileSystem) {
	leftOut(t, "BLOCKREPL_NO_FUSE", os.Getuid() == 0 && exists("/dev/fuse", "/dev/loop-control"), "root, /dev/fuse and /dev/loop-control")
	need(t, "nbdfuse", "losetup", "mount", "fusermount3", kind.mkfs[0], kind.check[0])
	rng := newRand(t)
	c := startCluster(t, setup{size: "768MiB", onDegraded: "continue"})
	m := c.master()
	files := sourceFiles(t, short(3000, 500))

	d := attachFuse(t, m.uri("client=fs&token=1"))
	tool(t, kind.mkfs[0], append(kind.mkfs[1:], d.loop)...)
	d.mount(kind.options)
	copied := startCopy(files, d.dir)
	moment := len(files)/3 + rng.IntN(len(files)/2)
	c.await(2*time.Minute, fmt.Sprintf("%d files are copied and fsynced", moment), func() (bool, string) {
		return copied.done() || int(copied.synced.Load()) >= moment, fmt.Sprint(copied.synced.Load())
	})
	began := time.Now()
	m.kill()
	sums, err := copied.wait()
	if err == nil {
		t.Fatal("the copying ended before the master was killed")
	}
	d.detach() // the client's machine gives up the device
	next := c.others(m)[rng.IntN(2)]
	flags := c.promote(next)
	d = attachFuse(t, next.uri("client=fs&token=2"))
	d.mount(kind.options) // the kernel replays the file system's journal
	took := time.Since(began)
	d.compare(sums)
	d.unmount()
	out := tool(t, kind.check[0], append(kind.check[1:], d.loop)...)
	t.Logf("killed after %d of %d files; promoted with %q; mounted there %v after the kill; %s said: %s", len(sums), len(files), flags, took.Round(time.Millisecond),
		kind.check[0], lastLine(out))
	// Life goes on there, and the old master comes back as a slave.
	d.mount(kind.options)
	rest := startCopy(files[:len(files)/4], filepath.Join(d.dir, "again"))
	m.start()
	more, err := rest.wait()
	if err != nil {
		t.Fatalf("copy at the new master: %v", err)
	}
	d.unmount()
	d.detach()
	c.awaitHealthy()
	// The third server, attached as a slave, shows the same.
	d = attachFuse(t, c.slave().uri("client=fs&token=3"))
	d.mount(kind.options)
	d.compare(sums)
	d.compare(more)
	d.unmount()
	tool(t, kind.check[0], append(kind.check[1:], d.loop)...)
	d.detach()
	c.finish()
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// sourceFiles are n regular files of this host.
func sourceFiles(t *testing.T, n int) []string {
	t.Helper()
	var files []string
	done := errors.New("enough")
	err := filepath.WalkDir("/usr/share", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := e.Info(); err == nil && e.Type().IsRegular() && info.Size() < 1<<20 {
			files = append(files, path)
		}
		if len(files) == n {
			return done
		}
		return nil
	})
	if err != nil && !errors.Is(err, done) {
		t.Fatal(err)
	}
	if len(files) < n {
		t.Fatalf("/usr/share has %d files that fit, want %d", len(files), n)
	}
	return files
}

// copying is a copy that goes on. A file counts once its fsync has returned.
type copying struct {
	synced atomic.Int64
	over   chan struct{}
	sums   map[string][sha256.Size]byte // by path on the volume
	err    error
}

// copyGroup is how many files are written before they are fsynced, one by one.
const copyGroup = 16

// startCopy copies files below dir; it ends with the last one or the first error.
func startCopy(files []string, dir string) *copying {
	c := &copying{over: make(chan struct{}), sums: map[string][sha256.Size]byte{}}
	go func() { // ends with the files or an error; wait waits
		defer close(c.over)
		for len(files) > 0 && c.err == nil {
			n := min(copyGroup, len(files))
			c.err = c.group(files[:n], dir)
			files = files[n:]
		}
	}()
	return c
}

func (c *copying) group(files []string, dir string) error {
	var open []*os.File
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	sums := map[string][sha256.Size]byte{}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		f, err := os.Create(to)
		if err != nil {
			return err
		}
		open = append(open, f)
		if _, err := f.Write(data); err != nil {
			return err
		}
		sums[to] = sha256.Sum256(data)
	}
	for _, f := range open {
		if err := f.Sync(); err != nil {
			return err
		}
		c.sums[f.Name()] = sums[f.Name()]
		c.synced.Add(1)
	}
	return nil
}

func (c *copying) done() bool {
	select {
	case <-c.over:
		return true
	default:
		return false
	}
}

func (c *copying) wait() (map[string][sha256.Size]byte, error) {
	<-c.over
	return c.sums, c.err
}

// device is a volume as a block device without the kernel's NBD driver: nbdfuse
// shows it as a file, a loop device makes that a disk.
type device struct {
	t        *testing.T
	fuse     *exec.Cmd
	gone     chan struct{} // closed when nbdfuse ended
	said     bytes.Buffer  // its output, to be read after gone
	file     string
	loop     string
	dir      string
	mounted  bool
	detached bool
}

func attachFuse(t *testing.T, uri string) *device {
	t.Helper()
	// Not below t.TempDir: its removal must never walk into a mounted volume.
	base, err := os.MkdirTemp("", "blockrepl-e2e-fuse-")
	if err != nil {
		t.Fatal(err)
	}
	d := &device{t: t, file: filepath.Join(base, "fuse", "disk.img"), dir: filepath.Join(base, "mnt"), gone: make(chan struct{})}
	for _, dir := range []string{filepath.Dir(d.file), d.dir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d.fuse = exec.Command("nbdfuse", d.file, uri)
	d.fuse.Stdout, d.fuse.Stderr = &d.said, &d.said
	d.fuse.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := d.fuse.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with nbdfuse
		d.fuse.Wait()
		close(d.gone)
	}()
	t.Cleanup(func() {
		d.detach()
		os.RemoveAll(base)
	})
	d.awaitFile()
	d.loop = strings.TrimSpace(tool(t, "losetup", "-f", "--show", "--direct-io=on", d.file))
	return d
}

// awaitFile waits until nbdfuse shows the volume.
func (d *device) awaitFile() {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if info, err := os.Stat(d.file); err == nil && info.Size() > 0 {
			return
		}
		select {
		case <-d.gone:
			d.t.Fatalf("nbdfuse ended: %s", d.said.String())
		case <-ctx.Done():
			d.t.Fatalf("nbdfuse shows no file after %v", soon)
		case <-tick.C:
		}
	}
}

func (d *device) mount(options string) {
	d.t.Helper()
	tool(d.t, "mount", "-o", options, d.loop, d.dir)
	d.mounted = true
}

func (d *device) unmount() {
	d.t.Helper()
	tool(d.t, "umount", d.dir)
	d.mounted = false
}

// detach takes all down, also when the server below is gone. More than one call
// is fine.
func (d *device) detach() {
	if d.detached {
		return
	}
	d.detached = true
	if d.mounted {
		if out, err := tryTool("umount", d.dir); err != nil {
			d.t.Logf("umount: %v %s", err, out)
			tryTool("umount", "-l", d.dir)
		}
	}
	if d.loop != "" {
		if out, err := tryTool("losetup", "-d", d.loop); err != nil {
			d.t.Logf("losetup -d: %v %s", err, out)
		}
	}
	tryTool("fusermount3", "-u", "-z", filepath.Dir(d.file))
	tryTool("fusermount3", "-u", "-z", d.file)
	select {
	case <-d.gone:
	case <-time.After(5 * time.Second):
		d.fuse.Process.Kill()
		<-d.gone
	}
}

// compare reads every file back.
func (d *device) compare(sums map[string][sha256.Size]byte) {
	d.t.Helper()
	bad := 0
	for path, want := range sums {
		// The mount point is another one than when it was written.
		i := strings.Index(path, "/mnt/")
		got, err := sumFile(filepath.Join(d.dir, path[i+len("/mnt/"):]))
		if err != nil || got != want {
			if bad++; bad < 10 {
				d.t.Errorf("%s was fsynced: sum %x, want %x, %v", path, got, want, err)
			}
		}
	}
	if bad > 0 {
		d.t.Fatalf("%d of %d fsynced files are not as they were", bad, len(sums))
	}
}

func sumFile(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return [sha256.Size]byte(h.Sum(nil)), err
}
