package blockrepl

import (
	"bytes"
	"testing"

	"github.com/blockrepl/blockrepl/journal/record"
)

// The records of one call of the image were bounded by their encoded bytes only: 512
// writes of 32 MiB of one byte are 90 KiB encoded, and were 16 GiB in the applier.
func TestApplierHoldsLittleOfWhatCompressesWell(t *testing.T) {
	const size, n = 8 << 20, 24
	c := newCluster(t, 1, nil)
	c.volume.Size = 64 << 20
	c.start(0)
	cl := c.connect(0, "client")
	cl.write(0, []byte("x"))
	v := c.vol(0)
	c.await(0, "applied", func(s VolumeStatus) bool { return s.Applied == s.Last })
	v.app.hold() // the image's disk is slower than the journal's
	first := record.Seq(v.app.applied.Load()) + 1
	for i := range int64(n) {
		w := &Write{Kind: OpWrite, Off: i % 8 * size, Len: size, Data: cl.Alloc(size), Done: func(error) {}}
		copy(w.Data, bytes.Repeat([]byte{0xff}, size))
		cl.Submit(t.Context(), w) // answered when the image has it, or nearly
	}
	last := first + n - 1
	c.await(0, "committed", func(s VolumeStatus) bool { return s.Committed >= uint64(last) })
	var a applier
	a.v = v
	_, got, err := a.step(first, last)
	v.app.release()
	if err != nil {
		t.Fatal(err.err)
	}
	if most := int64(applyBytes + record.MaxPayload + applyRecords*4096); got > most {
		t.Errorf("one step held %d MiB of plain bytes, at most %d MiB were meant", got>>20, most>>20)
	}
}

// The scratch of the largest write that a volume ever saw stayed with its applier: a
// server of a thousand volumes kept 32 GiB.
func TestApplierLetsGoOfALargeScratch(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.volume.Size = 64 << 20
	c.start(0)
	cl := c.connect(0, "client")
	cl.write(0, bytes.Repeat([]byte{0xff}, record.MaxPayload))
	cl.write(0, bytes.Repeat([]byte{0xff}, 4096))
	c.await(0, "applied", func(s VolumeStatus) bool { return s.Applied == s.Last })
	app := c.vol(0).app
	app.hold()
	got := cap(app.plain)
	app.release()
	if got > applyBytes {
		t.Errorf("an idle applier keeps %d MiB", got>>20)
	}
}
