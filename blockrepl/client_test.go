package blockrepl

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/record"
)

func TestWriteOutOfRangeIsRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	cl := c.connect(0, "client")
	for _, w := range []struct {
		off, n int64
		want   error
	}{
		{testSize - 511, 512, syscall.ENOSPC},
		{testSize, 512, syscall.ENOSPC},
		{1 << 62, 1 << 62, syscall.ENOSPC},
		{-1, 512, syscall.EINVAL},
		{0, 0, syscall.EINVAL},
	} {
		if err := cl.change(OpZero, w.off, nil, w.n); !errors.Is(err, w.want) {
			t.Errorf("zero %d bytes at %d: got %v, want %v", w.n, w.off, err, w.want)
		}
	}
	if err := cl.ReadAt(t.Context(), make([]byte, 512), testSize-511); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("read beyond the end: got %v, want EINVAL", err)
	}
	cl.write(testSize-512, bytes.Repeat([]byte("e"), 512))
}

func TestZeroesAreRecordsWithoutPayload(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	cl := c.connect(0, "client")
	cl.write(0, bytes.Repeat([]byte("x"), 1<<20))
	before := c.status(0).JournalBytes
	cl.write(0, make([]byte, 1<<20))
	if err := cl.change(OpZero, 0, nil, testSize); err != nil {
		t.Fatal(err)
	}
	if err := cl.change(OpTrim, 0, nil, testSize); err != nil {
		t.Fatal(err)
	}
	if grown := c.status(0).JournalBytes - before; grown > 3*128 {
		t.Errorf("three zeroings took %d bytes of journal", grown)
	}
	cl.wantRead(0, make([]byte, 1<<20))
	segs, err := cl.Extents(t.Context(), 0, testSize, 16)
	if err != nil || len(segs) != 1 || !segs[0].Hole || segs[0].Len() != testSize {
		t.Errorf("extents of a trimmed volume: %+v, %v", segs, err)
	}
}

func TestAnotherIdentityIsOfferedReadOnly(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.start(0, 1)
	first := c.connect(0, "db1")
	first.write(0, bytes.Repeat([]byte("1"), 512))
	c.awaitHealthy(0, 1)
	c.await(1, "the holder known", func(s VolumeStatus) bool { return s.Holder == "db1" })
	for i := range 2 {
		second := c.connect(i, "db2")
		if !second.ReadOnly() {
			t.Errorf("server %d: a held volume was offered writable", i)
		}
		if err := second.change(OpWrite, 0, []byte("x"), 0); !errors.Is(err, syscall.EPERM) {
			t.Errorf("server %d: write of another identity: got %v, want EPERM", i, err)
		}
	}
	if same := c.connect(1, "db1"); same.ReadOnly() {
		t.Error("the holder's own second connection is read-only")
	}
	first.Close()
	c.await(1, "the volume free", func(s VolumeStatus) bool { return s.Holder == "" })
	if third := c.connect(1, "db2"); third.ReadOnly() {
		t.Error("a free volume was offered read-only")
	}
}

func TestTakeoverSendsTheHolderAway(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.start(0, 1)
	first := c.connect(0, "db1")
	first.write(0, bytes.Repeat([]byte("1"), 512))
	second := c.connectAs(1, ClientInfo{Identity: "db2", Takeover: true})
	second.write(512, bytes.Repeat([]byte("2"), 512))
	if err := first.change(OpWrite, 0, bytes.Repeat([]byte("3"), 512), 0); !errors.Is(err, ErrAborted) {
		t.Errorf("write of who was taken over: got %v, want ErrAborted", err)
	}
	second.wantRead(0, bytes.Repeat([]byte("1"), 512))
}

func TestNewerTokenDiscardsTheOlderConnection(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.start(0, 1)
	old := c.connectAs(0, ClientInfo{Identity: "db", Token: 1})
	old.write(0, bytes.Repeat([]byte("1"), 512))
	renewed := c.connectAs(1, ClientInfo{Identity: "db", Token: 2})
	renewed.write(0, bytes.Repeat([]byte("2"), 512))
	if err := old.change(OpWrite, 0, bytes.Repeat([]byte("3"), 512), 0); !errors.Is(err, ErrAborted) {
		t.Errorf("write with an older token: got %v, want ErrAborted", err)
	}
	renewed.wantRead(0, bytes.Repeat([]byte("2"), 512))
}

