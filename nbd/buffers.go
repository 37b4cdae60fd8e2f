package nbd

import (
	"bytes"
	"math/bits"
	"sync"
)

// Payloads and replies live in pooled buffers of power-of-two sizes from 4 KiB to 32 MiB: in steady state nothing is
// allocated for a request. What a request is charged for is the size of its buffer, not of its data.
const (
	minClass = 12
	maxClass = 25
)

// buffer is a pooled piece of memory; b has its full length.
type buffer struct {
	b     []byte
	class int
}

var bufferPools [maxClass + 1]sync.Pool

// classOf gives the class of the smallest buffer that holds n bytes, 0 < n <= MaxPayloadDefault.
func classOf(n int) int {
	return max(minClass, bits.Len(uint(n-1)))
}

// classBytes is the size of the buffer that getBuffer(n) gives.
func classBytes(n int) int64 { return 1 << classOf(n) }

func getBuffer(n int) *buffer {
	class := classOf(n)
	if v := bufferPools[class].Get(); v != nil {
		return v.(*buffer)
	}
	return &buffer{b: make([]byte, 1<<class), class: class}
}

// put gives the buffer back; nobody may hold a piece of it any more.
func (b *buffer) put() {
	bufferPools[b.class].Put(b)
}

var zeroes [4096]byte

// isZero reports whether p is all zeroes. Data nearly always shows itself in its first bytes.
func isZero(p []byte) bool {
	for len(p) > len(zeroes) {
		if !bytes.Equal(p[:len(zeroes)], zeroes[:]) {
			return false
		}
		p = p[len(zeroes):]
	}
	return bytes.Equal(p, zeroes[:len(p)])
}
