package replica

import "github.com/blockrepl/blockrepl/journal/record"

// sums keeps the header sums of the newest records, so that positions can be
// compared without the journal.
//
// Invariant: ring[(first+i) % len(ring)] is the sum of record first+i, for every
// i < count; count <= len(ring), and len(ring) <= sumsMax unless more than that is
// needed.
type sums struct {
	ring  []uint64
	first record.Seq
	count int
	need  record.Seq // it and what is above are not forgotten
}

func newSums(last record.Pos, newest []uint64) sums {
	if len(newest) > sumsMax {
		newest = newest[len(newest)-sumsMax:]
	}
	if len(newest) == 0 && last.Seq > 0 {
		newest = []uint64{last.Sum}
	}
	s := sums{first: last.Seq + 1 - record.Seq(len(newest))}
	for _, v := range newest {
		s.push(v)
	}
	return s
}

// push adds the sum of the next number.
func (s *sums) push(sum uint64) {
	if s.count == len(s.ring) && (s.count < sumsMax || s.first >= s.need) {
		s.grow()
	}
	if s.count == len(s.ring) {
		s.first++
		s.count--
	}
	s.ring[(uint64(s.first)+uint64(s.count))%uint64(len(s.ring))] = sum
	s.count++
}

// grow doubles the ring: most volumes need only a little of it.
func (s *sums) grow() {
	bigger := make([]uint64, max(sumsMin, 2*len(s.ring)))
	for i := range s.count {
		q := uint64(s.first) + uint64(i)
		bigger[q%uint64(len(bigger))] = s.ring[q%uint64(len(s.ring))]
	}
	s.ring = bigger
}

// at gives the sum of number seq if it is remembered. Number 0 has sum 0.
func (s *sums) at(seq record.Seq) (uint64, bool) {
	if seq == 0 {
		return 0, true
	}
	if seq < s.first || seq >= s.first+record.Seq(s.count) {
		return 0, false
	}
	return s.ring[uint64(seq)%uint64(len(s.ring))], true
}

// cut forgets the numbers above last.
func (s *sums) cut(last record.Pos) {
	if last.Seq < s.first {
		*s = newSums(last, nil)
		return
	}
	s.count = int(last.Seq + 1 - s.first)
}
