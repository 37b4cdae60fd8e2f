package blockrepl

import (
	"fmt"
	"slices"
	"sync"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/record"
	"github.com/zeebo/xxh3"
)

// Comes from: the applier (where it wrote last) and the checkpointer. Does: notes
// with each checkpoint what a few blocks of the image hold: its first and its last,
// and those that were written last. Goes to: Hard.Image, in the batch of the
// checkpoint; at the next start those blocks are looked at again.
//
// Nothing in an image says which volume it is, or after which number: it is the
// client's, to the last byte. So another disk under the same device name, or an
// image that was put back from a backup without its journal, would be taken for
// the state at the checkpoint, and the redo would make a mixture of it. What was
// written last is what an older copy lacks.
//
// A block says nothing once a record above the checkpoint touches it: that record
// may have been in the image when the block was looked at, or have come into it
// before the crash. Such records are in the journal, since they are kept above the
// checkpoint, and nothing else writes to an image but a resync (which has no
// samples) and a repair (which is followed by a checkpoint).
type sampler struct {
	mu     sync.Mutex
	recent [samplesRecent]int64 // offsets; a ring
	n      int                  // noted so far
}

// note remembers where a group of changes ended.
func (s *sampler) note(off int64) {
	s.mu.Lock()
	s.recent[s.n%samplesRecent] = off
	s.n++
	s.mu.Unlock()
}

// take looks at the image. The caller has just fsynced it.
func (s *sampler) take(v *Volume) []replica.Sample {
	size := v.img.Size()
	s.mu.Lock()
	offs := slices.Clone(s.recent[:min(s.n, samplesRecent)])
	s.mu.Unlock()
	offs = append(offs, 0, size-1)
	for i := range offs {
		offs[i] = offs[i] / sampleBytes * sampleBytes
	}
	slices.Sort(offs)
	var list []replica.Sample
	buf := make([]byte, sampleBytes)
	for _, off := range slices.Compact(offs) {
		if off >= size {
			continue // the volume has shrunk
		}
		p := buf[:min(sampleBytes, size-off)]
		if err := v.img.ReadAt(p, off); err != nil {
			v.logr.Debug("block not sampled", "offset", off, "err", err)
			continue
		}
		list = append(list, replica.Sample{Off: off, Len: int64(len(p)), Sum: xxh3.Hash(p)})
	}
	return list
}

// begin goes on with the blocks of the last run: until as many were written anew
// they say most.
func (s *sampler) begin(samples []replica.Sample) {
	for _, x := range samples {
		if x.Off != 0 {
			s.note(x.Off)
		}
	}
}

// untouched leaves the samples that rec says nothing about.
func untouched(samples []replica.Sample, rec *record.Record) []replica.Sample {
	return slices.DeleteFunc(samples, func(x replica.Sample) bool {
		switch {
		case rec.Kind == record.KindResize:
			return x.Off+x.Len > rec.Length
		case rec.Kind.ChangesImage():
			return rec.Extent().Overlaps(record.Extent{Lo: x.Off, Hi: x.Off + x.Len})
		}
		return false
	})
}

// unlike says in what the image is not the one that the samples were taken of, ""
// if it may be. A block that cannot be read is no proof.
func (v *Volume) unlike(samples []replica.Sample, at record.Seq) string {
	for _, x := range samples {
		if x.Len <= 0 || x.Len > sampleBytes || x.Off < 0 || x.Off > v.img.Size()-x.Len {
			continue
		}
		p := make([]byte, x.Len)
		if err := v.img.ReadAt(p, x.Off); err != nil {
			v.logr.Warn("block of the image not compared with what it held", "offset", x.Off, "err", err)
			continue
		}
		if xxh3.Hash(p) != x.Sum {
			return fmt.Sprintf("the image %s is not what it was at number %d: its block at %d has other content; it was replaced, put back from a copy, or written by something else", v.opt.Image, at, x.Off)
		}
	}
	return ""
}
