package nbd_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/internal/proto"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

func TestRequestsAreAnsweredInAnyOrder(t *testing.T) {
	for _, op := range []struct {
		name string
		r    nbdtest.Request
	}{
		{"read", nbdtest.Request{Cmd: proto.CmdRead, Length: 4096}},
		{"write", nbdtest.Request{Cmd: proto.CmdWrite, Data: pattern(4096, 1)}},
		{"flush", nbdtest.Request{Cmd: proto.CmdFlush}},
	} {
		t.Run(op.name, func(t *testing.T) {
			d := memDisk()
			release := make(chan struct{})
			fault, arrived := nbdtest.Hold(op.name, release)
			d.SetFault(fault)
			c := attach(t, pipe(t, serveDisk(t, d), true), true)
			held, err := c.Send(op.r)
			if err != nil {
				t.Fatal(err)
			}
			<-arrived
			do(t, c, nbdtest.Request{Cmd: proto.CmdCache, Length: 512}, 0) // overtakes
			close(release)
			rep, err := c.Recv()
			if err != nil || rep.Errno != 0 || rep.Cookie != held[0] {
				t.Fatalf("the held request: %+v, %v", rep, err)
			}
		})
	}
}

func TestReadThatMustWaitIsOvertakenByReadsThatNeedNot(t *testing.T) {
	d := memDisk()
	release := make(chan struct{})
	fault, arrived := nbdtest.Hold("read", release)
	busy := nbdtest.Instant{MemDisk: d, Busy: func(off int64) bool { return off == 0 }}
	c := attach(t, pipe(t, serveDisk(t, busy), true), true)
	write(t, c, 8192, pattern(4096, 1))
	d.SetFault(func(ctx context.Context, call nbdtest.Call) error {
		if call.Off == 0 {
			return fault(ctx, call)
		}
		return nil
	})
	held, err := c.Send(nbdtest.Request{Cmd: proto.CmdRead, Length: 4096})
	if err != nil {
		t.Fatal(err)
	}
	<-arrived
	if got := read(t, c, 8192, 4096); !bytes.Equal(got, pattern(4096, 1)) {
		t.Fatal("wrong data")
	}
	close(release)
	if rep, err := c.Recv(); err != nil || rep.Cookie != held[0] {
		t.Fatalf("the held read: %+v, %v", rep, err)
	}
}

func TestRequestsInFlightAreBounded(t *testing.T) {
	const limit = 8
	d := memDisk()
	release := make(chan struct{})
	fault, arrived := nbdtest.Hold("cache", release)
	d.SetFault(fault)
	s := serve(t, nbd.Options{Exports: nbdtest.Exports{"disk": d}, Limits: nbd.Limits{MaxRequests: limit}})
	c := attach(t, pipe(t, s, true), false)
	const n = 50
	for i := range n {
		if _, err := c.Send(nbdtest.Request{Cmd: proto.CmdCache, Off: uint64(i), Length: 1}); err != nil {
			t.Fatal(err)
		}
	}
	for range limit {
		<-arrived
	}
	// The reader is at its bound: it has read one more request at most, and given it to nobody.
	await(t, "the bound is reached", func() bool { st := s.Stats(); return len(st.Conns) == 1 && st.Conns[0].InFlight == limit })
	select {
	case call := <-arrived:
		t.Fatalf("request %d is in flight although the limit is %d", call.Off, limit)
	default:
	}
	close(release)
	for range n {
		if rep, err := c.Recv(); err != nil || rep.Errno != 0 {
			t.Fatalf("reply %+v, %v", rep, err)
		}
	}
}

