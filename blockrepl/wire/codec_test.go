package wire

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/blockrepl/blockrepl/journal/record"
	"pgregory.net/rapid"
)

func TestEveryMessageComesBackAsItWas(t *testing.T) {
	for _, typ := range allTypes() {
		t.Run(typ.String(), rapid.MakeCheck(func(t *rapid.T) {
			want := drawn(t).message(typ)
			b, err := Encode([]byte("before"), want)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(b, []byte("before")) {
				t.Fatal("dst was overwritten")
			}
			got, err := Decode(typ, b[len("before"):])
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("got  %+v\nwant %+v", got, want)
			}
		}))
	}
}

func TestEveryTypeHasItsOwnMessage(t *testing.T) {
	ts := allTypes()
	if got, want := len(ts), int(TypeSizeAnswer); got != want {
		t.Errorf("%d types are known, want %d", got, want)
	}
	for _, typ := range ts {
		m := newMessage(typ)
		if got := TypeOf(m); got != typ {
			t.Errorf("newMessage(%d) is a %s", typ, got)
		}
		if strings.HasPrefix(typ.String(), "type ") {
			t.Errorf("type %d has no name", typ)
		}
	}
	if got, want := Type(0).String(), "type 0"; got != want {
		t.Errorf("String of zero is %q, want %q", got, want)
	}
	if _, err := Decode(0, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("decode of type 0: %v", err)
	}
}

func TestShortenedAndLengthenedBodiesAreRefused(t *testing.T) {
	for _, typ := range allTypes() {
		b, err := Encode(nil, counted().message(typ))
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(b) {
			if m, err := Decode(typ, b[:n:n]); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s cut to %d of %d bytes: %+v, %v", typ, n, len(b), m, err)
			}
		}
		if _, err := Decode(typ, append(b, 0)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s with a byte too many: %v", typ, err)
		}
	}
}

// put gives m's encoding with the bytes at off replaced.
func put(t *testing.T, m Message, off int, p ...byte) []byte {
	t.Helper()
	b, err := Encode(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	copy(b[off:], p)
	return b
}

func TestMeaninglessFieldsAreRefused(t *testing.T) {
	ff := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	for _, c := range []struct {
		what string
		typ  Type
		body []byte
		want string
	}{
		{"a flag of 2", TypeLeaving, put(t, &Leaving{}, 2, 2), "failed at byte 3: 2 is unknown"},
		{"a server id in capitals", TypeHandover, put(t, &Handover{}, 8, 'A'), "no server id"},
		{"a server id with a hole", TypeHandover, put(t, &Handover{}, 8, 'a', 0, 'b'), "no server id"},
		{"an unknown code", TypeRefuse, put(t, &Refuse{}, 32, 5), "code at byte 33: 5 is unknown"},
		{"a negative offset", TypeHashQuery, put(t, &HashQuery{}, 24, ff...), "offset"},
		{"a length above any volume", TypeHashQuery, put(t, &HashQuery{}, 40, 0, 0, 0, 0, 0, 0, 0, 0x7f), "length"},
		{"more hashes than bytes", TypeHashQuery, put(t, &HashQuery{}, 48, 0, 1), "256 entries need 2048 bytes, 0 are left"},
		{"hashes without bound", TypeHashQuery, put(t, &HashQuery{}, 48, ff[:4]...), "at most 65536"},
		{"records without bound", TypeAppend, put(t, &Append{}, 32, ff[:4]...), "at most 8192"},
		{"more records than bytes", TypeAppend, put(t, &Append{}, 32, 9), "9 need 1152 bytes, 0 are left"},
		{"text that is no UTF-8", TypeLeaving, put(t, &Leaving{Reason: "ab"}, 2, 0xff), "no UTF-8"},
		{"text above the bound", TypeLeaving, put(t, &Leaving{Reason: "ab"}, 0, 1, 4), "1025 bytes, at most 1024"},
	} {
		_, err := Decode(c.typ, c.body)
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want ErrCorrupt with %q", c.what, err, c.want)
		}
	}
}

