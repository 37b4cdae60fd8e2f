package blockrepl

import (
	"cmp"
	"slices"
	"sync"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
)

// quiet keeps what happens again and again from filling the log and the recent events:
// of one key quietBurst lines pass, then one in each quietEvery, until it has not
// happened for quietEvery. That one is the newest, so that the last word is true, and it
// says how many were left out.
//
// The zero value is ready. Safe for concurrent use.
type quiet struct {
	mu     sync.Mutex // nothing is written under it
	spates map[string]*spate
}

// spate is one key that has happened lately.
type spate struct {
	passed     int
	seen, told replica.Time
	left       int            // out, since told
	last       func(left int) // writes the newest of them
}

// say writes now, later or never; left is how many were left out before.
func (q *quiet) say(now replica.Time, key string, write func(left int)) {
	if left, ok := q.pass(now, key, write); ok {
		write(left)
	}
}

func (q *quiet) pass(now replica.Time, key string, write func(left int)) (left int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.spates[key]
	if s == nil || s.left == 0 && now.Sub(s.seen) >= quietEvery {
		if s == nil && len(q.spates) >= quietKeys {
			return 0, true
		}
		if q.spates == nil {
			q.spates = map[string]*spate{}
		}
		s = &spate{}
		q.spates[key] = s
	}
	s.seen = now
	if s.passed >= quietBurst && now.Sub(s.told) < quietEvery {
		s.left, s.last = s.left+1, write
		return 0, false
	}
	left = s.left
	s.passed, s.told, s.left, s.last = s.passed+1, now, 0, nil
	return left, true
}

// due gives what has waited long enough, in its order, to be called; with all, whatever
// waits. It forgets the spates that are over.
func (q *quiet) due(now replica.Time, all bool) []func() {
	q.mu.Lock()
	defer q.mu.Unlock()
	type late struct {
		seen  replica.Time
		write func()
	}
	var lates []late
	for key, s := range q.spates {
		switch {
		case s.left > 0 && (all || now.Sub(s.told) >= quietEvery):
			write, left := s.last, s.left-1
			lates = append(lates, late{s.seen, func() { write(left) }})
			s.told, s.left, s.last = now, 0, nil
		case s.left == 0 && now.Sub(s.seen) >= quietEvery:
			delete(q.spates, key)
		}
	}
	slices.SortStableFunc(lates, func(a, b late) int { return cmp.Compare(a.seen, b.seen) })
	writes := make([]func(), len(lates))
	for i := range lates {
		writes[i] = lates[i].write
	}
	return writes
}
