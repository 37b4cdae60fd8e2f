// Package image is the backing file or block device of a volume: the bytes that
// clients read.
//
// It promises that a read is the state after some prefix of the changes applied,
// never half of a change, never change n+1 without n; that zeroed and trimmed
// extents read back as zeroes on whatever lies below; that nobody else has the
// file open who says so; and that after a failed fsync, or a failed write, nothing
// is read, written or synced any more. It promises nothing about power loss before
// Sync: the caller applies again what came after the last one.
//
//	Apply   one caller, changes in order ──┐ exclusive on the stripes of a group
//	ReadAt  any number ────────────────────┤ shared on the stripes of the read
//	ReadNow any number, never waits ───────┤
//	Extents, HashBlocks, IsZero ───────────┘
//	Sync    beside all of them
//
// # Stripes
//
// Offset o belongs to stripe (o >> 20) mod 64, a read-write lock. Apply cuts what
// it is given into groups, takes all stripes of a group, in ascending order,
// before the first byte is written, and gives them back after the last. A read
// takes all of its own before the first byte. So a read sees, of every group that
// shares a stripe with it, all or nothing, and as groups follow each other, a
// prefix. The locks are held over I/O: that is what they are for. Writes and reads
// go through the page cache, so that a group is mostly a copy in memory.
//
// # Below
//
// A regular file (sparse: holes are punched and found), a block device (opened
// exclusively; zeroed by the kernel's zero-out or by writing, never by discard
// alone), or any [File], which is how tests and the simulator cut its power.
//
// The package has no goroutines.
package image
