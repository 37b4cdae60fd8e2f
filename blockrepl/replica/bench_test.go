package replica

import (
	"fmt"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// line is servers with perfect disks and links and as little else as possible, so
// that what is measured is Step.
type line struct {
	b       *testing.B
	now     Time
	servers []*lineServer
	queue   []lineEvent
	done    int
}

type lineEvent struct {
	to int
	ev Event
}

type lineServer struct {
	id      record.ServerID
	r       *Replica
	log     []*record.Record // log[i].Seq == first+i
	first   record.Seq
	cursors map[record.ServerID]record.Seq // the first record not sent
	eff     Effects
}

// session is the one over which two servers talk, in both directions.
func session(i, j int) uint64 { return uint64(1 + min(i, j)*8 + max(i, j)) }

func newLine(b *testing.B, n int) *line {
	l := &line{b: b, now: Time(time.Hour)}
	var members []record.ServerID
	for i := range n {
		members = append(members, record.MustServerID(string(rune('a'+i))))
	}
	for i, id := range members {
		cfg := Config{Self: id, Incarnation: record.Incarnation{byte(i + 1)}, PeerTimeout: 2 * time.Second, First: members[0],
			OpBase: uint64(i+1) << 32, Create: wire.State{Members: members, Size: 1 << 30, OnDegraded: wire.Suspend,
				Keep: 1 << 30, Name: "vol0", UUID: record.VolumeID{9}}}
		l.servers = append(l.servers, &lineServer{id: id, r: New(cfg, Saved{First: 1, Free: 1 << 40}, l.now), first: 1,
			cursors: map[record.ServerID]record.Seq{}})
	}
	for i, id := range members {
		for j := range members {
			if i != j {
				l.post(j, LinkUp{id, session(i, j), record.Incarnation{byte(i + 1)}})
			}
		}
	}
	for range 200 { // until the volume exists and is served
		l.now = l.now.Add(10 * time.Millisecond)
		for i := range l.servers {
			l.post(i, Tick{})
		}
		l.run()
	}
	if v := l.servers[0].r.View(l.now); v.State != Healthy {
		b.Fatalf("the first server is %s (%s)", v.State, v.Reason)
	}
	return l
}

func (l *line) post(to int, ev Event) { l.queue = append(l.queue, lineEvent{to, ev}) }

func (l *line) run() {
	for len(l.queue) > 0 {
		batch := l.queue
		l.queue = nil
		for _, e := range batch {
			s := l.servers[e.to]
			s.r.Step(l.now, e.ev, &s.eff)
			l.carryOut(e.to, s)
		}
	}
}

func (l *line) index(id record.ServerID) int {
	for i, s := range l.servers {
		if s.id == id {
			return i
		}
	}
	l.b.Fatalf("no server %v", id)
	return 0
}

// carryOut is what a shell does, in its order.
func (l *line) carryOut(i int, s *lineServer) {
	e := &s.eff
	for k := range e.Stores {
		s.log = append(s.log, e.Stores[k].Records...)
		l.post(i, Stored{e.Stores[k].ID})
	}
	for _, m := range e.Sends {
		l.post(l.index(m.To), Received{s.id, m.Session, m.Msg})
	}
	for _, st := range e.Streams {
		if st.From != 0 {
			s.cursors[st.To] = st.From
		}
		from := s.cursors[st.To]
		s.cursors[st.To] = st.End + 1
		l.post(l.index(st.To), Received{s.id, st.Session, &wire.Append{Epoch: st.Epoch, Commit: s.r.Commit(), Floor: s.r.Floor(),
			Records: s.log[from-s.first : st.End+1-s.first]}})
	}
	if e.Apply != 0 {
		l.post(i, Applied{Seq: e.Apply})
	}
	if e.Trim >= s.first {
		s.log = s.log[e.Trim+1-s.first:]
		s.first = e.Trim + 1
	}
	l.done += len(e.Complete)
	e.Reset()
}

// BenchmarkStep is what the decisions about one 4 KiB write cost on all servers
// together, written at the master in batches as clients at that depth make them.
func BenchmarkStep(b *testing.B) {
	for _, servers := range []int{1, 3} {
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("servers=%d/depth=%d", servers, depth), func(b *testing.B) {
				l := newLine(b, servers)
				l.post(0, Open{Conn: 1, Identity: "db1"})
				l.run()
				data := make([]byte, 4096)
				for i := range data {
					data[i] = byte(i * i >> 3)
				}
				ops := make([]Op, depth)
				batch := make([]*Op, depth)
				l.done = 0
				wrote := 0
				b.ReportAllocs()
				b.ResetTimer()
				for wrote < b.N {
					b.StopTimer() // making records is the clients' work
					for i := range ops {
						ops[i] = Op{Conn: 1, Rec: record.NewWrite(int64(i)<<12, data)}
						batch[i] = &ops[i]
					}
					l.now = l.now.Add(100 * time.Microsecond)
					b.StartTimer()
					l.post(0, Submit{batch})
					l.run()
					wrote += depth
					if wrote%(4096/depth*depth) < depth { // the checkpoint, which lets records go
						for i, s := range l.servers {
							l.post(i, ImageSynced{Seq: s.r.applied})
							l.post(i, Tick{})
						}
						l.run()
					}
				}
				if l.done < wrote {
					b.Fatalf("%d of %d writes were answered", l.done, wrote)
				}
			})
		}
	}
}
