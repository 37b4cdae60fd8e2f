package replica

import (
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// The epoch history grows by a line with every mastership, and every restart of a
// master is one. It tells where two pasts part, so a line must stay as long as any
// member may come back with a past that parted there. Once every member is in sync
// in one epoch, all hold its record and the history before it: no two members'
// disks disagree on anything older. Then the older lines go, but for some.
//
// What comes back later with an epoch that is older than all lines is an old copy
// of a disk. Nothing was decided in it that the others lack (ancestor), and no
// number of it is known to be common: it is not believed, or resynced.

// shortened reports whether older lines of h are gone. The first epoch of a volume
// begins with record 1, and is built on no state; another one may begin with record
// 1, too, when nothing of those before was kept.
func shortened(h []wire.EpochStart) bool {
	return len(h) > 0 && (h[0].First.Seq > 1 || h[0].BaseNumber > 0)
}

// beforeAll reports whether e is older than every line of a shortened history.
func beforeAll(h []wire.EpochStart, e record.Epoch) bool {
	return shortened(h) && e.Less(h[0].Epoch)
}

// aligned leaves out the lines that only one of two histories still has, below the
// first line of the other. Both agree on those.
func aligned(a, b []wire.EpochStart) (_, _ []wire.EpochStart) {
	from := func(long, short []wire.EpochStart) []wire.EpochStart {
		if !shortened(short) {
			return long
		}
		i := slices.IndexFunc(long, func(h wire.EpochStart) bool { return h.Epoch == short[0].Epoch })
		return long[max(i, 0):]
	}
	return from(a, b), from(b, a)
}

// shortenHistory lets lines go that no member can need any more.
func (r *Replica) shortenHistory() {
	n := len(r.hard.History)
	if n < 2*r.cfg.History || !r.m.serving || r.m.change != nil || len(r.hard.State.InSync) < len(r.hard.State.Members) {
		return
	}
	for _, p := range r.peers {
		if !p.joined || p.ackEpoch != r.epoch() || p.durable < r.m.start {
			return
		}
	}
	r.note("every member is in sync; old lines of the epoch history go", "lines", n-r.cfg.History)
	r.hard.History = slices.Clone(r.hard.History[n-r.cfg.History:])
	r.saveHard(nil)
}

// crowded reports whether the history has no room for a mastership that nobody
// commanded: a master that dies and starts again all day must not use up what the
// operator needs to bring all members in sync.
func (r *Replica) crowded() bool { return len(r.hard.History) >= HistoryMax-historyReserve }
