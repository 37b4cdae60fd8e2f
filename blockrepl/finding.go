package blockrepl

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal"
)

// Comes from: the end of each verify, and of each resync. Does: remembers what verify
// found in this server's image until a later verify finds it equal or repairs it, or a
// resync compares the whole image. Goes to: the status; and the journal's metadata, so
// that a restart does not call such an image healthy.
//
// It is this server's alone: the state machine decides nothing by it, since hashes do
// not tell which of two images is the right one. A client that writes over the place
// mends it, too; only the next verify knows.

// finding is what verify found.
type finding struct {
	now atomic.Pointer[VerifyFinding] // nil: nothing

	mu sync.Mutex // held by who changes now, over the hand-over to the journal
	// resyncs counts those that ended: the outcome of a verify that began before says
	// nothing of the image behind it.
	resyncs int
	// lost: the journal holds one that cannot be read. Nothing but a look at the whole
	// image may take its place.
	lost bool
}

// load reads what the last run knew. It is for people only: a damaged one is told, also
// by the next start, until a verify or a resync has seen the whole image.
func (f *finding) load(l *journal.Log, logr *slog.Logger) error {
	var kept VerifyFinding
	ok, err := loadMeta(l, keyVerify, &kept)
	if errors.Is(err, ErrMeta) {
		f.lost = true
		logr.Warn("what verify found in this server's image is not known any more; run `blockrepl verify` again", "err", err)
		return nil
	}
	if ok && err == nil {
		f.now.Store(&kept)
	}
	return err
}

// begin is to be called before a verify whose outcome is told to concluded.
func (f *finding) begin() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.resyncs
}

// concluded takes the outcome of a verify. One that was interrupted has not seen the
// whole image: what was found before it stays.
func (f *finding) concluded(v *Volume, began int, r *VerifyReport, err error) {
	f.mu.Lock()
	old, next := f.now.Load(), (*VerifyFinding)(nil)
	if r.DifferentBytes > 0 && !r.Repaired {
		next = &VerifyFinding{Source: r.Source, Number: v.app.applied.Load(), Time: v.s.opt.Wall().UTC(),
			DifferentBytes: r.DifferentBytes, Different: r.Different}
	}
	whole := began == f.resyncs && err == nil
	if began != f.resyncs || err != nil && old != nil {
		next = old
	}
	f.changeLocked(v, old, next, whole)
}

// resynced: the whole image was compared and is on disk.
func (f *finding) resynced(v *Volume) {
	f.mu.Lock()
	f.resyncs++
	f.changeLocked(v, f.now.Load(), nil, true)
}

// changeLocked unlocks, and waits until the change is durable. What the journal does
// not take is known until the next start. With whole the whole image was looked at.
func (f *finding) changeLocked(v *Volume, old, next *VerifyFinding, whole bool) {
	if old == next && !(whole && f.lost) {
		f.mu.Unlock()
		return
	}
	f.now.Store(next)
	f.lost = false
	op := journal.MetaOp{Key: keyVerify}
	if next != nil {
		op.Value = encodeMeta(next)
	}
	p, err := v.log.Load().Write(journal.Batch{Meta: []journal.MetaOp{op}, Urgent: true})
	f.mu.Unlock()
	if err == nil {
		err = p.Wait()
	}
	if err != nil {
		v.logr.Warn("what verify found is not kept over a restart", "err", err)
	}
}

// tell puts it into a status that says nothing worse.
func (f *finding) tell(st *VolumeStatus, role wire.Role) {
	x := f.now.Load()
	st.Verify = x
	if x == nil || st.State != StateHealthy && st.State != StateDegraded {
		return
	}
	many := ""
	if len(x.Different) >= verifyExtents {
		many = "at least "
	}
	why := fmt.Sprintf("verify found %s%d differing extents at number %d, %d bytes unlike server %s's, the first at %d",
		many, len(x.Different), x.Number, x.DifferentBytes, x.Source, x.Different[0].Offset)
	if st.Reason != "" {
		why = st.Reason + "; " + why
	}
	st.State, st.Reason = StateDegraded, why
	switch {
	case st.Next != "":
	case role == wire.RoleMaster:
		st.Next = fmt.Sprintf("on another server that is in sync: blockrepl promote %s; then here: blockrepl verify %s, with --repair if the other image is the right one", st.Name, st.Name)
	default:
		st.Next = fmt.Sprintf("if the master's image is the right one: blockrepl verify %s --repair", st.Name)
	}
}
