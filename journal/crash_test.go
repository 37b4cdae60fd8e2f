package journal

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

var (
	crashSeed  = flag.Uint64("crash.seed", 0, "the one seed of TestNothingAcknowledgedIsLostAtACrash; 0 draws some")
	crashSeeds = flag.Int("crash.seeds", 8, "how many seeds are drawn")
)

// image is what a log should be after a step.
type image struct {
	origin      record.Pos       // of the last reset
	recs        []*record.Record // since then, trimmed ones too
	meta        map[string]string
	quarantines map[string][]*record.Record
}

func (m image) clone() image {
	m.recs = slices.Clip(m.recs)
	m.meta, m.quarantines = maps.Clone(m.meta), maps.Clone(m.quarantines)
	return m
}

func (m image) last() record.Pos {
	if len(m.recs) == 0 {
		return m.origin
	}
	return m.recs[len(m.recs)-1].Pos()
}

// at is the position of a number of this image.
func (m image) at(seq record.Seq) record.Pos {
	if seq == m.origin.Seq {
		return m.origin
	}
	return m.recs[seq-m.origin.Seq-1].Pos()
}

// crasher drives one log with random steps and cuts the power at random moments.
type crasher struct {
	t     *testing.T
	rng   *rand.Rand
	fs    *vfs.MemFS
	j     *Journal
	l     *Log
	steps []image // steps[k] is the image after the batch that set meta "step" to k
	sure  int     // the step that is known to be durable
	wait  []*Pending
	at    []int // their steps
	epoch uint64
}

func TestNothingAcknowledgedIsLostAtACrash(t *testing.T) {
	seeds := []uint64{*crashSeed}
	if *crashSeed == 0 {
		seeds = nil
		for range *crashSeeds {
			seeds = append(seeds, rand.Uint64())
		}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Logf("repeat with -crash.seed %d", seed)
			c := &crasher{t: t, rng: rand.New(rand.NewPCG(seed, 1)), fs: vfs.NewCrashableMem()}
			c.steps = []image{{meta: map[string]string{}, quarantines: map[string][]*record.Record{}}}
			c.open()
			for range 6 {
				for range 10 + c.rng.IntN(150) {
					c.step()
				}
				c.crash()
			}
			mustClose(t, c.j)
		})
	}
}

func (c *crasher) open() {
	o := options(c.t, c.fs)
	o.MemTableBytes = 64 << 10 << c.rng.IntN(3)
	j, err := Open(o)
	if err != nil {
		c.t.Fatal(err)
	}
	c.j, c.l = j, mustLog(c.t, j, vol1)
}

func (c *crasher) step() {
	now := c.steps[len(c.steps)-1].clone()
	b := Batch{}
	switch k := c.rng.IntN(100); {
	case k < 10:
		if now.last().Seq > c.l.First() {
			upto := c.l.First() + record.Seq(c.rng.Uint64N(uint64(now.last().Seq-c.l.First())))
			if err := c.l.Trim(upto); err != nil {
				c.t.Fatal(err)
			}
		}
	case k < 14:
		c.cut(&b, &now)
	case k < 17:
		if k > 14 { // a tail is set aside before all else goes
			c.cut(&b, &now)
		}
		pos := record.Pos{Seq: 1 + record.Seq(c.rng.Uint64N(1000)), Sum: c.rng.Uint64()}
		b.Reset, now.origin, now.recs = &pos, pos, nil
	}
	c.epoch++
	add := chainOf(vol1, now.last(), c.rng.IntN(8), 1+c.rng.IntN(6000), c.epoch)
	b.Records = add
	now.recs = append(now.recs, add...)
	now.meta["step"] = strconv.Itoa(len(c.steps))
	now.meta[strconv.Itoa(c.rng.IntN(5))] = now.meta["step"]
	for k, v := range now.meta {
		if v == now.meta["step"] {
			b.Meta = append(b.Meta, MetaOp{k, []byte(v)})
		}
	}
	p, err := c.l.Write(b)
	if err != nil {
		c.t.Fatal(err)
	}
	c.steps = append(c.steps, now)
	c.wait, c.at = append(c.wait, p), append(c.at, len(c.steps)-1)
	if c.rng.IntN(3) == 0 {
		c.waitFor(c.rng.IntN(len(c.wait)))
	}
}

func (c *crasher) cut(b *Batch, now *image) {
	begin := c.l.Begin().Seq
	seq := begin + record.Seq(c.rng.Uint64N(uint64(now.last().Seq-begin)+1))
	b.Cut = &Cut{After: now.at(seq)}
	kept := int(seq - now.origin.Seq)
	if c.rng.IntN(2) == 0 && kept < len(now.recs) {
		b.Cut.Quarantine = "q" + strconv.Itoa(len(c.steps))
		now.quarantines[b.Cut.Quarantine] = now.recs[kept:]
	}
	now.recs = slices.Clip(now.recs[:kept])
}

