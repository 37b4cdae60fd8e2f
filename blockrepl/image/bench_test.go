package image

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// warm gives an image of 256 MiB with all of it in the page cache.
func warm(b *testing.B) *Image {
	im := sparse(b, 256<<20)
	data := fill(1<<20, 1)
	for off := int64(0); off < im.Size(); off += int64(len(data)) {
		if err := im.Apply([]Change{write(off, data)}); err != nil {
			b.Fatal(err)
		}
	}
	return im
}

func BenchmarkRead4KiB(b *testing.B) {
	im := warm(b)
	rnd := rand.New(rand.NewPCG(1, 1))
	offs := make([]int64, 1<<14)
	for i := range offs {
		offs[i] = rnd.Int64N(im.Size()>>12) << 12
	}
	p := make([]byte, 4096)
	read := func(b *testing.B, f func(off int64) error) {
		b.SetBytes(4096)
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if err := f(offs[i&(1<<14-1)]); err != nil {
				b.Fatal(err)
			}
			i++
		}
	}
	b.Run("locks", func(b *testing.B) {
		read(b, func(off int64) error { s := stripesOf(off, 4096); im.locks.rlock(s); im.locks.runlock(s); return nil })
	})
	b.Run("os.File", func(b *testing.B) {
		f := im.disk.(*file).f
		read(b, func(off int64) error { _, err := f.ReadAt(p, off); return err })
	})
	b.Run("ReadAt", func(b *testing.B) { read(b, func(off int64) error { return im.ReadAt(p, off) }) })
	b.Run("ReadNow", func(b *testing.B) {
		read(b, func(off int64) error {
			ok, err := im.ReadNow(p, off)
			if !ok {
				return fmt.Errorf("not in the page cache: %w", err)
			}
			return err
		})
	})
}

func BenchmarkApply32x4KiB(b *testing.B) {
	for _, c := range []struct {
		name string
		off  func(rnd *rand.Rand, i int) int64
	}{
		{"neighbours", func(_ *rand.Rand, i int) int64 { return int64(i) << 12 }},
		{"neighbours shuffled", func(_ *rand.Rand, i int) int64 { return int64(i*13%32) << 12 }},
		{"scattered", func(rnd *rand.Rand, _ int) int64 { return rnd.Int64N(256<<20>>12) << 12 }},
	} {
		b.Run(c.name, func(b *testing.B) {
			im := warm(b)
			rnd := rand.New(rand.NewPCG(1, 1))
			data := fill(4096, 2)
			batch := make([]Change, 32)
			for i := range batch {
				batch[i] = write(c.off(rnd, i), data)
			}
			b.SetBytes(32 << 12)
			b.ReportAllocs()
			for b.Loop() {
				if err := im.Apply(batch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
