package image

import (
	"math/bits"
	"sync"
)

// stripeSet is a set of stripes, one bit each.
type stripeSet uint64

// stripesOf gives the stripes of n bytes at off; none for n = 0.
func stripesOf(off, n int64) stripeSet {
	if n <= 0 {
		return 0
	}
	first, last := off>>stripeShift, (off+n-1)>>stripeShift
	count := last - first + 1
	if count >= stripes {
		return ^stripeSet(0)
	}
	return stripeSet(bits.RotateLeft64(1<<count-1, int(first%stripes)))
}

// stripeLocks are the locks of an image. All takers take ascending, so that no
// two wait for each other.
type stripeLocks [stripes]struct {
	sync.RWMutex
	_ [40]byte // a cache line each: readers of different stripes do not meet
}

func (l *stripeLocks) lock(s stripeSet) {
	for ; s != 0; s &= s - 1 {
		l[bits.TrailingZeros64(uint64(s))].Lock()
	}
}

func (l *stripeLocks) unlock(s stripeSet) {
	for ; s != 0; s &= s - 1 {
		l[bits.TrailingZeros64(uint64(s))].Unlock()
	}
}

func (l *stripeLocks) rlock(s stripeSet) {
	for ; s != 0; s &= s - 1 {
		l[bits.TrailingZeros64(uint64(s))].RLock()
	}
}

// tryRLock takes all or none, without waiting.
func (l *stripeLocks) tryRLock(s stripeSet) bool {
	for left := s; left != 0; left &= left - 1 {
		if !l[bits.TrailingZeros64(uint64(left))].TryRLock() {
			l.runlock(s &^ left)
			return false
		}
	}
	return true
}

func (l *stripeLocks) runlock(s stripeSet) {
	for ; s != 0; s &= s - 1 {
		l[bits.TrailingZeros64(uint64(s))].RUnlock()
	}
}