func TestBytesInFlightAreBounded(t *testing.T) {
	d := nbdtest.NewMemDisk(nbd.Info{Size: 64 << 20})
	release := make(chan struct{})
	fault, arrived := nbdtest.Hold("read", release)
	d.SetFault(fault)
	s := serve(t, nbd.Options{Exports: nbdtest.Exports{"disk": d}, Limits: nbd.Limits{MaxBytes: 40 << 20, MaxConnBytes: 64 << 20}})
	var clients []*nbdtest.Client
	for range 3 {
		c := attach(t, pipe(t, s, true), true)
		if _, err := c.Send(nbdtest.Request{Cmd: proto.CmdRead, Flags: proto.CmdFlagDF, Length: 32 << 20}); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	<-arrived // one fits into the budget, three do not
	small := attach(t, pipe(t, s, true), true)
	write(t, small, 0, pattern(256<<10, 1)) // within its reserve: served meanwhile
	select {
	case <-arrived:
		t.Fatal("two reads of 32 MiB are in flight although the budget is 40 MiB")
	default:
	}
	close(release)
	var wg sync.WaitGroup
	for _, c := range clients { // at once: which of them was first holds the budget until its reply is read
		wg.Go(func() {
			if rep, err := c.Recv(); err != nil || rep.Errno != 0 {
				t.Errorf("reply %+v, %v", rep, err)
			}
		})
	}
	wg.Wait()
	await(t, "the budget is whole again", func() bool { return s.Stats().BudgetBytes == 40<<20 })
}

// A model check: many requests in flight on several connections, each with a stretch of its own, in random order.
func TestPipelinedRequestsAgreeWithAModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for _, socket := range []bool{false, true} {
		for _, instant := range []bool{false, true} {
			t.Run(fmt.Sprintf("socket=%v,now=%v", socket, instant), func(t *testing.T) {
				d := memDisk()
				var served nbdtest.Informed = d
				if instant { // some of the reads have to wait
					served = nbdtest.Instant{MemDisk: d, Busy: func(off int64) bool { return off/4096%3 == 0 }}
				}
				s := serveDisk(t, served)
				var wg sync.WaitGroup
				for i := range uint64(4) {
					c := attach(t, pipe(t, s, socket), i%2 == 0)
					wg.Go(func() { modelCheck(t, c, rand.New(rand.NewPCG(seed, i)), i*(2<<20)) })
				}
				wg.Wait()
				if d.Allocs() != 0 {
					t.Errorf("%d buffers are still out", d.Allocs())
				}
			})
		}
	}
}

// modelCheck runs requests on [base, base+1 MiB), never two at once on one block.
func modelCheck(t *testing.T, c *nbdtest.Client, rnd *rand.Rand, base uint64) {
	const block, blocks, depth = 4096, 256, 32
	model := make([]byte, block*blocks)
	busy := map[int]bool{}
	want := map[uint64][]byte{} // of reads, by cookie
	first := map[uint64][2]int{}
	recv := func() bool {
		rep, err := c.Recv()
		if err != nil || rep.Errno != 0 {
			t.Errorf("reply %+v, %v", rep, err)
			return false
		}
		if w, ok := want[rep.Cookie]; ok && !bytes.Equal(rep.Data, w) {
			t.Errorf("read of %d at %d differs from the model", rep.Request.Length, rep.Request.Off)
			return false
		}
		for b := first[rep.Cookie][0]; b < first[rep.Cookie][1]; b++ {
			delete(busy, b)
		}
		delete(first, rep.Cookie)
		delete(want, rep.Cookie)
		return true
	}
	for range 2000 {
		lo := rnd.IntN(blocks)
		hi := min(blocks, lo+1+rnd.IntN(40))
		free := len(first) < depth
		for b := lo; b < hi; b++ {
			free = free && !busy[b]
		}
		if !free {
			if len(first) > 0 && !recv() {
				return
			}
			continue
		}
		r := nbdtest.Request{Cmd: proto.CmdRead, Off: base + uint64(lo*block), Length: uint32((hi - lo) * block)}
		p := model[lo*block : hi*block]
		switch rnd.IntN(5) {
		case 0, 1:
			r.Cmd, r.Data = proto.CmdWrite, pattern(len(p), byte(rnd.IntN(16)))
			copy(p, r.Data)
		case 2:
			r.Cmd = proto.CmdWriteZeroes
			clear(p)
		}
		cookies, err := c.Send(r)
		if err != nil {
			t.Error(err)
			return
		}
		if r.Cmd == proto.CmdRead {
			want[cookies[0]] = bytes.Clone(p)
		}
		first[cookies[0]] = [2]int{lo, hi}
		for b := lo; b < hi; b++ {
			busy[b] = true
		}
	}
	for len(first) > 0 && recv() {
	}
}
