package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/cockroachdb/pebble/v2"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Quarantine is a tail that was cut and set aside.
type Quarantine struct {
	Name   string     `json:"name"`
	After  record.Pos `json:"after"` // the record before it, at the time of the cut
	Last   record.Pos `json:"last"`
	Bytes  int64      `json:"bytes"`
	Reason string     `json:"reason,omitempty"`
	Time   int64      `json:"time"` // ns since 1970
}

// quarantineInfo is what the database holds under 'q'.
type quarantineInfo struct {
	Quarantine
	Ranges []keyRange `json:"ranges"`
}

// ErrNoQuarantine says that a volume has no quarantine of a name.
var ErrNoQuarantine = errors.New("no such quarantine")

// ErrQuarantineExists says that a name is in use.
var ErrQuarantineExists = errors.New("a quarantine of this name exists")

func (l *Log) newQuarantine(c *Cut, last record.Pos, tail []keyRange, bytes int64) (*quarantineInfo, error) {
	if _, err := l.quarantine(c.Quarantine); err == nil {
		return nil, fmt.Errorf("quarantine %q: %w", c.Quarantine, ErrQuarantineExists)
	} else if !errors.Is(err, ErrNoQuarantine) {
		return nil, err
	}
	return &quarantineInfo{
		Quarantine{Name: c.Quarantine, After: c.After, Last: last, Bytes: bytes, Reason: c.Reason, Time: c.Time}, tail,
	}, nil
}

func (q *quarantineInfo) put(pb *pebble.Batch, v record.VolumeID) error {
	b, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("encode quarantine %q: %w", q.Name, err)
	}
	return pb.Set(nameKey(keyQuarantine, v, q.Name), b, nil)
}

func (l *Log) quarantine(name string) (*quarantineInfo, error) {
	if err := l.j.usable(); err != nil {
		return nil, err
	}
	if err := l.j.readers.enter(); err != nil {
		return nil, err
	}
	defer l.j.readers.leave()
	b, closer, err := l.j.db.Get(nameKey(keyQuarantine, l.v, name))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, fmt.Errorf("quarantine %q of volume %s: %w", name, l.v, ErrNoQuarantine)
	}
	if err != nil {
		return nil, fmt.Errorf("read quarantine %q of volume %s: %w", name, l.v, err)
	}
	defer closer.Close()
	return decodeQuarantine(l.v, name, b)
}

func decodeQuarantine(v record.VolumeID, name string, b []byte) (*quarantineInfo, error) {
	q := new(quarantineInfo)
	if err := json.Unmarshal(b, q); err != nil {
		return nil, fmt.Errorf("%w: quarantine %q of volume %s: %w", record.ErrCorrupt, name, v, err)
	}
	if q.Name != name || len(q.Ranges) > segmentsMax {
		return nil, fmt.Errorf("%w: quarantine %q of volume %s", record.ErrCorrupt, name, v)
	}
	for _, r := range q.Ranges {
		if r.First < 1 || r.Last < r.First || r.Last == math.MaxUint64 {
			return nil, fmt.Errorf("%w: quarantine %q of volume %s with records %d..%d", record.ErrCorrupt, name, v, r.First, r.Last)
		}
	}
	return q, nil
}

// Quarantines lists what was set aside, by name.
func (l *Log) Quarantines() ([]Quarantine, error) {
	var out []Quarantine
	err := l.eachQuarantine(func(q *quarantineInfo) { out = append(out, q.Quarantine) })
	if err != nil {
		return nil, fmt.Errorf("list quarantines of volume %s: %w", l.v, err)
	}
	return out, nil
}

func (l *Log) eachQuarantine(fn func(*quarantineInfo)) error {
	return l.j.scan(volumeKey(keyQuarantine, l.v), func(k, b []byte) error {
		q, err := decodeQuarantine(l.v, string(k[volumeKeyLen:]), b)
		if err != nil {
			return err
		}
		fn(q)
		return nil
	})
}

// quarantinedRanges gives the keys that quarantines hold, and their highest segment.
func (l *Log) quarantinedRanges() (ranges []keyRange, highest uint32, err error) {
	err = l.eachQuarantine(func(q *quarantineInfo) {
		for _, r := range q.Ranges {
			ranges = append(ranges, r)
			highest = max(highest, r.Segment)
		}
	})
	return ranges, highest, err
}

// ReadQuarantine calls fn for the records of a quarantine in order, verified as
// Read does, until fn returns an error.
func (l *Log) ReadQuarantine(name string, fn func(*record.Record) error) error {
	q, err := l.quarantine(name)
	if err != nil {
		return err
	}
	c := cursor{l: l, next: q.After.Seq + 1, prev: &q.After, fn: fn}
	for _, r := range q.Ranges {
		for c.next <= r.Last {
			c.left = readBytesMax
			if err := c.run(keyRange{r.Segment, max(r.First, c.next), r.Last}); err != nil {
				return fmt.Errorf("read quarantine %q: %w", name, err)
			}
		}
	}
	return nil
}

// DropQuarantine removes a quarantine for ever, durable when it returns.
func (l *Log) DropQuarantine(name string) error {
	l.write.Lock()
	defer l.write.Unlock()
	if err := l.j.writable(); err != nil {
		return fmt.Errorf("drop quarantine %q of volume %s: %w", name, l.v, err)
	}
	q, err := l.quarantine(name)
	if err != nil {
		return err
	}
	b := l.j.db.NewBatch()
	err = b.Delete(nameKey(keyQuarantine, l.v, name), nil)
	drop := spans(l.v, q.Ranges)
	for _, s := range drop {
		if err == nil {
			err = b.DeleteRange(s.lo, s.hi, nil)
		}
	}
	var p *Pending
	if err == nil {
		p, err = l.j.commit(b, true)
	}
	if err == nil {
		err = p.Wait()
	}
	if err != nil {
		return fmt.Errorf("drop quarantine %q of volume %s: %w", name, l.v, err)
	}
	l.dropped(drop, uint64(q.Bytes), true)
	return nil
}
