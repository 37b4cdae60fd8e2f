package bubble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Bounds and sizes. Times are virtual.
const (
	volumeName  = "vol0"
	sector      = 512
	sectors     = 512         // of the volume: 256 KiB, four blocks of a resync
	sectorsMost = 768         // when it has grown
	peerTimeout = time.Second // Options.PeerTimeout
	ioTimeout   = 20 * time.Second
	// healthyMax is the stated time of liveness: with every server running, every
	// link possible and the operator doing what status says, all are healthy before.
	healthyMax     = 2 * time.Minute
	commandTimeout = 30 * time.Second
	journalReserve = 1 << 20
	traceMax       = 4000 // lines kept of what happened; shown when a run fails
)

// world is a cluster in a bubble.
type world struct {
	seed     uint64
	begin    time.Time
	net      *network
	machines []*machine
	volume   blockrepl.VolumeOptions
	ring     int64
	memTable uint64
	slow     time.Duration // fsyncs of a log take up to
	still    atomic.Bool   // clients ask for nothing new
	change   func(*machine, *blockrepl.Options)

	history  history
	replayed int // journals whose replay was compared with their image

	mu     sync.Mutex
	trace  []string
	failed []string
	logs   map[string]int // log lines of level Info and above, by server and text
}

// inBubble runs body with a cluster of n machines, all off. The bubble itself
// fails when a goroutine is left.
func inBubble(t *testing.T, seed uint64, n int, body func(w *world)) {
	t.Helper()
	var w *world
	synctest.Test(t, func(*testing.T) {
		w = &world{seed: seed, begin: time.Now(), net: newNetwork(seed), logs: map[string]int{}, ring: 1 << 20, memTable: 1 << 20}
		w.volume = blockrepl.VolumeOptions{Name: volumeName, Size: sectors * sector, OnDegraded: wire.Suspend}
		for i := range n {
			name := string(rune('a' + i))
			w.machines = append(w.machines, &machine{w: w, i: i, id: record.MustServerID(name), name: name, mem: vfs.NewCrashableMem()})
		}
		quit := make(chan struct{})
		var drive sync.WaitGroup
		drive.Go(func() { w.net.drive(quit) })
		func() {
			defer func() {
				if r := recover(); r != nil && r != errGiveUp {
					panic(r)
				}
			}()
			body(w)
		}()
		for _, m := range w.machines {
			m.crash(100)
		}
		close(quit)
		drive.Wait()
	})
	// Outside: the checker starts goroutines of its own, and needs no virtual time.
	if err := w.history.check(); err != nil {
		w.errorf("%v", err)
	}
	w.report(t)
}

// errGiveUp ends the body of a run after fatalf; t.FailNow would leave goroutines.
var errGiveUp = errors.New("give up")

func (w *world) errorf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.tell("FAILED: %s", text)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = append(w.failed, text)
}

// fatalf ends the body; only its goroutine may call it.
func (w *world) fatalf(format string, args ...any) {
	w.errorf(format, args...)
	panic(errGiveUp)
}
func (w *world) report(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.failed) == 0 {
		return
	}
	shown := w.trace
	if !*showAll {
		shown = shown[max(0, len(shown)-150):]
	}
	t.Errorf("seed %d:\n%s\n--- what happened last\n%s", w.seed, strings.Join(w.failed, "\n"), strings.Join(shown, "\n"))
}