func TestFlippedBitsInRecordsAreFound(t *testing.T) {
	for _, typ := range []Type{TypeAppend, TypeForward} {
		b, err := Encode(nil, counted().message(typ))
		if err != nil {
			t.Fatal(err)
		}
		_, head, err := decode(typ, b)
		if err != nil {
			t.Fatal(err)
		}
		for i := head; i < len(b); i++ {
			b[i] ^= 0x10
			_, err := Decode(typ, b)
			if !errors.Is(err, ErrCorrupt) || !errors.Is(err, record.ErrCorrupt) && !errors.Is(err, record.ErrVersion) {
				t.Fatalf("%s with a flipped bit in byte %d: %v", typ, i, err)
			}
			b[i] ^= 0x10
		}
	}
}

func TestMessagesAboveABoundAreNotEncoded(t *testing.T) {
	many := make([]*record.Record, MaxRecords+1)
	for _, m := range []Message{
		&Append{Records: many},
		&Forward{Records: many},
		&HashQuery{Hashes: make([]uint64, MaxHashes+1)},
		&HashQuery{Offset: -1},
		&ExtentData{Chunks: []Chunk{{Data: make([]byte, MaxBody+1)}}},
		&ExtentData{Chunks: []Chunk{{Data: make([]byte, MaxBody)}}},
		&Join{History: make([]EpochStart, MaxHistory+1)},
		&Greeting{Name: strings.Repeat("n", MaxName+1)},
		&Greeting{Name: strings.Repeat("n", 1<<16+1)},
		&Greeting{Name: "\xff"},
		&StateUpdate{State{Members: make([]record.ServerID, MaxServers+1)}},
		&StateUpdate{State{OnDegraded: Continue + 1}},
	} {
		dst := []byte("x")
		got, err := Encode(dst, m)
		if !errors.Is(err, ErrTooLarge) || string(got) != "x" {
			t.Errorf("%s: %d bytes, %v; want ErrTooLarge", TypeOf(m), len(got), err)
		}
		var w Writer
		if err := w.Add(1, m); !errors.Is(err, ErrTooLarge) || w.Len() != 0 || len(w.Buffers()) != 0 {
			t.Errorf("writer: %s: %d bytes, %v; want ErrTooLarge", TypeOf(m), w.Len(), err)
		}
	}
}

func TestTheLargestRecordFits(t *testing.T) {
	data := make([]byte, record.MaxPayload)
	state := uint64(1)
	for i := range data { // incompressible
		state = state*6364136223846793005 + 1442695040888963407
		data[i] = byte(state >> 56)
	}
	r := record.NewWrite(0, data)
	r.Volume = record.VolumeID{1}
	r.Seal(record.Epoch{Counter: 1, Server: record.MustServerID("a")}, record.Pos{}, 1)
	if r.Codec != record.CodecNone {
		t.Fatalf("the payload was compressed (%s)", r.Codec)
	}
	b, err := Encode(nil, &Append{Records: []*record.Record{r}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(TypeAppend, b); err != nil {
		t.Fatal(err)
	}
}

func TestReasonsAreCutToFit(t *testing.T) {
	for _, c := range []struct {
		reason string
		length int
	}{
		{strings.Repeat("x", MaxReason), MaxReason},
		{strings.Repeat("x", MaxReason+1), MaxReason},
		{"x" + strings.Repeat("é", MaxReason), MaxReason - 1},
		{strings.Repeat("y", 1<<17), MaxReason},
		{"bad \xff byte", len("bad ? byte")},
	} {
		b, err := Encode(nil, &Leaving{Reason: c.reason})
		if err != nil {
			t.Fatal(err)
		}
		m, err := Decode(TypeLeaving, b)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.(*Leaving).Reason; len(got) != c.length || !utf8.ValidString(got) {
			t.Errorf("reason of %d bytes came as %d, want %d", len(c.reason), len(got), c.length)
		}
	}
}

func TestStateComesBackAsItWas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawn(t).message(TypeStateUpdate).(*StateUpdate).State
		b := AppendState(nil, &want)
		got, err := DecodeState(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, want)
		}
		n := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
		if _, err := DecodeState(b[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(b), err)
		}
		b[0]++
		if _, err := DecodeState(b); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("unknown version: %v", err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, typ := range allTypes() {
		b, err := Encode(nil, counted().message(typ))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(byte(typ), b)
		f.Add(byte(typ), b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, typ byte, b []byte) {
		m, err := Decode(Type(typ), b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error is not ErrCorrupt: %v", err)
			}
			return
		}
		again, err := Encode(nil, m)
		if err != nil {
			t.Fatalf("decoded %+v does not encode: %v", m, err)
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%+v: two encodings\n%x\n%x", m, b, again)
		}
	})
}
