package record

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
)

var (
	testVolume = VolumeID{0xd1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	serverA    = MustServerID("a")
	serverB    = MustServerID("b-2")
)

func random(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// half is half random, half one repeated byte, in runs of 16.
func half(seed uint64, n int) []byte {
	b := random(seed, n)
	for i := range b {
		if i/16%2 == 0 {
			b[i] = 7
		}
	}
	return b
}

func sealed(r *Record, prev Pos) *Record {
	r.Volume, r.Origin, r.Attachment, r.Operation = testVolume, serverB, 17, 99
	r.Seal(Epoch{3, serverA}, prev, 1_700_000_000_123_456_789)
	return r
}

func TestEveryKindSurvivesEncodeAndDecode(t *testing.T) {
	raw, packed, text := random(1, 4096), half(2, 70_000), bytes.Repeat([]byte("state "), 20)
	cases := []struct {
		name   string
		rec    *Record
		kind   Kind
		codec  Codec
		offset int64
		length int64
		want   []byte
	}{
		{"incompressible write", NewWrite(4096, bytes.Clone(raw)), KindWrite, CodecNone, 4096, 4096, raw},
		{"compressible write", NewWrite(1<<40, bytes.Clone(packed)), KindWrite, CodecS2, 1 << 40, 70_000, packed},
		{"one byte", NewWrite(0, []byte{9}), KindWrite, CodecNone, 0, 1, []byte{9}},
		{"zeroes written", NewWrite(512, make([]byte, 4096)), KindZero, CodecNone, 512, 4096, nil},
		{"zero", NewZero(512, 4<<30), KindZero, CodecNone, 512, 4 << 30, nil},
		{"trim", NewTrim(0, MaxSize), KindTrim, CodecNone, 0, MaxSize, nil},
		{"resize", NewResize(1 << 30), KindResize, CodecNone, 0, 1 << 30, nil},
		{"members", NewState(KindMembers, text), KindMembers, CodecNone, 0, 120, text},
		{"epoch", NewState(KindEpoch, text), KindEpoch, CodecNone, 0, 120, text},
		{"mark without payload", NewState(KindMark, nil), KindMark, CodecNone, 0, 0, nil},
	}
	prev := Pos{}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := sealed(c.rec, prev)
			got, err := Decode(bytes.Clone(r.Raw))
			if err != nil {
				t.Fatal(err)
			}
			if got.Header != r.Header {
				t.Errorf("header\n got %+v\nwant %+v", got.Header, r.Header)
			}
			if r.Kind != c.kind || r.Codec != c.codec || r.Offset != c.offset || r.Length != c.length {
				t.Errorf("got %s %s %d+%d", r.Kind, r.Codec, r.Offset, r.Length)
			}
			if r.Seq != prev.Seq+1 || r.Prev != prev.Sum || r.Sum == 0 {
				t.Errorf("got number %d prev %x sum %x after %s", r.Seq, r.Prev, r.Sum, prev)
			}
			for _, dst := range [][]byte{nil, []byte("before")} {
				p, err := got.AppendPayload(bytes.Clone(dst))
				if err != nil || !bytes.Equal(p, append(bytes.Clone(dst), c.want...)) {
					t.Errorf("AppendPayload behind %d bytes: %d bytes, %v; want %d", len(dst), len(p), err, len(c.want))
				}
			}
			if p, err := got.Payload(nil); err != nil || !bytes.Equal(p, c.want) {
				t.Errorf("Payload: %d bytes, %v; want %d", len(p), err, len(c.want))
			}
			h, err := DecodeHeader(r.Raw[:HeaderSize])
			if err != nil || h != r.Header {
				t.Errorf("DecodeHeader: %+v, %v", h, err)
			}
			prev = r.Pos()
		})
	}
}

