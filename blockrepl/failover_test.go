package blockrepl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

func (c *cluster) promote(i int, p replica.Promote) (*PromoteReport, error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	v := c.vol(i)
	res, err := v.command(ctx, func(id uint64) replica.Event { p.ID = id; return p })
	return v.promoteReport(&res), err
}

func (c *cluster) forget(i int, server string, force bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	_, err := c.vol(i).command(ctx, func(id uint64) replica.Event {
		return replica.Forget{ID: id, Server: mustID(server), Force: force}
	})
	return err
}

func TestSlaveTakesOverWithEveryWrite(t *testing.T) {
	c := newCluster(t, 3, nil)
	r := seeded(t)
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	want := make([]byte, 1<<20)
	for range 100 {
		p := noise(r, 512*(1+r.IntN(16)))
		off := r.IntN(len(want) - len(p))
		cl.write(int64(off), p)
		copy(want[off:], p)
	}
	c.kill(0)
	began := time.Now()
	rep, err := c.promote(1, replica.Promote{OldMasterDead: true})
	if err != nil {
		t.Fatalf("promote: %v (%+v)", err, rep)
	}
	cl = c.connect(1, "client")
	// With "suspend" the dead server is still waited for; only the operator lets it go.
	c.await(1, "master", func(s VolumeStatus) bool { return s.Role == "master" })
	if st := c.status(1); len(st.InSync) == 3 {
		if err := c.forget(1, "a", false); err != nil {
			t.Fatalf("forget: %v", err)
		}
	}
	cl.wantRead(0, want)
	cl.write(0, []byte("taken over"))
	t.Logf("first write after %v", time.Since(began))
	copy(want, "taken over")
	c.connectAs(2, ClientInfo{Identity: "reader", ReadOnly: true}).wantRead(0, want)

	c.start(0)
	c.awaitHealthy(0, 1, 2)
	if st := c.status(0); st.Role != "slave" || st.Master != "b" {
		t.Fatalf("old master came back as %s under %s", st.Role, st.Master)
	}
	c.connectAs(0, ClientInfo{Identity: "reader", ReadOnly: true}).wantRead(0, want)
	c.equalImages(0, 1, 2)
}

func TestGracefulSwitchover(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	p := bytes.Repeat([]byte("p"), 4096)
	cl.write(0, p)
	rep, err := c.promote(2, replica.Promote{DryRun: true})
	if err != nil || !rep.Graceful || !rep.Allowed {
		t.Fatalf("dry run: %+v, %v", rep, err)
	}
	if _, err := c.promote(2, replica.Promote{}); err != nil {
		t.Fatalf("promote: %v", err)
	}
	c.await(2, "master", func(s VolumeStatus) bool { return s.Role == "master" && s.State == StateHealthy })
	cl.write(4096, p) // through the old master, which forwards now
	c.connectAs(2, ClientInfo{Identity: "reader", ReadOnly: true}).wantRead(0, append(p, p...))
	c.equalImages(0, 1, 2)
}

func TestStopHandsOver(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	p := bytes.Repeat([]byte("p"), 4096)
	cl.write(0, p)
	c.awaitHealthy(0, 1, 2)
	began := time.Now()
	c.stop(0, true)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("stop took %v", took)
	}
	if err := cl.change(OpWrite, 0, p, 0); !errors.Is(err, ErrAborted) {
		t.Errorf("write at a stopped server: got %v, want ErrAborted", err)
	}
	var at int
	for _, i := range []int{1, 2} {
		if st := c.status(i); st.Role == "master" || st.Role == "candidate" {
			at = i
		}
	}
	if at == 0 {
		t.Fatalf("nobody took over: %+v, %+v", c.status(1), c.status(2))
	}
	// The stopped server is still waited for, by writes and by the reads' leases.
	c.start(0)
	c.connectAs(at, ClientInfo{Identity: "reader", ReadOnly: true}).wantRead(0, p)
	c.awaitHealthy(0, 1, 2)
	c.equalImages(0, 1, 2)
}

