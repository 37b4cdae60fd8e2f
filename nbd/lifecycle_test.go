package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/internal/proto"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// meet hands out the nbd.Client of each connection that opens an export, and waits if wait is set.
type meet struct {
	nbdtest.Exports
	met  chan *nbd.Client
	wait chan struct{}
}

func (m meet) Open(ctx context.Context, c *nbd.Client, name string) (nbd.Disk, nbd.Info, error) {
	m.met <- c
	if m.wait != nil {
		select {
		case <-m.wait:
		case <-ctx.Done():
			m.met <- nil
			return nil, nbd.Info{}, fmt.Errorf("open: %w", context.Cause(ctx))
		}
	}
	return m.Exports.Open(ctx, c, name)
}

func meeting(d nbdtest.Informed) meet {
	return meet{Exports: nbdtest.Exports{"disk": d}, met: make(chan *nbd.Client, 16)}
}

// hold makes a disk hold every op and gives how to let them go.
func hold(d *nbdtest.MemDisk, op string) (arrived <-chan nbdtest.Call, release func()) {
	ch := make(chan struct{})
	fault, arrived := nbdtest.Hold(op, ch)
	d.SetFault(fault)
	return arrived, func() { close(ch) }
}

func send(t testing.TB, c *nbdtest.Client, rs ...nbdtest.Request) {
	t.Helper()
	if _, err := c.Send(rs...); err != nil {
		t.Fatal(err)
	}
}

func TestShutdownAnswersWhatWasReadAndCloses(t *testing.T) {
	for _, socket := range []bool{false, true} {
		d := memDisk()
		s := serveDisk(t, d)
		idle := attach(t, pipe(t, s, socket), true)
		negotiating := greeted(t, pipe(t, s, socket))
		c := attach(t, pipe(t, s, socket), true)
		arrived, release := hold(d, "write")
		send(t, c, nbdtest.Request{Cmd: proto.CmdWrite, Data: pattern(4096, 1)})
		<-arrived
		done := make(chan error, 1)
		go func() { done <- s.Shutdown(context.Background()) }()
		wantClosed(t, idle)
		wantClosed(t, negotiating)
		release()
		if rep, err := c.Recv(); err != nil || rep.Errno != 0 {
			t.Fatalf("the write in flight: %+v, %v", rep, err)
		}
		wantClosed(t, c)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if d.Closed() != 2 {
			t.Errorf("%d disks were closed, want 2", d.Closed())
		}
		if err := s.ServeConn(context.Background(), newPipe(t)); !errors.Is(err, nbd.ErrServerClosed) {
			t.Errorf("a connection after shutdown: %v", err)
		}
	}
}

func TestShutdownInTheMiddleOfAPayloadAnswersWhatCameBefore(t *testing.T) {
	for _, socket := range []bool{false, true} {
		d := memDisk()
		s := serveDisk(t, d)
		c := attach(t, pipe(t, s, socket), true)
		arrived, release := hold(d, "flush")
		send(t, c, nbdtest.Request{Cmd: proto.CmdFlush})
		<-arrived
		half := nbdtest.AppendRequest(nil, 77, nbdtest.Request{Cmd: proto.CmdWrite, Data: pattern(8192, 1)})
		if _, err := c.Conn.Write(half[:4096]); err != nil {
			t.Fatal(err)
		}
		await(t, "the payload is being read", func() bool { return s.Stats().Conns[0].InFlight == 2 })
		done := make(chan error, 1)
		go func() { done <- s.Shutdown(context.Background()) }()
		await(t, "the half request is given up", func() bool { st := s.Stats(); return len(st.Conns) == 0 || st.Conns[0].InFlight == 1 })
		release()
		if rep, err := c.Recv(); err != nil || rep.Errno != 0 || rep.Request.Cmd != proto.CmdFlush {
			t.Fatalf("the flush in flight: %+v, %v", rep, err)
		}
		wantClosed(t, c)
		if err := <-done; err != nil || d.Writes() != 0 || d.Allocs() != 0 {
			t.Errorf("shutdown %v, %d writes, %d buffers out", err, d.Writes(), d.Allocs())
		}
	}
}

func newPipe(t testing.TB) net.Conn {
	a, b := net.Pipe()
	t.Cleanup(func() { _ = a.Close() })
	return b
}

