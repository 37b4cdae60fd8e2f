package bubble

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: fault_test.go. Does: takes from one disk what it had called durable, where
// the promises say that nothing is lost by it: all others are healthy, and are there to
// tell. Goes to: a start on what is left, and the operator, who does what status says.

const (
	quietMax = time.Minute // how long a schedule waits for all to be healthy first
	// toldFor is how long all others stay, after which whoever must know of it does.
	toldFor = 3 * peerTimeout
)

// upset inflicts one of loneFaults on m.
func (s *schedule) upset(name string, m *machine) {
	w, r := s.w, s.rng
	if len(w.machines) == 1 || !s.quiet() {
		return
	}
	p := m.process()
	st, ok := m.status()
	if p == nil || !ok {
		return
	}
	switch {
	case name == "old copy" && m.old == nil:
		// The backup is made now, and put back by the next fault of that name.
		m.crash(100)
		m.old = copyOf(m.mem)
		s.op.restart(m)
		return
	case name == "old copy" && !begunWithOthers(m, m.old):
		return // it could begin without asking anybody, and nobody could know
	case name == "image rot" && st.Role != "slave":
		return // verify mends a slave's
	}
	s.met(name, m)
	w.tell("fault: %s at %s", name, m.name)
	switch name {
	case "data lost":
		m.crash(r.IntN(100))
		m.damaged.Store(true)
		m.forgets(vfs.NewCrashableMem())
	case "old copy":
		m.crash(100)
		m.damaged.Store(true)
		m.forgets(m.old)
	case "journal rot":
		s.rotJournal(m, r)
	case "image rot":
		s.rotImage(m, r)
		return
	}
	s.start(m)
	time.Sleep(toldFor)
}

// forgets gives a machine that is off another disk.
func (m *machine) forgets(mem *vfs.MemFS) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mem, m.old = mem, nil
}

// start starts a machine on what is left of its disk; when its server refuses that, on
// an empty one, as the operator would: the others have everything.
func (s *schedule) start(m *machine) {
	err := m.boot()
	if err == nil {
		return
	}
	s.w.tell("%s begins anew", m.name)
	m.forgets(vfs.NewCrashableMem())
	if err := m.boot(); err != nil {
		s.w.fatalf("%s does not start on an empty disk: %v", m.name, err)
	}
}

// quiet ends what is under way and reports whether all are healthy then.
func (s *schedule) quiet() bool {
	w := s.w
	s.later.Wait()
	for _, m := range w.machines {
		if p := m.process(); p != nil {
			p.disk.disarm()
		}
		s.op.restart(m)
	}
	s.op.finish()
	if !w.eventually(quietMax, func() bool {
		if w.serving() {
			return true
		}
		s.op.obey()
		return false
	}) {
		return false // the calm will look into it
	}
	for _, m := range w.machines {
		m.damaged.Store(false)
	}
	return true
}

// begunWithOthers reports whether a disk says that another server is in sync beside m.
func begunWithOthers(m *machine, mem *vfs.MemFS) bool {
	h, ok, err := hardOf(mem)
	if err != nil || !ok {
		return false
	}
	for i := range h.State.InSync {
		if h.State.InSync[i].ID != m.id {
			return true
		}
	}
	return false
}

// rotJournal flips a bit of a record in pebble's log, which ends there or is refused. In
// its tables only rows do it: pebble looks which bit it was at each read of such a block,
// for some 50 ms of real time, and a server reads it record by record.
func (s *schedule) rotJournal(m *machine, r *rand.Rand) {
	st, _ := m.status()
	first := max(1, st.FirstKept)
	m.crash(100)
	if st.Last <= first {
		return
	}
	seq := record.Seq(st.Last - uint64(r.IntN(int(min(st.Last-first, 40)))))
	m.damaged.Store(true)
	if err := flipRecord(s.w, m, seq, ".log"); err != nil {
		s.w.tell("no bit of record %d flips: %v", seq, err)
		return
	}
	if !begunWithOthers(m, m.mem) { // its end is lost, and with it who else is in sync
		m.forgets(vfs.NewCrashableMem())
	}
}

// rotImage flips bits of a slave's image, which has no sums: a client that read there
// would be told what nobody wrote, and no promise says otherwise. So clients stay away
// until verify has found and repaired it, and nobody is promoted or copied from there
// meanwhile. They are still, too: all write to one block here, and verify decides about
// none that changes in each round trip.
func (s *schedule) rotImage(m *machine, r *rand.Rand) {
	w := s.w
	m.shunned.Store(true)
	w.still.Store(true)
	defer w.still.Store(false)
	m.damaged.Store(true)
	m.crash(100)
	f, err := m.mem.OpenReadWrite(imagePath, vfs.WriteCategoryUnspecified)
	if err != nil {
		w.fatalf("%v", err)
	}
	var b [1]byte
	for range 1 + r.IntN(3) {
		at := r.Int64N(sectors * sector)
		if n, err := f.ReadAt(b[:], at); n == 0 {
			w.tell("nothing to flip at %d: %v", at, err)
			continue
		}
		b[0] ^= 1 << r.IntN(8)
		if _, err := f.WriteAt(b[:], at); err != nil {
			w.fatalf("%v", err)
		}
		w.tell("a bit of the image of %s flips at %d", m.name, at)
	}
	if err := f.Close(); err != nil {
		w.fatalf("%v", err)
	}
	s.start(m)
	w.await("the rotten image is repaired", healthyMax, func() bool {
		var rep blockrepl.VerifyReport
		st, ok := m.status()
		if ok && st.Role == "slave" && (st.State == blockrepl.StateHealthy || st.State == blockrepl.StateDegraded) {
			err := m.command("verify", blockrepl.VerifyRequest{Repair: true}, &rep)
			w.tell("operator: verify at %s: %v, %d bytes differ", m.name, err, rep.DifferentBytes)
			if err == nil {
				return true
			}
		}
		s.op.obey() // its start may have seen it: then it is resynced first
		return false
	})
	m.shunned.Store(false)
}

// flipRecord flips one bit of a stored record's payload on a machine that is off, in a
// file whose name ends so.
func flipRecord(w *world, m *machine, seq record.Seq, ext string) error {
	raw, err := rawRecord(m, seq)
	if err != nil {
		return err
	}
	dir := blockrepl.JournalDir(dataDir)
	names, err := m.mem.List(dir)
	if err != nil {
		return err
	}
	// A log cuts records at its blocks' ends; the middle of a small one is whole.
	part := raw[len(raw)/2 : min(len(raw), len(raw)/2+16)]
	for _, name := range names {
		b, err := contents(m.mem, dir+"/"+name)
		if err != nil || !strings.HasSuffix(name, ext) {
			continue
		}
		at := bytes.Index(b, part)
		if at < 0 {
			continue
		}
		f, err := m.mem.OpenReadWrite(dir+"/"+name, vfs.WriteCategoryUnspecified)
		if err != nil {
			return err
		}
		if _, err := f.WriteAt([]byte{b[at] ^ 4}, int64(at)); err != nil {
			return err
		}
		w.tell("a bit of record %d flipped in %s of %s", seq, name, m.name)
		return f.Close()
	}
	return fmt.Errorf("record %d is in no file of %s: %w", seq, m.name, fs.ErrNotExist)
}
