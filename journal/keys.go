package journal

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/blockrepl/blockrepl/journal/record"
)

// First bytes of keys; see the package comment. Records come last, so that the
// small keys end up in tables of their own.
const (
	keyFormat     = 'f'
	keyState      = 'l'
	keyMeta       = 'm'
	keyQuarantine = 'q'
	keyRecord     = 'r'
)

const (
	formatName    = "blockrepl journal 1"
	volumeKeyLen  = 1 + len(record.VolumeID{})
	recordKeyLen  = volumeKeyLen + 4 + 8
	offsetLen     = 8 // in front of the record, in a value
	stateVersion  = 1
	stateFixedLen = 36
	segmentLen    = 12
)

func volumeKey(prefix byte, v record.VolumeID) []byte {
	return append(append(make([]byte, 0, recordKeyLen), prefix), v[:]...)
}

func nameKey(prefix byte, v record.VolumeID, name string) []byte {
	return append(volumeKey(prefix, v), name...)
}

func recordKey(v record.VolumeID, segment uint32, seq record.Seq) []byte {
	k := binary.BigEndian.AppendUint32(volumeKey(keyRecord, v), segment)
	return binary.BigEndian.AppendUint64(k, uint64(seq))
}

func putRecordKey(k []byte, v record.VolumeID, segment uint32, seq record.Seq) {
	k[0] = keyRecord
	copy(k[1:], v[:])
	binary.BigEndian.PutUint32(k[volumeKeyLen:], segment)
	binary.BigEndian.PutUint64(k[volumeKeyLen+4:], uint64(seq))
}

// parseRecordKey gives segment and number of a key of recordKey's form.
func parseRecordKey(k []byte) (segment uint32, seq record.Seq, ok bool) {
	if len(k) != recordKeyLen || k[0] != keyRecord {
		return 0, 0, false
	}
	return binary.BigEndian.Uint32(k[volumeKeyLen:]), record.Seq(binary.BigEndian.Uint64(k[volumeKeyLen+4:])), true
}

// after is the smallest key above all that begin with prefix.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		end[i]++
		if end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil // prefix is all 0xff: no key is above
}

// segment is a run of numbers under one segment id: from First to the number
// before the next segment's First, or to the log's end.
type segment struct {
	ID    uint32
	First record.Seq
}

// keyRange is a run of numbers First..Last, both included, in one segment.
type keyRange struct {
	Segment uint32     `json:"segment"`
	First   record.Seq `json:"first"`
	Last    record.Seq `json:"last"`
}

// bounds gives the keys of the range, end excluded.
func (r keyRange) bounds(v record.VolumeID) (lo, hi []byte) {
	// Last+1 and not the next key there is: runs that follow each other must join.
	return recordKey(v, r.Segment, r.First), recordKey(v, r.Segment, r.Last+1)
}

// span is a range of keys, hi excluded.
type span struct{ lo, hi []byte }

func spans(v record.VolumeID, ranges []keyRange) []span {
	out := make([]span, len(ranges))
	for i, r := range ranges {
		out[i].lo, out[i].hi = r.bounds(v)
	}
	return out
}

// state is what a log persists about itself.
//
// Invariant: segments ascend by First, their ids are at most highest, there is at
// least one, and the first's First <= begin.Seq+1.
type state struct {
	highest     uint32
	begin       record.Pos
	beginOffset uint64
	segments    []segment
}

func newState() state {
	return state{highest: 1, segments: []segment{{1, 1}}}
}

func (s *state) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, 4, stateFixedLen+segmentLen*len(s.segments)+8)
	b[0] = stateVersion
	b = le.AppendUint32(b, s.highest)
	b = le.AppendUint64(b, uint64(s.begin.Seq))
	b = le.AppendUint64(b, s.begin.Sum)
	b = le.AppendUint64(b, s.beginOffset)
	b = le.AppendUint32(b, uint32(len(s.segments)))
	for _, g := range s.segments {
		b = le.AppendUint32(b, g.ID)
		b = le.AppendUint64(b, uint64(g.First))
	}
	return le.AppendUint64(b, xxh3.Hash(b))
}

func (s *state) decode(b []byte) error {
	le := binary.LittleEndian
	if len(b) < stateFixedLen+8 {
		return fmt.Errorf("%w: %d bytes of state", record.ErrCorrupt, len(b))
	}
	body := b[:len(b)-8] // in every version
	if got, want := xxh3.Hash(body), le.Uint64(b[len(body):]); got != want {
		return fmt.Errorf("%w: sum of state is %016x, stored is %016x", record.ErrCorrupt, got, want)
	}
	if b[0] != stateVersion {
		return fmt.Errorf("%w: state of version %d, this program knows %d", record.ErrVersion, b[0], stateVersion)
	}
	n := le.Uint32(body[32:])
	if n < 1 || n > segmentsMax || len(body) != stateFixedLen+segmentLen*int(n) {
		return fmt.Errorf("%w: state of %d bytes with %d segments", record.ErrCorrupt, len(b), n)
	}
	*s = state{
		highest:     le.Uint32(body[4:]),
		begin:       record.Pos{Seq: record.Seq(le.Uint64(body[8:])), Sum: le.Uint64(body[16:])},
		beginOffset: le.Uint64(body[24:]),
		segments:    make([]segment, n),
	}
	for i := range s.segments {
		p := body[stateFixedLen+segmentLen*i:]
		s.segments[i] = segment{le.Uint32(p), record.Seq(le.Uint64(p[4:]))}
		if s.segments[i].ID > s.highest || i > 0 && s.segments[i].First <= s.segments[i-1].First {
			return fmt.Errorf("%w: segments out of order", record.ErrCorrupt)
		}
	}
	if s.segments[0].First > s.begin.Seq+1 {
		return fmt.Errorf("%w: segments begin at %d, behind the begin at %d", record.ErrCorrupt, s.segments[0].First, s.begin.Seq)
	}
	return nil
}

// segmentOf is the id of the segment that holds seq > begin.Seq.
func (s *state) segmentOf(seq record.Seq) uint32 {
	i := len(s.segments) - 1
	for i > 0 && s.segments[i].First > seq {
		i--
	}
	return s.segments[i].ID
}

// ranges gives the key ranges of the numbers first..last, both included.
func (s *state) ranges(first, last record.Seq) []keyRange {
	var out []keyRange
	for i, g := range s.segments {
		lo, hi := max(first, g.First), last
		if i+1 < len(s.segments) {
			hi = min(hi, s.segments[i+1].First-1)
		}
		if lo <= hi {
			out = append(out, keyRange{g.ID, lo, hi})
		}
	}
	return out
}

// cut ends the log behind seq and opens a new segment there.
func (s *state) cut(seq record.Seq) {
	n := 0
	for n < len(s.segments) && s.segments[n].First <= seq {
		n++
	}
	s.highest++
	s.segments = append(append([]segment(nil), s.segments[:n]...), segment{s.highest, seq + 1})
}

// dropBelow forgets segments that end at or below seq.
func (s *state) dropBelow(seq record.Seq) {
	for len(s.segments) > 1 && s.segments[1].First <= seq+1 {
		s.segments = s.segments[1:]
	}
}
