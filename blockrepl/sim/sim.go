package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// what is the kind of an event on the heap.
type what uint8

const (
	evRound    what = iota + 1 // a node's loop is free again
	evTick                     // a node's timer
	evFsynced                  // journal: everything through store a is durable
	evApplied                  // image: the batch under way is in it
	evCheck                    // image: time for a checkpoint
	evImgSync                  // image: the fsync under way ended
	evMarks                    // the marks file is written
	evLinkUp                   // a session opens at node n
	evLinkDown                 // a session ends at node n
	evFrame                    // msg arrives at node n from node p over session a
	evPump                     // a stream's cursor may send
	evDial                     // node n looks for a link to p
	evCopy                     // a resync's next step
	evConn                     // a client's connection reaches its server
	evOp                       // request a reaches the server of connection b
	evLook                     // a granted read looks at the image
	evReply                    // the answer to request a reaches its client
	evGone                     // the server learns that connection a is closed
	evLost                     // a client learns that connection a is closed
	evClient                   // client n acts
	evFault                    // a fault strikes
	evUndo                     // the end of a fault
	evStart                    // node n starts
	evOperator                 // the operator acts
	evCalm                     // faults stop
	evUsurp                    // node n is promoted behind the master's back
	evCrash                    // node n crashes
	evInit                     // the operator creates the volume at node n
	evFill                     // node n's init goes on
	evLeft                     // node n is promoted, which was left behind
	evSecond                   // another operator gives a command at node n
	evMend                     // node n waited for a record that it asked for
	evSick                     // the disk of an image falls sick
)

// event is one entry of the heap. n, p, a, b and msg depend on what.
type event struct {
	at   int64 // virtual ns
	ord  uint64
	what what
	n, p int8
	run  uint32 // of node n when it was scheduled; an older run's is dropped. 0: any
	a, b uint64
	msg  any
}

// dice are the streams of random numbers, one for each part, so that a fault
// switched off changes the others as little as possible.
type dice struct {
	net, disk, client, fault, oper, node, bits, time, rot, sick *rand.Rand
}

// Sim is one schedule under way.
type Sim struct {
	Seed    uint64
	prof    profile
	now     int64
	ord     uint64
	heap    []event
	events  int
	dice    dice
	nodes   []*node
	ready   []*node
	session uint64
	blocked [nodesMax][nodesMax]bool // frames n → p are held
	links   []*link
	linkOf  [nodesMax][nodesMax]*link // the newest of node n to p, nil when it knows none
	conns   []*conn
	reqs    []*request
	clients []*client
	oper    operator
	truth   truth
	marks   *Marks
	cached  bool // Options.KeepCache
	calm    bool // faults have stopped
	calmAt  int64
	wellAt  int64 // when all were healthy after it for the first time
	quiet   int64 // no fault strikes before
	failure *Failure
	trace   [traceMax]trace
	traced  int
	writer  wire.Writer // frames as bytes
	frame   []byte
	Log     func(string) // every line of the trace as it happens; nil: none
}

const nodesMax = 5

// Failure is a broken rule.
type Failure struct {
	Seed  uint64
	Rule  string
	Text  string
	Trace []string
}

func (f *Failure) Error() string {
	return fmt.Sprintf("seed %d: rule %q: %s\n  %s", f.Seed, f.Rule, f.Text, strings.Join(f.Trace, "\n  "))
}

// trace is one line of the past, put into words only when it is shown.
type trace struct {
	at     int64
	n      int8
	format string
	args   [4]any
	used   int
}

func (s *Sim) tell(n int8, format string, args ...any) {
	t := &s.trace[s.traced%traceMax]
	s.traced++
	t.at, t.n, t.format = s.now, n, format
	t.used = copy(t.args[:], args)
	if s.Log != nil {
		s.Log(t.String())
	}
}

func (t *trace) String() string {
	who := "-"
	if t.n >= 0 {
		who = string(rune('a' + t.n))
	}
	return fmt.Sprintf("%10.3fms %s  %s", float64(t.at)/1e6, who, fmt.Sprintf(t.format, t.args[:t.used]...))
}

// fail notes the first broken rule and ends the run.
func (s *Sim) fail(rule, format string, args ...any) {
	if s.failure != nil {
		return
	}
	f := &Failure{Seed: s.Seed, Rule: rule, Text: fmt.Sprintf(format, args...)}
	for i := max(0, s.traced-min(traceShown, traceMax)); i < s.traced; i++ {
		f.Trace = append(f.Trace, s.trace[i%traceMax].String())
	}
	s.failure = f
}

// New makes the schedule of a seed. Faults named in off never strike.
func New(seed uint64, opt Options) *Sim {
	s := &Sim{Seed: seed, marks: opt.Marks, cached: opt.KeepCache}
	if s.marks == nil {
		s.marks = &Marks{}
	}
	stream := func(i uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, i)) }
	s.dice = dice{net: stream(1), disk: stream(2), client: stream(3), fault: stream(4), oper: stream(5), node: stream(6), bits: stream(8), time: stream(11), rot: stream(12), sick: stream(13)}
	s.prof = drawProfile(stream(7), opt)
	s.prof.drawHarsh(stream(9), opt)
	if opt.Restless {
		s.prof.drawRestless(stream(10), opt)
	}
	s.reqs = append(s.reqs, nil) // request 0 is none
	s.conns = append(s.conns, nil)
	s.truth.init(s)
	s.oper.wild = map[uint64]string{}
	for i := range s.prof.nodes {
		s.nodes = append(s.nodes, newNode(s, i))
	}
	for _, n := range s.nodes {
		d := s.dice.node.Int64N(int64(5 * time.Millisecond))
		if s.prof.init {
			d += s.dice.bits.Int64N(int64(3 * peerTimeout))
		}
		s.at(d, event{what: evStart, n: n.i})
		for _, m := range s.nodes {
			if n.i != m.i {
				s.at(s.dice.net.Int64N(int64(5*time.Millisecond)), event{what: evDial, n: n.i, p: m.i})
			}
		}
	}
	if s.prof.init {
		s.seedImages()
	}
	for i := range s.prof.clients {
		s.addClient(i)
	}
	s.at(int64(s.prof.first), event{what: evFault})
	s.at(int64(s.prof.length), event{what: evCalm})
	s.drawSick(opt)
	return s
}

