package blockrepl

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
	"github.com/zeebo/xxh3"
)

// Comes from: the committers, after each batch that became durable.
// Does: remembers, in a file of its own beside the journal, how far each volume's
// journal once was.
// Goes to: Saved.Forgot at the next start.
//
// A journal that lost its end without a word (a flipped bit near the end of a
// live log is taken for a torn tail), or that was restored from an old copy, is
// found out by it: also on the only server of a volume, which no peer remembers.
//
// The file DATA/marks has two slots of 64 KiB; the one with the older generation
// is written, so that a torn write leaves the other. Little-endian:
//
//	 0  u32  magic        'B' 'R' 'M' and the version, 1
//	 4  u32  count        entries, at most 1000: of volumes that are gone no longer
//	                      than there is room
//	 8  u64  generation   the higher valid one counts
//	16  count x 64 bytes, ascending by volume:
//	      0  [16]  volume          uuid
//	     16  u64   durable number  and
//	     24  u64   its header sum
//	     32  u64   following counter, 40 [8] following server
//	     48  u64   promised counter,  56 [8] promised server
//	..  u64  XXH3-64 of all before it

const (
	marksMagic = 'B' | 'R'<<8 | 'M'<<16 | 1<<24
	markSlot   = 64 << 10
	markHead   = 16
	markSize   = 64
)

// mark is what is remembered of one volume. All of it was durable in the journal
// when it was noted.
type mark struct {
	durable   record.Pos
	following record.Epoch
	promised  record.Epoch
}

// marks owns the file. Only run writes it after open.
type marks struct {
	file File
	log  *slog.Logger

	mu    sync.Mutex
	byVol map[record.VolumeID]mark
	// used orders volumes by when they were last asked for or set; 0: not since the
	// start, so no volume of this server any more.
	used  map[record.VolumeID]uint64
	uses  uint64
	dirty bool
	gen   uint64
	wake  chan struct{} // capacity 1
}

// openMarks reads the marks or makes the file.
func openMarks(o *Options) (*marks, error) {
	path := filepath.Join(o.DataDir, "marks")
	m := &marks{log: o.Logger, byVol: map[record.VolumeID]mark{}, used: map[record.VolumeID]uint64{}, wake: make(chan struct{}, 1)}
	f, err := o.Files.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, m.create(o, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open marks: %w", err)
	}
	m.file = f
	b, err := readFile(o.Files, path)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open marks: %w", err)
	}
	valid := 0
	for at := 0; at < 2*markSlot && at < len(b); at += markSlot {
		gen, byVol, ok := decodeMarks(b[at:min(len(b), at+markSlot)])
		if ok && gen >= m.gen {
			m.gen, m.byVol = gen, byVol
		}
		if ok {
			valid++
		}
	}
	if valid == 0 {
		// Nothing to compare with is no reason to refuse the journal: the peers
		// remember as well. But it is no accident that a single crash explains.
		o.Logger.Warn("marks file is damaged; what this server once held is known to its peers only", "file", path)
	}
	return m, nil
}

func (m *marks) create(o *Options, path string) error {
	f, err := o.Files.Create(path)
	if err != nil {
		return fmt.Errorf("create marks: %w", err)
	}
	m.file = f
	if err := m.write(); err != nil {
		f.Close()
		return err
	}
	if mutant.Is("forget the directory of new marks") {
		return nil
	}
	if err := o.Files.SyncDir(o.DataDir); err != nil {
		f.Close()
		return fmt.Errorf("create marks: %w", err)
	}
	return nil
}

// get gives what is remembered of a volume; the zero mark if nothing is.
func (m *marks) get(v record.VolumeID) mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.useLocked(v)
	return m.byVol[v]
}

func (m *marks) useLocked(v record.VolumeID) {
	m.uses++
	m.used[v] = m.uses
}

// set notes what is durable in the journal. It does no I/O. Within one epoch a
// mark goes back only when the server itself knows that it lost its past or is
// being resynced (lower): else a journal that lost its end would wipe out the
// proof with its first fsync.
func (m *marks) set(v record.VolumeID, k mark, lower bool) {
	m.mu.Lock()
	m.useLocked(v)
	old := m.byVol[v]
	if k.following == old.following && k.durable.Seq < old.durable.Seq && !lower {
		k.durable = old.durable
	}
	changed := old != k
	if changed {
		m.byVol[v] = k
		m.dirty = true
	}
	m.mu.Unlock()
	if changed {
		m.notify()
	}
}

// drop forgets a mark.
func (m *marks) drop(v record.VolumeID) {
	m.mu.Lock()
	_, had := m.byVol[v]
	delete(m.byVol, v)
	delete(m.used, v)
	m.dirty = m.dirty || had
	m.mu.Unlock()
	if had {
		m.notify()
	}
}

func (m *marks) notify() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// run writes the file when something changed, at most every marksEvery, and once
// more when ctx ends.
func (m *marks) run(ctx context.Context) {
	failing := false
	note := func(err error) {
		if err != nil && !failing {
			m.log.Warn("marks not written", "err", err)
		}
		failing = err != nil
		if failing {
			m.notify() // once more, after marksEvery
		}
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			note(m.write())
			return
		case <-m.wake:
		}
		note(m.write())
		timer.Reset(marksEvery)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
	}
}

