package replica

import (
	"cmp"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// The floor: the lowest number anyone still needs. Below it records go.

// keptBytes knows how many bytes of records lie above a number, to within
// keptStep records or keptStepBytes (never too few, but below its first sample).
type keptBytes struct {
	total   int64
	samples []keptSample // ascending by seq
	n       int          // records since the last sample
	bytes   int64        // and their bytes
}

type keptSample struct {
	seq   record.Seq
	total int64 // bytes through seq
}

// keptStep is the records between two samples at most, keptStepBytes about their
// bytes.
const (
	keptStep      = 64
	keptStepBytes = 1 << 20
)

func (k *keptBytes) reset(seq record.Seq) {
	*k = keptBytes{samples: []keptSample{{seq: seq}}}
}

// found takes in what the journal held at the start, as one step.
func (k *keptBytes) found(last record.Seq, bytes int64) {
	if bytes > 0 {
		k.total = bytes
		k.samples = append(k.samples, keptSample{last, bytes})
	}
}

func (k *keptBytes) add(seq record.Seq, n int64) {
	k.total += n
	k.n++
	k.bytes += n
	if k.n >= keptStep || k.bytes >= keptStepBytes {
		k.n, k.bytes = 0, 0
		k.samples = append(k.samples, keptSample{seq, k.total})
	}
}

// above is how many bytes lie above seq, at most one step too many.
func (k *keptBytes) above(seq record.Seq) int64 {
	i, found := slices.BinarySearchFunc(k.samples, seq, func(s keptSample, q record.Seq) int { return cmp.Compare(s.seq, q) })
	if !found {
		i--
	}
	if i < 0 {
		i = 0
	}
	return k.total - k.samples[i].total
}

// below is the highest sampled number with at least budget bytes above it; zero
// when all records together are fewer.
func (k *keptBytes) below(budget int64) record.Seq {
	if k.total < budget {
		return 0
	}
	i, found := slices.BinarySearchFunc(k.samples, k.total-budget, func(s keptSample, q int64) int { return cmp.Compare(s.total, q) })
	if !found {
		i--
	}
	if i < 0 {
		return 0
	}
	return k.samples[i].seq
}

func (k *keptBytes) trim(seq record.Seq) {
	i, found := slices.BinarySearchFunc(k.samples, seq, func(s keptSample, q record.Seq) int { return cmp.Compare(s.seq, q) })
	if !found {
		i--
	}
	if i > 0 {
		k.samples = k.samples[i:] // not moved: there may be millions
	}
}

// cut forgets what is above last. Of the step that is cut through all bytes count as
// kept.
func (k *keptBytes) cut(last record.Seq) {
	n := len(k.samples)
	for n > 1 && k.samples[n-1].seq > last {
		n--
	}
	if n < len(k.samples) {
		k.total = k.samples[n].total
	}
	k.samples, k.n, k.bytes = k.samples[:n], 0, 0
	if end := k.samples[n-1]; end.seq >= last {
		k.total = end.total
	} else if k.total > end.total {
		k.samples = append(k.samples, keptSample{last, k.total})
	}
}

// trimPlain lets go of what nobody asks of the plain bytes any more, in strides.
func (r *Replica) trimPlain() {
	low := r.applied
	for at := range r.rooms() {
		low = min(low, at.At)
	}
	if low >= r.plain.samples[0].seq+trimStep {
		r.plain.trim(low)
	}
}

// floor is, on the master, the number above which every record is kept: what is
// not in the image's checkpoint, and what some member has not acknowledged, as
// far as the budget goes. Whoever is being brought on has twice the budget.
func (r *Replica) floor() record.Seq {
	f := r.hard.Checkpoint
	if mutated("trim above the floor") {
		return r.applied
	}
	if r.role != wire.RoleMaster {
		return min(f, r.s.floor)
	}
	keep := r.hard.State.Keep
	absent, joined := r.kept.below(keep), r.kept.below(2*keep)
	for _, p := range r.peers {
		need := p.durable
		if p.ackEpoch != r.epoch() {
			need = r.acknowledged(p.id)
		}
		if p.joined {
			need = max(need, joined)
		} else if !inSync(&r.hard.State, p.id) {
			need = max(need, absent)
		}
		f = min(f, need)
	}
	return f
}

// acknowledged is what a peer had when it was last heard, zero when never.
func (r *Replica) acknowledged(id record.ServerID) record.Seq {
	if i, ok := r.findMemory(id); ok && r.memory[i].Durable.Seq <= r.last.Seq {
		return r.memory[i].Durable.Seq
	}
	return 0
}

// Floor is for the frames that carry it.
func (r *Replica) Floor() record.Seq { return r.floor() }

// advanceTrim lets records go that nobody needs, in strides.
func (r *Replica) advanceTrim() {
	f := r.floor()
	if f < r.trimmed+trimStep && !(f > r.trimmed && f == r.last.Seq) {
		return
	}
	r.trimmed = f
	r.first = f + 1
	r.kept.trim(f)
	r.out.Trim = f
}
