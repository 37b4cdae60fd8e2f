package bubble

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
)

// copyOf is a copy of a disk as a backup tool makes it of a stopped server.
func copyOf(mem *vfs.MemFS) *vfs.MemFS {
	return mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 2))})
}

// An old copy of a data directory is put back, while the server was off.
func TestRestoredOldCopyIsNotBelieved(t *testing.T) {
	for _, who := range []int{0, 1} {
		t.Run([]string{"master", "slave"}[who], func(t *testing.T) {
			row(t, func(w *world, a, b, c *machine, cl *client) {
				m := w.machines[who]
				m.crash(100)
				old := copyOf(m.mem)
				if err := m.boot(); err != nil {
					w.fatalf("%s does not start: %v", m.name, err)
				}
				w.awaitHealthy()
				cl.moveTo(b)
				if who == 1 {
					cl.moveTo(a)
				}
				for range 30 {
					cl.must(cl.place())
				}
				m.crash(100)
				m.mem = old
				if err := m.boot(); err != nil {
					w.fatalf("%s does not start: %v", m.name, err)
				}
				w.await(m.name+" is not believed", answerMax, func() bool {
					st, ok := m.status()
					return ok && st.State != blockrepl.StateHealthy && st.Role != "master" && (st.State == blockrepl.StateDiverged || st.State == blockrepl.StateResyncing) && st.Reason != ""
				})
				if st, _ := m.status(); st.State == blockrepl.StateDiverged {
					var rep blockrepl.PromoteReport
					if err := m.command("promote", blockrepl.PromoteRequest{OldMasterDead: true}, &rep); err == nil && rep.Allowed {
						w.errorf("%s was promoted with an old copy: %+v", m.name, rep)
					}
				}
				w.obeyed()
				w.end()
			})
		})
	}
}

// The whole data directory, or only the journal, is deleted; or the image is lost, and an
// empty file in its place. The server is not believed before it was forgotten and
// resynced: neither promoted nor waited for in vain, and what it has not is not read.
func TestServerWithoutItsPastIsResynced(t *testing.T) {
	for _, lost := range []struct {
		what   string
		itself blockrepl.VolumeState // what b says of itself
		why    string                // what a says of b
	}{
		{dataDir, blockrepl.StateSuspended, "its data directory was replaced"},
		{dataDir + "/journal", blockrepl.StateDiverged, "it acknowledged in"},
		{imagePath, blockrepl.StateDiverged, "its own marks say"},
	} {
		t.Run(path.Base(lost.what), func(t *testing.T) {
			row(t, func(w *world, a, b, c *machine, cl *client) {
				w.await("b's image holds what was written", answerMax, func() bool { // else it has nothing to lose
					st, ok := b.status()
					return ok && st.Checkpoint == st.Last
				})
				b.crash(100)
				if lost.what == imagePath {
					f, err := b.mem.Create(imagePath, vfs.WriteCategoryUnspecified)
					if err != nil || f.Close() != nil {
						w.fatalf("empty the image: %v", err)
					}
				} else if err := b.mem.RemoveAll(lost.what); err != nil {
					w.fatalf("remove %s: %v", lost.what, err)
				}
				if err := b.boot(); err != nil {
					w.fatalf("b does not start: %v", err)
				}
				time.Sleep(3 * time.Second)
				w.stays("b is not believed", 5*time.Second, func() bool {
					st, _ := a.status()
					own, ok := b.status()
					w.tell("b is %s: %s; a says: %s", own.State, own.Reason, st.Reason)
					return ok && own.State == lost.itself && st.State == blockrepl.StateSuspended &&
						strings.Contains(st.Reason, lost.why) && strings.Contains(st.Next, "forget vol0 b")
				})
				var rep blockrepl.PromoteReport
				if err := b.command("promote", blockrepl.PromoteRequest{OldMasterDead: true}, &rep); err == nil && rep.Allowed {
					w.errorf("b was promoted without its past: %+v", rep)
				}
				o := cl.begin(0, 8)
				if err, ok := o.wait(2 * time.Second); ok {
					w.errorf("a write was answered (%v) while a server in sync is not believed", err)
				}
				w.obeyed()
				cl.answered(o)
				w.end()
			})
		})
	}
}