func TestDecodeNextWalksRecordsInARow(t *testing.T) {
	var all []byte
	prev := Pos{}
	for i := range 5 {
		r := sealed(NewWrite(int64(i)*512, half(uint64(i), 512*(i+1))), prev)
		all = append(all, r.Raw...)
		prev = r.Pos()
	}
	if _, err := Decode(all); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Decode of five records: %v, want ErrCorrupt", err)
	}
	n := 0
	for rest := all; len(rest) > 0; n++ {
		r, behind, err := DecodeNext(rest)
		if err != nil {
			t.Fatal(err)
		}
		if r.Seq != Seq(n+1) {
			t.Errorf("got number %d, want %d", r.Seq, n+1)
		}
		rest = behind
	}
	if n != 5 {
		t.Errorf("got %d records, want 5", n)
	}
}

func TestDraftTravelsAndIsSealedByTheMaster(t *testing.T) {
	data := half(3, 4096)
	d := NewWrite(8192, bytes.Clone(data))
	d.Volume, d.Origin, d.Attachment, d.Operation = testVolume, serverB, 4, 5
	d.SealDraft()
	if _, err := Decode(d.Raw); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Decode of a draft: %v, want ErrCorrupt", err)
	}
	got, rest, err := DecodeDraft(append(bytes.Clone(d.Raw), 1, 2, 3))
	if err != nil || len(rest) != 3 {
		t.Fatalf("DecodeDraft: %d bytes left, %v", len(rest), err)
	}
	got.Seal(Epoch{1, serverA}, Pos{41, 7}, 1)
	if got.Seq != 42 || got.Operation != 5 || got.Origin != serverB {
		t.Errorf("got %+v", got.Header)
	}
	back, err := Decode(got.Raw)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := back.Payload(nil); err != nil || !bytes.Equal(p, data) {
		t.Errorf("payload differs, %v", err)
	}
	if _, _, err := DecodeDraft(got.Raw); !errors.Is(err, ErrCorrupt) {
		t.Errorf("DecodeDraft of a sealed record: %v, want ErrCorrupt", err)
	}
}

func TestEveryFlippedBitIsFound(t *testing.T) {
	r := sealed(NewWrite(0, half(4, 300)), Pos{8, 8})
	for i := range len(r.Raw) * 8 {
		b := bytes.Clone(r.Raw)
		b[i/8] ^= 1 << (i % 8)
		if _, err := Decode(b); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatalf("bit %d flipped: %v, want ErrCorrupt or ErrVersion", i, err)
		}
	}
	for n := range r.Raw {
		if _, err := Decode(r.Raw[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v, want ErrCorrupt", n, err)
		}
	}
	b := bytes.Clone(r.Raw)
	b[3] = version + 1
	if _, err := Decode(b); !errors.Is(err, ErrVersion) {
		t.Errorf("next version: %v, want ErrVersion", err)
	}
}

