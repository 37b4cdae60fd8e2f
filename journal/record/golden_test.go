package record

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

var newGoldens = flag.Bool("golden.new", false, "write golden files that do not exist yet; existing ones are never changed")

// fields are the parts of the header, for the annotation of golden files.
var fields = []struct {
	name string
	size int
}{
	{"magic BRR, version", 4}, {"kind", 1}, {"codec", 1}, {"flags", 2}, {"header length", 2}, {"zero", 2},
	{"stored length", 4}, {"volume", 16}, {"epoch counter", 8}, {"epoch server", 8}, {"number", 8}, {"origin", 8},
	{"attachment", 8}, {"operation", 8}, {"time", 8}, {"offset", 8}, {"length", 8}, {"payload sum", 4}, {"zero", 4},
	{"prev", 8}, {"header sum", 8},
}

// annotate writes a record as hex, a field a line.
func annotate(r *Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s, %s, number %d, epoch %s, origin %s, extent %s\n", r.Kind, r.Codec, r.Seq, r.Epoch, r.Origin, r.Extent())
	at := 0
	for _, f := range fields {
		fmt.Fprintf(&b, "%-33x# %3d %s\n", r.Raw[at:at+f.size], at, f.name)
		at += f.size
	}
	for p := r.Raw[at:]; len(p) > 0; {
		n := min(len(p), 32)
		fmt.Fprintf(&b, "%x\n", p[:n])
		p = p[n:]
	}
	return b.String()
}

// parse reads what annotate wrote.
func parse(text string) ([]byte, error) {
	var all strings.Builder
	for line := range strings.Lines(text) {
		digits, _, _ := strings.Cut(line, "#")
		all.WriteString(strings.TrimSpace(digits))
	}
	return hex.DecodeString(all.String())
}

// goldens are the records pinned in testdata. What a compressor makes of data may
// change, what is stored must mean the same for ever.
func goldens(t *testing.T) map[string]struct {
	rec     *Record
	payload []byte
} {
	text := []byte("every write becomes a numbered, compressed update record; ")
	long := bytes.Repeat(text, 20)
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	_, packed := Pack(long)
	stored := func(c Codec, b []byte) *Record {
		r, err := NewStored(1<<20, int64(len(long)), c, b)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	type golden = struct {
		rec     *Record
		payload []byte
	}
	m := map[string]golden{
		"write-none":   {NewWrite(4096, bytes.Clone(text)), text},
		"write-s2":     {stored(CodecS2, packed), long},
		"write-zstd":   {stored(CodecZstd, enc.EncodeAll(long, nil)), long},
		"write-zeroes": {NewWrite(512, make([]byte, 4096)), nil},
		"zero":         {NewZero(0, 64<<20), nil},
		"trim":         {NewTrim(1<<40, 4<<30-512), nil},
		"resize":       {NewResize(2 << 30), nil},
		"members":      {NewState(KindMembers, []byte(`{"number":7}`)), []byte(`{"number":7}`)},
		"epoch":        {NewState(KindEpoch, []byte(`{"number":8}`)), []byte(`{"number":8}`)},
		"mark":         {NewState(KindMark, nil), nil},
	}
	for name, g := range m {
		prev := Pos{Seq: 1233, Sum: 0x89abcdef01234567}
		if name == "epoch" {
			prev = Pos{} // number 1
		}
		sealed(g.rec, prev)
	}
	return m
}

// The layout is what is on disks. A file of testdata is never regenerated: a change
// of the format gets a new version and new files, and the old ones still decode.
func TestGoldenRecordsAreEncodedAndDecodedAsEver(t *testing.T) {
	for name, g := range goldens(t) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", name+".hex")
			want, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) && *newGoldens {
				want = []byte(annotate(g.rec))
				err = os.WriteFile(path, want, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			raw, err := parse(string(want))
			if err != nil {
				t.Fatal(err)
			}
			r, err := Decode(raw)
			if err != nil {
				t.Fatal(err)
			}
			if p, err := r.Payload(nil); err != nil || !bytes.Equal(p, g.payload) {
				t.Errorf("payload has %d bytes, %v, want %d", len(p), err, len(g.payload))
			}
			if got := annotate(r); got != string(want) {
				t.Errorf("decoded it reads\n%s\nwant\n%s", got, want)
			}
			if r.Codec != CodecNone {
				return // the compressor may do better one day
			}
			if got := annotate(g.rec); got != string(want) {
				t.Errorf("encoded\n%s\nwant\n%s", got, want)
			}
		})
	}
}