// damage flips one bit of a stored record's payload, wherever its bytes lie.
func damage(w *world, m *machine, seq record.Seq) {
	if err := flipRecord(w, m, seq, ""); err != nil {
		w.fatalf("%v", err)
	}
}

// rawRecord is a record as the journal of a machine that is off holds it.
func rawRecord(m *machine, seq record.Seq) (raw []byte, err error) {
	j, err := journal.Open(journal.Options{Dir: blockrepl.JournalDir(dataDir), FS: m.mem, ReserveBytes: -1})
	if err != nil {
		return nil, fmt.Errorf("open journal of %s: %w", m.name, err)
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	logs, err := blockrepl.LogsByName(j)
	if err != nil {
		return nil, err
	}
	l := logs[volumeName]
	if l == nil {
		return nil, fmt.Errorf("no log of %s on %s: %w", volumeName, m.name, fs.ErrNotExist)
	}
	rec, err := l.Get(seq)
	if err != nil {
		return nil, fmt.Errorf("record %d of %s: %w", seq, m.name, err)
	}
	return bytes.Clone(rec.Raw), nil
}

// Bits rot in a journal: what is damaged is never applied, sent or taken for whole.
func TestBitRotInAJournalNeverReachesAnImage(t *testing.T) {
	for _, who := range []string{"a", "b"} {
		for back := range 6 {
			t.Run(who+" "+string(rune('0'+back)), func(t *testing.T) {
				row(t, func(w *world, a, b, c *machine, cl *client) {
					for range 10 {
						cl.must(cl.rng.IntN(100), 3)
					}
					st, _ := a.status()
					m := w.machine(who)
					m.crash(100)
					damage(w, m, record.Seq(int(st.Last)-2*back))
					if err := m.boot(); err != nil {
						w.fatalf("%s does not start beside a damaged record: %v", m.name, err)
					}
					time.Sleep(3 * time.Second)
					w.obeyed()
					cl.moveTo(c)
					cl.must(0, 8)
					w.end() // journals are clean again: from a peer, or by a resync
				})
			})
		}
	}
}

func TestMarksThatRotAreNoReasonToForget(t *testing.T) {
	row(t, func(w *world, a, b, c *machine, cl *client) {
		b.crash(100)
		f, err := b.mem.OpenReadWrite(dataDir+"/marks", vfs.WriteCategoryUnspecified)
		if err != nil {
			w.fatalf("%v", err)
		}
		for _, at := range []int64{20, 64<<10 + 20} {
			if _, err := f.WriteAt([]byte{0xff, 0xfe}, at); err != nil {
				w.fatalf("%v", err)
			}
		}
		if err := f.Close(); err != nil {
			w.fatalf("%v", err)
		}
		if err := b.boot(); err != nil {
			w.fatalf("b does not start: %v", err)
		}
		if w.logged("b", "marks file is damaged") != 1 {
			w.errorf("the damage of the marks is not told")
		}
		cl.must(0, 4)
		w.end()
	})
}

func TestWallClockAYearWrongDecidesNothing(t *testing.T) {
	const year = 365 * 24 * time.Hour
	inBubble(t, seedOf(), 3, func(w *world) {
		for i, wrong := range []time.Duration{-year, 0, year} {
			w.machines[i].wall.Store(int64(wrong))
		}
		w.bootAll()
		cl := w.client(0, "db1")
		defer cl.leave(false)
		w.awaitHealthy()
		for i := range 6 {
			m := w.machines[i%3]
			m.wall.Store(int64(year) * int64(cl.rng.IntN(5)-2))
			cl.moveTo(m)
			for range 5 {
				cl.must(cl.place())
			}
			w.order(w.machines[(i+1)%3], "promote", blockrepl.PromoteRequest{}, nil)
			w.awaitHealthy()
		}
		w.end()
	})
}

func TestServerOfAnotherClusterIsRefusedWithTheReason(t *testing.T) {
	inBubble(t, seedOf(), 3, func(w *world) {
		w.change = func(m *machine, o *blockrepl.Options) {
			if m.name == "c" {
				o.Cluster = "other"
			}
		}
		w.bootAll()
		w.await("c's cluster is named at a", answerMax, func() bool { return w.told("a", "other") && w.told("c", "lab") })
		before := w.warnings("a", "peer=c")
		time.Sleep(time.Minute)
		if n := w.warnings("a", "peer=c"); n != before || n > 2 {
			w.errorf("a warns %d times, then %d", before, n)
		}
		w.machines[2].crash(100)
		w.change = nil
		w.machines[2].mem = vfs.NewCrashableMem()
		w.bootAll()
		w.end()
	})
}

// told reports whether a server logged a warning with this text.
func (w *world) told(name, text string) bool { return w.warnings(name, text) > 0 }

// warnings counts them.
func (w *world) warnings(name, text string) int { return w.lines(name, "WARN", text) }

// lines counts the lines of a machine's log.
func (w *world) lines(name, level, text string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, line := range w.trace {
		if strings.Contains(line, " "+name+": "+level) && strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// Two machines run with one id: the second is refused while the first is linked, and
// whoever refuses says so, once.
func TestTwoServersWithOneIDAreNamed(t *testing.T) {
	row(t, func(w *world, a, b, c *machine, cl *client) {
		twin := &machine{w: w, i: 3, id: a.id, name: "a2", mem: vfs.NewCrashableMem()}
		w.change = func(m *machine, o *blockrepl.Options) {
			if m == twin {
				o.Peers = "a2:1"
			}
		}
		if err := twin.boot(); err != nil {
			w.fatalf("the twin does not start: %v", err)
		}
		for range 20 {
			cl.must(cl.place())
			time.Sleep(time.Second)
		}
		for _, name := range []string{"b", "c"} {
			if n := w.warnings(name, "two servers are called a"); n < 1 || n > 2 {
				w.errorf("%s warns %d times of two servers called a", name, n)
			}
		}
		// The twin is told why, once for each of the others, and not at each attempt.
		if n := w.warnings("a2", "two servers are called a"); n < 1 || n > 4 {
			w.errorf("the twin warns %d times that there are two servers called a", n)
		}
		if n := w.lines("a2", "INFO", "link up"); n > 0 {
			w.errorf("the twin had %d links", n)
		}
		twin.crash(100)
		w.end()
	})
}

// A bit flips near the end of a live log: pebble takes it for a torn tail and says
// nothing. The marks beside the journal remember, on the only server of a volume, too.
func TestTailThatVanishedSilentlyIsFoundOut(t *testing.T) {
	for _, n := range []int{1, 2, 3} {
		t.Run(string(rune('0'+n))+" servers", func(t *testing.T) {
			inBubble(t, seedOf(), n, func(w *world) {
				w.memTable = 4 << 20 // the records stay in the log
				w.bootAll()
				cl := w.client(0, "db1")
				defer cl.leave(false)
				w.awaitHealthy()
				a := w.machines[0]
				cl.moveTo(a)
				for range 20 {
					cl.must(cl.rng.IntN(100), 3)
				}
				time.Sleep(time.Second)
				st, _ := a.status()
				for _, m := range w.machines {
					m.crash(100)
				}
				damage(w, a, record.Seq(st.Last))
				for _, m := range w.machines {
					if err := m.boot(); err != nil {
						w.tell("%s refuses to start: %v", m.name, err)
					}
				}
				if a.process() == nil {
					return // refused as a whole
				}
				time.Sleep(3 * time.Second)
				now, _ := a.status()
				if now.State != blockrepl.StateDiverged && now.Last < st.Last {
					w.describe()
					w.fatalf("a lost its end and is %s", now.State)
				}
				if n > 1 {
					w.obeyed()
					w.end()
				}
			})
		})
	}
}
