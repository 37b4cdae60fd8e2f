package image

// Bounds of this package.
const (
	// stripes is the number of locks, stripeShift the bytes of one (1 MiB): a
	// 4 KiB read takes one, a 32 MiB read 33, and reads elsewhere do not wait for
	// an apply. Must be the bits of stripeSet.
	stripes     = 64
	stripeShift = 20

	// groupBytes and groupChanges bound what Apply writes under one taking of
	// stripes: how long a read may have to wait. A larger change is a group of its own.
	groupBytes   = 4 << 20
	groupChanges = 1024

	// iovMax is how many slices one pwritev takes (IOV_MAX of Linux).
	iovMax = 1024

	// writeMax is how much one system call writes, in bytes. Kernels with large
	// folios (ext4 since 6.16) keep a write in the page cache in folios of up to its
	// size, and every later 4 KiB write into one walks all its blocks: 32 of them
	// took 80–150 µs after writes of 1 MiB, 21–40 µs after writes of 64 KiB.
	writeMax = 64 << 10

	// zeroByWriting is the length below which zeroes are written instead of asked
	// of the file system, in bytes: a copy into the page cache costs less than
	// the file system's transaction.
	zeroByWriting = 64 << 10

	// zeroBuffer is how many zeroes are written at once, in bytes.
	zeroBuffer = 1 << 20

	// zeroStep is how much of a device, or of a file that cannot punch holes, is
	// zeroed between two looks at the context, in bytes.
	zeroStep = 256 << 20

	// readNowMax is the largest read that ReadNow tries, in bytes: more would
	// keep the caller's thread copying for too long.
	readNowMax = 256 << 10

	// scanBuffer is what HashBlocks and IsZero read at once, in bytes, and so how
	// long they keep a stripe.
	scanBuffer = 1 << 20

	// blockMax bounds a block of HashBlocks, in bytes.
	blockMax = 32 << 20

	// holdersMax bounds the search in /proc for who has an image open: processes
	// looked at before it gives up. It runs only to word an error.
	holdersMax = 20000

	// cloneSpare is Room.Spare where a file may have been cloned, in bytes: what is
	// numbered and on its way to the image.
	cloneSpare = 64 << 20

	// unknownSpare is Room.Spare where writes may take any amount, in bytes.
	unknownSpare = 1 << 60

	// sector is what sizes are a multiple of, in bytes.
	sector = 512
)
