package bubble

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"sync"

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
	// undecided counts sectors with so many requests at once that the checker gave up,
	// after a number of steps: the same history is decided alike on any machine.
	undecided int
	reads     int

	// When writes may first have been lost, and since when none may be again; 0: never.
	lost, settled int64
}

// lose notes that an operator does what may lose writes.
func (h *history) lose() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost == 0 {
		h.clock++
		h.lost = h.clock
	}
}

// settle notes that this is over.
func (h *history) settle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost != 0 {
		h.clock++
		h.settled = h.clock
	}
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

const (
	// anything is what a sector holds when it is not known what was lost.
	anything = math.MaxUint64
	// stepsMost bounds the work for one sector, in steps of the model: some seconds.
	stepsMost = 8 << 20
)

// register is one sector as a client of any disk would judge it, which first holds
// init. After stepsMost steps it agrees to nothing more, and spent is set.
func register(init uint64, spent *bool) porcupine.Model {
	steps := 0
	return porcupine.Model{
		Init: func() any { return init },
		Step: func(state, input, output any) (bool, any) {
			if steps++; steps > stepsMost {
				*spent = true
				return false, state
			}
			in := input.(step)
			switch {
			case !in.read:
				return true, in.val
			case state.(uint64) == anything:
				return true, output
			}
			return state.(uint64) == output.(uint64), state
		},
	}
}

// check says what is wrong with the history: each sector must have been one register
// for all clients on all servers. Where writes may have been lost, what ended before
// must have been one, and what began behind another that may have held anything first.
func (h *history) check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost == 0 {
		return h.judge(0, h.ops)
	}
	var before, after []*operation
	for _, o := range h.ops {
		if o.call[0] < h.lost {
			was := *o
			if was.ret > h.lost {
				was.ret = 0
			}
			k, _ := slices.BinarySearch(o.call, h.lost)
			was.call = o.call[:k]
			before = append(before, &was)
		}
		switch {
		case h.settled == 0 || o.ret != 0 && o.ret < h.settled:
		case o.call[0] > h.settled:
			after = append(after, o)
		case !o.read:
			// It may have been done before, and what is there first be newer.
			late := *o
			late.ret = 0
			after = append(after, &late)
		}
	}
	if err := h.judge(0, before); err != nil {
		return err
	}
	return h.judge(anything, after)
}

func (h *history) judge(init uint64, all []*operation) error {
	bySector := make([][]porcupine.Operation, sectorsMost)
	returns := make([][]int64, sectorsMost)
	for _, o := range all {
		for i := o.lo; o.ret > 0 && i < o.lo+o.n; i++ {
			returns[i] = append(returns[i], o.ret)
		}
	}
	for _, r := range returns {
		slices.Sort(r)
	}
	for _, o := range all {
		if o.read && o.ret == 0 {
			continue
		}
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
		spent := false
		switch ok := porcupine.CheckOperations(register(init, &spent), ops); {
		case spent && !ok:
			h.undecided++
		case !ok:
			return fmt.Errorf("sector %d was not one disk:\n%s", s, list(ops))
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
