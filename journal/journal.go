package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Journal is the database of one server. Its methods may be called from any
// goroutine.
type Journal struct {
	o        Options
	fs       vfs.FS
	logger   *logger
	readOnly bool
	lock     *pebble.Lock
	db       *pebble.DB
	creating bool // until Open returns; see creatingName
	space    space

	// apply guards the order of batches in pebble, and that nobody enters it
	// after a panic of its commit path, which leaves pebble's own lock held.
	apply     sync.Mutex
	abandoned bool // pebble panicked; guarded by apply
	failure   atomic.Pointer[error]

	readers readers
	closed  atomic.Bool
	mu      sync.Mutex // guards logs; no I/O under it except opening a log
	logs    map[record.VolumeID]*Log

	janitor janitor
}

// Open opens the journal in o.Dir for this process alone, and creates it when the
// directory holds none. ErrLocked when another process has it, ErrFormat when the
// directory holds something else.
func Open(o Options) (*Journal, error) { return open(o, false) }

// OpenReadOnly opens an existing journal of a stopped server for looking at it.
// Nothing is written, not even what a recovery would clean up. fs.ErrNotExist where Open
// would make one.
func OpenReadOnly(o Options) (*Journal, error) { return open(o, true) }

func open(o Options, readOnly bool) (*Journal, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = memTableSize
	}
	if o.ReserveBytes == 0 {
		o.ReserveBytes = reserveDefault
	}
	j := &Journal{
		o: o, readOnly: readOnly,
		logger: &logger{log: o.Logger, fatal: o.Fatal},
		logs:   map[record.VolumeID]*Log{},
	}
	j.fs = newFailStop(o.FS, j.fail)
	j.janitor.init() // pebble flushes while it opens
	j.space.init(o, j.janitor.wake)
	if err := j.openDB(); err != nil {
		return nil, fmt.Errorf("open journal %s: %w", o.Dir, err)
	}
	err := j.checkFormat()
	if err == nil {
		err = j.endCreation()
	}
	if err == nil {
		err = j.Err()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open journal %s: %w", o.Dir, err), j.closeDB())
	}
	if !readOnly {
		j.janitor.start(j)
	}
	return j, nil
}

func (j *Journal) openDB() error {
	if !j.readOnly {
		if err := makeDir(j.fs, j.o.Dir); err != nil {
			return err
		}
	}
	var err error
	j.lock, err = pebble.LockDirectory(j.o.Dir, j.fs)
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("%w: stop the server that runs on it: %w", ErrLocked, err)
	}
	if err != nil {
		return fmt.Errorf("lock directory: %w", err)
	}
	if !j.readOnly {
		err = j.beginCreation()
	} else {
		err = j.wasCreated()
	}
	if err == nil {
		err = j.openPebble()
	}
	if err != nil {
		return errors.Join(err, j.lock.Close())
	}
	return nil
}

// openPebble turns pebble's panics about a disk that fails at the wrong moment
// into errors: nothing was promised yet.
func (j *Journal) openPebble() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.Join(fmt.Errorf("open pebble: %v", r), j.Err())
		}
	}()
	o := j.pebbleOptions(j.readOnly)
	o.Lock = j.lock
	j.db, err = pebble.Open(j.o.Dir, o)
	if err != nil {
		return errors.Join(fmt.Errorf("open pebble: %w", err), j.Err())
	}
	return nil
}

