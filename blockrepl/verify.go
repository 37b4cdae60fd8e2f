package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: POST …/verify, on a slave. Does: compares the image with the
// master's, block by block, while clients write. Goes to: VerifyReport and the
// status (finding.go); with repair, the master's bytes replace what differs.
//
// Neither side stops, so a difference may be a write that only one of them has
// applied yet. What decides is the log. The master answers a query from an image
// that holds at least what was committed when the query came, so at least what
// this server had applied when it asked (asked), and at most Applied. Here the
// image is looked at again when it holds Applied too, and then nothing is applied
// for a moment (holds). If no record between asked and holds touches a block, both
// images must have held the same bytes there all the time: a difference is real.
// If one does, the block is asked for again. All this is said of one journal: when it
// was dropped meanwhile, for a resync, nothing can be decided any more.

// verification is one run.
type verification struct {
	v      *Volume
	link   *link
	epoch  record.Epoch
	repair bool
	report VerifyReport
}

func handleVerify(ctx context.Context, v *Volume, body io.Reader) (any, error) {
	var q VerifyRequest
	if err := readBody(body, &q); err != nil {
		return nil, err
	}
	return v.verify(ctx, q.Repair)
}

// verify compares the whole image with the master's.
func (v *Volume) verify(ctx context.Context, repair bool) (VerifyReport, error) {
	view, err := v.viewSoon(ctx)
	if err != nil {
		return VerifyReport{}, err
	}
	master := view.Config.Master
	switch {
	case master == v.s.opt.ID:
		return VerifyReport{}, fmt.Errorf("%w: this server is the master; ask the server whose image shall be compared with it", replica.ErrRefused)
	case view.Role != wire.RoleSlave || view.Resync != nil || view.Committed == 0:
		return VerifyReport{}, fmt.Errorf("%w: this server does not follow a master now: %s", replica.ErrRefused, view.Reason)
	}
	p := v.s.links.peers[master]
	var l *link
	if p != nil {
		l = p.cur.Load()
	}
	if l == nil {
		return VerifyReport{}, fmt.Errorf("%w: no link to the master %s", replica.ErrRefused, master)
	}
	r := &verification{v: v, link: l, epoch: view.Epoch, repair: repair,
		report: VerifyReport{Volume: v.name, Source: master.String(), Different: []DifferentExtent{}}}
	began := v.finding.begin()
	err = r.run(ctx)
	v.finding.concluded(v, began, &r.report, err)
	if r.report.DifferentBytes > 0 {
		v.note(&replica.Note{Text: "image differs from the master's", Warn: true, Args: []any{
			"master", master.String(), "bytes", r.report.DifferentBytes, "first", r.report.Different[0].Offset, "repaired", r.report.Repaired}})
	}
	if err != nil {
		return r.report, fmt.Errorf("verify volume %q against server %s: %w", v.name, master, err)
	}
	return r.report, nil
}

// run compares window by window.
func (r *verification) run(ctx context.Context) error {
	v, size := r.v, r.v.img.Size()
	w := v.begin("verify", size)
	defer v.end(w)
	v.img.DropCache()
	for off := int64(0); off < size; off += resyncWindow {
		if err := r.window(ctx, off, min(resyncWindow, size-off)); err != nil {
			return fmt.Errorf("at offset %d: %w", off, err)
		}
		w.done.Store(off + resyncWindow)
	}
	if r.repair && r.report.DifferentBytes > 0 {
		// Nothing is called repaired that a power cut could take back.
		if err := v.check.sync(); err != nil {
			v.fail("image", err)
			return fmt.Errorf("make %d repaired bytes durable: %w", r.report.DifferentBytes, err)
		}
		r.report.Repaired = true
	}
	return nil
}

// window compares one window; blocks that seem to differ are looked at again, one
// by one.
func (r *verification) window(ctx context.Context, off, n int64) error {
	asked, m, err := r.ask(ctx, off, n)
	if err != nil {
		return err
	}
	r.report.ComparedBytes += n
	for i := range m.Chunks {
		k := &m.Chunks[i]
		for at := k.Offset; at < k.Offset+k.Length; at += resyncBlock {
			if err := r.block(ctx, asked, m, at, min(resyncBlock, off+n-at)); err != nil {
				return err
			}
		}
	}
	return nil
}

// block decides whether a block differs. m is an answer that covers it.
func (r *verification) block(ctx context.Context, asked place, m *wire.ExtentData, off, n int64) error {
	for range verifyTries {
		if err := r.v.app.reach(ctx, m.Applied); err != nil {
			return err
		}
		decided, err := r.decide(asked, m, off, n)
		if err != nil || decided {
			return err
		}
		if asked, m, err = r.ask(ctx, off, n); err != nil {
			return err
		}
	}
	return fmt.Errorf("block at %d changes all the time: %w", off, replica.ErrTimeout)
}

