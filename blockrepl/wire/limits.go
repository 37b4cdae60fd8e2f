package wire

import "github.com/blockrepl/blockrepl/journal/record"

// Bounds of the format. A sender that exceeds one gets ErrTooLarge and nothing
// is sent; a receiver refuses the frame before it allocates for it.
const (
	// MaxBody bounds a frame's body, in bytes: one record of the largest payload,
	// with its header and the message's fields, must fit.
	MaxBody = record.MaxPayload + 1<<20

	// MaxRecords bounds the records of one Append or Forward: their headers
	// decoded stay below 4 MiB. A sender with more makes a second frame.
	MaxRecords = 8192

	// MaxServers bounds the lists of servers (InSync, Members, Memory). A volume
	// has at most seven; the rest is room.
	MaxServers = 16

	// MaxHistory bounds the epoch history; package replica keeps far less.
	MaxHistory = 1 << 16

	// MaxHashes bounds the blocks of one HashQuery: 512 KiB of hashes, which is
	// 4 GiB of image at 64 KiB a block.
	MaxHashes = 1 << 16

	// MaxChunks bounds the differing extents of one ExtentData.
	MaxChunks = 1 << 16

	// MaxName bounds a volume's, cluster's or program's name, in bytes.
	MaxName = 255

	// MaxReason bounds texts for people, in bytes. Longer ones are cut by the
	// sender at a rune, not refused: a reason must never be lost to its length.
	MaxReason = 1024

	// maxHello bounds the variable part of Hello and Verdict, in bytes, for all
	// versions to come: it is read before anything is known of the other side.
	maxHello = 4096

	// readBuffer is the Reader's buffer, in bytes: some dozens of small frames a
	// read. Bodies larger than what it holds are read straight into their own.
	readBuffer = 256 << 10

	// keepHead is how much of its head buffer a Writer keeps between batches, in
	// bytes; a rare large message must not pin its size for ever.
	keepHead = 64 << 10

	// keepBuffers is how many slice headers a Writer keeps between batches.
	keepBuffers = 4096
)