func TestShutdownThatMayNotWaitDropsWithoutReply(t *testing.T) {
	d := memDisk()
	s := serveDisk(t, d)
	c := attach(t, pipe(t, s, true), true)
	arrived, _ := hold(d, "write")
	send(t, c, nbdtest.Request{Cmd: proto.CmdWrite, Data: pattern(4096, 1)})
	<-arrived
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("shutdown: %v", err)
	}
	if rep, err := c.Recv(); err == nil || isTimeout(err) {
		t.Fatalf("reply %+v, %v, want a closed connection", rep, err)
	}
	if d.Closed() != 1 || d.Writes() != 0 || d.Allocs() != 0 {
		t.Errorf("closed %d, writes %d, buffers out %d, want 1, 0, 0", d.Closed(), d.Writes(), d.Allocs())
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	s := serveDisk(t, memDisk())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	c := attach(t, dial(t, ln.Addr().String()), true)
	cancel()
	wantClosed(t, c)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("serve: %v", err)
	}
}

func TestServeEndsWithClose(t *testing.T) {
	s := serveDisk(t, memDisk())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), ln) }()
	attach(t, dial(t, ln.Addr().String()), true)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; !errors.Is(err, nbd.ErrServerClosed) {
		t.Fatalf("serve: %v", err)
	}
	if err := s.Serve(context.Background(), ln); !errors.Is(err, nbd.ErrServerClosed) {
		t.Fatalf("serve after close: %v", err)
	}
}

func TestAbortClosesWithoutReply(t *testing.T) {
	d := memDisk()
	m := meeting(d)
	s := serve(t, nbd.Options{Exports: m})
	c := attach(t, pipe(t, s, true), true)
	client := <-m.met
	arrived, _ := hold(d, "write")
	send(t, c, nbdtest.Request{Cmd: proto.CmdWrite, Data: pattern(4096, 1)})
	<-arrived
	for range 2 {
		client.Abort(errors.New("a newer attachment"))
	}
	if rep, err := c.Recv(); err == nil || isTimeout(err) {
		t.Fatalf("reply %+v, %v, want a closed connection", rep, err)
	}
	if !client.Gone() {
		t.Error("an aborted client is not gone")
	}
	await(t, "the disk is closed", func() bool { return d.Closed() == 1 })
}

// gatedDisk waits in Submit, in the goroutine that reads the connection: the server is as if it had been stopped.
type gatedDisk struct {
	*nbdtest.MemDisk
	entered chan int64
	gate    chan struct{}
}

func (d gatedDisk) Submit(ctx context.Context, w *nbd.Write) {
	d.entered <- w.Off
	<-d.gate
	d.MemDisk.Submit(ctx, w)
}

// A server that was stopped (SIGSTOP, a hung host) and wakes up finds requests of a client that has long moved on to
// another server. They must not run: newer writes may have been acknowledged there.
func TestWhatAClosedConnectionHadSentIsDiscarded(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		d := gatedDisk{memDisk(), make(chan int64, 16), make(chan struct{})}
		m := meeting(d)
		s := serve(t, nbd.Options{Exports: m})
		var conn net.Conn
		if network == "tcp" {
			conn = dial(t, listen(t, s))
		} else {
			conn = pipe(t, s, true)
		}
		c := attach(t, conn, false)
		client := <-m.met
		send(t, c, nbdtest.Request{Cmd: proto.CmdWrite, Off: 0, Data: pattern(512, 1)})
		<-d.entered
		send(t, c, nbdtest.Request{Cmd: proto.CmdWrite, Off: 4096, Data: pattern(512, 1)},
			nbdtest.Request{Cmd: proto.CmdWriteZeroes, Off: 8192, Length: 512})
		if client.Gone() {
			t.Fatalf("%s: the client is gone before it closed", network)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		await(t, "the server sees the close behind unread requests", client.Gone)
		close(d.gate)
		await(t, "the disk is closed", func() bool { return d.Closed() == 1 })
		if d.Writes() != 1 || len(d.entered) != 0 || d.Allocs() != 0 {
			t.Errorf("%s: %d writes done, %d more submitted, %d buffers out, want 1, 0, 0", network, d.Writes(), len(d.entered), d.Allocs())
		}
	}
}

func TestWaitingRequestsEndWhenTheClientLeaves(t *testing.T) {
	for _, r := range []nbdtest.Request{{Cmd: proto.CmdRead, Length: 4096}, {Cmd: proto.CmdWrite, Data: pattern(512, 1)}, {Cmd: proto.CmdFlush}} {
		for _, socket := range []bool{false, true} {
			d := memDisk()
			op := map[uint16]string{proto.CmdRead: "read", proto.CmdWrite: "write", proto.CmdFlush: "flush"}[r.Cmd]
			arrived, _ := hold(d, op) // never let go
			conn := pipe(t, serveDisk(t, d), socket)
			c := attach(t, conn, true)
			send(t, c, r)
			<-arrived
			_ = conn.Close()
			await(t, "the disk is closed", func() bool { return d.Closed() == 1 })
			if d.Allocs() != 0 {
				t.Errorf("%s: %d buffers are still out", op, d.Allocs())
			}
		}
	}
}