// tell notes what happened.
func (w *world) tell(format string, args ...any) {
	line := fmt.Sprintf("%12.6f ", time.Since(w.begin).Seconds()) + fmt.Sprintf(format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	if *live {
		fmt.Println(line)
	}
	w.trace = append(w.trace, line)
	if len(w.trace) > 2*traceMax {
		w.trace = slices.Clone(w.trace[traceMax:])
	}
}

// logHandler brings a server's log into the trace.
type logHandler struct {
	w    *world
	name string
	with string
}

func (h logHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h logHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s %s%s", h.name, r.Level, r.Message, h.with)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	})
	h.w.tell("%s", b.String())
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.w.logs[h.name+": "+r.Message]++
	return nil
}

func (h logHandler) WithAttrs(as []slog.Attr) slog.Handler {
	for _, a := range as {
		h.with += fmt.Sprintf(" %s=%v", a.Key, a.Value)
	}
	return h
}

func (h logHandler) WithGroup(string) slog.Handler { return h }

// logged is how often a server logged a line that begins so.
func (w *world) logged(name, text string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for k, v := range w.logs {
		if strings.HasPrefix(k, name+": "+text) {
			n += v
		}
	}
	return n
}

// rand gives a generator of the run for one purpose.
func (w *world) rand(what uint64) *rand.Rand { return rand.New(rand.NewPCG(w.seed, what)) }

func (w *world) bootAll() {
	for _, m := range w.machines {
		if m.process() == nil {
			if err := m.boot(); err != nil {
				w.fatalf("start %s: %v", m.name, err)
			}
		}
	}
}

// healthy reports whether every server is up and healthy, and all have the same.
func (w *world) healthy(ms ...*machine) bool {
	var last uint64
	for i, m := range ms {
		st, ok := m.status()
		if !ok || st.State != blockrepl.StateHealthy || st.Applied != st.Last || i > 0 && st.Last != last {
			return false
		}
		last = st.Last
	}
	return true
}

// serving reports whether every server says that it is healthy. Clients may go on.
func (w *world) serving() bool {
	for _, m := range w.machines {
		if !m.is(blockrepl.StateHealthy) {
			return false
		}
	}
	return true
}

// await looks every 50 ms of virtual time until ok; it fails after limit.
func (w *world) await(what string, limit time.Duration, ok func() bool) {
	if !w.eventually(limit, ok) {
		w.describe()
		w.fatalf("not after %v: %s", limit, what)
	}
}

func (w *world) eventually(limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); ; {
		if ok() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// describe puts every server's status into the trace.
func (w *world) describe() {
	for _, m := range w.machines {
		st, ok := m.status()
		if !ok {
			w.tell("%s: off", m.name)
			continue
		}
		w.tell("%s: %s %s: %s; next: %s", m.name, st.Role, st.State, st.Reason, st.Next)
		w.tell("%s: epoch %s master %s in sync %v, first %d checkpoint %d applied %d committed %d durable %d last %d",
			m.name, st.Epoch, st.Master, st.InSync, st.FirstKept, st.Checkpoint, st.Applied, st.Committed, st.Durable, st.Last)
		for _, p := range st.Peers {
			w.tell("%s:   peer %s %s: %s; durable %d applied %d", m.name, p.Server, p.State, p.Reason, p.Durable, p.Applied)
		}
	}
}

func (w *world) awaitHealthy() {
	w.await("every server healthy", healthyMax, func() bool { return w.healthy(w.machines...) })
}

// equal stops all servers in order and compares images and journals on their disks: each
// with the others, an image with what was read there last, and with the replay of its
// journal where that still begins with the first record.
func (w *world) equal() {
	for _, m := range w.machines {
		if err := m.stop(false); err != nil {
			w.errorf("stop %s: %v", m.name, err)
		}
	}
	var first []byte
	sums := map[record.Seq]uint64{}
	for _, m := range w.machines {
		b, err := contents(m.mem, imagePath)
		if err != nil {
			w.errorf("read the image of %s: %v", m.name, err)
			continue
		}
		b = append(b, make([]byte, max(0, sectorsMost*sector-len(b)))...)
		if first == nil {
			first = b
		}
		for s := range sectorsMost {
			if x, y := b[s*sector:(s+1)*sector], first[s*sector:(s+1)*sector]; !bytes.Equal(x, y) {
				w.errorf("sector %d is %s on %s and %s on %s", s, show(x), m.name, show(y), w.machines[0].name)
			}
		}
		if n := len(m.read); n > 0 && !bytes.Equal(b[:n], m.read) {
			w.errorf("the image of %s is not what was read there last: %s", m.name, differ(b[:n], m.read))
		}
		if err := m.checkJournal(sums, b); err != nil {
			w.errorf("journal of %s: %v", m.name, err)
		}
	}
}

// checkJournal verifies the journal of a machine that is off; sums holds the
// records that other machines have, img is the machine's image.
func (m *machine) checkJournal(sums map[record.Seq]uint64, img []byte) (err error) {
	j, err := journal.Open(journal.Options{Dir: blockrepl.JournalDir(dataDir), FS: m.mem, ReserveBytes: -1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	logs, err := blockrepl.LogsByName(j)
	if err != nil {
		return err
	}
	l := logs[volumeName]
	if l == nil {
		return errors.New("the volume is not there")
	}
	if d := l.Damage(); len(d) > 0 {
		return fmt.Errorf("damage: %v", d)
	}
	// What was set aside because it is damaged stays so until the operator drops it.
	qs, err := l.Quarantines()
	for _, q := range qs {
		if err == nil && strings.HasPrefix(q.Reason, "damaged") {
			err = l.DropQuarantine(q.Name)
		}
	}
	if err != nil {
		return err
	}
	rep, err := l.Verify(context.Background(), nil)
	if err := errors.Join(err, rep.Err()); err != nil {
		return err
	}
	whole, again := l.First() == 1, make([]byte, len(img))
	for seq := l.First(); seq <= l.Last().Seq; {
		seq, err = l.Read(seq, l.Last().Seq, 1<<20, func(r *record.Record) error {
			if have, ok := sums[r.Seq]; ok && have != r.Sum {
				return fmt.Errorf("record %d has sum %016x, elsewhere %016x", r.Seq, r.Sum, have)
			}
			sums[r.Seq] = r.Sum
			return redo(again, r)
		})
		if err != nil {
			return err
		}
	}
	if whole {
		m.w.replayed++
		if !bytes.Equal(again, img) {
			return fmt.Errorf("its replay is not the image: %s", differ(img, again))
		}
	}
	return nil
}

// redo does what a record says to an image that holds all before it.
func redo(img []byte, r *record.Record) error {
	if !r.Kind.ChangesImage() {
		return nil
	}
	part := img[r.Offset : r.Offset+int64(r.Length)]
	if r.Kind != record.KindWrite {
		clear(part)
		return nil
	}
	p, err := r.Payload(nil)
	copy(part, p)
	return err
}

// differ names the first sector in which two images differ.
func differ(a, b []byte) string {
	for s := 0; s < len(a)/sector; s++ {
		if x, y := a[s*sector:(s+1)*sector], b[s*sector:(s+1)*sector]; !bytes.Equal(x, y) {
			return fmt.Sprintf("sector %d is %s, not %s", s, show(x), show(y))
		}
	}
	return "not at all"
}
