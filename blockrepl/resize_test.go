package blockrepl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// roomy gives servers images that can have any size: what an image is that the
// program itself opens. Its writes wait for hold.
func (c *cluster) roomy(ids string, hold func()) {
	c.change = func(o *Options) {
		if !strings.Contains(ids, o.ID.String()) {
			return
		}
		o.OpenImage = func(i image.Options) (*image.Image, error) {
			i.OpenFile = func() (image.File, error) {
				f, err := os.OpenFile(i.Path, os.O_RDWR|os.O_CREATE, 0o600)
				return &slow{f, hold}, err
			}
			return image.Open(i)
		}
	}
}

// slow is an image file whose writes wait.
type slow struct {
	image.File
	hold func()
}

func (s *slow) WriteAt(p []byte, off int64) (int, error) {
	s.hold()
	return s.File.WriteAt(p, off)
}

// awaitLinks waits until each server has a link to each other one: also slaves, which
// need none to be healthy.
func (c *cluster) awaitLinks(which ...int) {
	c.t.Helper()
	for _, i := range which {
		c.await(i, "linked", func(VolumeStatus) bool {
			for _, p := range c.servers[i].links.peers {
				if p.cur.Load() == nil {
					return false
				}
			}
			return true
		})
	}
}

func (c *cluster) resize(i int, size int64, force bool) (ResizeReport, error) {
	body := fmt.Appendf(nil, `{"size_bytes":%d,"force":%t}`, size, force)
	rep, err := handleResize(c.t.Context(), c.vol(i), bytes.NewReader(body))
	if err != nil {
		return ResizeReport{}, err
	}
	return rep.(ResizeReport), nil
}

func (c *cluster) wantRefused(err error, words ...string) {
	c.t.Helper()
	if !errors.Is(err, replica.ErrRefused) {
		c.t.Fatalf("resize: %v, want a refusal", err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			c.t.Errorf("the refusal lacks %q: %v", word, err)
		}
	}
}

// Only the asked server's image was looked at: a size that another server's cannot
// have was numbered, and that server failed for good.
func TestResizeThatAnotherServerCannotTakeIsRefused(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.roomy("ac", func() {})
	c.start(0, 1, 2)
	c.awaitHealthy(0, 1, 2)
	c.awaitLinks(0, 1, 2)
	for asked := range 3 { // b itself, the master, another slave
		for _, force := range []bool{false, true} {
			rep, err := c.resize(asked, record.MaxSize, force)
			if err == nil && force && rep.Warning != "" {
				t.Skip("a file system without a largest file: ", rep.Warning)
			}
			c.wantRefused(err, "server b: resize image")
		}
	}
	cl := c.connect(1, "client")
	cl.write(0, bytes.Repeat([]byte("1"), 512))
	for i := range 3 {
		c.await(i, "as it was", func(s VolumeStatus) bool { return s.State == StateHealthy && s.SizeBytes == testSize })
	}
}

func TestResizeForWhichAnotherServerHasNoSpaceWantsForce(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.roomy("a", func() {})
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	u, err := c.vol(1).img.Usage()
	if err != nil {
		t.Fatal(err)
	}
	size := (u.Allocated+u.Free)>>30<<30 + 16<<30
	_, err = c.resize(0, size, false)
	c.wantRefused(err, "server b: the file system of image", "MiB", "--force")
	rep, err := c.resize(0, size, true)
	if err != nil || !strings.Contains(rep.Warning, "server b") {
		t.Fatalf("with force: %+v, %v, want a warning that names b", rep, err)
	}
	for i := range 2 {
		c.await(i, "resized", func(s VolumeStatus) bool { return s.SizeBytes == size })
	}
}

// With one server down the volume goes on under "continue", and so does a resize, by
// the operator's word that the absent one will be able to follow.
func TestResizeWithoutAnAbsentServerWantsForce(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.volume.OnDegraded = wire.Continue
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	c.kill(1)
	c.await(0, "alone", func(s VolumeStatus) bool { return len(s.InSync) == 1 })
	_, err := c.resize(0, 2*testSize, false)
	c.wantRefused(err, "server b: there is no link to it", "--force")
	if rep, err := c.resize(0, 2*testSize, true); err != nil || !strings.Contains(rep.Warning, "server b") {
		t.Fatalf("with force: %+v, %v, want a warning that names b", rep, err)
	}
	c.start(1)
	c.await(1, "followed", func(s VolumeStatus) bool { return s.State == StateHealthy && s.SizeBytes == 2*testSize })
}