// Nobody reads from a connection that has reached its bound, so its end must be noticed in another way.
func TestAClientThatLeavesAtItsBoundIsNoticed(t *testing.T) {
	d := memDisk()
	arrived, _ := hold(d, "read")
	s := serve(t, nbd.Options{Exports: nbdtest.Exports{"disk": d}, Limits: nbd.Limits{MaxRequests: 2}})
	conn := pipe(t, s, true)
	c := attach(t, conn, true)
	for range 10 {
		send(t, c, nbdtest.Request{Cmd: proto.CmdRead, Length: 4096})
	}
	<-arrived
	<-arrived
	_ = conn.Close()
	await(t, "the disk is closed", func() bool { return d.Closed() == 1 })
}

func TestAClientThatLeavesWhileOpeningIsNoticed(t *testing.T) {
	m := meeting(memDisk())
	m.wait = make(chan struct{})
	conn := pipe(t, serve(t, nbd.Options{Exports: m}), true)
	c := greeted(t, conn)
	if err := c.SendOption(proto.OptGo, nbdtest.GoData("disk")); err != nil {
		t.Fatal(err)
	}
	<-m.met
	_ = conn.Close()
	select {
	case <-m.met: // its context ended
	case <-time.After(patience):
		t.Fatal("open still waits")
	}
}

func TestOpenMayWaitLongerThanTheHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := meeting(memDisk())
		m.wait = make(chan struct{})
		s := serve(t, nbd.Options{Exports: m})
		ours, theirs := net.Pipe()
		go func() { _ = s.ServeConn(context.Background(), theirs) }()
		c := greeted(t, ours)
		if err := c.SendOption(proto.OptGo, nbdtest.GoData("disk")); err != nil {
			t.Fatal(err)
		}
		<-m.met
		time.Sleep(24 * time.Hour) // of the bubble's clock: no master for a day
		close(m.wait)
		for {
			rep, err := c.RecvOption(proto.OptGo)
			if err != nil {
				t.Fatal(err)
			}
			if rep.Type == proto.RepAck {
				break
			}
		}
		_ = ours.Close()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestStatsTellConnections(t *testing.T) {
	m := meeting(memDisk())
	s := serve(t, nbd.Options{Exports: m})
	addr := listen(t, s)
	a, b := attach(t, dial(t, addr), true), attach(t, dial(t, addr), false)
	write(t, a, 0, pattern(4096, 1))
	read(t, b, 0, 512)
	read(t, b, 0, 512)
	st := s.Stats()
	if len(st.Conns) != 2 || st.Accepted != 2 {
		t.Fatalf("stats %+v, want two connections", st)
	}
	x, y := st.Conns[0], st.Conns[1]
	if x.Addr != "127.0.0.1" || x.Export != "disk" || x.Writes != 1 || x.WriteBytes != 4096 || x.Reads != 0 || x.Since.IsZero() {
		t.Errorf("the first connection: %+v", x)
	}
	if y.Reads != 2 || y.ReadBytes != 1024 || y.Requests != 2 || y.ID <= x.ID {
		t.Errorf("the second connection: %+v", y)
	}
	if got := (<-m.met).Listener; got != "tcp:"+addr {
		t.Errorf("listener %q, want %q", got, "tcp:"+addr)
	}
}

func TestUnixPeersAreNamedByTheirUser(t *testing.T) {
	m := meeting(memDisk())
	attach(t, pipe(t, serve(t, nbd.Options{Exports: m}), true), true)
	if got, want := (<-m.met).Addr, fmt.Sprintf("unix:uid=%d", os.Getuid()); got != want {
		t.Errorf("address %q, want %q", got, want)
	}
}

func TestManyConnectionsAreServedAtOnce(t *testing.T) {
	s := serveDisk(t, memDisk())
	addr := listen(t, s)
	errs := make(chan error, 64)
	for i := range 64 {
		c := attach(t, dial(t, addr), i%2 == 0)
		go func() {
			data := pattern(8192, byte(i))
			if _, err := c.Do(nbdtest.Request{Cmd: proto.CmdWrite, Off: uint64(i) * 8192, Data: data}); err != nil {
				errs <- err
				return
			}
			rep, err := c.Do(nbdtest.Request{Cmd: proto.CmdRead, Off: uint64(i) * 8192, Length: 8192})
			if err == nil && !bytes.Equal(rep.Data, data) {
				err = fmt.Errorf("connection %d reads other data", i)
			}
			errs <- err
		}()
	}
	for range 64 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
