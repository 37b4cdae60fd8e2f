package record

// Bounds of the format and of this package's memory. What lies above is
// refused by Decode before anything is allocated, and is a bug in a caller of
// the New functions.
const (
	// MaxSize bounds a volume, and with it every offset + length, in bytes:
	// 1 EiB, so that sums of two never overflow.
	MaxSize = 1 << 60

	// MaxState bounds the payload of records that carry no client's data
	// (members, epoch, mark), in bytes.
	MaxState = 1 << 20

	// poolSizeMax is the largest payload whose buffer is pooled, in bytes;
	// larger ones go to the garbage collector, which also empties the pools.
	// Larger than that is rare, and would keep much memory for little.
	poolSizeMax = 4 << 20

	// sampleSize is how much of a payload is looked at before the whole is
	// compressed, in bytes, taken in samples pieces spread over it. Shorter
	// payloads are compressed without a look.
	sampleSize = 4 << 10
	samples    = 4

	// minSaving is what compression must save to be kept: 1/minSaving of the
	// payload. Less is not worth the decompression at each server.
	minSaving = 8
)