// The master may have the link that a slave lacks, and so the better answer.
func TestResizeAskedAtASlaveWithoutALinkIsTheMastersToAnswer(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.volume.OnDegraded = wire.Continue
	c.start(0, 1, 2)
	c.awaitHealthy(0, 1, 2)
	c.kill(1)
	c.await(2, "without b", func(s VolumeStatus) bool { return len(s.InSync) == 2 })
	_, err := c.resize(2, 2*testSize, true)
	c.wantRefused(err, "server b: there is no link to it from here, ask the master a")
	if _, err := c.resize(0, 2*testSize, true); err != nil {
		t.Errorf("the same at the master: %v", err)
	}
}

func TestResizeDoesNotWaitForAServerThatDoesNotAnswer(t *testing.T) {
	c := newCluster(t, 2, nil)
	var on atomic.Bool
	held, let := make(chan struct{}, 1), make(chan struct{})
	free := sync.OnceFunc(func() { close(let) })
	t.Cleanup(free)
	c.roomy("b", func() {
		if on.Load() {
			held <- struct{}{}
			<-let
		}
	})
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	cl := c.connect(0, "client")
	c.equalImages(0, 1)
	on.Store(true)
	cl.write(0, bytes.Repeat([]byte("1"), 512))
	<-held // b's image is busy with it
	on.Store(false)
	_, err := c.resize(0, 2*testSize, false)
	_, again := c.resize(0, 2*testSize, false) // the first question still waits for the image
	free()
	c.wantRefused(err, "server b: it did not answer within 1s")
	c.wantRefused(again, "server b: its image is examined for another resize")
	c.await(1, "applied", func(s VolumeStatus) bool { return s.Applied == s.Last })
	if _, err := c.resize(0, 2*testSize, false); err != nil {
		t.Errorf("resize when b answers again: %v", err)
	}
}

// A slave that was behind a resize offered the size of before it to new clients.
func TestClientOfASlaveThatIsBehindWaitsForTheSize(t *testing.T) {
	c := newCluster(t, 2, nil)
	var on atomic.Bool
	held, let := make(chan struct{}, 1), make(chan struct{})
	free := sync.OnceFunc(func() { close(let) })
	t.Cleanup(free)
	c.roomy("b", func() {
		if on.Load() {
			held <- struct{}{}
			<-let
		}
	})
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	cl := c.connect(0, "client")
	c.equalImages(0, 1)
	on.Store(true)
	cl.write(0, bytes.Repeat([]byte("1"), 512))
	<-held // b applies nothing
	on.Store(false)
	if _, err := c.resize(0, 2*testSize, true); err != nil {
		t.Fatal(err)
	}
	c.await(0, "resized", func(s VolumeStatus) bool { return s.SizeBytes == 2*testSize })
	size := make(chan int64, 1)
	go func() {
		conn, err := c.vol(1).Connect(context.Background(), ClientInfo{Identity: "client"})
		if err != nil {
			t.Errorf("connect to b: %v", err)
			size <- 0
			return
		}
		size <- conn.Size()
		conn.Close()
	}()
	c.await(1, "asked by its client", func(VolumeStatus) bool {
		v := c.vol(1)
		v.clients.mu.Lock()
		defer v.clients.mu.Unlock()
		return len(v.clients.rounds) > 0
	})
	free()
	if got := <-size; got != 2*testSize {
		t.Errorf("b offered %d bytes, want %d", got, 2*testSize)
	}
}

// Requests wait for a master, so a client must be let in although there is none.
func TestClientIsLetInWithoutAMaster(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	c.kill(0)
	c.await(1, "suspended", func(s VolumeStatus) bool { return s.State == StateSuspended })
	cl := c.connect(1, "client")
	if got := cl.Size(); got != testSize {
		t.Errorf("b offers %d bytes, want %d", got, testSize)
	}
}