// decide looks at the block while nothing is applied; false: it was touched
// meanwhile, and has to be asked for again.
func (r *verification) decide(asked place, m *wire.ExtentData, off, n int64) (bool, error) {
	holds := r.v.app.hold()
	defer r.v.app.release()
	if holds.resets != asked.resets {
		return false, fmt.Errorf("%w: this server is being resynced; verify it afterwards", replica.ErrRefused)
	}
	touched, err := r.touched(asked.seq+1, holds.seq, record.Extent{Lo: off, Hi: off + n})
	if err != nil || touched {
		return false, err
	}
	theirs, err := bytesOf(m, off, n)
	if err != nil {
		return false, err
	}
	if theirs == nil {
		return true, nil // the master found it equal
	}
	ours := make([]byte, n)
	if err := r.v.img.ReadAt(ours, off); err != nil {
		return false, err
	}
	if string(ours) == string(theirs) {
		return true, nil
	}
	r.differs(off, n)
	if !r.repair {
		return true, nil
	}
	defer r.v.check.dirtied(n)
	return true, r.v.img.Apply([]image.Change{{Kind: record.KindWrite, Off: off, Len: n, Data: theirs}})
}

// differs notes a block; blocks come in ascending order.
func (r *verification) differs(off, n int64) {
	r.report.DifferentBytes += n
	d := r.report.Different
	switch last := len(d) - 1; {
	case last >= 0 && d[last].Offset+d[last].Length == off:
		d[last].Length += n
	case len(d) < verifyExtents:
		r.report.Different = append(d, DifferentExtent{Offset: off, Length: n})
	}
}

// touched reports whether one of the records first..last changes x. Records that
// are no longer kept may have.
func (r *verification) touched(first, last record.Seq, x record.Extent) (bool, error) {
	for first <= last {
		recs, err := r.v.records(nil, first, last, applyRecords, applyBytes)
		if err != nil {
			r.v.logr.Debug("verify: records not kept", "seq", first, "err", err)
			return true, nil
		}
		for _, rec := range recs {
			if rec.Kind == record.KindResize || rec.Kind.ChangesImage() && rec.Extent().Overlaps(x) {
				return true, nil
			}
		}
		first = recs[len(recs)-1].Seq + 1
	}
	return false, nil
}

// bytesOf gives the bytes of a block in an answer, nil when it is not among the
// differing ones.
func bytesOf(m *wire.ExtentData, off, n int64) ([]byte, error) {
	for i := range m.Chunks {
		k := &m.Chunks[i]
		if k.Offset > off || off+n > k.Offset+k.Length {
			continue
		}
		ch, _, err := changeOf(k, m.Offset, m.Length, nil)
		if err != nil {
			return nil, err
		}
		if ch.Kind != record.KindWrite {
			return make([]byte, n), nil
		}
		return ch.Data[off-k.Offset:][:n], nil
	}
	return nil, nil
}

// ask sends the hashes of a range to the master and waits for its answer. It gives
// the place of this server's image before.
func (r *verification) ask(ctx context.Context, off, n int64) (place, *wire.ExtentData, error) {
	asked := r.v.app.place()
	hashes, err := r.v.img.HashBlocks(nil, off, n, resyncBlock)
	if err != nil {
		return asked, nil, err
	}
	id, answer := r.v.sync.expect()
	defer r.v.sync.unexpect(id)
	for range verifyAsks { // a query is dropped where the master has too many
		r.link.out.control(r.v.tag, &wire.HashQuery{Epoch: r.epoch, ID: id, Offset: off, Block: resyncBlock, Length: n, Hashes: hashes})
		m, err := r.await(ctx, answer)
		if err != nil {
			return asked, nil, err
		}
		if m == nil {
			continue
		}
		if m.Offset != off || m.Length != n {
			return asked, nil, fmt.Errorf("the master answered for %d bytes at %d, asked were %d at %d", m.Length, m.Offset, n, off)
		}
		for i := range m.Chunks {
			if err := within(&m.Chunks[i], off, n); err != nil {
				return asked, nil, fmt.Errorf("the master answered wrongly: %w", err)
			}
		}
		return asked, m, nil
	}
	return asked, nil, fmt.Errorf("%w: the master gave no answer for %v; its status and log may say why", replica.ErrTimeout, verifyAsks*resyncAgain)
}

// await waits for one answer, nil after resyncAgain. A master of before answers nothing
// any more, and its link may well live on.
func (r *verification) await(ctx context.Context, answer <-chan *wire.ExtentData) (*wire.ExtentData, error) {
	again := time.NewTimer(resyncAgain)
	defer again.Stop()
	look := time.NewTicker(verifyLook)
	defer look.Stop()
	for {
		if now := *r.v.epoch.Load(); now != r.epoch {
			return nil, fmt.Errorf("%w: epoch %v has ended, %v is followed now; verify against its master", replica.ErrRefused, r.epoch, now)
		}
		select {
		case m := <-answer:
			return m, nil
		case <-look.C:
		case <-again.C:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-r.link.done:
			return nil, errors.New("the link to the master was closed; try again")
		}
	}
}
