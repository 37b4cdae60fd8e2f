package replica

import (
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// A mastership that never committed was called a split brain once the server that
// had refused it, and promised the next one, had left the set of that; and still once
// that one had been followed by another, forced over a loss.
func TestSplitBrainNeedsTwoMastershipsThatCanHaveCommitted(t *testing.T) {
	epoch := func(n uint64, id string) record.Epoch {
		return record.Epoch{Counter: n, Server: record.MustServerID(id)}
	}
	set := func(ids ...string) (list []wire.Member) {
		for _, id := range ids {
			list = append(list, wire.Member{ID: record.MustServerID(id), Incarnation: record.Incarnation{id[0]}})
		}
		return list
	}
	other := set("c")
	other[0].Incarnation[0] = 'x'
	first := wire.EpochStart{Epoch: epoch(1, "a"), First: record.Pos{Seq: 1}, Set: set("a", "b", "c")}
	start := func(e record.Epoch, set []wire.Member, loss bool) []wire.EpochStart {
		return []wire.EpochStart{first, {Epoch: e, First: record.Pos{Seq: 9}, BaseNumber: 1, Set: set, Loss: loss}}
	}
	for _, tc := range []struct {
		name string
		a    []wire.Member // in sync in epoch 2.a
		set  []wire.Member // with which 3.b began
		b    []wire.Member // in sync there now
		loss bool
		then bool // 4.b followed, forced over a loss
		want bool
	}{
		{"nobody in both", set("a"), set("b"), set("b"), false, false, true},
		{"c in both now", set("a", "c"), set("b", "c"), set("b", "c"), false, false, false},
		{"c was in the later one", set("a", "c"), set("b", "c"), set("b"), false, false, false},
		{"c went on in the earlier one with new data", append(set("a"), other...), set("b", "c"), set("b"), false, false, true},
		{"the later one was forced over a loss", set("a", "c"), set("b", "c"), set("b"), true, false, true},
		{"the one after it was", set("a", "c"), set("b", "c"), set("b"), false, true, false},
		{"the one after it was, and c was in neither", set("a", "c"), set("b"), set("b"), false, true, true},
		{"the one after it was, and c came to that", set("a", "c"), set("b"), set("b", "c"), false, true, false},
		{"the earlier one forgot c", set("a"), set("b", "c"), set("b"), false, false, true},
		{"c came to the later one when that had begun", set("a", "c"), set("b"), set("b", "c"), false, false, true},
		{"and that one was chosen over a loss", set("a", "c"), set("b"), set("b", "c"), true, false, false},
		{"who began it is not known any more", set("a", "c"), nil, set("b", "c"), false, false, false},
		{"c is not in the earlier one", set("a"), set("b"), set("b", "c"), false, false, true},
	} {
		a := wire.State{Number: 2, Epoch: epoch(2, "a"), InSync: tc.a}
		b := wire.State{Number: 2, Epoch: epoch(3, "b"), InSync: tc.b}
		ah, bh := start(a.Epoch, set("a", "c"), false), start(b.Epoch, tc.set, tc.loss)
		if tc.then {
			b.Epoch.Counter++
			bh = append(bh, wire.EpochStart{Epoch: b.Epoch, First: record.Pos{Seq: 10}, BaseNumber: 2, Set: set("b"), Loss: true})
		}
		if got := splitBrain(ah, &a, bh, &b); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
		if got := splitBrain(bh, &b, ah, &a); got != tc.want {
			t.Errorf("%s, seen from the other side: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// A server whose data was replaced joined where nobody knew of an epoch that it had
// led, and took it a second time. Who had followed the first one took the second for it,
// and gave up what had been committed there in silence.
func TestTwoMastershipsOfOneEpochAreToldApart(t *testing.T) {
	a := record.MustServerID("a")
	twin := record.Epoch{Counter: 4, Server: a}
	first := wire.EpochStart{Epoch: record.Epoch{Counter: 1, Server: a}, First: record.Pos{Seq: 1, Sum: 7}}
	line := func(sum uint64, id byte) ([]wire.EpochStart, wire.State) {
		set := []wire.Member{{ID: a, Incarnation: record.Incarnation{id}}}
		return []wire.EpochStart{first, {Epoch: twin, First: record.Pos{Seq: 9, Sum: sum}, BaseNumber: 1, Set: set}},
			wire.State{Number: 2, Epoch: twin, InSync: set}
	}
	oldH, old := line(100, 1)
	newH, young := line(200, 2)
	if !splitBrain(oldH, &old, newH, &young) || !splitBrain(newH, &young, oldH, &old) {
		t.Error("two masterships of one epoch, each with a record of its own, are no split brain")
	}
	if got := common(oldH, 20, newH, 20); got != 8 {
		t.Errorf("number %d is common, want 8, the last before the two", got)
	}
	if splitBrain(oldH, &old, oldH, &old) || common(oldH, 20, oldH, 15) != 15 {
		t.Error("a mastership is not taken for itself")
	}
}

// The sets would fill the saved state.
func TestOnlyTheNewestEpochsTellTheirSets(t *testing.T) {
	c := newCluster(t, 1, wire.Suspend)
	for range setsMax + 5 {
		c.start("a")
		c.pass(1e9)
		c.kill("a")
	}
	told := 0
	h := c.node("a").hard.History
	for i := range h {
		if h[i].Set != nil {
			told++
		}
	}
	if len(h) != setsMax+5 || told != setsMax || h[len(h)-1].Set == nil {
		t.Errorf("%d of %d epochs tell their sets, want the newest %d", told, len(h), setsMax)
	}
}