func TestSilentSlaveSuspendsWritesUntilForgotten(t *testing.T) {
	c := newCluster(t, 3, nil)
	r := seeded(t)
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	cl.write(0, noise(r, 4096))
	c.kill(2)
	done := make(chan error, 1)
	go func() { done <- cl.change(OpWrite, 4096, noise(r, 4096), 0) }()
	c.await(0, "suspended", func(s VolumeStatus) bool { return s.State == StateSuspended })
	select {
	case err := <-done:
		t.Fatalf("a write was answered without an in-sync server: %v", err)
	default:
	}
	if err := c.forget(0, "c", false); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for range 50 {
		cl.write(int64(512*r.IntN(1000)), noise(r, 4096))
	}
	c.start(2)
	c.awaitHealthy(0, 1, 2)
	if st := c.status(2); st.Counters["resync_bytes"] != 0 {
		t.Errorf("a short absence led to a resync")
	}
	c.equalImages(0, 1, 2)
}

func TestContinueGoesOnWithoutASlave(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.volume.OnDegraded = wire.Continue
	r := seeded(t)
	c.start(0, 1)
	cl := c.connect(0, "client")
	cl.write(0, noise(r, 4096))
	c.awaitHealthy(0, 1)
	c.kill(1)
	cl.write(4096, noise(r, 4096))
	c.await(0, "degraded", func(s VolumeStatus) bool { return s.State == StateDegraded && len(s.InSync) == 1 })
	c.start(1)
	c.awaitHealthy(0, 1)
	c.equalImages(0, 1)
}

// The options of a volume could not be changed once it existed, whatever the
// configuration said.
func TestOptionsOfAVolumeChangeOnAllServersAndStay(t *testing.T) {
	c := newCluster(t, 2, nil)
	r := seeded(t)
	c.start(0, 1)
	cl := c.connect(0, "client")
	cl.write(0, noise(r, 4096))
	c.awaitHealthy(0, 1)
	e, status := ask[CommandError](t, c.servers[1], "POST", "/v1/volumes/vol0/set", `{"on_degraded":"continue"}`)
	if status != http.StatusConflict || !strings.Contains(e.Error, "not the master; ask a") {
		t.Fatalf("set at a slave: %d %+v", status, e)
	}
	set, status := ask[SetReport](t, c.servers[0], "POST", "/v1/volumes/vol0/set", `{"on_degraded":"continue","keep_bytes":12345678}`)
	if status != http.StatusOK || set.OnDegraded != "continue" || set.KeepBytes != 12345678 {
		t.Fatalf("set: %d %+v", status, set)
	}
	c.await(1, "told", func(s VolumeStatus) bool { return s.OnDegraded == "continue" && s.KeepBytes == 12345678 })
	c.kill(1)
	cl.write(4096, noise(r, 4096)) // goes on alone
	c.kill(0)
	c.start(0, 1)
	for i := range 2 {
		c.await(i, "still so", func(s VolumeStatus) bool {
			return s.State == StateHealthy && s.OnDegraded == "continue" && s.KeepBytes == 12345678
		})
	}
	c.equalImages(0, 1)
}

func TestAbsentBeyondKeepIsResyncedWhileWritesGoOn(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.volume.Keep = 1 << 20
	r := seeded(t)
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	base := noise(r, 8<<20)
	for off := 0; off < len(base); off += 1 << 20 {
		cl.write(int64(off), base[off:off+1<<20])
	}
	c.awaitHealthy(0, 1, 2)
	c.kill(2)
	if err := c.forget(0, "c", false); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		cl.write(int64(4096*r.IntN(256)), noise(r, 64<<10))
	}
	// The checkpoint lets records go.
	c.await(0, "trimmed", func(s VolumeStatus) bool { return s.FirstKept > 100 })
	c.start(2)
	stop := make(chan struct{})
	written := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				written <- n
				return
			default:
				p := bytes.Repeat([]byte(fmt.Sprint(n)), 512)
				if err := cl.change(OpWrite, int64(4096*(n%2048)), p, 0); err != nil {
					t.Errorf("write %d: %v", n, err)
				}
				n++
			}
		}
	}()
	c.await(2, "resynced", func(s VolumeStatus) bool { return s.State == StateHealthy })
	close(stop)
	t.Logf("%d writes went on during the resync", <-written)
	st := c.status(0)
	if n := st.Counters["resync_bytes"]; n == 0 || n > 12<<20 {
		t.Errorf("resync sent %d bytes of an image of %d", n, testSize)
	}
	c.equalImages(0, 1, 2)
}

