package journal

import (
	"log/slog"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Options says where a journal lives and what it may use.
type Options struct {
	Dir string // created when missing; not shared with anything else

	FS     vfs.FS       // nil: the operating system's
	Logger *slog.Logger // nil: nothing is logged

	// ReserveBytes of free space are kept from ordinary writes, so that what a
	// full server must still do finds room: state changes, records of peers, the
	// flushes of pebble. 0: 384 MiB. Negative: no reserve (tests).
	ReserveBytes int64

	// FreeBytes gives the free space of the directory's file system, in bytes.
	// nil: asks FS; a file system that cannot say has no bound.
	FreeBytes func() (int64, error)

	// Fatal is called when pebble cannot go on (it says so by Fatalf or a panic).
	// It must not return; usually it logs and exits. When it is nil or returns,
	// the journal panics with *FatalError.
	Fatal func(error)

	// MemTableBytes is the size of pebble's memtable, in bytes; 0: 64 MiB. Small
	// ones make the simulator flush and rotate more often.
	MemTableBytes uint64

	// syncEach makes each Write wait for its own sync in pebble, the plain way
	// that benchmarks compare with.
	syncEach bool
}

// pebbleOptions are the options whose default does not suit a log of large values
// that are written once, read seldom and trimmed soon. Pebble's defaults cost 5 to
// 11 times the CPU of a plain file.
func (j *Journal) pebbleOptions(readOnly bool) *pebble.Options {
	o := &pebble.Options{
		FS:       j.fs,
		ReadOnly: readOnly,
		Logger:   j.logger,
		// FormatNewest of pebble v2.1.7, by name: a new pebble must not change
		// the files of a server by itself.
		FormatMajorVersion: pebble.FormatValueSeparation,

		MemTableSize:                j.o.MemTableBytes,
		MemTableStopWritesThreshold: memTables,
		WALBytesPerSync:             1 << 20, // spread the writeback of large bursts
		BytesPerSync:                1 << 20,

		// Tables of records do not overlap and are freed by Excise; tables of
		// small keys are compacted by the janitor. Pebble on its own would copy
		// the records of a server that is away again and again.
		DisableAutomaticCompactions: true,
		L0CompactionThreshold:       1 << 19,
		L0CompactionFileThreshold:   1 << 20,
		L0StopWritesThreshold:       1 << 20,
		FlushSplitBytes:             128 << 20,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },

		CacheSize:         8 << 20,
		MaxOpenFiles:      1000,
		DisableTableStats: true,
		EventListener:     j.events(),
	}
	o.TargetFileSizes[0] = 128 << 20
	for i := range o.Levels {
		// Small blocks: damage to one hides few records, and pebble looks for the
		// flipped bit of a bad block in a time that grows with its square.
		o.Levels[i].BlockSize = 8 << 10
	}
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionNone })
	o.Experimental.ReadSamplingMultiplier = -1 // no compactions caused by reads
	o.Experimental.SpanPolicyFunc = tableEnd
	return o
}

// tableEnd tells pebble where a table that begins at start must end: at the border
// between the small keys and the records, and of each volume's records. A table of
// one volume's records only is freed when they are trimmed; a small key of another
// region in it would pin the file.
func tableEnd(start []byte) (pebble.SpanPolicy, []byte, error) {
	if len(start) == 0 || start[0] < keyRecord {
		return pebble.SpanPolicy{}, []byte{keyRecord}, nil
	}
	return pebble.SpanPolicy{}, after(start[:min(len(start), volumeKeyLen)]), nil
}