// checkFormat compares the format's name with ours and writes it into an empty database.
func (j *Journal) checkFormat() error {
	got, closer, err := j.db.Get([]byte{keyFormat})
	if pebble.IsCorruptionError(err) {
		// It is written once, so it stands among old values in the oldest table; states
		// and records have versions of their own.
		j.o.Logger.Error("the name of the journal's format is damaged; replace the disk and resync this server", "dir", j.o.Dir, "err", err)
		return nil
	}
	if err == nil {
		defer closer.Close()
		if string(got) != formatName {
			return fmt.Errorf("%w: it says %q, this program knows %q", ErrFormat, got, formatName)
		}
		return nil
	}
	if !errors.Is(err, pebble.ErrNotFound) {
		return fmt.Errorf("read format: %w", err)
	}
	it, err := j.db.NewIter(nil)
	if err != nil {
		return fmt.Errorf("read format: %w", err)
	}
	empty := !it.First()
	if err := it.Close(); err != nil {
		return fmt.Errorf("read format: %w", err)
	}
	if !empty || j.readOnly {
		return fmt.Errorf("%w: a database without our format's name", ErrFormat)
	}
	if err := j.db.Set([]byte{keyFormat}, []byte(formatName), pebble.Sync); err != nil {
		return fmt.Errorf("write format: %w", err)
	}
	return nil
}

// events connects pebble's events: the janitor works after flushes, and damage and
// trouble are logged, never fatal by themselves.
func (j *Journal) events() *pebble.EventListener {
	return &pebble.EventListener{
		FlushEnd: func(pebble.FlushInfo) { j.janitor.flushed() },
		BackgroundError: func(err error) {
			if errors.Is(err, pebble.ErrCancelledCompaction) {
				return // by Excise; pebble tries again
			}
			if errors.Is(err, syscall.ENOSPC) {
				j.space.full()
			}
			j.logger.Errorf("in the background: %v", err)
		},
		DataCorruption: func(i pebble.DataCorruptionInfo) { j.logger.Errorf("%s", i) },
		WriteStallBegin: func(i pebble.WriteStallBeginInfo) {
			j.o.Logger.Debug("journal waits for its disk", "reason", i.Reason)
		},
	}
}

// Log gives the log of a volume, opens it when it is not open yet, and creates it
// when there is none (it is on disk with its first Write). The log's end is
// verified; damage that leaves the end known is in Log.Damage. With a
// *CorruptError the end is not known: the log is returned too, but only for Meta,
// Quarantines, Salvage and a Write with Reset.
func (j *Journal) Log(v record.VolumeID) (*Log, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.usable(); err != nil {
		return nil, err
	}
	if l, ok := j.logs[v]; ok {
		return l, l.broken()
	}
	l := &Log{j: j, v: v}
	if err := l.open(); err != nil {
		var c *CorruptError
		if !errors.As(err, &c) {
			return nil, err
		}
		l.bad = c
	}
	j.logs[v] = l
	return l, l.broken()
}

// Volumes lists the volumes that have a log on disk, in order of their ids. With
// ErrIncomplete there may be more of them.
func (j *Journal) Volumes() ([]record.VolumeID, error) {
	var out []record.VolumeID
	err := j.scan([]byte{keyState}, func(k, _ []byte) error {
		if len(k) == volumeKeyLen {
			out = append(out, record.VolumeID(k[1:]))
		}
		return nil
	})
	if pebble.IsCorruptionError(err) {
		out, err = j.volumesByRecords(), fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
	if err != nil {
		return out, fmt.Errorf("list volumes of journal %s: %w", j.o.Dir, err)
	}
	return out, nil
}

// volumesByRecords finds the volumes of which there are records: what hides the
// others' states from an iterator may be the damage of an old value.
func (j *Journal) volumesByRecords() (out []record.VolumeID) {
	if j.readers.enter() != nil {
		return nil
	}
	defer j.readers.leave()
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyRecord}, UpperBound: after([]byte{keyRecord})})
	if err != nil {
		return nil
	}
	defer it.Close() // it reads only, and who calls has an error already
	for ok := it.First(); ok && len(it.Key()) == recordKeyLen; {
		v := record.VolumeID(it.Key()[1:])
		_, closer, err := j.db.Get(volumeKey(keyState, v))
		if err == nil {
			err = closer.Close()
		}
		if !errors.Is(err, pebble.ErrNotFound) { // else they are what is left of one that was dropped
			out = append(out, v)
		}
		ok = it.SeekGE(after(volumeKey(keyRecord, v)))
	}
	return out
}

