package replica

import (
	"testing"

	"github.com/blockrepl/blockrepl/journal/record"
)

// A budget that ended behind the last sample once kept every record.
func TestKeptBytesBelowTheLastSample(t *testing.T) {
	var k keptBytes
	k.reset(0)
	for seq := record.Seq(1); seq <= 160; seq++ {
		size := int64(100)
		if seq <= 8 {
			size = 100000
		}
		k.add(seq, size)
	}
	for _, c := range []struct {
		budget int64
		want   record.Seq
	}{{1000, 128}, {3200, 128}, {3201, 64}, {9600, 64}, {9601, 0}, {1 << 40, 0}} {
		if got := k.below(c.budget); got != c.want {
			t.Errorf("below(%d): got %d, want %d", c.budget, got, c.want)
		}
	}
}

// "Never too few": a cut below the journal's end at the start made the bytes of a
// whole journal be none, so that a slave which lacks all of them counts as near.
func TestKeptBytesAreNeverTooFewAfterACut(t *testing.T) {
	var k keptBytes
	k.reset(0)
	k.found(100, 500<<20)
	k.cut(99) // the last record, of 1 MiB, say, was not the new master's
	if n := k.above(0); n < 499<<20 {
		t.Errorf("%d MiB above 0, want at least 499", n>>20)
	}
	k.reset(0)
	for q := record.Seq(1); q <= 40; q++ {
		k.add(q, 16<<10)
	}
	k.cut(39)
	if n := k.above(0); n < 39*16<<10 {
		t.Errorf("%d KiB above 0, want at least %d", n>>10, 39*16)
	}
}
