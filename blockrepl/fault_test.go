package blockrepl

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

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

// Connections that only read stayed on a server that had failed, and new ones were let
// in: a read there took the io timeout to learn that it must go elsewhere.
func TestServerThatFailedKeepsNoReaderAndLetsNobodyIn(t *testing.T) {
	fault := &failing{}
	c := newCluster(t, 1, nil)
	c.change = func(o *Options) {
		o.OpenJournal = func(j journal.Options) (*journal.Journal, error) {
			j.MemTableBytes, j.ReserveBytes = 4<<20, -1
			j.FS = errorfs.Wrap(vfs.Default, fault)
			return journal.Open(j)
		}
	}
	c.start(0)
	cl := c.connect(0, "client")
	cl.write(0, []byte("1"))
	readers := []*testConn{c.connect(0, "other"), c.connectAs(0, ClientInfo{Identity: "reader", ReadOnly: true}), c.connectAs(0, ClientInfo{Identity: "stale", StaleOK: true})}
	fault.on.Store(true)
	if err := cl.change(OpWrite, 0, []byte("2"), 0); !errors.Is(err, ErrAborted) {
		t.Errorf("write to a failed journal: got %v, want ErrAborted", err)
	}
	c.await(0, "failed", func(s VolumeStatus) bool { return s.State == StateFailed })
	for _, r := range readers {
		select {
		case <-r.gone:
		case <-time.After(testTimeout):
			t.Errorf("%s is not sent away", r.info.Identity)
		}
	}
	for _, info := range []ClientInfo{{Identity: "client"}, {Identity: "reader", ReadOnly: true}, {Identity: "stale", StaleOK: true}} {
		if conn, err := c.vol(0).Connect(t.Context(), info); !errors.Is(err, ErrAborted) || !strings.Contains(err.Error(), "journal") {
			t.Errorf("%s connects to a failed server: %v", info.Identity, err)
			if err == nil {
				conn.Close()
			}
		}
	}
	fault.on.Store(false)
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
	// Bug: the full slave itself was healthy.
	c.await(1, "full", func(s VolumeStatus) bool {
		return s.State == StateSuspended && strings.Contains(s.Next, c.options(1).DataDir)
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
				data := noise(rand.New(rand.NewPCG(1, uint64(n))), 1<<20)
				go func() {
					var err error
					for range 4 { // one batch may still be judged by an older look at the free space
						err = errors.Join(err, cl.change(OpWrite, n<<20, data, 0))
					}
					done <- err
				}()
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

// blind is an image file that cannot be read while on is set.
type blind struct {
	image.File
	on *atomic.Bool
}

func (f *blind) ReadAt(p []byte, off int64) (int, error) {
	if f.on.Load() {
		return 0, syscall.EIO
	}
	return f.File.ReadAt(p, off)
}

// An error reply ends the client's file system; the other servers have the bytes.
func TestReadThatTheImageFailsIsNotAnswered(t *testing.T) {
	for _, servers := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d servers", servers), func(t *testing.T) {
			var on atomic.Bool
			c := newCluster(t, servers, nil)
			c.change = func(o *Options) {
				if o.ID != mustID("a") {
					return
				}
				o.OpenImage = func(i image.Options) (*image.Image, error) {
					i.OpenFile = func() (image.File, error) {
						f, err := os.OpenFile(i.Path, os.O_RDWR|os.O_CREATE, 0o600)
						return &blind{f, &on}, err
					}
					return image.Open(i)
				}
			}
			for i := range servers {
				c.start(i)
			}
			cl := c.connect(0, "client")
			cl.write(0, bytes.Repeat([]byte("1"), 4096))
			c.awaitHealthy(0)
			on.Store(true)
			err := cl.ReadAt(t.Context(), make([]byte, 4096), 0)
			if servers == 1 {
				if errors.Is(err, ErrAborted) || !errors.Is(err, syscall.EIO) {
					t.Errorf("read on the only server: %v, want EIO", err)
				}
				return
			}
			if !errors.Is(err, ErrAborted) {
				t.Errorf("read: %v, want ErrAborted", err)
			}
			st := c.await(0, "failed", func(s VolumeStatus) bool { return s.State == StateFailed })
			if !strings.Contains(st.Reason, "image") {
				t.Errorf("reason is %q", st.Reason)
			}
		})
	}
}

// The mark of a resync says which extents the image has. They are gone with it.
func TestImageLostInTheMiddleOfAResyncIsCopiedWhole(t *testing.T) {
	c := newCluster(t, 3, nil)
	r := seeded(t)
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	cl.write(0, noise(r, 64<<10))
	cl.write(testSize/2, noise(r, 64<<10))
	c.awaitHealthy(0, 1, 2)
	c.stop(2, false)
	if err := c.forget(0, "c", false); err != nil {
		t.Fatal(err)
	}
	// As if the server had died when it had copied all but the last extent.
	o := c.options(2)
	j, err := journal.Open(journal.Options{Dir: JournalDir(o.DataDir), Logger: o.Logger})
	if err != nil {
		t.Fatal(err)
	}
	logs, err := LogsByName(j)
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := LoadHard(logs["vol0"])
	if err != nil || h.Checkpoint == 0 {
		t.Fatalf("saved state %+v, %v", h, err)
	}
	h.Resync = &replica.ResyncMark{Base: h.Checkpoint, High: h.Checkpoint, Offset: testSize - 64<<10}
	p, err := logs["vol0"].Write(journal.Batch{Meta: metaOps(&replica.Store{Hard: &h})})
	if err == nil {
		err = p.Wait()
	}
	if err = errors.Join(err, j.Close(), os.WriteFile(filepath.Join(o.DataDir, "images", "vol0.img"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	c.start(2)
	c.awaitHealthy(0, 1, 2)
	c.equalImages(0, 1, 2)
}

// The last in-sync server of a volume failed for one sector, and with it everything
// that could still be read.
func TestLastInSyncServerGoesOnBesideAnUnreadableSector(t *testing.T) {
	var on atomic.Bool
	c := newCluster(t, 2, nil)
	c.change = func(o *Options) {
		if o.ID != mustID("a") {
			return
		}
		o.OpenImage = func(i image.Options) (*image.Image, error) {
			i.OpenFile = func() (image.File, error) {
				f, err := os.OpenFile(i.Path, os.O_RDWR|os.O_CREATE, 0o600)
				return &blind{f, &on}, err
			}
			return image.Open(i)
		}
	}
	c.start(0, 1)
	cl := c.connect(0, "client")
	one := bytes.Repeat([]byte("1"), 4096)
	cl.write(0, one)
	c.awaitHealthy(0, 1)
	c.stop(1, false)
	if err := c.forget(0, "b", true); err != nil {
		t.Fatal(err)
	}
	c.await(0, "degraded", func(s VolumeStatus) bool { return s.State == StateDegraded })
	on.Store(true)
	if err := cl.ReadAt(t.Context(), make([]byte, 4096), 0); errors.Is(err, ErrAborted) || !errors.Is(err, syscall.EIO) {
		t.Errorf("read: %v, want EIO", err)
	}
	on.Store(false)
	cl.wantRead(0, one)
	cl.write(4096, one)
	st := c.status(0)
	if st.State != StateDegraded || st.Counters["image_reads_failed"] != 1 || !strings.Contains(st.Reason, "reads of this server's image failed") {
		t.Errorf("status is %s (%s), counters %v", st.State, st.Reason, st.Counters)
	}
}
