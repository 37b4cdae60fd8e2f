package main

import (
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// A busy server lives on 110 to 240 MiB of Go memory: recent records, journal batches,
// requests, and the journal's memtables, 64 MiB each and mostly two, which are Go's in a
// build without cgo. The runtime lets garbage double that, and more after a moment with
// many large requests. So it is given a soft limit: from heapFloor on it collects more
// often.
const (
	heapFloor = 208 << 20 // bytes
	heapEvery = time.Second
)

// heapLimit is the limit for so many bytes of live heap. Above the floor it leaves room
// for garbage: with less the collector would be at work all the time.
func heapLimit(live uint64) int64 {
	return max(heapFloor, int64(live+live/8+24<<20))
}

// boundHeap keeps the limit until stop is called. With GOMEMLIMIT in the environment
// the operator has said what it shall be.
func boundHeap() (stop func()) {
	if os.Getenv("GOMEMLIMIT") != "" || debug.SetMemoryLimit(-1) != math.MaxInt64 {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(heapEvery)
		defer t.Stop()
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		for set := int64(0); ; {
			metrics.Read(live)
			// The runtime stops the world for a new limit.
			if limit := heapLimit(live[0].Value.Uint64()) &^ (8<<20 - 1); limit != set {
				debug.SetMemoryLimit(limit)
				set = limit
			}
			select {
			case <-quit:
				debug.SetMemoryLimit(math.MaxInt64)
				return
			case <-t.C:
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}
