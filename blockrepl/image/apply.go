package image

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
)

// comes from: records that are committed, in order
// does:       cuts them into groups, joins neighbours, writes each group under its stripes
// goes to:    the file or device; the caller then counts them as applied

// Change is what one record does to the image.
type Change struct {
	Kind     record.Kind // KindWrite, KindZero or KindTrim
	Off, Len int64       // bytes, within the volume
	Data     []byte      // of a write, uncompressed: Len bytes; not kept
}

func (c *Change) extent() record.Extent { return record.Extent{Lo: c.Off, Hi: c.Off + c.Len} }

// Apply makes the changes, in order: a read at any time sees those of some prefix
// of them. All extents are checked before the first byte is written.
//
// ErrNoSpace leaves an unknown part of them done; reads are refused until Apply,
// given the same changes again (and perhaps more behind them), has made them.
// Any other error of the disk is final.
func (im *Image) Apply(changes []Change) error {
	im.changing.Lock()
	defer im.changing.Unlock()
	if h := im.halt.Load(); h != nil && h.final {
		return h.err
	}
	for i := range changes {
		if err := im.admit(&changes[i]); err != nil {
			return err
		}
	}
	if im.torn.left > 0 && len(changes) > 0 {
		f, c := &im.torn.first, &changes[0]
		if f.Len > 0 && (c.Kind != f.Kind || c.Off != f.Off || c.Len != f.Len) {
			return im.wrap("apply", c.extent(), fmt.Errorf("%w: apply %s first again, of which a part may be done", ErrNoSpace, f.extent()))
		}
	}
	for rest := changes; len(rest) > 0; {
		n := groupLen(rest, im.cheapZero())
		if err := im.applyGroup(rest[:n]); err != nil {
			if isNoSpace(err) {
				im.torn = torn{first: changes[0], left: max(len(changes), im.torn.left)}
				im.torn.first.Data = nil
			}
			return err
		}
		rest = rest[n:]
	}
	im.mend(len(changes))
	return nil
}

// admit checks one change against the volume.
func (im *Image) admit(c *Change) error {
	if err := im.check("apply", c.Off, c.Len); err != nil {
		return err
	}
	if !c.Kind.ChangesImage() || c.Kind == record.KindWrite && int64(len(c.Data)) != c.Len {
		panic(fmt.Sprintf("image: bug: %s of %d bytes with %d bytes of data", c.Kind, c.Len, len(c.Data)))
	}
	return nil
}

// mend counts changes that were made again, and lets reads in when all were.
func (im *Image) mend(n int) {
	if im.torn.left == 0 {
		return
	}
	im.torn = torn{left: im.torn.left - n}
	if im.torn.left > 0 {
		return
	}
	im.torn = torn{}
	if h := im.halt.Load(); h != nil && !h.final {
		im.halt.CompareAndSwap(h, nil) // a Sync may have failed in between
	}
}

// cheapZero reports whether long zeroes are not written but only noted.
func (im *Image) cheapZero() bool {
	d, ok := im.disk.(*file)
	return ok && d.punches && !(d.keeps.Load() && d.noZero)
}

// forgetTorn lets reads in although not all changes were made again.
func (im *Image) forgetTorn() {
	im.changing.Lock()
	defer im.changing.Unlock()
	im.mend(im.torn.left)
}

// groupLen is how many of the changes go under one taking of stripes: at least one.
// Zeroes count like writes where the disk may have to write them.
func groupLen(changes []Change, cheapZero bool) int {
	bytes := int64(0)
	for i := range changes {
		if c := &changes[i]; c.Kind == record.KindWrite || !cheapZero || c.Len < zeroByWriting {
			bytes += c.Len
		}
		if i > 0 && (bytes > groupBytes || i == groupChanges) {
			return i
		}
	}
	return len(changes)
}

// applyGroup writes one group, whole before anyone may read of it.
func (im *Image) applyGroup(group []Change) error {
	var s stripeSet
	for i := range group {
		s |= stripesOf(group[i].Off, group[i].Len)
	}
	runs := im.plan.runsOf(group)
	defer im.plan.forget()
	if !mutant.Is("change the image beside its readers") {
		im.locks.lock(s)
		defer im.locks.unlock(s)
	}
	for i := range runs {
		r := &runs[i]
		if err := im.write(r); err != nil {
			// Within the stripes, so that no read comes between.
			if isNoSpace(err) {
				return im.tear(im.wrap("apply", r.extent(), err))
			}
			return im.fail("apply", r.extent(), err)
		}
	}
	return nil
}

// tear refuses reads until the changes are made again. A Sync that failed meanwhile
// stays final.
func (im *Image) tear(err error) error {
	for {
		h := im.halt.Load()
		if h != nil && h.final {
			return h.err
		}
		if im.halt.CompareAndSwap(h, &halt{err: err}) {
			return err
		}
	}
}

func (im *Image) write(r *run) error {
	if r.kind == record.KindWrite {
		return im.disk.writev(r.bufs, r.lo)
	}
	return im.disk.zero(r.lo, r.hi-r.lo, r.kind == record.KindTrim)
}

// run is changes of one kind that lie one behind the other: one call to the disk.
type run struct {
	kind   record.Kind
	lo, hi int64
	bufs   [][]byte // of a write
}

func (r *run) extent() record.Extent { return record.Extent{Lo: r.lo, Hi: r.hi} }

// plan turns a group into runs; it keeps its memory from group to group.
type plan struct {
	order []*Change
	runs  []run
}

// runsOf gives the runs of a group. Changes that do not overlap may be written in
// any order, as nobody looks before the last: then neighbours are joined wherever
// they stand in the group. Else the order is kept, and only followers are joined.
func (p *plan) runsOf(group []Change) []run {
	p.inOrder(group)
	byOffset := func(a, b *Change) int { return cmp.Compare(a.Off, b.Off) }
	if !slices.IsSortedFunc(p.order, byOffset) {
		slices.SortFunc(p.order, byOffset)
	}
	for i := 1; i < len(p.order); i++ {
		if p.order[i].Off < p.order[i-1].Off+p.order[i-1].Len && !mutant.Is("sort changes that overlap") {
			p.inOrder(group)
			break
		}
	}
	return p.join()
}

// inOrder lists the changes of a group as they came.
func (p *plan) inOrder(group []Change) {
	p.order = p.order[:0]
	for i := range group {
		if group[i].Len > 0 {
			p.order = append(p.order, &group[i])
		}
	}
}

// join makes runs of what follows each other in p.order.
func (p *plan) join() []run {
	runs := p.runs[:0]
	for _, c := range p.order {
		last := len(runs) - 1
		if last < 0 || runs[last].kind != c.Kind || runs[last].hi != c.Off {
			if last++; last < cap(runs) {
				runs = runs[:last+1]
			} else {
				runs = append(runs, run{})
			}
			runs[last] = run{kind: c.Kind, lo: c.Off, bufs: runs[last].bufs[:0]}
		}
		r := &runs[last]
		r.hi = c.Off + c.Len
		if c.Kind == record.KindWrite {
			r.bufs = append(r.bufs, c.Data)
		}
	}
	p.runs = runs
	return runs
}

// forget lets go of the group's data, and keeps the room.
func (p *plan) forget() {
	clear(p.order)
	for i := range p.runs {
		clear(p.runs[i].bufs)
	}
}