// DropVolume removes everything of a volume, durable when it returns. A Log of it
// must not be used any more.
func (j *Journal) DropVolume(v record.VolumeID) error {
	if err := j.writable(); err != nil {
		return fmt.Errorf("drop volume %s: %w", v, err)
	}
	j.mu.Lock()
	delete(j.logs, v)
	j.mu.Unlock()
	b := j.db.NewBatch()
	for _, prefix := range []byte{keyState, keyMeta, keyQuarantine, keyRecord} {
		lo := volumeKey(prefix, v)
		if err := b.DeleteRange(lo, after(lo), nil); err != nil {
			return fmt.Errorf("drop volume %s: %w", v, err)
		}
	}
	p, err := j.commit(b, true)
	if err == nil {
		err = p.Wait()
	}
	if err != nil {
		return fmt.Errorf("drop volume %s: %w", v, err)
	}
	// At once and not by the janitor: the volume may come again under the same keys.
	lo := volumeKey(keyRecord, v)
	if err := j.free(context.Background(), span{lo, after(lo)}); err != nil {
		j.o.Logger.Warn("records of a dropped volume could not be freed", "volume", v, "err", err)
	}
	return nil
}

// Free is how many bytes ordinary writes may still add, by the free space of the
// file system without the reserve. It is a look at the present, not a reservation.
func (j *Journal) Free() int64 { return j.space.free() }

// DiskBytes is what the database occupies on disk now, in bytes; 0 when it is closed.
func (j *Journal) DiskBytes() int64 {
	if j.readers.enter() != nil {
		return 0
	}
	defer j.readers.leave()
	return int64(j.db.Metrics().DiskSpaceUsage())
}

// Err is nil while the journal works, and wraps ErrFailed from the first failed
// write or sync on.
func (j *Journal) Err() error {
	if e := j.failure.Load(); e != nil {
		return *e
	}
	return nil
}

// Close syncs what was written, ends all goroutines and releases the directory. It
// waits for reads that are under way, not for what their fn does; later ones get
// ErrClosed. Nothing else may run or be called after it. A second Close does nothing.
func (j *Journal) Close() error {
	if j.closed.Swap(true) {
		return nil
	}
	j.readers.close()
	j.mu.Lock()
	logs := j.logs
	j.logs = nil
	j.mu.Unlock()

	var errs []error
	if !j.readOnly {
		j.janitor.stop()
		if j.Err() == nil {
			for _, l := range sortedLogs(logs) {
				errs = append(errs, l.persistState())
			}
			errs = append(errs, j.syncAll())
		}
	}
	if err := errors.Join(append(errs, j.closeDB())...); err != nil {
		return fmt.Errorf("close journal %s: %w", j.o.Dir, err)
	}
	return nil
}

func sortedLogs(logs map[record.VolumeID]*Log) []*Log {
	out := make([]*Log, 0, len(logs))
	for _, l := range logs {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b *Log) int { return slices.Compare(a.v[:], b.v[:]) })
	return out
}

// closeDB closes pebble, unless it panicked while it held its own locks: then it
// is left alone, and the process has been told to end.
func (j *Journal) closeDB() error {
	j.apply.Lock()
	abandoned := j.abandoned
	j.apply.Unlock()
	if abandoned {
		return j.Err()
	}
	return errors.Join(j.db.Close(), j.lock.Close(), j.Err())
}

// usable says whether the journal is open.
func (j *Journal) usable() error {
	if j.closed.Load() {
		return ErrClosed
	}
	return nil
}

// scan calls fn for each key that begins with prefix. Key and value are valid
// during the call only.
func (j *Journal) scan(prefix []byte, fn func(k, v []byte) error) error {
	if err := j.usable(); err != nil {
		return err
	}
	if err := j.readers.enter(); err != nil {
		return err
	}
	defer j.readers.leave()
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err == nil {
			err = fn(it.Key(), v)
		}
		if err != nil {
			return errors.Join(err, it.Close())
		}
	}
	return errors.Join(it.Error(), it.Close())
}
