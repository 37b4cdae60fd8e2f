package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the volume's loop, as a number through which records are committed
// and durable here. Does: takes the records in order from the ring, else from the
// journal, decompresses them, and gives neighbours to the image in one call.
// Goes to: the loop (Applied) and the checkpointer. One goroutine a volume.
type applier struct {
	v *Volume

	mu     sync.Mutex
	wake   sync.Cond // target, closed or busy changed
	target record.Seq
	busy   bool // between taking records and Applied
	held   int  // who wants the image to stay as it is
	resets int  // counts the beginnings and ends of reset
	stuck  bool // at a damaged record, until reset
	closed bool

	// applied is what the image holds. applying is at least as high as anything
	// a reader of the image can have seen: it is raised before the image changes.
	//
	// Invariant: applied <= applying; equal while nothing is under way.
	applied  atomic.Uint64
	applying atomic.Uint64

	missed []record.Seq     // that the start could not read
	found  []*record.Record // such as the call under way applies

	// Scratch of the goroutine.
	recs    []*record.Record
	changes []image.Change
	plain   []byte
}

func newApplier(v *Volume, applied record.Seq) *applier {
	a := &applier{v: v, target: applied}
	a.wake.L = &a.mu
	a.applied.Store(uint64(applied))
	a.applying.Store(uint64(applied))
	return a
}

// to lets everything through seq go to the image.
func (a *applier) to(seq record.Seq) {
	a.mu.Lock()
	if seq > a.target {
		a.target = seq
		a.wake.Broadcast()
	}
	a.mu.Unlock()
}

// reset starts anew behind seq: the journal was dropped. It waits for the call of
// the image that is under way, and for those who hold it.
func (a *applier) reset(seq record.Seq) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.target = record.Seq(a.applied.Load()) // nothing more is begun
	a.resets++                              // nor held once more by who sees that
	for a.busy || a.held > 0 {
		a.wake.Wait()
	}
	a.resets++
	a.target, a.stuck = seq, false
	a.applied.Store(uint64(seq))
	a.applying.Store(uint64(seq))
	a.wake.Broadcast()
}

// close ends run after the call under way; drain first waits for target.
func (a *applier) close() {
	a.mu.Lock()
	a.closed = true
	a.wake.Broadcast()
	a.mu.Unlock()
}

// next waits for work: the first and last number to apply.
func (a *applier) next() (from, to record.Seq, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy {
		a.busy = false
		a.wake.Broadcast()
	}
	for !a.closed && (a.held > 0 || a.stuck || a.target <= record.Seq(a.applied.Load())) {
		a.wake.Wait()
	}
	if a.closed {
		return 0, 0, false
	}
	a.busy = true
	return record.Seq(a.applied.Load()) + 1, a.target, true
}

func (a *applier) run() {
	for {
		from, to, ok := a.next()
		if !ok {
			return
		}
		gen, resets := a.v.in.generation(), a.place().resets
		last, bytes, err := a.step(from, to)
		if err != nil && a.mended(gen, err.err) {
			continue
		}
		var c *journal.CorruptError
		if err != nil && errors.As(err.err, &c) {
			a.v.logr.Error("journal record cannot be applied and was not mended", "seq", c.Seq, "err", err.err)
			a.stick(resets, c.Seq)
			continue
		}
		if err != nil {
			a.v.fail(err.what, err.err)
			a.mu.Lock()
			a.busy, a.closed = false, true
			a.wake.Broadcast()
			a.mu.Unlock()
			return
		}
		a.applied.Store(uint64(last))
		a.v.in.applied(gen, last, a.found)
		a.v.check.dirtied(bytes)
	}
}

// stick waits behind a damaged record until the journal begins anew, as the state
// machine may have it, which is told.
func (a *applier) stick(resets int, seq record.Seq) {
	a.mu.Lock()
	if a.resets == resets { // else it did already
		a.stuck = true
		a.v.in.post(replica.Unreadable{Seq: seq, Apply: true})
	}
	a.mu.Unlock()
}

// failure names the part that failed.
type failure struct {
	what string
	err  error
}

// mended asks the other servers for a damaged record; true: try again. Meanwhile the
// image is let go of: the loop may have to drop the journal, and must not wait for
// servers that do not answer. If it did, the record is no longer of interest.
func (a *applier) mended(gen uint64, err error) bool {
	var c *journal.CorruptError
	if !errors.As(err, &c) {
		return false
	}
	a.mu.Lock()
	a.busy = false
	a.wake.Broadcast()
	a.mu.Unlock()
	return a.v.mender.mend(err) || a.v.in.generation() != gen
}

