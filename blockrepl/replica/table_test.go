package replica

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Whatever the identities are, the table as JSON is within its bound, and its own count
// of it no lower. The newest are kept.
func TestTableIsBoundedAsJSON(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want int // entries
	}{
		"letters":       {strings.Repeat("a", 120), entriesMax},
		"markup":        {strings.Repeat("<", 120), 1 << 20 / 900},
		"control":       {strings.Repeat("\x01", 250), 1 << 20 / 1700},
		"accents":       {strings.Repeat("é", 120), 1 << 20 / 1700},
		"no UTF-8":      {strings.Repeat("\xff", 200), 1},
		"lines":         {strings.Repeat("\u2028", 80), 1 << 20 / 1700},
		"longer":        {strings.Repeat("ab", identityMax), 1},
		"cut in a rune": {strings.Repeat("\u2028", identityMax), 1},
	} {
		t.Run(name, func(t *testing.T) {
			var tab Table
			id := record.MustServerID("server-8")
			const top = math.MaxUint64
			for i := range uint64(entriesMax + 10) {
				rec := record.NewState(record.KindMark, mark{Identity: fmt.Sprintf("%06d", i) + c.text, Token: top - i}.encode())
				rec.Volume, rec.Origin = record.VolumeID{1}, id
				rec.Seal(record.Epoch{Counter: top, Server: id}, record.Pos{Seq: top - entriesMax - 20 + record.Seq(i)}, 0)
				tab.apply(rec, i%2 == 0)
			}
			b := encodeTable(&tab)
			if n := len(b); n > tab.size() || n > tableBytesMax {
				t.Errorf("%d bytes of JSON, counted %d, the bound is %d", n, tab.size(), tableBytesMax)
			}
			if n := len(tab.Entries); n < c.want || n > entriesMax {
				t.Errorf("%d entries, want at least %d", n, c.want)
			}
			if _, found := tab.find(tab.Entries[len(tab.Entries)-1].Identity); !found || !strings.HasPrefix(tab.Entries[len(tab.Entries)-1].Identity, fmt.Sprintf("%06d", entriesMax+9)) {
				t.Error("the newest is not there")
			}
			counted := tab.size()
			if tab.bytes = 0; tab.size() != counted {
				t.Errorf("counted %d on the way, %d at the end", counted, tab.size())
			}
			again, err := decodeTable(b)
			if err != nil {
				t.Fatal(err)
			}
			if string(encodeTable(&again)) != string(b) {
				t.Error("the table is another after its way through JSON")
			}
		})
	}
}
