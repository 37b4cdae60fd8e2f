package record

import (
	"bytes"
	"testing"
)

func TestIncompressiblePayloadOfAllocIsNotCopied(t *testing.T) {
	for _, n := range []int{512, 4096, 4097, 1 << 20, MaxPayload} {
		p := Alloc(n)
		if len(p) != n {
			t.Fatalf("Alloc(%d) gave %d bytes", n, len(p))
		}
		copy(p, random(1, n))
		r := sealed(NewWrite(0, p), Pos{})
		if r.Codec != CodecNone || &r.StoredPayload()[0] != &p[0] {
			t.Errorf("%d bytes: codec %s, or copied", n, r.Codec)
		}
		if _, err := Decode(r.Raw); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
		r.Free()
	}
}

func TestForeignOrCutBuffersAreCopiedAndNeverPooled(t *testing.T) {
	whole := Alloc(8192)
	copy(whole, random(2, 8192))
	for name, p := range map[string][]byte{
		"foreign": random(3, 4096), "front cut": whole[512:], "capacity cut": whole[:4096:4096],
		"nil": nil, "same capacity as a class": make([]byte, classSize(6)+classSpare+guardSize),
	} {
		if _, ok := withRoom(p); ok {
			t.Errorf("%s: taken for a buffer of Alloc", name)
		}
		Free(p)
	}
	front := bytes.Clone(whole[:512])
	r := NewWrite(0, whole[512:])
	if !bytes.Equal(whole[:512], front) || !bytes.Equal(r.StoredPayload(), whole[512:]) {
		t.Error("a cut buffer was written in front of its start")
	}
}

func TestClassesHoldEveryLengthAndGuardEveryBuffer(t *testing.T) {
	if classSize(classes-1) < MaxPayload {
		t.Fatalf("largest class has %d bytes", classSize(classes-1))
	}
	for i := range classes {
		for _, n := range []int{classSize(i) - 1, classSize(i), classSize(i) + 1} {
			if n > MaxPayload {
				continue
			}
			if c := classOf(n); classSize(c) < n || c > 0 && classSize(c-1) >= n {
				t.Errorf("%d bytes: class %d of %d bytes", n, c, classSize(c))
			}
		}
	}
	for _, n := range []int{0, 1, 511, 512, 513, 5000} {
		p := Alloc(n)
		if _, ok := withRoom(p[:0]); !ok {
			t.Errorf("Alloc(%d) is not known as such", n)
		}
		Free(p)
		if _, ok := withRoom(p); ok && n <= poolSizeMax {
			t.Errorf("Alloc(%d): known after Free", n)
		}
	}
}
