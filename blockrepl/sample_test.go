package blockrepl

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/record"
)

func (c *cluster) imagePath(i int) string {
	return filepath.Join(c.options(i).DataDir, "images", "vol0.img")
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// An image put back from a backup, without its journal, was taken for the state at
// the checkpoint, and the redo made a mixture of it.
func TestImagePutBackFromACopyIsNotBelieved(t *testing.T) {
	c := newCluster(t, 2, nil)
	r := seeded(t)
	c.start(0, 1)
	cl := c.connect(0, "client")
	cl.write(0, noise(r, 1<<20))
	c.awaitHealthy(0, 1)
	c.stop(1, false)
	backup := filepath.Join(t.TempDir(), "backup.img")
	copyFile(t, c.imagePath(1), backup)
	c.start(1)
	c.awaitHealthy(0, 1)
	cl.write(2<<20, noise(r, 64<<10))
	cl.write(3<<20, noise(r, 4096))
	c.stop(1, false)
	copyFile(t, backup, c.imagePath(1))
	c.start(1)
	st := c.await(1, "diverged", func(s VolumeStatus) bool { return s.State == StateDiverged })
	if !strings.Contains(st.Reason, "is not what it was") {
		t.Errorf("reason is %q", st.Reason)
	}
	if err := c.forget(0, "b", true); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(0, 1)
	c.equalImages(0, 1)
}

func TestOtherDiskIsNotTakenForTheImage(t *testing.T) {
	c := newCluster(t, 1, nil)
	r := seeded(t)
	c.start(0)
	cl := c.connect(0, "client")
	cl.write(testSize/2, noise(r, 4096))
	c.stop(0, false)
	if err := os.WriteFile(c.imagePath(0), noise(r, testSize), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	st := c.await(0, "diverged", func(s VolumeStatus) bool { return s.State == StateDiverged })
	if !strings.Contains(st.Next, "--accept-loss") {
		t.Errorf("next is %q", st.Next)
	}
	if _, err := c.promote(0, replica.Promote{AcceptLoss: true}); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(0)
	c.stop(0, false)
	c.start(0) // what the operator took for the whole is believed from now on
	c.awaitHealthy(0)
}

// The right image was put back as status said, and was not believed either.
func TestRightImagePutBackIsBelievedAgain(t *testing.T) {
	for name, servers := range map[string][]int{"the only server": {0}, "a slave": {0, 1}} {
		t.Run(name, func(t *testing.T) { putBackImage(t, servers) })
	}
}

// putBackImage takes the right image from the last of the servers for a while.
func putBackImage(t *testing.T, servers []int) {
	c := newCluster(t, len(servers), nil)
	r := seeded(t)
	c.start(servers...)
	cl := c.connect(0, "client")
	cl.write(testSize/2, noise(r, 4096))
	c.awaitHealthy(servers...)
	last := servers[len(servers)-1]
	c.stop(last, false)
	right := filepath.Join(t.TempDir(), "right.img")
	copyFile(t, c.imagePath(last), right)
	if err := os.WriteFile(c.imagePath(last), noise(r, testSize), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // an orderly stop notes nothing of the wrong one
		c.start(last)
		st := c.await(last, "diverged", func(s VolumeStatus) bool { return s.State == StateDiverged })
		if !strings.Contains(st.Reason, "is not what it was") {
			t.Errorf("reason is %q", st.Reason)
		}
		c.stop(last, false)
	}
	copyFile(t, right, c.imagePath(last))
	c.start(last)
	c.awaitHealthy(servers...)
	c.equalImages(servers...)
}

// An image with content was refused for good, though another one was asked for.
func TestEmptyImageInPlaceOfOneWithContentIsTaken(t *testing.T) {
	c := newCluster(t, 1, nil)
	if err := os.MkdirAll(filepath.Dir(c.imagePath(0)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.imagePath(0), noise(seeded(t), testSize), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	c.await(0, "diverged", func(s VolumeStatus) bool { return s.State == StateDiverged })
	c.stop(0, false)
	if err := os.Remove(c.imagePath(0)); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	c.awaitHealthy(0)
}

// Blocks that were written after the checkpoint say nothing.
func TestCrashAfterWritesToSampledBlocksIsNoOtherImage(t *testing.T) {
	c := newCluster(t, 1, nil)
	r := seeded(t)
	c.start(0)
	cl := c.connect(0, "client")
	for i := range int64(20) {
		cl.write(i*4096, noise(r, 4096))
	}
	c.stop(0, false)
	for range 5 {
		c.start(0)
		c.awaitHealthy(0)
		cl = c.connect(0, "client")
		for range 10 {
			cl.write(r.Int64N(20)*4096, noise(r, 1024))
		}
		c.kill(0)
	}
	c.start(0)
	c.awaitHealthy(0)
}

func TestRecordsThatTouchASampleSilenceIt(t *testing.T) {
	x := []replica.Sample{{Off: 4096, Len: 4096}}
	for _, tc := range []struct {
		rec  *record.Record
		left int
	}{
		{record.NewWrite(8192, []byte("x")), 1},
		{record.NewWrite(8191, []byte("x")), 0},
		{record.NewTrim(0, 4096), 1},
		{record.NewTrim(0, 1<<20), 0},
		{record.NewZero(4608, 512), 0},
		{record.NewResize(8192), 1},
		{record.NewResize(7680), 0},
	} {
		if got := untouched(append([]replica.Sample(nil), x...), tc.rec); len(got) != tc.left {
			t.Errorf("%v %v: %d samples are left, want %d", tc.rec.Kind, tc.rec.Extent(), len(got), tc.left)
		}
	}
}
