package journal

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Log is the records of one volume: a run of numbers First..Last without a hole,
// chained by header sums. Write, Trim, Replace and DropQuarantine exclude each
// other; everything else may run at any time from any goroutine.
type Log struct {
	j *Journal
	v record.VolumeID

	// write is held by whoever changes the log, over the hand-over to pebble. It
	// guards what follows, and with mu every change of what mu guards.
	write sync.Mutex
	// deleted is the highest number whose deletion was written. Invariant:
	// state.segments still names every record above it, trimmed or not.
	deleted       record.Seq
	deletedOffset uint64
	exists        bool   // state is in the database
	dirty         bool   // state has changes that no batch carries yet
	known         bool   // the state in the database was whole
	hidden        bool   // the end is in a damaged block: there may be more behind it
	unclaimed     []span // of a broken log: all keys that no quarantine holds
	garbage       garbage

	mu     sync.RWMutex // guards what follows; no I/O under it
	state  state
	last   record.Pos
	offset uint64 // of last
	bad    *CorruptError
	damage []*CorruptError
}

// Volume is the volume whose records these are.
func (l *Log) Volume() record.VolumeID { return l.v }

// First is the lowest number kept; Last().Seq+1 when none is.
func (l *Log) First() record.Seq {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.state.begin.Seq + 1
}

// Begin is the position before First: that of the last trimmed record, or of a
// Reset, or zero.
func (l *Log) Begin() record.Pos {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.state.begin
}

// Last is the position of the last record written, durable or not; Begin when none
// is kept.
func (l *Log) Last() record.Pos {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.last
}

// Bytes is the size of the kept records, headers included, in bytes.
func (l *Log) Bytes() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return int64(l.offset - l.state.beginOffset)
}

// Damage lists records that were found damaged when the log was opened, at most
// 100. Each can be fetched from a peer and given to Replace.
func (l *Log) Damage() []*CorruptError {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return append([]*CorruptError(nil), l.damage...)
}

// broken is the *CorruptError of a log whose end is not known, else nil.
func (l *Log) broken() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.bad != nil {
		return l.bad
	}
	return nil
}

// Meta gives the value of a key written by a MetaOp, in a new slice.
func (l *Log) Meta(key string) (value []byte, ok bool, err error) {
	if err := l.j.usable(); err != nil {
		return nil, false, err
	}
	if err := l.j.readers.enter(); err != nil {
		return nil, false, err
	}
	defer l.j.readers.leave()
	v, closer, err := l.j.db.Get(nameKey(keyMeta, l.v, key))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read meta %q of volume %s: %w", key, l.v, err)
	}
	value = append([]byte{}, v...)
	return value, true, closer.Close()
}

// MetaAll gives all meta values of the volume.
func (l *Log) MetaAll() (map[string][]byte, error) {
	out := map[string][]byte{}
	err := l.j.scan(volumeKey(keyMeta, l.v), func(k, v []byte) error {
		out[string(k[volumeKeyLen:])] = append([]byte{}, v...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read meta of volume %s: %w", l.v, err)
	}
	return out, nil
}