// Run plays the schedule to its end; nil when no rule was broken.
func (s *Sim) Run() (broken *Failure) {
	defer func() {
		if x := recover(); x != nil {
			s.fail("no panic", "%v\n%s", x, stack())
			broken = s.failure
		}
	}()
	for s.failure == nil && !s.done() {
		if len(s.heap) == 0 {
			s.fail("liveness", "nothing is left to happen")
			break
		}
		if s.events++; s.events > eventsMax {
			s.fail("liveness", "the schedule does not end after %d events", s.events)
			break
		}
		ev := s.pop()
		s.now = ev.at
		s.dispatch(&ev)
		for len(s.ready) > 0 {
			n := s.ready[0]
			s.ready = s.ready[:copy(s.ready, s.ready[1:])]
			n.queued = false
			n.round()
		}
	}
	if s.failure == nil {
		s.final()
	}
	return s.failure
}

// Events is how many events were played.
func (s *Sim) Events() int { return s.events }

// at schedules ev after d.
func (s *Sim) at(d int64, ev event) {
	s.ord++
	ev.at, ev.ord = s.now+max(d, 0), s.ord
	s.heap = append(s.heap, ev)
	h := s.heap
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !before(&h[i], &h[up]) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

func before(a, b *event) bool { return a.at < b.at || a.at == b.at && a.ord < b.ord }

func (s *Sim) pop() event {
	h := s.heap
	top := h[0]
	last := len(h) - 1
	h[0] = h[last]
	h[last] = event{}
	h = h[:last]
	s.heap = h
	i := 0
	for {
		least, c := i, 4*i+1
		for end := min(c+4, last); c < end; c++ {
			if before(&h[c], &h[least]) {
				least = c
			}
		}
		if least == i {
			return top
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

// dispatch hands an event to its room.
func (s *Sim) dispatch(ev *event) {
	var n *node
	switch ev.what {
	case evClient, evFault, evUndo, evOperator, evCalm, evLost, evReply, evInit, evSick:
	default:
		n = s.nodes[ev.n]
		if ev.run != 0 && (ev.run != n.run || !n.up) {
			return
		}
	}
	switch ev.what {
	case evRound:
		n.scheduled = false
		n.kick()
	case evTick:
		n.kick()
	case evFrame:
		s.arrive(n, ev)
	case evFsynced:
		n.fsynced(ev.a)
	case evApplied:
		n.applyEnd(ev.a)
	case evCheck:
		n.checkpoint(false)
	case evImgSync:
		n.imageSynced(ev.a, ev.b)
	case evMarks:
		n.writeMarks()
	case evPump:
		n.pump(ev)
	case evLinkUp:
		s.linkUp(n, ev)
	case evLinkDown:
		s.linkDown(n, ev)
	case evDial:
		s.dial(n, s.nodes[ev.p])
	case evCopy:
		n.copyStep(ev)
	case evConn:
		s.connArrives(ev)
	case evOp:
		s.opArrives(ev)
	case evLook:
		n.look(ev)
	case evReply:
		s.reply(ev)
	case evGone:
		s.connGone(ev)
	case evLost:
		s.connLost(ev)
	case evClient:
		s.clients[ev.n].act()
	case evFault:
		s.strike()
	case evSick:
		s.sicken()
	case evUndo:
		s.undo(ev)
	case evStart:
		n.start()
	case evOperator:
		s.oper.act(s)
	case evCalm:
		s.becalm()
	case evUsurp:
		s.oper.usurped(s, n)
	case evLeft:
		s.oper.left(s, n)
	case evSecond:
		s.oper.second(s, n)
	case evInit:
		s.oper.ordered(s)
	case evFill:
		n.fill()
	case evMend:
		n.mendTimer(ev)
	case evCrash:
		if !s.calm && s.now >= s.quiet {
			s.inflict(fCrash, n)
		}
	}
}

// exp draws an exponential time with the given mean.
func exp(r *rand.Rand, mean time.Duration) int64 {
	return int64(min(r.ExpFloat64(), 8) * float64(mean))
}

func chance(r *rand.Rand, p float64) bool { return p > 0 && r.Float64() < p }

// serverIDs are the nodes' names.
var serverIDs = func() (ids [nodesMax]record.ServerID) {
	for i := range ids {
		ids[i] = record.MustServerID(string(rune('a' + i)))
	}
	return ids
}()

func index(id record.ServerID) int8 {
	for i := range serverIDs {
		if serverIDs[i] == id {
			return int8(i)
		}
	}
	return -1
}

func inState(st *wire.State, id record.ServerID) bool {
	for i := range st.InSync {
		if st.InSync[i].ID == id {
			return true
		}
	}
	return false
}
