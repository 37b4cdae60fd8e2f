package nbd_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/internal/proto"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

func TestHugeOptionIsCutOff(t *testing.T) {
	for _, n := range []uint32{1<<20 + 1, 1 << 31, 1<<32 - 1} {
		for _, opt := range []uint32{proto.OptGo, proto.OptExportName, proto.OptList, 77} {
			c := greeted(t, pipe(t, serveDisk(t, memDisk()), true))
			head := option(opt, nil)
			binary.BigEndian.PutUint32(head[12:], n)
			if _, err := c.Conn.Write(head); err != nil {
				t.Fatal(err)
			}
			wantClosed(t, c)
		}
	}
}

func TestEndlessOptionsAreCutOff(t *testing.T) {
	s := serve(t, nbd.Options{Exports: nbdtest.Exports{"disk": memDisk()}, Limits: nbd.Limits{MaxOptions: 10}})
	c := greeted(t, pipe(t, s, true))
	for i := range 10 {
		if _, err := c.List(); err != nil {
			t.Fatalf("option %d: %v", i, err)
		}
	}
	if _, err := c.List(); err == nil || isTimeout(err) {
		t.Fatalf("one option too many: %v", err)
	}
}

func TestWrongMagicCloses(t *testing.T) {
	c := greeted(t, pipe(t, serveDisk(t, memDisk()), true))
	if _, err := c.Conn.Write(make([]byte, proto.OptionLen)); err != nil {
		t.Fatal(err)
	}
	wantClosed(t, c)
	d := memDisk()
	c = attach(t, pipe(t, serveDisk(t, d), true), true)
	if _, err := c.Conn.Write(make([]byte, proto.RequestLen)); err != nil {
		t.Fatal(err)
	}
	wantClosed(t, c)
	await(t, "the disk is closed", func() bool { return d.Closed() == 1 })
}

func TestAWriteCutInTheMiddleIsNotDone(t *testing.T) {
	for _, socket := range []bool{false, true} {
		for _, sent := range []int{0, 1, 4096, 99_999} {
			d := memDisk()
			conn := pipe(t, serveDisk(t, d), socket)
			attach(t, conn, true)
			b := nbdtest.AppendRequest(nil, 1, nbdtest.Request{Cmd: proto.CmdWrite, Data: pattern(100_000, 1)})
			if _, err := conn.Write(b[:proto.RequestLen+sent]); err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			await(t, "the disk is closed", func() bool { return d.Closed() == 1 })
			if d.Writes() != 0 || d.Allocs() != 0 {
				t.Errorf("%d bytes sent: %d writes, %d buffers out", sent, d.Writes(), d.Allocs())
			}
		}
	}
}

// A refused write of 4 GiB is skipped to its last byte without memory.
func TestPayloadOfARefusedWriteOf4GiBIsSkipped(t *testing.T) {
	s := serveDisk(t, memDisk())
	c := attach(t, pipe(t, s, true), true)
	const n = 1<<32 - 1
	c.Conn.(*net.UnixConn).SetWriteBuffer(4 << 20)
	send(t, c, nbdtest.Request{Cmd: proto.CmdWrite, Length: n})
	zero := make([]byte, 1<<20)
	for left := n; left > 0; {
		k, err := c.Conn.Write(zero[:min(left, len(zero))])
		if err != nil {
			t.Fatal(err)
		}
		left -= k
	}
	if rep, err := c.Recv(); err != nil || rep.Errno != proto.EINVAL {
		t.Fatalf("reply %+v, %v", rep, err)
	}
	write(t, c, 0, pattern(512, 1))
}

// heap gives the bytes in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// A client that sends and never reads costs it its connection in the end, and the server no more than its bounds.
func TestClientsThatDoNotReadAreBounded(t *testing.T) {
	d := nbdtest.NewMemDisk(nbd.Info{Size: 64 << 20})
	s := serve(t, nbd.Options{Exports: nbdtest.Exports{"disk": d}, Limits: nbd.Limits{MaxBytes: 64 << 20}})
	before := heap()
	for range 8 {
		c := attach(t, pipe(t, s, true), true)
		go func() { // blocks when the server stops reading; the test's end closes the connection
			for {
				if _, err := c.Send(nbdtest.Request{Cmd: proto.CmdRead, Flags: proto.CmdFlagDF, Length: 16 << 20}); err != nil {
					return
				}
			}
		}()
	}
	await(t, "the budget is used up", func() bool { return s.Stats().BudgetBytes < 16<<20 })
	if used := int64(heap()) - int64(before); used > 128<<20 {
		t.Errorf("%d MiB in use, with a budget of 64", used>>20)
	}
	good := attach(t, pipe(t, s, true), true)
	write(t, good, 0, pattern(4096, 1)) // its reserve is its own
	for _, st := range s.Stats().Conns {
		if st.HeldBytes > 64<<20 {
			t.Errorf("connection %d holds %d bytes", st.ID, st.HeldBytes)
		}
	}
}

