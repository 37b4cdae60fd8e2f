package journal

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// space watches the free space of the journal's file system. Pebble does not
// survive a full disk: a write then blocks for ever, or the process dies at the
// next change of the WAL. So a write is refused before.
type space struct {
	reserve int64
	ask     func() (int64, error)
	cramped func()      // called when a look finds less than the reserve; must not wait
	short   atomic.Bool // the last look found so

	mu      sync.Mutex
	known   int64     // free bytes at the last look
	at      time.Time // of the last look
	written int64     // since then
	disk    bool      // pebble met a full disk since then
}

func (s *space) init(o Options, cramped func()) {
	s.cramped = cramped
	s.reserve = max(0, o.ReserveBytes)
	s.ask = o.FreeBytes
	if s.ask == nil {
		s.ask = func() (int64, error) {
			u, err := o.FS.GetDiskUsage(o.Dir)
			if err != nil {
				return math.MaxInt64, nil // a file system that cannot say has no bound
			}
			return int64(min(u.AvailBytes, math.MaxInt64)), nil
		}
	}
}

// lookLocked gives the free bytes, from the last look when that is recent.
func (s *space) lookLocked() (int64, error) {
	now := time.Now()
	if s.at.IsZero() || s.disk || s.written > spaceEveryBytes || now.Sub(s.at) > spaceEvery || s.known-s.written < 2*s.reserve {
		free, err := s.ask()
		if err != nil {
			return 0, fmt.Errorf("ask for free space: %w", err)
		}
		s.known, s.at, s.written, s.disk = free, now, 0, false
		s.short.Store(free < s.reserve)
		if free < s.reserve {
			s.cramped()
		}
	}
	return s.known - s.written, nil
}

// take judges a write of n bytes. Urgent ones may use half of the reserve; the
// other half is for pebble's flushes.
func (s *space) take(n int64, urgent bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	free, err := s.lookLocked()
	if err != nil {
		return err
	}
	keep := s.reserve
	if urgent {
		keep /= 2
	}
	if free-n < keep {
		return fmt.Errorf("%w: %d bytes are free, %d are kept in reserve", ErrNoSpace, free, keep)
	}
	s.written += n
	return nil
}

func (s *space) free() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	free, err := s.lookLocked()
	if err != nil {
		return 0
	}
	return max(0, free-s.reserve)
}

// full notes that pebble met a full disk in the background.
func (s *space) full() {
	s.mu.Lock()
	s.disk = true
	s.mu.Unlock()
}
