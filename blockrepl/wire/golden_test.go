package wire

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// Until the first release the goldens follow the format. After it they are never
// written again: a change gets a version and files of its own.
var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// annotated gives m's frame as lines of hex with the field beside it.
func annotated(t *testing.T, tag uint64, m Message) string {
	t.Helper()
	frame := stream2(t, tag, m)
	var out strings.Builder
	at := 0
	line := func(name string, n int) {
		for ; n > 16; n -= 16 {
			fmt.Fprintf(&out, "%-48x\n", frame[at:at+16])
			at += 16
		}
		fmt.Fprintf(&out, "%-48s %s\n", fmt.Sprintf("% x", frame[at:at+n]), name)
		at += n
	}
	fmt.Fprintf(&out, "# %s, a frame of %d bytes\n", TypeOf(m), len(frame))
	for _, f := range []struct {
		name string
		n    int
	}{
		{"magic, version", 4}, {"type", 1}, {"flags", 1}, {"zero", 2}, {"tag", 8},
		{"length", 4}, {"head", 4}, {"body sum", 4}, {"header sum", 4},
	} {
		line(f.name, f.n)
	}
	c := coder{enc: true, trace: func(name string, b []byte) { line(name, len(b)) }}
	if err := c.encode(m); err != nil {
		t.Fatal(err)
	}
	for i, r := range c.raws {
		line(fmt.Sprintf("record %d", i), len(r))
	}
	if at != len(frame) {
		t.Fatalf("%d of %d bytes have a name", at, len(frame))
	}
	return out.String()
}

// plain gives the bytes of annotated text.
func plain(t *testing.T, text string) (b []byte) {
	t.Helper()
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, "#") {
			continue
		}
		p, err := hex.DecodeString(strings.ReplaceAll(l[:min(48, len(l)-1)], " ", ""))
		if err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		b = append(b, p...)
	}
	return b
}

func TestFramesAreAsTheyWere(t *testing.T) {
	for _, typ := range allTypes() {
		m := counted().message(typ)
		file := filepath.Join("testdata", typ.String()+".hex")
		got := annotated(t, Tag("vol0"), m)
		if *rewrite {
			if err := os.WriteFile(file, []byte(got), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s is encoded otherwise:\n%s", typ, got)
		}
		f, err := NewReader(bytes.NewReader(plain(t, string(want)))).Next()
		if err != nil || f.Tag != Tag("vol0") || !reflect.DeepEqual(f.Message, m) {
			t.Errorf("%s decodes as %+v, %v\nwant %+v", file, f, err, m)
		}
	}
}

// The layout in the package comment names every field in the order of its bytes.
func TestPackageCommentNamesEveryField(t *testing.T) {
	src, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(src), "And these the messages:")
	for _, typ := range allTypes() {
		_, text, ok := strings.Cut(table, fmt.Sprintf("%2d %-14s", typ, typ))
		if !ok {
			t.Errorf("%s has no line", typ)
			continue
		}
		// Up to the next message's line.
		text, _, _ = strings.Cut(text, fmt.Sprintf("\n//\t%2d ", typ+1))
		text, _, _ = strings.Cut(text, "\n//\n")
		v := reflect.TypeOf(newMessage(typ)).Elem()
		at := 0
		for i := range v.NumField() {
			word := docWord(v.Field(i).Name)
			n := strings.Index(strings.ToLower(text[at:]), word)
			if n < 0 {
				t.Errorf("%s: %s (%q) is missing, or out of order, in %q", typ, v.Field(i).Name, word, text)
				continue
			}
			at += n
		}
	}
}

// docWord turns SplitBrain into split-brain.
func docWord(field string) string {
	var b strings.Builder
	for i, r := range field {
		if i > 0 && r >= 'A' && r <= 'Z' && field[i-1] >= 'a' {
			b.WriteByte('-')
		}
		b.WriteRune(r)
	}
	return strings.ToLower(b.String())
}