// It was let in, and its writes never got an answer.
func TestConnectionWithAnOlderTokenIsRefused(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.start(0, 1)
	c.connectAs(1, ClientInfo{Identity: "db", Token: 9}).write(0, make([]byte, 512))
	for i := range 2 {
		for _, info := range []ClientInfo{{Identity: "db", Token: 8}, {Identity: "db", Token: 8, Takeover: true}} {
			conn, err := c.vol(i).Connect(t.Context(), info)
			var old *OldTokenError
			if !errors.As(err, &old) || *old != (OldTokenError{"db", 8, 9}) {
				t.Errorf("server %d: connection %+v: %v, %v, want token 8 refused for 9", i, info, conn, err)
			}
		}
		for _, info := range []ClientInfo{{Identity: "db", Token: 9}, {Identity: "db", Token: 10}, {Identity: "db"},
			{Identity: "db", Token: 8, ReadOnly: true}, {Identity: "other", Token: 8, Takeover: true}} {
			conn, err := c.vol(i).Connect(t.Context(), info)
			if err != nil {
				t.Errorf("server %d: connection %+v: %v", i, info, err)
				continue
			}
			conn.Close()
		}
	}
}

// What a connection sent before its client gave it up must not be numbered.
func TestWritesOfAGoneClientAreDiscarded(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	cl := c.connect(0, "client")
	cl.write(0, bytes.Repeat([]byte("1"), 512))
	var gone atomic.Bool
	stalled := c.connectAs(0, ClientInfo{Identity: "client", Gone: gone.Load})
	gone.Store(true)
	if err := stalled.change(OpWrite, 0, bytes.Repeat([]byte("2"), 512), 0); !errors.Is(err, ErrAborted) {
		t.Errorf("write of a gone client: got %v, want ErrAborted", err)
	}
	cl.wantRead(0, bytes.Repeat([]byte("1"), 512))
}

func TestRequestsWaitForAMasterAndThenTheConnectionIsClosed(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) { o.IOTimeout = 1500 * time.Millisecond })
	c.start(0, 1, 2)
	cl := c.connect(1, "client")
	cl.write(0, bytes.Repeat([]byte("1"), 512))
	reader := c.connectAs(1, ClientInfo{Identity: "reader", ReadOnly: true})
	c.kill(0)
	done := make(chan error, 1)
	go func() { done <- reader.ReadAt(t.Context(), make([]byte, 512), 0) }()
	if err := cl.change(OpWrite, 0, bytes.Repeat([]byte("2"), 512), 0); !errors.Is(err, ErrAborted) {
		t.Errorf("write without a master: got %v, want ErrAborted", err)
	}
	if err := <-done; !errors.Is(err, ErrAborted) {
		t.Errorf("read without a master: got %v, want ErrAborted", err)
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.aborted == nil {
		t.Error("the connection was not closed")
	}
}

func TestManyWritersOnASharedVolume(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.volume.Shared = true
	c.start(0, 1, 2)
	ends := make(chan error, 6)
	for w := range 6 {
		cl := c.connect(w%3, "writer"+string(rune('0'+w)))
		go func() {
			p := bytes.Repeat([]byte{byte('0' + w)}, 4096)
			for n := range 50 {
				if err := cl.change(OpWrite, int64(n*4096), p, 0); err != nil {
					ends <- err
					return
				}
				got := make([]byte, 4096)
				if err := cl.ReadAt(t.Context(), got, int64(n*4096)); err != nil {
					ends <- err
					return
				}
				if !bytes.Equal(got, bytes.Repeat(got[:1], 4096)) {
					ends <- errors.New("torn read")
					return
				}
			}
			ends <- nil
		}()
	}
	for range 6 {
		if err := <-ends; err != nil {
			t.Error(err)
		}
	}
	c.equalImages(0, 1, 2)
}

func TestResizeReachesEveryServer(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(0, 1, 2)
	cl := c.connect(1, "client")
	cl.write(0, bytes.Repeat([]byte("1"), 512))
	c.awaitLinks(2)
	if _, err := handleResize(t.Context(), c.vol(2), bytes.NewReader([]byte(`{"size_bytes":33554432}`))); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		c.await(i, "resized", func(s VolumeStatus) bool { return s.SizeBytes == 2*testSize })
	}
	cl.write(2*testSize-512, bytes.Repeat([]byte("2"), 512))
	for i := range 3 {
		c.kill(i)
	}
	c.start(0, 1, 2)
	cl = c.connect(2, "client")
	cl.wantRead(2*testSize-512, bytes.Repeat([]byte("2"), 512))
	c.equalImages(0, 1, 2)
}