// waitFor waits for the i-th pending batch: all before it are durable then too.
func (c *crasher) waitFor(i int) {
	if err := c.wait[i].Wait(); err != nil {
		c.t.Fatal(err)
	}
	c.sure = max(c.sure, c.at[i])
	c.wait, c.at = slices.Delete(c.wait, i, i+1), slices.Delete(c.at, i, i+1)
}

// crash takes what a power cut leaves, opens it and compares.
func (c *crasher) crash() {
	sure := c.sure // durable before the cut
	fs := c.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: c.rng.IntN(101), RNG: c.rng})
	for len(c.wait) > 0 {
		c.waitFor(0)
	}
	mustClose(c.t, c.j)
	c.fs = fs
	c.open()
	v, _, err := c.l.Meta("step")
	if err != nil {
		c.t.Fatal(err)
	}
	k, _ := strconv.Atoi(string(v))
	if k < sure || k >= len(c.steps) {
		c.t.Fatalf("after the crash the log is at step %d, step %d of %d was durable", k, sure, len(c.steps)-1)
	}
	c.compare(c.steps[k])
	c.steps, c.sure = c.steps[:k+1], k
}

// compare verifies that the log is exactly what it was after a step. The trim mark
// may be any that was set before.
func (c *crasher) compare(want image) {
	begin := c.l.Begin()
	if begin.Seq < want.origin.Seq || begin.Seq > want.last().Seq || begin != want.at(begin.Seq) {
		c.t.Fatalf("the log begins behind %s, wanted is a place in %s..%s", begin, want.origin, want.last())
	}
	checkHolds(c.t, c.l, begin, want.recs[begin.Seq-want.origin.Seq:])
	meta, err := c.l.MetaAll()
	if err != nil || len(meta) != len(want.meta) {
		c.t.Fatalf("%d meta values, %v, want %d", len(meta), err, len(want.meta))
	}
	for k, v := range want.meta {
		if string(meta[k]) != v {
			c.t.Errorf("meta %q is %q, want %q", k, meta[k], v)
		}
	}
	qs, err := c.l.Quarantines()
	if err != nil || len(qs) != len(want.quarantines) {
		c.t.Fatalf("%d quarantines, %v, want %d", len(qs), err, len(want.quarantines))
	}
	for name, recs := range want.quarantines {
		checkQuarantine(c.t, c.l, name, recs)
	}
	if rep, err := c.l.Verify(c.t.Context(), nil); err != nil || rep.Err() != nil {
		c.t.Fatalf("verify: %v, %v", err, rep.Err())
	}
	if len(c.l.Damage()) != 0 {
		c.t.Fatalf("damage: %v", c.l.Damage())
	}
}

// The promise of pebble that all of this rests on, tried the other way round: what
// was written and not waited for may be gone, so that the test above can fail.
func TestWhatWasNotWaitedForMayBeLost(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := options(t, fs)
	l := mustLog(t, mustOpen(t, o), vol1)
	recs := chain(vol1, record.Pos{}, 2, 100)
	mustWrite(t, l, Batch{Records: recs[:1]})
	before := fs.CrashClone(vfs.CrashCloneCfg{})
	mustWrite(t, l, Batch{Records: recs[1:]})
	o.FS = before
	l = mustLog(t, mustOpen(t, o), vol1)
	checkHolds(t, l, record.Pos{}, recs[:1])
	r, err := l.Get(1)
	if err != nil || !bytes.Equal(r.Raw, recs[0].Raw) {
		t.Errorf("record 1: %v", err)
	}
	if _, err := l.Get(2); !errors.Is(err, ErrNotYet) {
		t.Errorf("record 2: %v, want ErrNotYet", err)
	}
}

// What is acknowledged by a journal that is new needs the names of its directories, too,
// and must not be taken for the remains of a creation that was cut short.
func TestNewJournalOutlivesAPowerCut(t *testing.T) {
	mem := vfs.NewCrashableMem()
	if err := makeDir(mem, "one/two/three"); err != nil {
		t.Fatal(err)
	}
	if _, err := mem.CrashClone(vfs.CrashCloneCfg{}).Stat("one/two/three"); err != nil {
		t.Errorf("a power cut takes the directory: %v", err)
	}
	o := options(t, mem)
	o.Dir = "one/two/three"
	j := mustOpen(t, o)
	recs := chain(vol1, record.Pos{}, 3, 100)
	mustWrite(t, mustLog(t, j, vol1), Batch{Records: recs})
	left := o
	left.FS = mem.CrashClone(vfs.CrashCloneCfg{})
	mustClose(t, j)
	again := mustOpen(t, left)
	checkHolds(t, mustLog(t, again, vol1), record.Pos{}, recs)
	mustClose(t, again)
}
