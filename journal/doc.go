// Package journal keeps the records of all volumes of one server, durable and in
// order, in one pebble database.
//
// # Promise
//
// What Pending.Wait returned nil for survives a crash of the process and of the
// machine, together with everything that was written to the same log before it.
// After a crash a log ends at some record that was written, never before the last
// one that was waited for, and each Batch is there as a whole or not at all (but
// see Batch about very large ones). A record that is damaged is never returned: the
// error names its number. The first failed sync is final: nothing succeeds after
// it until the journal is opened again.
//
// # What it does not promise
//
// It never guesses. A flipped bit near the end of a database that was not closed
// looks like the torn tail of a crash, and pebble drops what follows. The journal
// cannot know; who remembers the last number elsewhere (peers, a mark in another
// file) must compare it with Log.Last. A full disk is refused with ErrNoSpace
// before pebble meets it, but only as long as nobody else fills the reserve.
//
// # Shapes
//
//	Journal ── one database, one directory, one process
//	  └ Log ── one volume: begin Pos │ First … Last │ segments │ meta │ quarantines
//
// Write applies a Batch to the log and gives a Pending; several may be on their
// way, one sync serves all that wait. The order of Write calls is the order of
// durability.
//
// # Keys and values
//
// All integers in keys are big-endian, so that order of bytes is order of numbers.
//
//	'f'                                  "blockrepl journal 1"
//	'l' volume[16]                       the log's state, below
//	'm' volume[16] key                   a meta value
//	'q' volume[16] name                  a quarantine: JSON of what was cut, below
//	'r' volume[16] segment u32 number u64   offset u64 little-endian, then the record verbatim
//
// The offset is the number of record bytes written to this log up to and with this
// record. The difference of two is what lies between them, without an index.
//
// A log's numbers are cut into segments, so that a tail of any size can be set
// aside by a few bytes in one synced batch. A cut opens a new segment behind the
// last kept number; the cut records stay under the old segment's keys, where they
// are named by a quarantine or deleted:
//
//	segment 1   1 … 40│41 … 57   quarantine "3.a": segment 1, 41 … 57
//	segment 2         └41 … 60
//
// The log's state, little-endian:
//
//	 0  u8    version, 1
//	 1  [3]   zero
//	 4  u32   highest segment ever used
//	 8  u64   begin number: records up to here are trimmed (or were never here)
//	16  u64   begin header sum
//	24  u64   begin offset
//	32  u32   number of segments, at least 1
//	36  …     each: u32 segment, u64 its first number; ascending
//	 …  u64   XXH3-64 of all before
//
// # Trim
//
// Trim moves the begin mark at once; keys are deleted by DeleteRange about every
// MiB while they are still in the memtable, so that the flush drops them and they
// reach the disk once, in the WAL. What was flushed before is freed by Excise,
// after the mark is durable. Records below the mark are ignored; those that a
// power cut brings back are removed when the log is opened. Flushed tables end at
// the border of a volume and of the small keys, so that a freed range frees files.
// Records are never compacted: what is kept is written twice (WAL and table), what
// is trimmed within a memtable's time once.
//
// # Failure
//
// At the first call that fails (a write, a sync, a new file) the files are frozen
// as a crash would leave them, and everything later is refused with ErrFailed; see
// failStop. Reads go on. Only a new Open makes the journal work again.
//
// # Goroutines
//
// Open starts one goroutine, the janitor, which frees and compacts; Close ends it
// and pebble's. Methods run in the caller's goroutine.
package journal
