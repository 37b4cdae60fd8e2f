package replica

import (
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Pure functions of the volume's state c and of epoch histories.

// newer reports whether a supersedes b.
func newer(a, b *wire.State) bool {
	if c := a.Epoch.Compare(b.Epoch); c != 0 {
		return c > 0
	}
	return a.Number > b.Number
}

// member finds id in the in-sync set.
func member(s *wire.State, id record.ServerID) (wire.Member, bool) {
	for _, m := range s.InSync {
		if m.ID == id {
			return m, true
		}
	}
	return wire.Member{}, false
}

func inSync(s *wire.State, id record.ServerID) bool {
	_, ok := member(s, id)
	return ok
}

// with gives the successor of s that has m in its in-sync set.
func with(s wire.State, m wire.Member) wire.State {
	s.Number++
	s.InSync = append(dropMember(s.InSync, m.ID), m)
	sortMembers(s.InSync)
	return s
}

func sortMembers(set []wire.Member) {
	slices.SortFunc(set, func(a, b wire.Member) int { return a.ID.Compare(b.ID) })
}

// without gives the successor of s that lacks id.
func without(s wire.State, id record.ServerID) wire.State {
	s.Number++
	s.InSync = dropMember(s.InSync, id)
	return s
}

func dropMember(set []wire.Member, id record.ServerID) []wire.Member {
	kept := make([]wire.Member, 0, len(set)+1)
	for _, m := range set {
		if m.ID != id {
			kept = append(kept, m)
		}
	}
	return kept
}

func ids(set []wire.Member) []record.ServerID {
	out := make([]record.ServerID, len(set))
	for i, m := range set {
		out[i] = m.ID
	}
	return out
}

// majority is how many of n members note a shrink before it counts (unless
// forced), and how many must answer, and promise, for a promotion without a flag:
// then one of them knows of every shrink and of every promotion before.
func majority(n int) int { return n/2 + 1 }

// dropped are the in-sync servers of a that b lacks.
func dropped(a, b *wire.State) []record.ServerID {
	var out []record.ServerID
	for _, m := range a.InSync {
		if !inSync(b, m.ID) {
			out = append(out, m.ID)
		}
	}
	return out
}

// outOf are the members that s does not have in sync.
func outOf(s *wire.State) []record.ServerID {
	return slices.DeleteFunc(slices.Clone(s.Members), func(id record.ServerID) bool { return inSync(s, id) })
}

// parting is how many epochs two histories begin with alike.
func parting(a, b []wire.EpochStart) int {
	n := 0
	for n < len(a) && n < len(b) && a[n].Epoch == b[n].Epoch && !twins(&a[n], &b[n]) {
		n++
	}
	return n
}

// common is the last number at which two journals are known to agree: each
// consists of its epoch history and its end. Within one epoch the same number
// never names two records, so equal beginnings of epochs suffice.
func common(a []wire.EpochStart, aLast record.Seq, b []wire.EpochStart, bLast record.Seq) record.Seq {
	a, b = aligned(a, b)
	n, alike := 0, parting(a, b)
	for n < alike && a[n].First == b[n].First {
		n++
	}
	if n == 0 {
		return 0
	}
	return min(endOf(a, n-1, aLast), endOf(b, n-1, bLast))
}

// endOf is the last number of the i-th epoch of h.
func endOf(h []wire.EpochStart, i int, last record.Seq) record.Seq {
	if i+1 < len(h) {
		return min(h[i+1].First.Seq-1, last) // an epoch may be known before its record came
	}
	return last
}

// reached is history h for a journal whose next number is next. An epoch that was
// followed but whose record never came stays in it, so that its states are known
// for ancestors, and ends before it begins: no number is common through it.
func reached(h []wire.EpochStart, next record.Seq) []wire.EpochStart {
	h = slices.Clone(h)
	for i := len(h) - 1; i >= 0 && h[i].First.Seq >= next; i-- {
		h[i].First = record.Pos{Seq: next}
	}
	return h
}

// unlike is history h for an image that is not the state after any number of it:
// nothing is common with one that began as h did (common), though journals may be.
func unlike(h []wire.EpochStart) []wire.EpochStart {
	h = slices.Clone(h)
	if len(h) > 0 {
		h[0].First = record.Pos{Seq: 1}
	}
	return h
}

// records is the last number of which two journals hold the same record, whatever
// their images hold.
func records(a []wire.EpochStart, aLast record.Seq, b []wire.EpochStart, bLast record.Seq) record.Seq {
	a, b = aligned(a, b)
	if len(a) > 0 && len(b) > 0 && a[0].Epoch == b[0].Epoch {
		b = slices.Clone(b)
		b[0].First = a[0].First
	}
	return common(a, aLast, b, bLast)
}

// twins reports whether two lines of that name are of two masterships: a server whose
// data was replaced, and that joined where nobody knew of it, took an epoch a second time.
func twins(a, b *wire.EpochStart) bool {
	return a.Epoch == b.Epoch && a.First != b.First && a.First.Sum != 0 && b.First.Sum != 0
}

// twice reports whether epoch e is one mastership in history a and another in b.
func twice(a, b []wire.EpochStart, e record.Epoch) bool {
	of := func(s wire.EpochStart) bool { return s.Epoch == e }
	i, k := slices.IndexFunc(a, of), slices.IndexFunc(b, of)
	return i >= 0 && k >= 0 && twins(&a[i], &b[k])
}

// ancestor reports whether s, whose history is sh, lies on the path that led to state
// cur with history h: nothing was decided under s that cur does not contain.
func ancestor(h []wire.EpochStart, cur *wire.State, sh []wire.EpochStart, s *wire.State) bool {
	if s.Epoch.IsZero() || s.Epoch.Less(cur.Overruled) || beforeAll(h, s.Epoch) {
		return true
	}
	if twice(h, sh, s.Epoch) {
		return false
	}
	for i := range h {
		if h[i].Epoch != s.Epoch {
			continue
		}
		if i+1 < len(h) {
			return s.Number <= h[i+1].BaseNumber
		}
		return s.Epoch != cur.Epoch || s.Number <= cur.Number
	}
	return false
}

// splitBrain reports whether two states can both have acknowledged writes that
// the other lacks: neither is the other's ancestor, and neither past bars the other.
func splitBrain(ah []wire.EpochStart, a *wire.State, bh []wire.EpochStart, b *wire.State) bool {
	same := a.Epoch == b.Epoch && !twice(ah, bh, a.Epoch)
	if same || ancestor(ah, a, bh, b) || ancestor(bh, b, ah, a) || mutated("see no split brain") {
		return false
	}
	return !barred(ah, a, bh, b) && !barred(bh, b, ah, a)
}

// barred reports whether nothing was committed under a that b's past lacks: a server
// of a's in-sync set, of the same incarnation, is among those that the other past
// began with in its first epoch above a's. Since that promise nothing was committed
// under a, and before it the server had not joined a's epoch, or the later one would
// be built on it. One that came to the other side afterwards proves nothing: it may
// have set aside what it had acknowledged here, while this side took it for its own.
//
// An epoch that the operator forced over a loss was not built on what was known, and
// so chosen: where there is one, and where the set is not known any more, one server
// that both have in sync now is enough, too.
func barred(ah []wire.EpochStart, a *wire.State, bh []wire.EpochStart, b *wire.State) bool {
	ah, bh = aligned(ah, bh)
	n := parting(ah, bh)
	for n < len(bh) && !a.Epoch.Less(bh[n].Epoch) {
		n++
	}
	if n == len(bh) {
		return false
	}
	above := bh[n:]
	if !above[0].Loss && share(a.InSync, above[0].Set) {
		return true
	}
	chosen := slices.ContainsFunc(above, func(h wire.EpochStart) bool { return h.Loss })
	return (chosen || above[0].Set == nil) && share(a.InSync, b.InSync)
}

// share reports whether a server is in both sets, as the same incarnation.
func share(a, b []wire.Member) bool {
	return slices.ContainsFunc(a, func(m wire.Member) bool { return slices.Contains(b, m) })
}
