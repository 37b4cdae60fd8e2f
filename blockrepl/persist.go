package blockrepl

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
	"github.com/zeebo/xxh3"
)

// Comes from: the state machine's Stores. Does: writes its small state beside the
// records, in the same journal batches, and reads it at the start.
// Goes to: replica.Saved.
//
// Each value is one byte of version, the XXH3-64 of the rest (little-endian), and
// JSON: it is small, seldom written, and people look at it with `journal show`.

// ErrMeta says that what the journal keeps about a volume is damaged.
var ErrMeta = errors.New("volume's saved state is damaged")

// The keys of a volume's metadata in the journal.
const (
	keyHard   = "hard"
	keyTable  = "table"
	keyMemory = "memory"
	keyVerify = "verify" // the shell's own: finding.go
)

const (
	metaVersion = 1
	metaHead    = 9
)

func encodeMeta(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("blockrepl: bug: encode %T: %v", v, err))
	}
	out := make([]byte, metaHead, metaHead+len(b))
	out[0] = metaVersion
	binary.LittleEndian.PutUint64(out[1:], xxh3.Hash(b))
	return append(out, b...)
}

func decodeMeta(key string, b []byte, v any) error {
	switch {
	case len(b) < metaHead:
		return fmt.Errorf("%w: %q has %d bytes", ErrMeta, key, len(b))
	case b[0] != metaVersion:
		return fmt.Errorf("%w: %q has version %d, this program knows %d", ErrMeta, key, b[0], metaVersion)
	case binary.LittleEndian.Uint64(b[1:]) != xxh3.Hash(b[metaHead:]) && !mutant.Is("ignore the sum of the small state"):
		return fmt.Errorf("%w: the sum of %q does not match", ErrMeta, key)
	}
	if err := json.Unmarshal(b[metaHead:], v); err != nil {
		return fmt.Errorf("%w: %q: %w", ErrMeta, key, err)
	}
	return nil
}

// metaOps are the parts of a Store that are metadata.
func metaOps(s *replica.Store) []journal.MetaOp {
	var ops []journal.MetaOp
	if s.Hard != nil && !(len(s.Records) > 0 && mutant.Is("store the small state without its records")) {
		ops = append(ops, journal.MetaOp{Key: keyHard, Value: encodeMeta(s.Hard)})
	}
	if s.Table != nil {
		ops = append(ops, journal.MetaOp{Key: keyTable, Value: encodeMeta(s.Table)})
	}
	if s.Memory != nil {
		ops = append(ops, journal.MetaOp{Key: keyMemory, Value: encodeMeta(s.Memory)})
	}
	return ops
}

// loadMeta reads one value; v stays as it is when there is none.
func loadMeta(l *journal.Log, key string, v any) (bool, error) {
	b, ok, err := l.Meta(key)
	if err != nil || !ok {
		return false, err
	}
	return true, decodeMeta(key, b, v)
}

// LoadHard reads the small state that a journal keeps of a volume: its name, its
// epochs, its in-sync set. It is for inspection; false when nothing is kept.
func LoadHard(l *journal.Log) (replica.Hard, bool, error) {
	var h replica.Hard
	ok, err := loadMeta(l, keyHard, &h)
	return h, ok, err
}

// expected is what the journal knows of the image before it is opened.
type expected struct {
	samples []replica.Sample // of the checkpoint, as far as no record above touches them
	short   bool             // its file may lack an end that no fsync has covered yet
}

