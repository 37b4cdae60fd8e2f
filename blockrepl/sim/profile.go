package sim

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

// Options say what a schedule is drawn from.
type Options struct {
	Off      []string      // names of faults that never strike
	Length   time.Duration // of the time of faults; 0: drawn
	Restless bool          // masterships change hands all the time
	Marks    *Marks        // counts fault × state; nil: not wanted

	// KeepCache: a resync compares what the page cache shows of sectors that a failed
	// fsync has written in vain (failSync), as the kernel keeps it over a restart of the
	// process. Equal bytes are not copied then, and the disk never gets them: a hole that is
	// known (seed 1672). Otherwise a resync finds what the disk holds.
	KeepCache bool
}

// profile is what a seed decides about a whole schedule. Each schedule has only
// some of the faults, so that rare meetings of a few of them come about.
type profile struct {
	nodes, clients, sectors int
	policy                  wire.OnDegraded
	shared                  bool
	keep                    int64
	free                    int64
	latency, disk           time.Duration
	checkpoint, copy        time.Duration
	think, fin              time.Duration
	depth                   int
	reads, move             float64
	lose, double, overtake  float64
	first, length, wind     time.Duration
	every                   time.Duration // between faults
	weight                  [faults]float64
	total                   float64

	// Drawn by drawHarsh.
	corrupt, encode float64 // of frames: bits are flipped, really encoded
	bare            float64 // of clients: without a token
	patient         bool    // clients wait at their server as long as it lets them
	careless        bool    // the operator does what loses writes
	init            bool    // images hold something, and the operator creates the volume
	uneven          bool    // each start draws its server's peer_timeout

	sick time.Duration // between failures of images; 0: none (drawSick)
}

func (o *Options) off(f fault) bool { return slices.Contains(o.Off, f.String()) }

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func drawProfile(r *rand.Rand, opt Options) profile {
	ms := time.Millisecond
	p := profile{
		nodes: pick(r, 1, 2, 2, 3, 3, 3, 3, 4, 5), clients: 1 + r.IntN(3), sectors: pick(r, 8, 16, 32),
		policy: pick(r, wire.Suspend, wire.Suspend, wire.Suspend, wire.Continue), shared: r.IntN(2) == 0,
		keep: pick[int64](r, 1<<10, 8<<10, 1<<30), free: 1 << 40,
		latency: pick(r, 100*time.Microsecond, ms, 4*ms), disk: pick(r, 200*time.Microsecond, ms, 5*ms),
		checkpoint: pick(r, 5*ms, 50*ms, 300*ms), copy: pick(r, ms, 10*ms, 40*ms),
		think: pick(r, 2*ms, 8*ms, 20*ms), fin: pick(r, ms, 20*ms, 2*peerTimeout),
		depth: 1 + r.IntN(pendingMax), reads: 0.1 + 0.5*r.Float64(), move: pick(r, 0, 0.002, 0.02),
		lose: pick(r, 0, 0.01, 0.1), double: pick(r, 0, 0.02), overtake: pick(r, 0, 0.02, 0.1),
		first:  time.Duration(r.IntN(600)) * ms,
		length: time.Duration(1000+r.IntN(3000)) * ms, wind: 300 * ms,
		every: pick(r, 40*ms, 120*ms, 400*ms),
	}
	if opt.Length > 0 {
		p.length = opt.Length
	}
	base := [faults]float64{fCrash: 4, fPower: 3, fPause: 3, fCut: 3, fIsolate: 2, fOneWay: 2, fSlowDisk: 2, fSickDisk: 0.6,
		fReplace: 0.7, fOldCopy: 0.7, fLoseTail: 0.7, fNoSpace: 0.5, fPromote: 4, fOldDead: 2, fForget: 3, fStop: 2, fResize: 0.7, fUsurp: 2}
	for f := range faults {
		on := r.IntN(2) == 0 || f == fCrash
		for _, name := range opt.Off {
			if name == f.String() {
				on = false
				p.drop(f)
			}
		}
		if on {
			p.weight[f] = base[f]
			p.total += base[f]
		}
	}
	return p
}

