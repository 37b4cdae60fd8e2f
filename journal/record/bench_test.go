package record

import (
	"bytes"
	"fmt"
	"testing"
)

// BenchmarkWrite makes and seals a record, the path of a client's write, with
// payloads that do not compress, that do by half, and of zeroes.
func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
		for name, data := range map[string][]byte{"random": random(1, size), "half": half(1, size), "zero": make([]byte, size)} {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				stored := 0
				for b.Loop() {
					p := Alloc(size)
					copy(p, data) // stands for the read from the socket
					r := sealed(NewWrite(0, p), Pos{})
					stored = int(r.Stored)
					r.Free()
				}
				b.ReportMetric(float64(stored)/float64(size), "stored/B")
			})
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	r := NewZero(0, 4096)
	r.Volume = testVolume
	b.ReportAllocs()
	for b.Loop() {
		r.Seq = 0
		r.Seal(Epoch{1, serverA}, Pos{7, 7}, 1)
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		for name, data := range map[string][]byte{"random": random(1, size), "half": half(1, size)} {
			raw := sealed(NewWrite(0, bytes.Clone(data)), Pos{}).Raw
			buf := make([]byte, 0, size)
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					r, err := Decode(raw)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := r.Payload(buf); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