// A header with right sums is still refused when a field has no meaning: a peer may lie.
func TestFieldsWithoutMeaningAreRefused(t *testing.T) {
	cases := map[string]func(h *Header){
		"number zero":                 func(h *Header) { h.Seq = 0 },
		"no epoch":                    func(h *Header) { h.Epoch = Epoch{} },
		"epoch without server":        func(h *Header) { h.Epoch.Server = ServerID{} },
		"epoch server with a hole":    func(h *Header) { h.Epoch.Server = ServerID{'a', 0, 'b'} },
		"origin with a capital":       func(h *Header) { h.Origin = ServerID{'A'} },
		"no volume":                   func(h *Header) { h.Volume = VolumeID{} },
		"prev at number 1":            func(h *Header) { h.Seq = 1 },
		"flags":                       func(h *Header) { h.Flags = 1 },
		"kind zero":                   func(h *Header) { h.Kind = 0 },
		"kind unknown":                func(h *Header) { h.Kind = 8 },
		"codec unknown":               func(h *Header) { h.Codec = 3 },
		"codec for a raw payload":     func(h *Header) { h.Codec = CodecS2 },
		"negative offset":             func(h *Header) { h.Offset = -1 },
		"negative length":             func(h *Header) { h.Length = -1 },
		"empty write":                 func(h *Header) { h.Length = 0 },
		"length is not stored":        func(h *Header) { h.Length++ },
		"offset + length overflows":   func(h *Header) { h.Offset = 1<<63 - 1 },
		"huge write":                  func(h *Header) { h.Length, h.Codec = MaxPayload+1, CodecS2 },
		"zero with payload":           func(h *Header) { h.Kind = KindZero },
		"empty zero":                  func(h *Header) { h.Kind, h.Stored, h.PayloadSum, h.Length = KindZero, 0, 0, 0 },
		"empty trim":                  func(h *Header) { h.Kind, h.Stored, h.PayloadSum, h.Length = KindTrim, 0, 0, 0 },
		"trim beyond a volume":        func(h *Header) { h.Kind, h.Stored, h.PayloadSum, h.Length = KindTrim, 0, 0, MaxSize },
		"payload sum without payload": func(h *Header) { h.Kind, h.Stored = KindTrim, 0 },
		"resize with an offset":       func(h *Header) { h.Kind, h.Stored, h.PayloadSum = KindResize, 0, 0 },
		"members with an offset":      func(h *Header) { h.Kind = KindMembers },
		"stored beyond the bytes":     func(h *Header) { h.Stored, h.Length = 1<<24, 1<<24 },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			r := sealed(NewWrite(4096, random(5, 600)), Pos{8, 8})
			change(&r.Header)
			putHeader(r.Raw, &r.Header)
			if _, err := Decode(r.Raw); !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v, want ErrCorrupt", err)
			}
		})
	}
}

func TestPayloadThatClaimsAnotherLengthIsRefused(t *testing.T) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	data := half(6, 10_000)
	z := enc.EncodeAll(data, nil)
	r, err := NewStored(0, 10_000, CodecZstd, z)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := sealed(r, Pos{}).Payload(make([]byte, 0, 10_000)); err != nil || !bytes.Equal(p, data) {
		t.Errorf("zstd payload: %d bytes, %v", len(p), err)
	}
	_, s := Pack(data)
	for _, c := range []struct {
		codec  Codec
		stored []byte
	}{{CodecZstd, z}, {CodecS2, s}, {CodecZstd, s}, {CodecS2, z}, {CodecNone, s}, {9, s}} {
		if _, err := NewStored(0, 10_001, c.codec, bytes.Clone(c.stored)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", c.codec, err)
		}
		if _, err := Unpack(nil, c.codec, c.stored, 10_001); !errors.Is(err, ErrCorrupt) {
			t.Errorf("Unpack %s: %v, want ErrCorrupt", c.codec, err)
		}
	}
	s[len(s)/2] ^= 0xff
	if p, err := Unpack([]byte("x"), CodecS2, s[:len(s)-3], 10_000); !errors.Is(err, ErrCorrupt) || string(p) != "x" {
		t.Errorf("cut s2: %q, %v, want ErrCorrupt and dst unchanged", p, err)
	}
}

func TestStoredIsNeverLargerThanRaw(t *testing.T) {
	const seed = 7
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		n := 1 + rng.IntN(20_000)
		data := random(rng.Uint64(), n)
		for i := range rng.IntN(n) {
			data[i] = byte(i / 9)
		}
		r := NewWrite(0, bytes.Clone(data))
		if int64(r.Stored) > r.Length || r.Codec == CodecS2 && int(r.Stored) > n-n/minSaving {
			t.Fatalf("seed %d: %d bytes stored as %d with %s", seed, n, r.Stored, r.Codec)
		}
		if p, err := r.Payload(nil); err != nil || !bytes.Equal(p, data) {
			t.Fatalf("seed %d: payload of %d bytes differs, %v", seed, n, err)
		}
	}
}