// A small read that came alone waited to be sent in a piece of 256 KiB: 64 MiB for each client that did not read its
// replies, and none of it charged.
func TestSmallRepliesThatNobodyReadsTakeLittle(t *testing.T) {
	d := memDisk()
	s := serveDisk(t, nbdtest.Instant{MemDisk: d})
	write(t, attach(t, pipe(t, s, true), true), 0, pattern(4096, 1))
	before := heap()
	const clients, reads = 8, 250
	for range clients {
		c := attach(t, pipe(t, s, false), true)
		for range reads { // each is taken when the one before has gone to the outbox: a pipe holds nothing
			send(t, c, nbdtest.Request{Cmd: proto.CmdRead, Length: 4096})
		}
	}
	if used := int64(heap()) - int64(before); used > 4*clients*reads*4096 {
		t.Errorf("%d MiB in use for %d MiB of replies", used>>20, clients*reads*4096>>20)
	}
}

func TestAClientThatClosesWithRepliesUnreadHarmsNobody(t *testing.T) {
	d := memDisk()
	s := serveDisk(t, nbdtest.Instant{MemDisk: d})
	for range 50 {
		conn := pipe(t, s, true)
		c := attach(t, conn, true)
		for range 20 {
			send(t, c, nbdtest.Request{Cmd: proto.CmdRead, Flags: proto.CmdFlagDF, Length: 64 << 10})
		}
		_ = conn.Close()
	}
	await(t, "all disks are closed", func() bool { return d.Closed() == 50 })
	write(t, attach(t, pipe(t, s, true), true), 0, pattern(512, 1))
}

func TestSilentConnectionsDoNotLockOthersOut(t *testing.T) {
	s := serve(t, nbd.Options{Exports: nbdtest.Exports{"disk": memDisk()}, Limits: nbd.Limits{MaxHandshakes: 64}})
	addr := listen(t, s)
	var silent []net.Conn
	for range 200 {
		silent = append(silent, dial(t, addr))
	}
	c := attach(t, dial(t, addr), true)
	write(t, c, 0, pattern(512, 1))
	if n := s.Stats().Handshakes; n > 64 {
		t.Errorf("%d connections negotiate, the limit is 64", n)
	}
	// The oldest made room.
	b := make([]byte, proto.GreetingLen+1)
	if _, err := io.ReadFull(silent[0], b); err == nil || isTimeout(err) {
		t.Errorf("the oldest silent connection is open: %v", err)
	}
}

func TestOneClientTooManyIsToldSo(t *testing.T) {
	s := serve(t, nbd.Options{Exports: nbdtest.Exports{"disk": memDisk()}, Limits: nbd.Limits{MaxClients: 2}})
	a, _ := attach(t, pipe(t, s, true), true), attach(t, pipe(t, s, true), true)
	c := greeted(t, pipe(t, s, true))
	wantOption(t, c.Go("disk"), proto.RepErrPolicy)
	if err := a.Disconnect(); err != nil {
		t.Fatal(err)
	}
	await(t, "there is room again", func() bool { return len(s.Stats().Conns) == 1 })
	if err := c.Go("disk"); err != nil { // the same connection, after the refusal
		t.Fatal(err)
	}
}

func TestTenThousandConnectsAndDrops(t *testing.T) {
	s := serveDisk(t, memDisk())
	addr := listen(t, s)
	good := attach(t, dial(t, addr), true)
	for i := range 10_000 {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		switch i % 3 {
		case 0:
			_ = conn.(*net.TCPConn).SetLinger(0) // a reset
		case 1:
			_, _ = conn.Write([]byte{0, 0, 0, 3}) // half a handshake; it may be cut off already
		}
		_ = conn.Close()
		if i%1000 == 0 {
			write(t, good, 0, pattern(4096, byte(i/1000)))
		}
	}
	await(t, "only the good client is left", func() bool { st := s.Stats(); return len(st.Conns) == 1 && st.Handshakes == 0 })
}

