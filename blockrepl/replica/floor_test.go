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