func (m *marks) write() error {
	m.mu.Lock()
	if !m.dirty && m.gen > 0 {
		m.mu.Unlock()
		return nil
	}
	m.dirty = false
	m.gen++
	gen := m.gen
	gone := m.makeRoomLocked()
	b := encodeMarks(gen, m.byVol)
	m.mu.Unlock()
	for _, v := range gone {
		m.log.Warn("marks file is full; what this server once held of a volume is known to its peers only", "volume", v.String())
	}

	slot := gen % 2
	if mutant.Is("write the marks over those that count") {
		slot = 0
	}
	_, err := m.file.WriteAt(b, int64(slot)*markSlot)
	if err == nil && !mutant.Is("write the marks without an fsync") {
		err = m.file.Sync()
	}
	if err != nil {
		// The slot may be torn: the next write goes there again, never to the other.
		m.mu.Lock()
		m.gen, m.dirty = gen-1, true
		m.mu.Unlock()
		return fmt.Errorf("write marks: %w", err)
	}
	return nil
}

// makeRoomLocked forgets what the file has no room for: marks of volumes that this
// server does not have any more, those before that were not used for longest.
func (m *marks) makeRoomLocked() (gone []record.VolumeID) {
	if len(m.byVol) <= volumesMax {
		return nil
	}
	vols := slices.SortedFunc(maps.Keys(m.byVol), func(a, b record.VolumeID) int {
		return cmp.Or(cmp.Compare(m.used[a], m.used[b]), bytes.Compare(a[:], b[:]))
	})
	gone = vols[:len(vols)-volumesMax]
	for _, v := range gone {
		delete(m.byVol, v)
		delete(m.used, v)
	}
	return gone
}

func (m *marks) close() error { return m.file.Close() }

func encodeMarks(gen uint64, byVol map[record.VolumeID]mark) []byte {
	vols := make([]record.VolumeID, 0, len(byVol))
	for v := range byVol {
		vols = append(vols, v)
	}
	slices.SortFunc(vols, func(a, b record.VolumeID) int { return cmp.Compare(string(a[:]), string(b[:])) })
	le := binary.LittleEndian
	b := make([]byte, 0, markHead+len(vols)*markSize+8)
	b = le.AppendUint32(b, marksMagic)
	b = le.AppendUint32(b, uint32(len(vols)))
	b = le.AppendUint64(b, gen)
	for _, v := range vols {
		k := byVol[v]
		b = append(b, v[:]...)
		b = le.AppendUint64(b, uint64(k.durable.Seq))
		b = le.AppendUint64(b, k.durable.Sum)
		for _, e := range []record.Epoch{k.following, k.promised} {
			b = le.AppendUint64(b, e.Counter)
			b = append(b, e.Server[:]...)
		}
	}
	return le.AppendUint64(b, xxh3.Hash(b))
}

// decodeMarks decodes one slot; anything wrong makes it invalid.
func decodeMarks(b []byte) (gen uint64, byVol map[record.VolumeID]mark, ok bool) {
	le := binary.LittleEndian
	if len(b) < markHead+8 || le.Uint32(b) != marksMagic || le.Uint32(b[4:]) > volumesMax {
		return 0, nil, false
	}
	n := int(le.Uint32(b[4:]))
	end := markHead + n*markSize
	if len(b) < end+8 || le.Uint64(b[end:]) != xxh3.Hash(b[:end]) && !mutant.Is("ignore the sum of the marks") {
		return 0, nil, false
	}
	byVol = make(map[record.VolumeID]mark, n)
	for at := markHead; at < end; at += markSize {
		e := b[at : at+markSize]
		k := mark{durable: record.Pos{Seq: record.Seq(le.Uint64(e[16:])), Sum: le.Uint64(e[24:])}}
		for i, ep := range []*record.Epoch{&k.following, &k.promised} {
			ep.Counter = le.Uint64(e[32+16*i:])
			copy(ep.Server[:], e[40+16*i:])
		}
		byVol[record.VolumeID(e[:16])] = k
	}
	return le.Uint64(b[8:]), byVol, true
}

// forgot compares a mark with what the journal holds now and says what the
// journal lost; "" if nothing is missing. sumAt gives a kept record's header sum.
//
// A journal is cut only in a batch that also follows a newer epoch. So a journal
// that follows a newer epoch than the mark may be shorter, one that follows the
// same may not; one that follows or promised less has lost that batch.
func (k mark) forgot(h *replica.Hard, last record.Pos, sumAt func(record.Seq) (uint64, bool)) string {
	switch {
	case k == mark{}:
		return ""
	case h.Promised.Less(k.promised):
		return fmt.Sprintf("the journal promised epoch %s, the marks file remembers a promise of %s", h.Promised, k.promised)
	case h.Following.Less(k.following):
		return fmt.Sprintf("the journal follows epoch %s, the marks file remembers %s", h.Following, k.following)
	case k.following.Less(h.Following) || h.Resync != nil:
		return ""
	case last.Seq < k.durable.Seq:
		return fmt.Sprintf("the journal ends at number %d, the marks file remembers %d", last.Seq, k.durable.Seq)
	}
	if sum, ok := sumAt(k.durable.Seq); ok && sum != k.durable.Sum {
		return fmt.Sprintf("record %d of the journal has sum %016x, the marks file remembers %016x", k.durable.Seq, sum, k.durable.Sum)
	}
	return ""
}
