package record

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"sync"
	"unsafe"
)

// A payload that does not compress becomes part of a record without a copy when
// its buffer has room for the header in front:
//
//	┌────────────┬──────────────┬───────┬───────────┐
//	│ header 128 │ payload n    │ spare │ guard 16  │   one array of a class
//	└────────────┴──────────────┴───────┴───────────┘
//	             └ Alloc's slice: length n, capacity up to the array's end
//
// The guard tells such a slice from any other: it holds a number drawn at the
// start of the process, mixed with the payload's address. A slice that was cut
// at its front or given a smaller capacity no longer shows it, and is copied.
const (
	guardSize  = 16
	classBase  = HeaderSize + guardSize + classSpare
	classSpare = 16 // s2 may end some bytes above its input; keeps powers of two in their class
	classMin   = 512
)

var guardKey = [2]uint64{rand.Uint64() | 1, rand.Uint64() | 1}

// Classes are classMin·2^(i/2), with 3/4 steps between: 512, 768, 1024, 1536 …
const classes = 2*17 + 1

var pools [classes]sync.Pool // of *byte, the first of the array: no allocation to put it back

func classSize(i int) int {
	s := classMin << (i / 2)
	return s + (i%2)*s/2
}

// classOf is the smallest class that holds n; n <= MaxPayload.
func classOf(n int) int {
	if n <= classMin {
		return 0
	}
	k := bits.Len(uint(n-1)) - 1 // 2^k < n <= 2^(k+1)
	i := (k - 9) * 2
	if n <= classSize(i+1) {
		return i + 1
	}
	return i + 2
}

// Alloc gives a payload buffer of n bytes with undefined contents, 0 <= n <=
// MaxPayload. NewWrite takes it over without a copy if it does not compress;
// Free gives back one that was not used.
func Alloc(n int) []byte {
	if n < 0 || n > MaxPayload {
		panic("record: bug: Alloc of more than MaxPayload")
	}
	i := classOf(n)
	total := classSize(i) + classBase
	var raw []byte
	if p, ok := pools[i].Get().(*byte); ok {
		raw = unsafe.Slice(p, total)
	} else {
		raw = make([]byte, total)
	}
	p := raw[HeaderSize:total:total]
	stamp(p)
	return p[:n]
}

// AllocRaw gives a buffer of n bytes for a whole record as read from a disk or a
// link, HeaderSize <= n <= HeaderSize+MaxPayload, for Decode. Record.Free gives it
// back.
func AllocRaw(n int) []byte {
	p := Alloc(n - HeaderSize)
	raw, _ := withRoom(p)
	return raw
}

// Free gives back a buffer of Alloc. Any other slice is ignored, so that a
// caller need not know where it came from. The caller must not use p again.
func Free(p []byte) {
	raw, ok := withRoom(p)
	if !ok {
		return
	}
	size := cap(raw) - classBase
	if size > poolSizeMax {
		return
	}
	raw = raw[:cap(raw)]
	clear(raw[len(raw)-guardSize:]) // a second Free finds no guard
	pools[classOf(size)].Put(unsafe.SliceData(raw))
}

// Free gives the record's buffer back if it came from Alloc. Only who knows
// that nobody else holds the record or its bytes may call it; else the garbage
// collector does the same.
func (r *Record) Free() {
	if cap(r.Raw) > HeaderSize {
		Free(r.Raw[HeaderSize:])
	}
	r.Raw = nil
}

// withRoom gives the array of a slice of Alloc, from the header's room to the
// end of the payload, capacity to the array's end.
func withRoom(p []byte) ([]byte, bool) {
	c := cap(p)
	if c < classMin+classSpare+guardSize {
		return nil, false
	}
	size := c - classSpare - guardSize
	if size > MaxPayload || classSize(classOf(size)) != size || !stamped(p[:c]) {
		return nil, false
	}
	first := (*byte)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(p)), -HeaderSize))
	return unsafe.Slice(first, HeaderSize+c)[:HeaderSize+len(p)], true
}

func stamp(p []byte) {
	g := p[len(p)-guardSize:]
	addr := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p))))
	binary.LittleEndian.PutUint64(g, guardKey[0]^addr)
	binary.LittleEndian.PutUint64(g[8:], guardKey[1])
}

func stamped(p []byte) bool {
	g := p[len(p)-guardSize:]
	addr := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p))))
	return binary.LittleEndian.Uint64(g) == guardKey[0]^addr && binary.LittleEndian.Uint64(g[8:]) == guardKey[1]
}
