package journal

import (
	"time"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Bounds. Exported ones bind callers: beyond them a call is refused.
const (
	// MetaKeyMax and MetaValueMax bound a MetaOp, in bytes.
	MetaKeyMax   = 256
	MetaValueMax = 1 << 20

	// QuarantineNameMax bounds the name of a quarantine, in bytes.
	QuarantineNameMax = 64

	// BatchBytes is the size up to which a Batch is atomic even when it has a cut
	// or reset and meta at once, in bytes: a quarter of pebble's memtable, beyond
	// which pebble batches waste what is left of the memtable before them.
	BatchBytes = memTableSize / 4

	// segmentsMax bounds the segments of a log and the ranges of a quarantine.
	// Each cut adds one, until trimmed; a cut beyond is refused.
	segmentsMax = 4096
)

const (
	// memTableSize is pebble's MemTableSize, in bytes: what is trimmed before so
	// much was written never reaches a table.
	memTableSize = 64 << 20

	// memTables is how many memtables may wait for their flush before writes
	// stall: memory is bounded by memTables × memTableSize.
	memTables = 3

	// largestRecord is what a pebble batch must at least be able to hold.
	largestRecord = record.HeaderSize + record.MaxPayload

	// batchKeptBytes is the largest batch whose memory is used again, in bytes.
	batchKeptBytes = 4 << 20

	// trimBytes is how much is trimmed between two DeleteRange, in bytes.
	trimBytes = 1 << 20

	// leftoversMax is how many freed but unexcised runs a log may have in tables.
	leftoversMax = 64

	// compactEvery is how many flushes lie between two compactions of the small
	// keys, whose tables lie above each other. Each costs one early flush.
	compactEvery = 32

	// tailRecords and tailBytes bound what is verified of a log's end when it is
	// opened; Verify looks at everything.
	tailRecords = 1024
	tailBytes   = 16 << 20

	// readBytesMax bounds one Read, in bytes, whatever the caller asks for.
	readBytesMax = 64 << 20

	// aheadMin and aheadMax bound what Read takes from the database before it calls
	// fn, in bytes, and so what an fn that has enough throws away: it doubles from
	// one to the other.
	aheadMin = 64 << 10
	aheadMax = 1 << 20

	// reportMax bounds the damages listed by Verify and by the opening of a log.
	reportMax = 100

	// reserveDefault is Options.ReserveBytes when unset, in bytes: the flush of
	// all memtables must fit into half of it.
	reserveDefault = 2 * memTables * memTableSize

	// spaceEvery bounds how old and how far off the last look at free space may
	// be when a write is judged by it.
	spaceEvery      = 100 * time.Millisecond
	spaceEveryBytes = 4 << 20

	// fullRetry is how long a flush waits that found no room, before it tries again.
	fullRetry = 100 * time.Millisecond

	// logEvery is the shortest time between two error lines of pebble in our log;
	// the ones between are counted.
	logEvery = time.Second
)