// step applies some records from from on, at most through to.
func (a *applier) step(from, to record.Seq) (last record.Seq, bytes int64, failed *failure) {
	recs, err := a.v.records(a.recs[:0], from, to, applyRecords, applyBytes)
	if err != nil {
		return 0, 0, &failure{"journal", fmt.Errorf("read record %d to apply it: %w", from, err)}
	}
	all := recs
	recs = recs[:fits(recs, applyBytes)]
	last = recs[len(recs)-1].Seq
	a.applying.Store(uint64(last))
	a.changes, a.plain, a.found = a.changes[:0], a.plain[:0], nil
	for _, rec := range recs {
		if slices.Contains(a.missed, rec.Seq) {
			a.found = append(a.found, rec)
		}
		if !rec.Kind.ChangesImage() && rec.Kind != record.KindResize {
			continue
		}
		if rec.Kind == record.KindResize {
			if err := a.flush(); err != nil {
				return 0, 0, err
			}
			if err := a.v.resizeImage(rec.Length); err != nil {
				return 0, 0, &failure{"image", fmt.Errorf("record %d: %w", rec.Seq, err)}
			}
			continue
		}
		if rec.Kind == record.KindTrim && mutant.Is("apply no trim on one server") && a.v.s.opt.ID == a.v.opt.Servers[0] {
			continue
		}
		if rec.Kind == record.KindZero && mutant.Is("apply no zeroes") {
			continue
		}
		c := image.Change{Kind: rec.Kind, Off: rec.Offset, Len: rec.Length}
		if rec.Kind == record.KindWrite {
			if c.Data, err = a.payload(rec); err != nil {
				return 0, 0, &failure{"journal", err}
			}
		}
		a.changes = append(a.changes, c)
		bytes += int64(len(c.Data)) + 4096
	}
	if err := a.flush(); err != nil {
		return 0, 0, err
	}
	clear(all)
	a.recs = all
	if cap(a.plain) > applyBytes {
		a.plain = nil // a large write's: a server may have a thousand volumes
	}
	return last, bytes, nil
}

// fits is how many of the records write at most plainMax bytes together, at least
// one. What compresses well is small in the journal, and may be any size here.
func fits(recs []*record.Record, plainMax int64) int {
	n := int64(0)
	for i, rec := range recs {
		if rec.Kind == record.KindWrite {
			n += rec.Length
		}
		if i > 0 && n > plainMax {
			return i
		}
	}
	return len(recs)
}

// payload decompresses into scratch that lives until the changes are flushed. A
// growing scratch leaves earlier payloads where they are.
func (a *applier) payload(rec *record.Record) ([]byte, error) {
	if rec.Codec == record.CodecNone {
		return rec.Payload(nil)
	}
	n := len(a.plain)
	if cap(a.plain)-n < int(rec.Length) {
		a.plain, n = make([]byte, 0, max(int(rec.Length), applyBytes)), 0
	}
	out, err := rec.AppendPayload(a.plain)
	if err != nil {
		return nil, err
	}
	a.plain = out
	return out[n:], nil
}

func (a *applier) flush() *failure {
	if len(a.changes) == 0 {
		return nil
	}
	err := a.v.img.Apply(a.changes)
	a.v.seen.note(a.changes[len(a.changes)-1].Off)
	clear(a.changes)
	a.changes = a.changes[:0]
	if err != nil {
		return &failure{"image", err}
	}
	return nil
}

// records gives records from..to, at least the first, from the ring, else from
// the journal. ErrTrimmed and the like are the journal's.
func (v *Volume) records(dst []*record.Record, from, to record.Seq, recordsMax int, bytesMax int64) ([]*record.Record, error) {
	if dst = v.ring.get(dst, from, to, recordsMax, bytesMax); len(dst) > 0 {
		return dst, nil
	}
	log := v.log.Load()
	if log == nil {
		return dst, fmt.Errorf("record %d: %w", from, journal.ErrNotYet)
	}
	var n int64
	err := readRecords(log, from, to, func(rec *record.Record) error {
		n += int64(len(rec.Raw))
		if len(dst) > 0 && (n > bytesMax || len(dst) >= recordsMax) {
			return errEnough
		}
		dst = append(dst, rec)
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return dst, err
	}
	if len(dst) == 0 {
		return dst, fmt.Errorf("record %d: %w", from, journal.ErrNotYet)
	}
	return dst, nil
}

// errEnough ends a reading.
var errEnough = errors.New("enough")

// wait waits until everything that may go to the image is there; false when that
// does not come about before ctx ends.
func (a *applier) wait(ctx context.Context) bool {
	stop := context.AfterFunc(ctx, func() {
		a.mu.Lock()
		a.wake.Broadcast()
		a.mu.Unlock()
	})
	defer stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	for (a.busy || !a.stuck && a.target > record.Seq(a.applied.Load())) && !a.closed && ctx.Err() == nil {
		a.wake.Wait()
	}
	return !a.closed && ctx.Err() == nil
}

// place says which image it is: the number it holds, and of which journal.
type place struct {
	seq    record.Seq
	resets int
}

// place gives the image's present one.
func (a *applier) place() place {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.placeLocked()
}

func (a *applier) placeLocked() place { return place{record.Seq(a.applied.Load()), a.resets} }

// hold keeps the image as it is until release, which must not wait for the loop, and
// gives its place.
func (a *applier) hold() place {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held++
	for a.busy {
		a.wake.Wait()
	}
	return a.placeLocked()
}

func (a *applier) release() {
	a.mu.Lock()
	a.held--
	a.wake.Broadcast()
	a.mu.Unlock()
}

// reach waits until the image holds everything through seq.
func (a *applier) reach(ctx context.Context, seq record.Seq) error {
	stop := context.AfterFunc(ctx, func() {
		a.mu.Lock()
		a.wake.Broadcast()
		a.mu.Unlock()
	})
	defer stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	for record.Seq(a.applied.Load()) < seq {
		if a.closed {
			return ErrStopped
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait until number %d is applied: %w", seq, err)
		}
		a.wake.Wait()
	}
	return nil
}
