package blockrepl

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// failing is a switch for faults of one server's disk.
type failing struct{ on atomic.Bool }

func (f *failing) String() string { return "failing" }

func (f *failing) MaybeError(op errorfs.Op) error {
	if !f.on.Load() {
		return nil
	}
	switch op.Kind {
	case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo, errorfs.OpFileWrite:
		if strings.HasSuffix(op.Path, ".log") {
			return syscall.EIO
		}
	}
	return nil
}

func TestServerWithAFailedJournalLeavesAndSendsItsClientsAway(t *testing.T) {
	fault := &failing{}
	c := newCluster(t, 3, nil)
	c.change = func(o *Options) {
		if o.ID != mustID("a") {
			return
		}
		o.OpenJournal = func(j journal.Options) (*journal.Journal, error) {
			j.MemTableBytes, j.ReserveBytes = 4<<20, -1
			j.FS = errorfs.Wrap(vfs.Default, fault)
			return journal.Open(j)
		}
	}
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	one := bytes.Repeat([]byte("1"), 4096)
	cl.write(0, one)
	fault.on.Store(true)
	if err := cl.change(OpWrite, 4096, one, 0); !errors.Is(err, ErrAborted) {
		t.Errorf("write to a failed journal: got %v, want ErrAborted", err)
	}
	st := c.await(0, "failed", func(s VolumeStatus) bool { return s.State == StateFailed })
	if !strings.Contains(st.Reason, "journal") {
		t.Errorf("reason is %q", st.Reason)
	}
	fault.on.Store(false)
	if _, err := c.promote(1, replica.Promote{OldMasterDead: true}); err != nil {
		t.Fatal(err)
	}
	if err := c.forget(1, "a", false); err != nil {
		t.Logf("forget: %v", err)
	}
	cl = c.connect(1, "client")
	cl.wantRead(0, one)
	cl.write(8192, one)
	c.kill(0)
	c.start(0)
	c.awaitHealthy(0, 1, 2)
	c.equalImages(0, 1, 2)
}

// sick is an image file whose calls fail while on is set.
type sick struct {
	image.File
	on       *atomic.Bool
	syncOnly bool
}

func (s *sick) WriteAt(p []byte, off int64) (int, error) {
	if s.on.Load() && !s.syncOnly {
		return 0, syscall.EIO
	}
	return s.File.WriteAt(p, off)
}

func (s *sick) Sync() error {
	if s.on.Load() {
		return syscall.EIO
	}
	return s.File.Sync()
}

func TestServerWithAFailedImageLeavesTheSet(t *testing.T) {
	for _, syncOnly := range []bool{false, true} {
		name := "write"
		if syncOnly {
			name = "fsync"
		}
		t.Run(name, func(t *testing.T) {
			var on atomic.Bool
			c := newCluster(t, 3, nil)
			c.change = func(o *Options) {
				if o.ID != mustID("b") {
					return
				}
				o.OpenImage = func(i image.Options) (*image.Image, error) {
					i.OpenFile = func() (image.File, error) {
						f, err := os.OpenFile(i.Path, os.O_RDWR|os.O_CREATE, 0o600)
						return &sick{f, &on, syncOnly}, err
					}
					return image.Open(i)
				}
			}
			c.start(0, 1, 2)
			cl := c.connect(0, "client")
			one := bytes.Repeat([]byte("1"), 4096)
			cl.write(0, one)
			c.awaitHealthy(0, 1, 2)
			on.Store(true)
			written := make(chan error, 1)
			go func() { written <- cl.change(OpWrite, 4096, one, 0) }()
			c.vol(1).check.ask(1)
			st := c.await(1, "failed", func(s VolumeStatus) bool { return s.State == StateFailed })
			if !strings.Contains(st.Reason, "image") {
				t.Errorf("reason is %q", st.Reason)
			}
			c.await(0, "suspended", func(s VolumeStatus) bool { return s.State == StateSuspended })
			if err := c.forget(0, "b", false); err != nil {
				t.Fatal(err)
			}
			if err := <-written; err != nil {
				t.Fatal(err)
			}
			cl.write(8192, one)
			on.Store(false)
			c.kill(1)
			c.start(1)
			c.awaitHealthy(0, 1, 2)
			c.equalImages(0, 1, 2)
		})
	}
}

func TestFullDiskRefusesClientsAndRecovers(t *testing.T) {
	var free atomic.Int64
	free.Store(1 << 40)
	c := newCluster(t, 3, nil)
	c.change = func(o *Options) {
		o.OpenJournal = func(j journal.Options) (*journal.Journal, error) {
			j.MemTableBytes, j.ReserveBytes = 4<<20, -1
			if o.ID == mustID("b") {
				j.FreeBytes = func() (int64, error) { return free.Load(), nil }
			}
			return journal.Open(j)
		}
	}
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	one := bytes.Repeat([]byte("1"), 4096)
	cl.write(0, one)
	free.Store(10 << 20)
	c.await(0, "out of space", func(VolumeStatus) bool {
		err := cl.change(OpWrite, 4096, one, 0)
		if err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("write to a full slave: got %v, want ENOSPC", err)
		}
		return err != nil
	})
	free.Store(1 << 40)
	c.await(0, "space again", func(VolumeStatus) bool { return cl.change(OpWrite, 8192, one, 0) == nil })
	cl.wantRead(0, one)
	c.awaitHealthy(0, 1, 2)
	c.equalImages(0, 1, 2)
}

// Once a batch that found no space made the server fail for good.
func TestSuddenlyFullJournalWaitsForSpace(t *testing.T) {
	for i, full := range []string{"master", "slave"} {
		t.Run(full, func(t *testing.T) {
			var free atomic.Int64
			free.Store(1 << 40)
			c := newCluster(t, 3, nil)
			c.change = func(o *Options) {
				o.OpenJournal = func(j journal.Options) (*journal.Journal, error) {
					j.MemTableBytes, j.ReserveBytes = 4<<20, 16<<20
					j.FreeBytes = func() (int64, error) {
						// The watch, which would have the master refuse in time, sees nothing.
						if o.ID != c.addrs[i].ID || strings.Contains(string(debug.Stack()), "spaceWatch") {
							return 1 << 40, nil
						}
						return free.Load(), nil
					}
					return journal.Open(j)
				}
			}
			c.start(0, 1, 2)
			cl := c.connect(0, "client")
			one := bytes.Repeat([]byte("1"), 1<<20)
			cl.write(0, one)
			c.awaitHealthy(0, 1, 2)
			free.Store(1 << 20)
			done := make(chan error, 8)
			for n := range int64(8) {
				go func() { done <- cl.change(OpWrite, n<<20, noise(rand.New(rand.NewPCG(1, uint64(n))), 1<<20), 0) }()
			}
			st := c.await(i, "suspended", func(s VolumeStatus) bool { return s.State == StateSuspended && strings.Contains(s.Reason, "full") })
			if st.Next == "" {
				t.Error("status does not say what to do")
			}
			c.kill(2) // a new link must not find a hole where batches wait
			c.start(2)
			free.Store(1 << 40)
			for range 8 {
				if err := <-done; err != nil {
					t.Errorf("write that waited for space: %v", err)
				}
			}
			cl.write(8<<20, one)
			c.awaitHealthy(0, 1, 2)
			c.equalImages(0, 1, 2)
		})
	}
}
