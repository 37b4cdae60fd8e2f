package sim

import (
	"cmp"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// registerOp is a write of value, or a read that saw it, on one sector. again is a
// further copy of a write that was sent once more: it takes place, within the same
// time, or never.
type registerOp struct {
	read, again bool
	value       uint64
}

var register = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{uint64(0)} },
	Step: func(state, input, _ any) []any {
		op := input.(registerOp)
		switch {
		case op.again:
			return []any{state, op.value}
		case !op.read:
			return []any{op.value}
		case op.value == state.(uint64):
			return []any{state}
		}
		return nil
	},
	Equal: func(a, b any) bool { return a == b },
}).ToModel()

// looseMax is how many operations of a window may lack an end or may not take place:
// each doubles the checker's work.
const looseMax = 8

// windowOps is how many operations on a sector porcupine is given: its work grows
// quickly with what overlaps.
const windowOps = 80

// judgeEvery: of so many schedules of a campaign one is judged by porcupine, too.
const judgeEvery = 50

// judgeFor is how long porcupine may think about a sector. Beyond it the schedule
// counts as undecided, and is no failure.
const judgeFor = time.Second

// TestReadsAndWritesAreLinearizable judges what clients saw by a checker that
// knows nothing of numbers, as an independent word beside the oracle's.
func TestReadsAndWritesAreLinearizable(t *testing.T) {
	checked := 0
	for seed := uint64(500); seed < 540; seed++ {
		s := New(seed, Options{})
		if f := s.Run(); f != nil {
			t.Fatal(f)
		}
		n, decided := s.judge()
		if checked += n; s.failure != nil {
			t.Fatal(s.failure)
		}
		if !decided {
			t.Logf("seed %d is not decided within %v", seed, judgeFor)
		}
	}
	if checked < 1000 {
		t.Errorf("only %d operations were checked", checked)
	}
	t.Logf("%d operations", checked)
}

// judge looks at the histories of all sectors as they were at the end of a run, and notes
// a failure. It gives how many operations it looked at, and whether it could decide about
// all. Where the operator gave up committed records there is no one history.
func (s *Sim) judge() (ops int, decided bool) {
	if len(s.truth.lines) > 1 {
		return 0, true
	}
	decided = true
	for sector := range s.prof.sectors {
		list := s.window(sector)
		ops += len(list)
		switch porcupine.CheckOperationsTimeout(register, list, judgeFor) {
		case porcupine.Illegal:
			s.fail("linearizable", "the history of sector %d is not that of a register: %+v", sector, list)
			return ops, true
		case porcupine.Unknown:
			decided = false
		}
	}
	return ops, decided
}

// window is as much of a sector's history as the checker can judge quickly.
func (s *Sim) window(sector int) []porcupine.Operation {
	for n := windowOps; ; n /= 2 {
		ops := s.history(sector, n)
		loose := 0
		for _, op := range ops {
			if op.Return == math.MaxInt64 || op.Input.(registerOp).again {
				loose++
			}
		}
		if loose <= looseMax {
			return ops
		}
	}
}

// history is what clients did to one sector and saw of it, from the beginning
// until most have begun. A change whose answer did not come has no end.
func (s *Sim) history(sector, most int) []porcupine.Operation {
	var touching []*request
	for _, q := range s.reqs[1:] {
		if q.lo <= sector && sector < q.lo+q.n && q.kind != reqStale && q.kind != 0 {
			touching = append(touching, q)
		}
	}
	slices.SortFunc(touching, func(a, b *request) int { return cmp.Compare(a.inv, b.inv) })
	until := int64(math.MaxInt64)
	if len(touching) > most {
		until = touching[most].inv
	}
	var ops []porcupine.Operation
	if v := s.truth.lines[0].at(sector, 0); v != 0 { // what the volume was created with
		ops = append(ops, porcupine.Operation{Call: -2, Return: -1, Input: registerOp{value: v}})
	}
	for _, q := range touching {
		if q.inv >= until {
			break
		}
		op := porcupine.Operation{ClientId: len(ops), Call: q.inv, Return: q.res}
		switch {
		case q.kind == reqRead && (q.failed || q.res >= until):
			continue
		case q.kind == reqRead:
			op.Input = registerOp{read: true, value: q.value[sector-q.lo]}
		case q.failed && q.copies == 1:
			continue
		case q.failed:
			op.Return = math.MaxInt64
		}
		if q.changes() {
			v := q.id
			if q.kind != reqWrite {
				v = 0
			}
			op.Input = registerOp{value: v}
		}
		ops = append(ops, op)
		for range max(0, q.copies-1) {
			if q.changes() {
				op.ClientId = len(ops)
				op.Input = registerOp{again: true, value: op.Input.(registerOp).value}
				if s.late(q) {
					op.Return = math.MaxInt64
				}
				ops = append(ops, op)
			}
		}
	}
	return ops
}