// The tests of time run in a bubble, where the clock is not the wall's.

func bubbleServer(t *testing.T, l nbd.Limits, d nbdtest.Informed) (*nbd.Server, func() net.Conn) {
	s := serve(t, nbd.Options{Exports: nbdtest.Exports{"disk": d}, Limits: l})
	return s, func() net.Conn {
		ours, theirs := net.Pipe()
		go func() { _ = s.ServeConn(context.Background(), theirs) }()
		t.Cleanup(func() { _ = ours.Close() })
		return ours
	}
}

func TestHandshakeHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, connect := bubbleServer(t, nbd.Limits{}, memDisk())
		start := time.Now()
		silent := greeted(t, connect())
		slow := greeted(t, connect())
		done := make(chan struct{})
		go func() { // a byte a second of an option
			defer close(done)
			for _, b := range option(proto.OptList, nil) {
				if _, err := slow.Conn.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		wantClosed(t, silent)
		wantClosed(t, slow)
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("cut off after %v, want 10 s", took)
		}
		<-done
	})
}

func TestStalledClientsAreCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tc := range []struct {
			name string
			do   func(c *nbdtest.Client)
		}{
			{"in the middle of a header", func(c *nbdtest.Client) { _, _ = c.Conn.Write([]byte{0x25}) }},
			{"a byte a second of a payload", func(c *nbdtest.Client) {
				send(t, c, nbdtest.Request{Cmd: proto.CmdWrite, Length: 4096})
				for {
					if _, err := c.Conn.Write([]byte{1}); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			}},
			{"a byte a second of the replies", func(c *nbdtest.Client) {
				send(t, c, nbdtest.Request{Cmd: proto.CmdRead, Length: 1 << 20})
				for {
					if _, err := c.Conn.Read(make([]byte, 1)); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			}},
			{"replies not read at all", func(c *nbdtest.Client) {
				send(t, c, nbdtest.Request{Cmd: proto.CmdRead, Length: 1 << 20})
			}},
		} {
			d := memDisk()
			d.SetFault(nil)
			s, connect := bubbleServer(t, nbd.Limits{}, d)
			start := time.Now()
			stalled, good := attach(t, connect(), false), attach(t, connect(), false)
			write(t, good, 0, pattern(4096, 1))
			done := make(chan struct{})
			go func() { defer close(done); tc.do(stalled) }()
			for range 100 {
				time.Sleep(time.Second)
				write(t, good, 0, pattern(4096, 1))
				if d.Closed() == 1 {
					break
				}
			}
			if took := time.Since(start); d.Closed() != 1 || took < time.Minute || took > 65*time.Second {
				t.Errorf("%s: closed %d after %v, want 1 after a minute", tc.name, d.Closed(), took)
			}
			<-done
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestIdleAndWaitingClientsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memDisk()
		s, connect := bubbleServer(t, nbd.Limits{}, d)
		idle, waiting := attach(t, connect(), true), attach(t, connect(), true)
		_, release := hold(d, "read")
		send(t, waiting, nbdtest.Request{Cmd: proto.CmdRead, Length: 4096})
		time.Sleep(24 * time.Hour)
		d.SetFault(nil)
		release()
		if rep, err := waiting.Recv(); err != nil || rep.Errno != 0 {
			t.Errorf("the read that waited a day: %+v, %v", rep, err)
		}
		write(t, idle, 0, pattern(512, 1))
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// brokenListener fails its first accepts as a process without file descriptors does.
type brokenListener struct {
	net.Listener
	left int
}

func (l *brokenListener) Accept() (net.Conn, error) {
	if l.left > 0 {
		l.left--
		return nil, errors.New("accept: too many open files")
	}
	return l.Listener.Accept()
}

func TestFailedAcceptIsRetried(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := serveDisk(t, memDisk())
	serveOn(t, s, &brokenListener{ln, 3})
	write(t, attach(t, dial(t, ln.Addr().String()), true), 0, pattern(512, 1))
}
