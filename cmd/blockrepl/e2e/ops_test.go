package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// TestVerifyFindsAndRepairsBitRot changes bytes of a stopped slave's image behind
// the server's back: verify finds them at a fixed number, while clients write, and
// --repair copies the master's.
func TestVerifyFindsAndRepairsBitRot(t *testing.T) {
	rng := newRand(t)
	c := startCluster(t, setup{size: "64MiB", onDegraded: "continue"})
	m, s := c.master(), c.slave()
	const chunk = 1 << 20
	fill(t, m, 32, chunk, func(i int) int64 { return 16<<20 + int64(i)*chunk }, rng)
	h := newHistory(rng, killBlocks)
	l := startLoad(t, h, rng, loadSetup{clients: 1, depth: 8, only: "filler", pause: 2 * time.Millisecond}, m)
	l.awaitWrites(c, 50, soon)
	wantExit(t, s.command("verify", volumeName), 0)
	s.stop(syscall.SIGTERM)
	f, err := os.OpenFile(s.image(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("rotten"), 20<<20+12345); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s.start()
	c.awaitInSync(m, s.id, soon)
	wantExit(t, s.command("verify", volumeName), 4, "differ")
	wantExit(t, s.command("verify", volumeName, "--repair"), 0, "copied")
	wantExit(t, s.command("verify", volumeName), 0)
	c.ended(l)
}

// TestResizeIsOneStepOnAllServers makes the volume larger under load.
func TestResizeIsOneStepOnAllServers(t *testing.T) {
	c := startCluster(t, setup{size: "16MiB"})
	l := alone(t, c)
	s := c.slave()
	wantExit(t, s.command("resize", volumeName, "8MiB"), 3, "shrink")
	wantExit(t, c.master().command("resize", volumeName, "24MiB"), 0)
	for _, at := range c.servers {
		c.awaitVolume(at, soon, "24 MiB", func(v *blockrepl.VolumeStatus) bool { return v.SizeBytes == 24<<20 })
		if size := strings.TrimSpace(tool(t, "nbdinfo", "--size", at.uri("readonly"))); size != "25165824" {
			t.Errorf("size at %s: %s", at.id, size)
		}
	}
	l.stop()
	last, err := dial(s, "client=db&takeover")
	if err != nil {
		t.Fatal(err)
	}
	defer last.close()
	last.deadline(soon)
	if err := last.write(24<<20-512, make([]byte, 512)); err != nil {
		t.Errorf("write the last sector: %v", err)
	}
	if err := last.write(24<<20, make([]byte, 512)); err == nil {
		t.Error("a write behind the end was taken")
	}
	c.ended(l)
}

// TestStaleReadsNeedNoMaster: an export with stale=ok answers with its server's own
// prefix although nobody else is there; an ordinary one waits.
func TestStaleReadsNeedNoMaster(t *testing.T) {
	c := startCluster(t, setup{size: "16MiB"})
	m, s := c.master(), c.slave()
	block := []byte(strings.Repeat("seen", 128))
	first, err := dial(m, "client=db")
	if err != nil {
		t.Fatal(err)
	}
	defer first.close()
	first.deadline(soon)
	if err := first.write(0, block); err != nil {
		t.Fatal(err)
	}
	c.quiesce()
	for _, o := range c.others(s) {
		o.kill()
	}
	stale, err := dial(s, "stale=ok")
	if err != nil {
		t.Fatal(err)
	}
	defer stale.close()
	stale.deadline(soon)
	if !stale.readOnly() {
		t.Error("a stale export is offered writable")
	}
	if got, err := stale.read(0, 512); err != nil || !bytes.Equal(got, block) {
		t.Errorf("stale read: %.8q, %v", got, err)
	}
	fresh, err := dial(s, "readonly")
	if err == nil {
		defer fresh.close()
		fresh.deadline(2 * time.Second)
		if got, err := fresh.read(0, 512); err == nil {
			t.Errorf("a read without a master was answered: %.8q", got)
		} else if _, refused := err.(*errnoError); refused {
			t.Errorf("a read without a master was answered with an error: %v", err)
		}
	}
	for _, o := range c.others(s) {
		o.start()
	}
	c.finish()
}

// TestInitKeepsAnImage creates a volume from what one server's image holds; the
// others copy what differs.
func TestInitKeepsAnImage(t *testing.T) {
	c := newCluster(t, setup{size: "16MiB"})
	image := randomFile(t, t.TempDir(), "image", 16)
	a := c.server("a")
	if err := os.MkdirAll(filepath.Dir(a.image()), 0o750); err != nil {
		t.Fatal(err)
	}
	tool(t, "cp", image, a.image())
	for _, s := range c.servers {
		s.start()
	}
	c.awaitVolume(a, soon, "does not take an image that holds something", func(v *blockrepl.VolumeStatus) bool {
		return v.State != blockrepl.StateHealthy && strings.Contains(v.Reason+v.Next, "init")
	})
	wantExit(t, a.command("init", volumeName, "--keep"), 0)
	c.awaitHealthy()
	for _, s := range c.servers {
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, s.uri("readonly"))
	}
	wantExit(t, a.command("init", volumeName, "--keep"), 3)
	c.finish()
}

// output collects what a process prints, for reading while it runs.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// TestDevIsACluster follows what `blockrepl dev` prints: attach, look, kill a
// server, take over, Ctrl-C.
func TestDevIsACluster(t *testing.T) {
	need(t, "nbdinfo", "qemu-io")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "dev", "--dir", filepath.Join(t.TempDir(), "dev"), "--size", "64MiB")
	said := new(output)
	cmd.Stdout, cmd.Stderr, cmd.Env = said, said, environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM} // it stops its servers then
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the process
	defer cancel()
	c := &cluster{t: t}
	row := regexp.MustCompile(`(?m)^([abc]) +(\d+) +(nbd://\S+) +(\S+)`)
	c.await(soon, "dev shows its servers", func() (bool, string) {
		return len(row.FindAllString(said.String(), -1)) == 3 && strings.Contains(said.String(), "take over"), said.String()
	})
	rows := row.FindAllStringSubmatch(said.String(), -1)
	tool(t, "qemu-io", "-f", "raw", rows[1][3], "-c", "write -P 7 0 1M")
	wantExit(t, cli(t, "status", "--admin", rows[0][4]), 0, "healthy")
	tool(t, "kill", "-9", rows[0][2])
	c.await(soon, "take over", func() (bool, string) {
		o := cli(t, "promote", volumeName, "--admin", rows[1][4], "--old-master-dead")
		return o.code == 0, o.String()
	})
	if out := tool(t, "qemu-io", "-f", "raw", rows[2][3], "-c", "read -P 7 0 1M"); strings.Contains(out, "failed") {
		t.Errorf("after the take-over: %s", out)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("dev ended with %v: %s", err, said)
		}
	case <-time.After(stopWithin + 5*time.Second):
		t.Errorf("dev did not end: %s", said)
	}
}