// A size that no image can have, as a TiB typed for a GiB, was numbered: every server
// failed to take it, at each restart anew.
func TestResizeBeyondTheFileSystemIsRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	c.awaitHealthy(0)
	body := fmt.Appendf(nil, `{"size_bytes":%d}`, int64(record.MaxSize))
	if _, err := handleResize(t.Context(), c.vol(0), bytes.NewReader(body)); !errors.Is(err, replica.ErrRefused) {
		t.Fatalf("resize to %d bytes: %v, want a refusal", int64(record.MaxSize), err)
	}
	cl := c.connect(0, "client")
	cl.write(0, bytes.Repeat([]byte("1"), 512))
	c.await(0, "as it was", func(s VolumeStatus) bool { return s.State == StateHealthy && s.SizeBytes == testSize })
}

// A server that wakes from a long sleep asks the kernel about its clients before it
// does anything else, also about those whose writes were taken in before the sleep.
func TestWaitingWriteOfADepartedClientIsDroppedAfterASleep(t *testing.T) {
	var slept, gone atomic.Bool
	c := newCluster(t, 2, nil)
	c.change = func(o *Options) {
		o.fill()
		if clock := o.Clock; o.ID == mustID("b") {
			o.Clock = func() replica.Time {
				if slept.Load() {
					return clock().Add(10 * time.Second)
				}
				return clock()
			}
		}
	}
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	cl := c.connectAs(1, ClientInfo{Identity: "client", Gone: gone.Load})
	cl.write(0, bytes.Repeat([]byte("1"), 512))
	c.kill(0)
	c.await(1, "suspended", func(s VolumeStatus) bool { return s.State == StateSuspended })
	done := make(chan error, 1)
	go func() { done <- cl.change(OpWrite, 0, bytes.Repeat([]byte("2"), 512), 0) }()
	c.await(1, "waiting", func(VolumeStatus) bool { _, waits := cl.oldest(); return waits })
	gone.Store(true) // nobody asks while the write waits
	slept.Store(true)
	if err := <-done; !errors.Is(err, ErrAborted) {
		t.Errorf("write: %v, want ErrAborted", err)
	}
	gone.Store(false)
	c.start(0)
	c.awaitHealthy(0, 1)
	cl = c.connect(1, "client")
	cl.wantRead(0, bytes.Repeat([]byte("1"), 512))
}

// Whatever the state machine may come to say: only an error that a client's
// protocol knows is told.
func TestErrorWithoutANumberIsNotTold(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	cl := c.connect(0, "client")
	var told error
	o := &op{conn: cl.Conn, done: func(err error) { told = err }}
	o.Conn = cl.id
	if !cl.push(o) {
		t.Fatal("the connection is dead")
	}
	c.vol(0).clients.complete(replica.Completion{Op: &o.Op, Err: replica.ErrFenced})
	if !errors.Is(told, ErrAborted) {
		t.Errorf("told %v, want ErrAborted", told)
	}
}

// A loop that waited for its disk did not send its clients away either.
func TestClientsOfAHungServerAreSentAway(t *testing.T) {
	c := newCluster(t, 1, func(o *Options) { o.IOTimeout = 100 * time.Millisecond })
	c.start(0)
	write, read := c.connect(0, "client"), c.connect(0, "client")
	write.write(0, bytes.Repeat([]byte("1"), 4096))
	hang := make(chan struct{})
	c.vol(0).in.call(func() { <-hang })
	c.vol(0).lease.Store(0) // the read needs a turn
	answers := make(chan error, 2)
	go func() { answers <- write.change(OpWrite, 0, bytes.Repeat([]byte("2"), 4096), 0) }()
	go func() { answers <- read.ReadAt(t.Context(), make([]byte, 512), 0) }()
	for range 2 {
		if err := <-answers; !errors.Is(err, ErrAborted) {
			t.Errorf("answered with %v, want ErrAborted", err)
		}
	}
	close(hang)
}

// A connection that was let go of in the very moment it was made ended before it began:
// its attachment held the volume until the server was restarted.
func TestConnectionBeginsBeforeItEnds(t *testing.T) {
	v := &Volume{in: newInbox()}
	v.clients.init(v)
	for n := range 100_000 {
		c := &Conn{v: v, gone: make(chan struct{})}
		var ended sync.WaitGroup
		ended.Go(func() { // as the loop does when it has slept
			for {
				if all := v.clients.list(); len(all) > 0 {
					all[0].abandon(ErrAborted)
					return
				}
			}
		})
		v.clients.add(c)
		ended.Wait()
		events := v.in.take().events
		if len(events) != 2 {
			t.Fatalf("%d events of connection %d", len(events), n)
		}
		if _, ok := events[0].(replica.Open); !ok {
			t.Fatalf("connection %d begins with %T", n, events[0])
		}
	}
}
