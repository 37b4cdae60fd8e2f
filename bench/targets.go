package main

import (
	"fmt"
	"math"
	"strings"
)

// target is one line of what the project has set itself.
type target struct {
	what  string
	rule  string // as the project states it
	goal  float64
	least bool // the figure must be at least the goal, else at most
	disk  bool // it is about a real disk: in memory an fsync costs nothing
	value func(r *Result) stat
	bound func(r *Result) float64 // nil, or the most that anybody can have
}

// ratio compares a figure of a job on two peers.
func ratio(job string, f func(*Sample) float64, ours string, theirs ...string) func(*Result) stat {
	return func(r *Result) stat {
		var best stat
		for i, name := range theirs {
			if s := r.of(job, name, f); i == 0 || s.median > best.median {
				best = s
			}
		}
		return r.of(job, ours, f).over(best)
	}
}

// figure takes a figure as it is.
func figure(job string, f func(*Sample) float64, peer string) func(*Result) stat {
	return func(r *Result) stat { return r.of(job, peer, f) }
}

// special takes a special figure, in parts of the lowest of the named floors if there are any; they must all have been measured.
func special(name string, floors ...string) func(*Result) stat {
	return func(r *Result) stat {
		value, ok := r.specialValue(name)
		if !ok {
			return newStat(nil)
		}
		if len(floors) == 0 {
			return newStat([]float64{value})
		}
		floor := math.Inf(1)
		for _, f := range floors {
			v, ok := r.specialValue(f)
			if !ok {
				return newStat(nil)
			}
			floor = min(floor, v)
		}
		return newStat([]float64{value / floor})
	}
}

// across is ratio between two jobs.
func across(job, ours string, f func(*Sample) float64, otherJob, theirs string) func(*Result) stat {
	return func(r *Result) stat { return r.of(job, ours, f).over(r.of(otherJob, theirs, f)) }
}

// perSlave is what goes over the wire for each copy that is not the client's.
func perSlave(copies int) func(*Sample) float64 {
	return func(s *Sample) float64 { return peerPerByte(s) / float64(copies-1) }
}

var targets = []target{
	{"4 KiB random write, depth 32, 3 servers", "≥ 0.6 × nbdkit with 1 copy (IOPS)", 0.6, true, false, ratio("randwrite-4k-qd32", iops, "blockrepl-3", "nbdkit"), nil},
	{"", "≥ 8 × quorum", 8, true, false, ratio("randwrite-4k-qd32", iops, "blockrepl-3", "quorum"), nil},
	{"4 KiB random write, depth 1, 3 servers", "≥ 0.4 × nbdkit", 0.4, true, false, ratio("randwrite-4k-qd1", iops, "blockrepl-3", "nbdkit"), withSyncs("randwrite-4k-qd1", iops, syncsFigure(3), 1)},
	{"", "≥ 1.3 × quorum", 1.3, true, false, ratio("randwrite-4k-qd1", iops, "blockrepl-3", "quorum"), nil},
	{"4 KiB random write, depth 32, 1 server", "≥ 0.9 × nbdkit", 0.9, true, false, ratio("randwrite-4k-qd32", iops, "blockrepl-1", "nbdkit"), nil},
	{"4 KiB random write, depth 1, 1 server", "≥ 0.7 × nbdkit", 0.7, true, false, ratio("randwrite-4k-qd1", iops, "blockrepl-1", "nbdkit"), withSyncs("randwrite-4k-qd1", iops, syncsFigure(1), 1)},
	{"4 KiB write + fsync, depth 1, 3 servers", "≤ 2 × the floor's median latency (a real disk)", 2, false, true, ratio("fsync-4k-qd1", p50, "blockrepl-3", "floor"), nil},
	{"4 KiB write + fsync, depth 32, 3 servers", "≥ 8 × the floor's IOPS (a real disk)", 8, true, true, across("fsync-4k-qd32", "blockrepl-3", iops, "fsync-4k-qd1", "floor"), nil},
	{"1 MiB sequential write, 3 servers", "≥ 0.35 × nbdkit (MB/s)", 0.35, true, false, ratio("seqwrite-1m-qd4", bytesPerSec, "blockrepl-3", "nbdkit"), withSyncs("seqwrite-1m-qd4", bytesPerSec, copiesFigure(3), 1e6)},
	{"", "≥ 3 × quorum", 3, true, false, ratio("seqwrite-1m-qd4", bytesPerSec, "blockrepl-3", "quorum"), nil},
	{"4 KiB random read, depth 32", "≥ 1.2 × the better of nbdkit and qemu-nbd", 1.2, true, false, ratio("randread-4k-qd32", iops, "blockrepl-1", "nbdkit", "qemu-nbd"), withClientOnly("randread-4k-qd32", iops, "nbdkit", "qemu-nbd")},
	{"1 MiB read, depth 4", "≥ 1.2 × the better of both", 1.2, true, false, ratio("seqread-1m-qd4", bytesPerSec, "blockrepl-1", "nbdkit", "qemu-nbd"), withClientOnly("seqread-1m-qd4", bytesPerSec, "nbdkit", "qemu-nbd")},
	{"disk bytes a client byte, random data, 1 server", "≤ 2.25", 2.25, false, false, figure("random-4k-qd32", diskPerByte, "blockrepl-1"), nil},
	{"disk bytes a client byte, half-compressible, 1 server", "≤ 1.7", 1.7, false, false, figure("randwrite-4k-qd32", diskPerByte, "blockrepl-1"), nil},
	{"peer bytes a client byte and slave, file system", "≤ 0.6", 0.6, false, false, figure(treeJob, perSlave(3), "blockrepl-3"), nil},
	{"catch-up", "≥ 0.5 × the slower of disk and loopback", 0.5, true, false, special("catch-up", "floor: disk", "floor: loopback TCP"), nil},
	{"resync", "≥ 0.5 × the slower of disk and loopback", 0.5, true, false, special("resync", "floor: disk", "floor: loopback TCP"), nil},
	{"kill -9 to the first write of the promoted slave", "≤ 0.5 s after the command", 0.5, false, false, special("failover"), nil},
	{"start after a crash to the first read", "≤ 2 s with 4 GiB of kept records", 2, false, false, special(crashStartTarget), nil},
	{"memory of a server, 1 TiB volume, full load", "≤ 400 MiB", 400, false, false, special("1 TiB volume: peak memory"), nil},
}

// judge gives the figure and, in a word, how the target stands.
func (t *target) judge(r *Result) (figure, verdict string) {
	if t.disk && !strings.HasPrefix(r.Place, givenPlace) {
		return "–", "needs a disk"
	}
	s := t.value(r)
	return s.show(), t.verdict(s)
}

// most is the bound of the figure, where one was measured.
func (t *target) most(r *Result) string {
	if t.bound == nil {
		return ""
	}
	if v := t.bound(r); !math.IsNaN(v) {
		return compact(v)
	}
	return ""
}

func (t *target) verdict(s stat) string {
	switch {
	case math.IsNaN(s.median):
		return "not measured"
	case t.least == (s.median >= t.goal) || s.median == t.goal:
		return "met"
	}
	return "missed"
}

// show is the figure with its spread.
func (s stat) show() string {
	if math.IsNaN(s.median) {
		return "–"
	}
	if s.n < 2 || s.min == s.max {
		return compact(s.median)
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", s.median, s.min, s.max)
}