func (c *cluster) verify(i int, repair bool) VerifyReport {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	rep, err := c.vol(i).verify(ctx, repair)
	if err != nil {
		c.t.Fatalf("verify: %v", err)
	}
	return rep
}

func TestVerifyFindsAndRepairsRotWhileWritesGoOn(t *testing.T) {
	c := newCluster(t, 2, nil)
	r := seeded(t)
	c.start(0, 1)
	cl := c.connect(0, "client")
	for off := int64(0); off < testSize; off += 1 << 20 {
		cl.write(off, noise(r, 1<<20))
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				p := bytes.Repeat([]byte(fmt.Sprint(n)), 512)
				if err := cl.change(OpWrite, int64(4096*(n%256)), p, 0); err != nil {
					t.Errorf("write %d: %v", n, err)
					return
				}
			}
		}
	}()
	if rep := c.verify(1, false); rep.DifferentBytes != 0 || rep.ComparedBytes != testSize {
		t.Errorf("equal images: %+v", rep)
	}
	rot(t, c, 1, 5<<20+77)
	rot(t, c, 1, 9<<20)
	rot(t, c, 1, 9<<20+resyncBlock)
	where := []DifferentExtent{{5 << 20, resyncBlock}, {9 << 20, 2 * resyncBlock}}
	if rep := c.verify(1, false); rep.DifferentBytes != 3*resyncBlock || rep.Repaired || !slices.Equal(rep.Different, where) {
		t.Errorf("three rotten blocks: %+v", rep)
	}
	if rep := c.verify(1, true); rep.DifferentBytes != 3*resyncBlock || !rep.Repaired || !slices.Equal(rep.Different, where) {
		t.Errorf("repair: %+v", rep)
	}
	if rep := c.verify(1, true); rep.DifferentBytes != 0 {
		t.Errorf("after repair: %+v", rep)
	}
	close(stop)
	<-ended
	c.equalImages(0, 1)
}

// rot flips a bit of a server's image behind its back.
func rot(t *testing.T, c *cluster, i int, off int64) {
	t.Helper()
	f, err := os.OpenFile(c.vol(i).opt.Image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func TestAbsentWithinKeepCatchesUpFromTheJournalWhileWritesGoOn(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) { o.RingBytes = ringShareMin })
	r := seeded(t)
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	cl.write(0, noise(r, 4096))
	c.awaitHealthy(0, 1, 2)
	c.kill(2)
	if err := c.forget(0, "c", false); err != nil {
		t.Fatal(err)
	}
	for range 40 {
		cl.write(int64(4096*r.IntN(256)), noise(r, 256<<10))
	}
	c.start(2)
	for n := 0; c.status(2).State != StateHealthy; n++ {
		cl.write(int64(4096*(n%2048)), bytes.Repeat([]byte(fmt.Sprint(n)), 512))
		if n > 100000 {
			t.Fatal("never caught up")
		}
	}
	if n := c.status(0).Counters["resync_bytes"]; n != 0 {
		t.Errorf("%d bytes were resynced", n)
	}
	c.awaitHealthy(0, 1, 2)
	c.equalImages(0, 1, 2)
}

// Reads waited, as writes do, until a server that was stopped in order was back.
func TestReadsGoOnWhileAServerIsStoppedInOrder(t *testing.T) {
	c := newCluster(t, 3, nil)
	r := seeded(t)
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	one := noise(r, 4096)
	cl.write(0, one)
	c.awaitHealthy(0, 1, 2)
	c.stop(1, false)
	c.await(0, "suspended", func(s VolumeStatus) bool { return s.State == StateSuspended })
	cl.wantRead(0, one)
	c.start(1)
	c.awaitHealthy(0, 1, 2)
	cl.write(0, one)
}