// drawHarsh draws what only some schedules have, from dice of its own: a schedule
// without it is played as it would be if it did not exist.
func (p *profile) drawHarsh(r *rand.Rand, opt Options) {
	p.corrupt, p.encode = pick(r, 0, 0, 0, 0.0005, 0.005), pick(r, 0, 0.002)
	p.bare = pick(r, 0, 0, 0, 0.5)
	p.careless = chance(r, 0.2) && p.nodes > 1
	if p.careless {
		p.drawCareless(r, opt)
	}
	p.init = chance(r, 0.12)
	if chance(r, 0.15) {
		p.weight[fSet] = 3
		p.total += p.weight[fSet]
	}
	p.patient = chance(r, 0.3)
	if chance(r, 0.2) {
		p.weight[fHungDisk] = 3
		p.total += p.weight[fHungDisk]
	}
	p.uneven = chance(r, 0.2)
	if chance(r, 0.2) {
		p.weight[fRot] = 4
		p.total += p.weight[fRot]
	}
	if chance(r, 0.15) {
		p.weight[fTwo] = 3
		p.total += p.weight[fTwo]
	}
	for _, name := range opt.Off {
		switch name {
		case fHungDisk.String():
			p.total -= p.weight[fHungDisk]
			p.weight[fHungDisk] = 0
		case fTwo.String():
			p.total -= p.weight[fTwo]
			p.weight[fTwo] = 0
		case fRot.String():
			p.total -= p.weight[fRot]
			p.weight[fRot] = 0
		case fUneven.String():
			p.uneven = false
		case fCorrupt.String():
			p.corrupt = 0
		case fInit.String():
			p.init = false
		case fBare.String():
			p.bare = 0
		case fSet.String():
			p.total -= p.weight[fSet]
			p.weight[fSet] = 0
		}
	}
}

// suspends reports whether the volume never goes on without a server that was not
// forgotten.
func (p *profile) suspends() bool {
	return p.policy == wire.Suspend && p.weight[fSet] == 0 && p.weight[fTwo] == 0
}

// drawRestless makes masterships change hands more often than a seed would by itself:
// more servers, an operator who never rests, careless in every other schedule, and
// masters that go on alone.
func (p *profile) drawRestless(r *rand.Rand, opt Options) {
	p.nodes, p.policy = pick(r, 2, 3, 3, 4, 4, 5, 5), pick(r, wire.Suspend, wire.Continue, wire.Continue)
	p.every = pick(r, 30*time.Millisecond, 60*time.Millisecond)
	for _, f := range []fault{fPromote, fOldDead, fForget, fUsurp, fIsolate, fOneWay} {
		if r.IntN(3) > 0 && !slices.Contains(opt.Off, f.String()) {
			p.total += 4 - p.weight[f]
			p.weight[f] = 4
		}
	}
	if !p.careless && r.IntN(2) == 0 {
		p.careless = true
		p.drawCareless(r, opt)
	}
}

// drawCareless gives the operator the acts that lose writes, and takes the faults
// away that do so by themselves: how much a disk may lose unnoticed is reckoned for
// an operator who keeps the rules.
func (p *profile) drawCareless(r *rand.Rand, opt Options) {
	for _, f := range []fault{fOldCopy, fLoseTail} {
		p.total -= p.weight[f]
		p.weight[f] = 0
	}
	for _, f := range []fault{fWildLoss, fWildDead, fWildForget, fResolve} {
		if w := 1 + float64(r.IntN(2)); !slices.Contains(opt.Off, f.String()) {
			p.weight[f] = w
			p.total += w
		}
	}
}

func (p *profile) drop(f fault) {
	switch f {
	case fLose:
		p.lose = 0
	case fDouble:
		p.double = 0
	case fOvertake:
		p.overtake = 0
	case fMove:
		p.move = 0
	}
}
