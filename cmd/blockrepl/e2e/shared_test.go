package e2e

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// register is the model of one block: a read gives what the last write left.
var register = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byBlock := map[int][]porcupine.Operation{}
		for _, op := range history {
			block := op.Input.(access).block
			byBlock[block] = append(byBlock[block], op)
		}
		var parts [][]porcupine.Operation
		for _, p := range byBlock {
			parts = append(parts, p)
		}
		return parts
	},
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		if in := input.(access); in.write {
			return true, in.value
		}
		return output.(uint64) == state.(uint64), state
	},
	DescribeOperation: func(input, output any) string {
		if in := input.(access); in.write {
			return fmt.Sprintf("write(%d, %x)", in.block, in.value)
		}
		return fmt.Sprintf("read(%d) = %x", input.(access).block, output)
	},
}

// access is one read or write of a block.
type access struct {
	block int
	write bool
	value uint64
}

// recorder takes down who did what when, on one clock.
type recorder struct {
	mu    sync.Mutex
	began time.Time
	ops   []porcupine.Operation
}

func (r *recorder) now() int64 { return int64(time.Since(r.began)) }

func (r *recorder) add(op porcupine.Operation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, op)
}

// TestSharedVolumeIsLinearizable writes and reads the same few blocks through all
// three servers at once, as a cluster file system does, while servers are killed.
func TestSharedVolumeIsLinearizable(t *testing.T) {
	for _, kills := range []int{0, short(6, 2)} {
		t.Run(fmt.Sprintf("%d kills", kills), func(t *testing.T) { sharedIsLinearizable(t, kills) })
	}
}

func sharedIsLinearizable(t *testing.T, kills int) {
	const blocks, clientsEach = 6, 2
	rng := newRand(t)
	c := startCluster(t, setup{size: "16MiB", shared: true, peerTimeout: 500 * time.Millisecond})
	rec := &recorder{began: time.Now()}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	seed := rng.Uint64()
	for i := range clientsEach * len(c.servers) {
		u := &sharer{t: t, id: i, server: c.servers[i%len(c.servers)], rec: rec, blocks: blocks,
			rng: rand.New(rand.NewPCG(seed, uint64(i))), left: short(600, 150), stop: stop}
		wg.Go(u.run)
	}
	for range kills {
		from := rec.count()
		c.await(soon, "more is done", func() (bool, string) { return rec.count() >= from+200, fmt.Sprint(rec.count() - from) })
		s := c.servers[rng.IntN(len(c.servers))]
		s.kill()
		s.start()
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }() // ends with the clients
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the clients did not end")
		close(stop)
		<-ended
	}
	result := porcupine.CheckOperationsTimeout(register, rec.ops, time.Minute)
	if result != porcupine.Ok {
		t.Errorf("%d operations are not linearizable: %v", len(rec.ops), result)
	}
	t.Logf("%d operations by %d clients through %d servers: %v", len(rec.ops), clientsEach*len(c.servers), len(c.servers), result)
	c.finish()
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ops)
}

// sharer is one client of a shared volume.
type sharer struct {
	t      *testing.T
	id     int
	server *server
	rec    *recorder
	rng    *rand.Rand
	blocks int
	left   int
	opens  int
	stop   chan struct{}
}

func (u *sharer) run() {
	for u.left > 0 {
		if err := u.session(); err != nil {
			u.t.Errorf("client %d at %s: %v", u.id, u.server.id, err)
			return
		}
		select {
		case <-u.stop:
			return
		case <-time.After(reconnectEvery):
		}
	}
}

// session is one connection; a broken one is not an error, an error reply is.
func (u *sharer) session() error {
	u.opens++
	c, err := dial(u.server, fmt.Sprintf("client=sharer%d&token=%d", u.id, u.opens))
	if err != nil {
		return nil
	}
	defer c.close()
	for ; u.left > 0; u.left-- {
		c.deadline(20 * time.Second)
		in := access{block: u.rng.IntN(u.blocks), write: u.rng.IntN(2) == 0}
		op := porcupine.Operation{ClientId: u.id, Call: u.rec.now()}
		off := int64(in.block) * blockBytes
		var out uint64
		if in.write {
			in.value = uint64(u.id+1)<<32 | uint64(u.opens)<<20 | uint64(u.left)
			p := make([]byte, blockBytes)
			binary.LittleEndian.PutUint64(p, in.value)
			binary.LittleEndian.PutUint64(p[blockBytes-8:], in.value)
			err = c.write(off, p)
		} else {
			var p []byte
			if p, err = c.read(off, blockBytes); err == nil {
				if out = binary.LittleEndian.Uint64(p); out != binary.LittleEndian.Uint64(p[blockBytes-8:]) {
					return fmt.Errorf("block %d is a mixture", in.block)
				}
			}
		}
		if refused, ok := err.(*errnoError); ok {
			return refused
		}
		op.Input, op.Output, op.Return = in, out, u.rec.now()
		switch {
		case err == nil:
			u.rec.add(op)
		case in.write: // unanswered: it may happen at any time from now on, or never
			op.Return = int64(time.Hour)
			u.rec.add(op)
			return nil
		default:
			return nil
		}
	}
	return nil
}