// loadSaved reads all that the journal knows of a volume. Records are read from
// the checkpoint and from the table on only, so that a start costs what was
// written since and not what is kept.
//
// Nothing that is damaged here is made anew; the volume takes no part instead. The
// records that made the table are trimmed soon after it was stored, and with an empty
// one a volume that grew would have the size of its creation again. A resync would
// bring the table, but an operator who accepts a loss of records may choose this server
// before, and would lose the volume's end. The memory is in no record either, and
// whoever goes on without it gives its word for a member that was restored from an old
// copy (rule 10). A server that starts blank instead gives none.
func loadSaved(l *journal.Log) (s replica.Saved, img expected, err error) {
	hard, _, err := LoadHard(l)
	if err != nil {
		return s, img, err
	}
	s.Hard = hard
	if _, err := loadMeta(l, keyTable, &s.Table); err != nil {
		return s, img, err
	}
	var memory []wire.Memory
	if _, err := loadMeta(l, keyMemory, &memory); err != nil {
		return s, img, err
	}
	s.Memory = memory
	s.First, s.Last, s.Bytes = l.First(), l.Last(), l.Bytes()
	if img, err = loadRecords(l, &s); err != nil {
		return s, img, err
	}
	if len(s.Sums) == 0 && s.Last.Seq > 0 {
		s.Sums = []uint64{s.Last.Sum}
	}
	if hard.Resync != nil {
		img = expected{short: true} // a mixture
	}
	return s, img, nil
}

// loadRecords reads the sums and marks above checkpoint and table. A damaged
// record does not stop the server: the one behind it tells its sum, and whoever
// needs its content asks the other servers for it (mend.go), before the image has it:
// whether it was a mark or a resize is told with that.
func loadRecords(l *journal.Log, s *replica.Saved) (img expected, err error) {
	img.samples = slices.Clone(s.Hard.Image)
	from := max(s.First, min(s.Table.AsOf, s.Hard.Checkpoint)+1)
	first, hole := true, false
	for next := from; next <= s.Last.Seq; {
		err := readRecords(l, next, s.Last.Seq, func(rec *record.Record) error {
			if first {
				s.Sums = append(s.Sums, rec.Prev) // number from-1 may be trimmed, and a slave may end there
			}
			if hole {
				s.Sums[len(s.Sums)-1] = rec.Prev
			}
			first, hole = false, false
			s.Sums = append(s.Sums, rec.Sum)
			if rec.Seq > s.Table.AsOf && (rec.Kind == record.KindMark || rec.Kind == record.KindResize) {
				s.Marks = append(s.Marks, rec)
			}
			if rec.Seq > s.Hard.Checkpoint {
				img.samples = untouched(img.samples, rec)
				// The table is of what was applied, the checkpoint of what was fsynced.
				img.short = img.short || rec.Kind == record.KindResize && rec.Seq <= s.Table.AsOf
			}
			next = rec.Seq + 1
			return nil
		})
		var c *journal.CorruptError
		if err == nil {
			break
		}
		if !errors.As(err, &c) || c.Seq < next {
			return img, fmt.Errorf("read records %d..%d: %w", next, s.Last.Seq, err)
		}
		if c.Seq > s.Table.AsOf {
			s.Missed = append(s.Missed, c.Seq)
		}
		if c.Seq > s.Hard.Checkpoint {
			img.samples = nil // nobody knows what it touches
		}
		if hole { // two in a row: nobody here knows the sum of the first
			s.Sums = s.Sums[:0]
		}
		s.Sums = append(s.Sums, 0) // the next record, or the journal's end, says which
		first, hole = false, true
		next = c.Seq + 1
	}
	if hole {
		s.Sums[len(s.Sums)-1] = s.Last.Sum
	}
	return img, nil
}

// readRecords calls fn for the records from..to, however many bytes they are.
func readRecords(l *journal.Log, from, to record.Seq, fn func(*record.Record) error) error {
	for from <= to {
		next, err := l.Read(from, to, readBytes, fn)
		if err != nil {
			return err
		}
		from = next
	}
	return nil
}

// sumOf gives the header sum of number seq among those that Saved carries.
func sumOf(s *replica.Saved, seq record.Seq) (uint64, bool) {
	i := int64(seq) - int64(s.Last.Seq) + int64(len(s.Sums)) - 1
	if i < 0 || i >= int64(len(s.Sums)) {
		return 0, false
	}
	return s.Sums[i], true
}
