package record

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// IsZero reports whether every byte of p is zero. The usual payload is decided
// by its first bytes, a zero one by a compare of p with itself shifted by one.
func IsZero(p []byte) bool {
	if len(p) >= 8 && binary.LittleEndian.Uint64(p) != 0 {
		return false
	}
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[:len(p)-1], p[1:])
}

// Pack compresses data when that saves at least an eighth of it. It gives
// CodecNone and data itself when it does not, and otherwise the stored bytes in
// a buffer of Alloc, which the caller owns.
func Pack(data []byte) (Codec, []byte) {
	if !promising(data) {
		return CodecNone, data
	}
	scratch := Alloc(len(data)) // its spare bytes hold s2's worst case
	out := s2.Encode(scratch, data)
	if len(out) > len(data)-len(data)/minSaving {
		Free(scratch)
		return CodecNone, data
	}
	// The scratch buffer is as large as the data; records are kept for a while
	// in rings and queues, so that a copy of the few bytes is the cheaper way.
	stored := Alloc(len(out))
	copy(stored, out)
	Free(scratch)
	return CodecS2, stored
}

// promising looks at samples of data: whether compressing all of it is worth
// a try. Incompressible data costs s2 about as much as a copy, on large writes
// more than everything else that we do with them.
func promising(data []byte) bool {
	if len(data) < 64 {
		return false
	}
	if len(data) <= sampleSize {
		return true
	}
	const piece = sampleSize / samples
	step := (len(data) - piece) / (samples - 1)
	sum := 0
	for i := range samples {
		p := data[i*step:][:piece]
		switch n := s2.EstimateBlockSize(p); {
		case IsZero(p):
		case n < 0:
			sum += piece
		default:
			sum += n
		}
	}
	return sum <= sampleSize-sampleSize/minSaving
}

// Unpack appends the length bytes that stored holds to dst. It checks before it
// allocates that stored claims exactly length bytes; ErrCorrupt otherwise.
func Unpack(dst []byte, c Codec, stored []byte, length int) ([]byte, error) {
	if err := checkPacked(c, stored, int64(length)); err != nil {
		return dst, err
	}
	n := len(dst)
	switch c {
	case CodecNone:
		return append(dst, stored...), nil
	case CodecS2:
		dst = grow(dst, length)
		if _, err := s2.Decode(dst[n:n+length:n+length], stored); err != nil {
			return dst[:n], fmt.Errorf("%w: s2 payload of %d bytes: %w", ErrCorrupt, len(stored), err)
		}
		return dst[:n+length], nil
	default: // CodecZstd, by checkPacked
		// A decoder for each call: nothing writes zstd yet, and a kept one has
		// channels that a testing/synctest bubble must not share.
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxMemory(MaxPayload), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return dst, fmt.Errorf("open zstd decoder: %w", err)
		}
		defer d.Close()
		dst = grow(dst, length)
		out, err := d.DecodeAll(stored, dst[:n:n+length])
		if err != nil {
			return dst[:n], fmt.Errorf("%w: zstd payload of %d bytes: %w", ErrCorrupt, len(stored), err)
		}
		if len(out) != n+length {
			return dst[:n], fmt.Errorf("%w: zstd payload of %d bytes gave %d, want %d", ErrCorrupt, len(stored), len(out)-n, length)
		}
		return out, nil
	}
}

// checkPacked checks what stored claims to hold, without decompressing it.
func checkPacked(c Codec, stored []byte, length int64) error {
	var got int64
	switch c {
	case CodecNone:
		got = int64(len(stored))
	case CodecS2:
		n, err := s2.DecodedLen(stored)
		if err != nil {
			return fmt.Errorf("%w: s2 payload of %d bytes: %w", ErrCorrupt, len(stored), err)
		}
		got = int64(n)
	case CodecZstd:
		var h zstd.Header
		if err := h.Decode(stored); err != nil {
			return fmt.Errorf("%w: zstd payload of %d bytes: %w", ErrCorrupt, len(stored), err)
		}
		if !h.HasFCS || h.FrameContentSize > MaxPayload {
			return fmt.Errorf("%w: zstd payload of %d bytes: no or too large content size", ErrCorrupt, len(stored))
		}
		got = int64(h.FrameContentSize)
	default:
		return fmt.Errorf("%w: unknown codec %d", ErrCorrupt, c)
	}
	if got != length || length > MaxPayload {
		return fmt.Errorf("%w: %s payload of %d bytes holds %d, the header says %d", ErrCorrupt, c, len(stored), got, length)
	}
	return nil
}

// grow makes room for n more bytes behind dst.
func grow(dst []byte, n int) []byte {
	if cap(dst)-len(dst) >= n {
		return dst
	}
	g := make([]byte, len(dst), len(dst)+n)
	copy(g, dst)
	return g
}
