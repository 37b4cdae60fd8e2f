package main

import (
	"math"
	"runtime/debug"
	"testing"
)

func TestHeapLimitFollowsWhatIsAlive(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int64
	}{
		{0, heapFloor},
		{110 << 20, heapFloor},
		{240 << 20, 294 << 20},
		{8 << 30, 9<<30 + 24<<20},
	} {
		if got := heapLimit(c.live); got != c.want {
			t.Errorf("limit for %d MiB alive is %d MiB, want %d", c.live>>20, got>>20, c.want>>20)
		}
	}
}

func TestHeapIsBoundWhileAServerRuns(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "")
	stop := boundHeap()
	stop()
	if got := debug.SetMemoryLimit(-1); got != math.MaxInt64 {
		t.Errorf("limit after the end is %d", got)
	}
	t.Setenv("GOMEMLIMIT", "1GiB")
	stop = boundHeap()
	defer stop()
	if got := debug.SetMemoryLimit(-1); got != math.MaxInt64 {
		t.Errorf("limit is %d although the operator gave one", got)
	}
}
