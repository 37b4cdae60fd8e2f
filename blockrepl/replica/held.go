package replica

import (
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Held is how much a replica keeps in memory of what is under way, each in things of its
// kind unless another unit is named. For tests: a queue that only grows breaks no promise
// before the memory ends.
type Held struct {
	Window      int // records that came early
	WindowBytes int
	Early       int // Forwards that came before the master numbers
	Asks        int // read rounds of slaves that wait for the lease
	Sums        int // header sums of recent records
	Storing     int // Stores that are not durable yet
	Lookups     int // questions for old sums
	Marks       int // table records above what is applied
	Found       int // changes of this server's clients that have a number
	Waiting     int // such as wait for a generation, or for a master
	Sent        int // such as are forwarded, or numbered and not answered
	Conns       int // clients' connections
	Attachments int
	Reads       int // that wait for their turn
	Strangers   int // links to servers that are no members
	Memory      int // servers that are remembered
	Entries     int // of the table, the longer one of both
	TableBytes  int // of that
	History     int // lines
	Sets        int // lines that tell their set
	Kept        int // samples of the journal's length
	Counters    int
}

// Held counts what is held now, between two Steps. It changes nothing.
func (r *Replica) Held() Held {
	h := Held{
		Window: len(r.s.window.early), WindowBytes: r.s.window.bytes, Sums: len(r.sums.ring),
		Storing: len(r.storing), Lookups: len(r.lookups), Marks: len(r.marks),
		Found: len(r.f.found), Waiting: len(r.f.held), Sent: len(r.f.sent), Conns: len(r.f.conns), Attachments: len(r.f.atts),
		Reads: len(r.reads.asked) + len(r.reads.next), Strangers: len(r.strangers), Memory: len(r.memory),
		Entries: max(len(r.table.Entries), len(r.numbered.Entries)), TableBytes: max(r.table.size(), r.numbered.size()),
		History: len(r.hard.History), Kept: len(r.kept.samples) + len(r.plain.samples), Counters: len(r.counters),
	}
	for _, l := range r.hard.History {
		if l.Set != nil {
			h.Sets++
		}
	}
	for _, a := range r.f.atts {
		h.Waiting += len(a.waiting)
	}
	for _, g := range r.reads.granted {
		h.Reads += len(g.reads)
	}
	if r.role == wire.RoleMaster {
		h.Early, h.Asks = len(r.m.early), len(r.m.asks)
	}
	return h
}

// countersMax is more than there are names of counters.
const countersMax = 64

// Overfull names the first of what is held that is beyond its bound in limits.go, or
// beyond what the volume's numbers allow; "" when nothing is. What only the shell can
// bound, as connections, is not looked at.
func (r *Replica) Overfull() string {
	h := r.Held()
	above := func(seq record.Seq) int { return int(r.last.Seq) - int(min(seq, r.last.Seq)) }
	for _, q := range []struct {
		what   string
		n, max int
	}{
		{"early records", h.Window, windowRecordsMax},
		{"early forwards", h.Early, earlyForwardsMax},
		{"read rounds of slaves", h.Asks, len(r.peers)},
		// A ring is doubled beyond that while so many records are not durable.
		{"header sums", h.Sums, max(sumsMax, 2*above(r.durable))},
		{"table records", h.Marks, above(min(r.applied, r.table.AsOf))},
		{"changes with a number", h.Found, above(r.applied)},
		{"remembered servers", h.Memory, len(r.hard.State.Members) + len(r.cfg.Create.Members)},
		{"entries of the table", h.Entries, entriesMax},
		{"bytes of the table", h.TableBytes, tableBytesMax},
		{"lines of the epoch history", h.History, HistoryMax},
		{"counters", h.Counters, countersMax},
		{"attachments", h.Attachments, h.Conns},
	} {
		if q.n > q.max {
			return q.what
		}
	}
	if h.Window > 1 && h.WindowBytes > windowBytesMax {
		return "bytes of early records"
	}
	return ""
}
