package bubble

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// A sector's value is the number of the operation that wrote it, in all its words,
// mixed so that some sectors compress and some do not. 0 is a zero sector.

func fill(p []byte, id uint64) {
	for s := 0; s < len(p); s += sector {
		for i := 0; i < sector; i += 8 {
			binary.LittleEndian.PutUint64(p[s+i:], word(id, i))
		}
	}
}

func word(id uint64, i int) uint64 {
	if i == 0 || id%2 == 0 || id == 0 {
		return id
	}
	return id ^ uint64(i)*0x9e3779b97f4a7c15*id
}

// value is what a sector holds, false when it holds no operation's bytes.
func value(p []byte) (uint64, bool) {
	id := binary.LittleEndian.Uint64(p)
	for i := 0; i < sector; i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != word(id, i) {
			return 0, false
		}
	}
	return id, true
}

func show(p []byte) string {
	if id, ok := value(p); ok {
		return fmt.Sprint(id)
	}
	return fmt.Sprintf("% x…", p[:16])
}

// operation is one request of a client, however often it was sent. Each copy that
// was sent may have been done, the earlier ones, too: the client cannot know. None
// of them may be done after the answer (promise 5).
type operation struct {
	id     uint64
	client int
	read   bool
	lo, n  int      // sectors
	val    uint64   // written: id, or 0 for zeroes
	call   []int64  // of each copy
	ret    int64    // 0: the outcome is not known
	got    []uint64 // by a read
	where  string   // who answered

	done chan struct{} // of a row's request: closed with the answer
	err  error         // set before
}

// history is what clients did and saw, in the order of one logical clock.
type history struct {
	mu    sync.Mutex
	clock int64
	next  uint64
	ops   []*operation
	acked int
	// undecided counts sectors with so many requests at once that the checker gave up.
	undecided int
	reads     int
}

func (h *history) begin(o *operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	h.next++
	o.id, o.call = h.next, []int64{h.clock}
	h.ops = append(h.ops, o)
}

// again notes that a request is sent once more.
func (h *history) again(o *operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	o.call = append(o.call, h.clock)
}

func (h *history) end(o *operation, where string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	o.ret, o.where = h.clock, where
	if o.read {
		h.reads++
	} else {
		h.acked++
	}
}

// refused takes out a change that was answered with an error: nobody may ever read
// it. What an earlier copy did is not known; then it stays, without an end.
func (h *history) refused(o *operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(o.call) == 1 {
		h.ops = slices.DeleteFunc(h.ops, func(x *operation) bool { return x == o })
	}
}

func (h *history) counts() (acked, reads int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.acked, h.reads
}

type step struct {
	read bool
	val  uint64
	o    *operation
}

// register is one sector as a client of any disk would judge it.
var register = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		in := input.(step)
		if in.read {
			return state.(uint64) == output.(uint64), state
		}
		return true, in.val
	},
}

// check says what is wrong with the history: each sector must have been one
// register for all clients on all servers.
func (h *history) check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	bySector := make([][]porcupine.Operation, sectors)
	returns := make([][]int64, sectors)
	for _, o := range h.ops {
		for i := o.lo; o.ret > 0 && i < o.lo+o.n; i++ {
			returns[i] = append(returns[i], o.ret)
		}
	}
	for _, r := range returns {
		slices.Sort(r)
	}
	written := map[uint64]bool{0: true}
	for _, o := range h.ops {
		if o.read && o.ret == 0 {
			continue
		}
		written[o.val] = true
		ret := o.ret
		if ret == 0 {
			ret = math.MaxInt64
		}
		for i := range o.n {
			var out any
			if o.read {
				out = o.got[i]
			}
			for _, call := range copies(o.call, returns[o.lo+i]) {
				bySector[o.lo+i] = append(bySector[o.lo+i], porcupine.Operation{
					ClientId: o.client, Input: step{o.read, o.val, o}, Output: out, Call: call, Return: ret,
				})
			}
		}
	}
	for s, ops := range bySector {
		switch porcupine.CheckOperationsTimeout(register, ops, 2*time.Second) {
		case porcupine.Illegal:
			return fmt.Errorf("sector %d was not one disk:\n%s", s, list(ops))
		case porcupine.Unknown:
			h.undecided++
		}
	}
	return nil
}

// copies leaves out copies that make no difference. A copy that was not done is as
// one done just before the last, so all may be taken for done; of those between which
// no request of the sector ended each may show itself once more, but a client that
// moves on as often as copiesMost times in that while, with all of them done, was not
// met, and each one doubles the work.
func copies(calls, returns []int64) (kept []int64) {
	const copiesMost = 4
	last, n := -1, 0
	for _, call := range calls {
		k, _ := slices.BinarySearch(returns, call)
		if k != last {
			last, n = k, 0
		}
		if n++; n <= copiesMost {
			kept = append(kept, call)
		}
	}
	return kept
}

func list(ops []porcupine.Operation) (text string) {
	for _, p := range ops {
		in := p.Input.(step)
		what := fmt.Sprintf("writes %d", in.val)
		if in.read {
			what = fmt.Sprintf("reads %d at %s", p.Output, in.o.where)
		}
		end := fmt.Sprint(p.Return)
		if in.o.ret == 0 {
			end = "?"
		}
		text += fmt.Sprintf("    %d..%s client %d operation %d (%d sectors from %d) %s\n", p.Call, end, in.o.client, in.o.id, in.o.n, in.o.lo, what)
	}
	return text
}
