package replica

import (
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

func TestHeldCountsWhatIsUnderWayAndNothingIsLeftOfIt(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	b.frozen = true
	op := a.write(a.open("db1", 0), 0, "x")
	c.run()
	if h := a.r.Held(); h.Conns != 1 || h.Attachments != 1 || h.Waiting != 1 || h.Sent != 1 || h.Marks != 1 || h.Found != 1 {
		t.Errorf("with a write under way the master holds %+v", h)
	}
	if h := b.r.Held(); h.Storing == 0 {
		t.Errorf("with its disk hanging the slave holds %+v", h)
	}
	b.frozen = false
	(&script{}).fsync(b)
	c.pass(time.Second)
	a.mustComplete(op)
	for _, n := range c.nodes {
		h := n.r.Held()
		if h.Waiting+h.Sent+h.Marks+h.Found+h.Reads+h.Lookups+h.Window+h.Early > 0 {
			t.Errorf("at rest %v holds %+v", n.id, h)
		}
		if what := n.r.Overfull(); what != "" {
			t.Errorf("%v holds too many %s: %+v", n.id, what, h)
		}
	}
}

func TestOverfullNamesWhatIsBeyondItsBound(t *testing.T) {
	c := three(t, wire.Suspend)
	for what, fill := range map[string]func(r *Replica){
		"early records":          func(r *Replica) { r.s.window.early = make([]*record.Record, windowRecordsMax+1) },
		"bytes of early records": func(r *Replica) { r.s.window.early, r.s.window.bytes = make([]*record.Record, 2), windowBytesMax+1 },
		"early forwards":         func(r *Replica) { r.m.early = make([]early, earlyForwardsMax+1) },
		"read rounds of slaves":  func(r *Replica) { r.m.asks = make([]ask, len(r.peers)+1) },
		"header sums":            func(r *Replica) { r.sums.ring = make([]uint64, 2*sumsMax) },
		"table records":          func(r *Replica) { r.marks = make([]*record.Record, 1) },
		"changes with a number":  func(r *Replica) { r.f.found = make([]*Op, 1) },
		"remembered servers":     func(r *Replica) { r.memory = make([]wire.Memory, 7) },
		"entries of the table":   func(r *Replica) { r.numbered.Entries = make([]Entry, entriesMax+1) },
		"bytes of the table":     func(r *Replica) { r.table.bytes = tableBytesMax },
		"attachments":            func(r *Replica) { r.f.atts = []*attachment{{}} },
		"lines of the epoch history": func(r *Replica) {
			r.hard.History = make([]wire.EpochStart, HistoryMax+1)
		},
	} {
		r := *c.node("a").r
		m := *r.m
		r.m = &m
		if fill(&r); r.Overfull() != what {
			t.Errorf("with too many %s: %q", what, r.Overfull())
		}
	}
}
