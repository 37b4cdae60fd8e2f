package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/zeebo/xxh3"
)

// FuzzDecode gives Decode any bytes: it must neither panic nor allocate from an
// unchecked length, and what it accepts must encode to the same bytes again.
func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/*.hex")
	if err != nil || len(files) == 0 {
		f.Fatalf("no goldens: %v", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		raw, err := parse(string(text))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, true)
		f.Add(raw[:len(raw)-1], false)
	}
	f.Fuzz(func(t *testing.T, b []byte, resum bool) {
		if resum && len(b) >= HeaderSize {
			b = withSums(b) // else the sums keep the fuzzer out
		}
		check(t, b, Decode)
		check(t, b, func(b []byte) (*Record, error) {
			r, _, err := DecodeDraft(b)
			return r, err
		})
		if h, err := DecodeHeader(b); err == nil && h.Seq == 0 {
			t.Error("DecodeHeader accepted number 0")
		}
	})
}

func check(t *testing.T, b []byte, decode func([]byte) (*Record, error)) {
	r, err := decode(b)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("error %v is neither ErrCorrupt nor ErrVersion", err)
		}
		return
	}
	again := bytes.Clone(r.Raw)
	h := r.Header
	putHeader(again, &h)
	if !bytes.Equal(again, r.Raw) {
		t.Errorf("%x was accepted and encodes to %x", r.Raw, again)
	}
	p, err := r.Payload(nil)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("payload: %v", err)
		}
		return
	}
	if r.Stored > 0 && int64(len(p)) != r.Length {
		t.Errorf("payload of %d bytes, the header says %d", len(p), r.Length)
	}
}

// withSums gives bytes right sums, as a peer that lies would.
func withSums(b []byte) []byte {
	b = bytes.Clone(b)
	le := binary.LittleEndian
	le.PutUint32(b[104:], crc32.Checksum(b[HeaderSize:], castagnoli))
	le.PutUint64(b[120:], xxh3.Hash(b[:120]))
	return b
}
