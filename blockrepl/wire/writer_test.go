package wire

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"reflect"
	"testing"
	"testing/iotest"
	"unsafe"

	"github.com/blockrepl/blockrepl/journal/record"
	"pgregory.net/rapid"
)

// stream gives the frames of ms, message i with tag i.
func stream(t testing.TB, ms ...Message) []byte {
	t.Helper()
	var w Writer
	for i, m := range ms {
		if err := w.Add(uint64(i), m); err != nil {
			t.Fatal(err)
		}
	}
	return w.AppendTo(nil)
}

func TestFramesComeBackInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w Writer
		var want []Frame
		types := allTypes()
		var sent []byte
		for i := range rapid.IntRange(0, 8).Draw(t, "frames") {
			f := Frame{rapid.Uint64().Draw(t, "tag"), drawn(t).message(rapid.SampledFrom(types).Draw(t, "type"))}
			want = append(want, f)
			if err := w.Add(f.Tag, f.Message); err != nil {
				t.Fatal(err)
			}
			if rapid.Bool().Draw(t, "flush") {
				n := w.Len()
				at := len(sent)
				if sent = w.AppendTo(sent); len(sent)-at != n {
					t.Fatalf("frame %d: Len is %d, %d bytes came", i, n, len(sent)-at)
				}
				w.Reset()
			}
		}
		sent = w.AppendTo(sent)
		var in io.Reader = bytes.NewReader(sent)
		switch rapid.IntRange(0, 2).Draw(t, "pieces") {
		case 0:
			in = iotest.OneByteReader(in)
		case 1:
			in = iotest.HalfReader(in)
		}
		r := NewReader(in)
		var got []Frame
		for i := range want {
			f, err := r.Next()
			if err != nil {
				t.Fatalf("frame %d: %v", i, err)
			}
			got = append(got, f)
		}
		// Compared only now: a message must not change when the next is read.
		for i, w := range want {
			if !reflect.DeepEqual(got[i], w) {
				t.Fatalf("frame %d: got %+v\nwant %+v", i, got[i], w)
			}
		}
		for range 2 {
			if f, err := r.Next(); err != io.EOF {
				t.Fatalf("after the end: %+v, %v", f, err)
			}
		}
	})
}

func TestRecordsAreNotCopied(t *testing.T) {
	var rs []*record.Record
	for range 3 {
		rs = append(rs, sealed(4096))
	}
	var w Writer
	for _, m := range []Message{&Query{1}, &Append{Records: rs}, &Query{2}, &Query{3}} {
		if err := w.Add(9, m); err != nil {
			t.Fatal(err)
		}
	}
	bufs := w.Buffers()
	if len(bufs) != 5 { // heads of two frames, three records, two frames
		t.Fatalf("%d slices, want 5", len(bufs))
	}
	for i, r := range rs {
		if unsafe.SliceData(bufs[1+i]) != unsafe.SliceData(r.Raw) || len(bufs[1+i]) != len(r.Raw) {
			t.Errorf("record %d was copied", i)
		}
	}
	r := NewReader(bytes.NewReader(w.AppendTo(nil)))
	for range 2 {
		f, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if a, ok := f.Message.(*Append); ok {
			for i, got := range a.Records {
				if !bytes.Equal(got.Raw, rs[i].Raw) {
					t.Errorf("record %d differs", i)
				}
			}
			first, last := a.Records[0].Raw, a.Records[2].Raw
			span := uintptr(unsafe.Pointer(unsafe.SliceData(last))) - uintptr(unsafe.Pointer(unsafe.SliceData(first)))
			if span != uintptr(len(first)+len(a.Records[1].Raw)) {
				t.Error("the records do not lie in one buffer")
			}
		}
	}
}

func TestWriterIsEmptyAfterReset(t *testing.T) {
	var w Writer
	if err := w.Add(1, &HashQuery{Hashes: make([]uint64, MaxHashes)}); err != nil {
		t.Fatal(err)
	}
	big := w.Len()
	w.Reset()
	if w.Len() != 0 || len(w.Buffers()) != 0 || cap(w.heads) > keepHead {
		t.Errorf("after a frame of %d bytes: Len %d, %d slices, %d bytes kept", big, w.Len(), len(w.Buffers()), cap(w.heads))
	}
}

func TestRefusedMessageLeavesTheOthersInPlace(t *testing.T) {
	var w Writer
	for _, m := range []Message{&Query{7}, &HashQuery{Offset: -1}, &Query{8}} {
		err := w.Add(1, m)
		if _, bad := m.(*HashQuery); bad != errors.Is(err, ErrTooLarge) {
			t.Fatalf("%s: %v", TypeOf(m), err)
		}
	}
	if got, want := w.AppendTo(nil), append(stream2(t, 1, &Query{7}), stream2(t, 1, &Query{8})...); !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

func stream2(t testing.TB, tag uint64, m Message) []byte {
	t.Helper()
	var w Writer
	if err := w.Add(tag, m); err != nil {
		t.Fatal(err)
	}
	return w.AppendTo(nil)
}

func TestAFlippedBitInAnyByteIsFound(t *testing.T) {
	for _, typ := range allTypes() {
		b := stream(t, counted().message(typ))
		for i := range b {
			bit := i % 8
			b[i] ^= 1 << bit
			if f, err := NewReader(bytes.NewReader(b)).Next(); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s, byte %d bit %d: got %+v, %v", typ, i, bit, f, err)
			}
			b[i] ^= 1 << bit
		}
	}
}

func TestEndWithinAFrameIsUnexpected(t *testing.T) {
	whole := stream(t, &Query{5})
	for _, typ := range allTypes() {
		b := append(bytes.Clone(whole), stream(t, counted().message(typ))...)
		for n := len(whole) + 1; n < len(b); n++ {
			r := NewReader(bytes.NewReader(b[:n]))
			if _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
			if f, err := r.Next(); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s cut to %d bytes: got %+v, %v", typ, n-len(whole), f, err)
			}
		}
	}
}

func TestReaderGivesTheLinksErrorAndKeepsIt(t *testing.T) {
	broken := errors.New("cable cut")
	b := stream(t, &Query{5}, counted().message(TypeAppend))
	for n := 41; n < len(b); n++ {
		r := NewReader(io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(broken)))
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if f, err := r.Next(); !errors.Is(err, broken) {
				t.Fatalf("cut to %d bytes: got %+v, %v", n, f, err)
			}
		}
	}
}

func TestHeadersThatLieAreRefused(t *testing.T) {
	body, err := Encode(nil, counted().message(TypeAppend))
	if err != nil {
		t.Fatal(err)
	}
	_, head, err := decode(TypeAppend, body)
	if err != nil {
		t.Fatal(err)
	}
	sum := func(n int) uint32 { return crc32.Checksum(body[:n], castagnoli) }
	for _, c := range []struct {
		what string
		h    header
	}{
		{"a length above the bound", header{typ: TypeAppend, length: MaxBody + 1}},
		{"a head above the length", header{typ: TypeAppend, length: len(body), head: len(body) + 1}},
		{"a head that leaves fields without sum", header{typ: TypeAppend, length: len(body), head: head - 1, sum: sum(head - 1)}},
		{"a head that reaches into the records", header{typ: TypeAppend, length: len(body), head: head + 1, sum: sum(head + 1)}},
		{"an unknown type", header{typ: 200, length: len(body)}},
	} {
		b := append(make([]byte, HeaderSize), body...)
		c.h.put(b)
		if f, err := NewReader(bytes.NewReader(b)).Next(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %+v, %v", c.what, f, err)
		}
	}
	good := header{typ: TypeAppend, length: len(body), head: head, sum: sum(head)}
	b := append(make([]byte, HeaderSize), body...)
	good.put(b)
	if _, err := NewReader(bytes.NewReader(b)).Next(); err != nil {
		t.Errorf("the honest header: %v", err)
	}
}

func FuzzReader(f *testing.F) {
	for _, typ := range allTypes() {
		b := stream(f, counted().message(typ), &Query{1})
		f.Add(b)
		f.Add(b[:len(b)-7])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b))
		var w Writer
		for {
			f, err := r.Next()
			if err != nil {
				if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrCorrupt) {
					t.Fatalf("foreign error: %v", err)
				}
				break
			}
			if err := w.Add(f.Tag, f.Message); err != nil {
				t.Fatalf("%+v was read and does not encode: %v", f, err)
			}
		}
		if got := w.AppendTo(nil); !bytes.HasPrefix(b, got) {
			t.Fatalf("read again as other bytes:\n%x\n%x", b, got)
		}
	})
}

// sealed gives a record with n incompressible bytes.
func sealed(n int) *record.Record {
	p := record.Alloc(n)
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	r := record.NewWrite(4096, p)
	r.Volume = record.VolumeID{1}
	r.Seal(record.Epoch{Counter: 1, Server: record.MustServerID("a")}, record.Pos{Seq: 1, Sum: 1}, 1)
	return r
}

func BenchmarkWriter(b *testing.B) {
	for _, n := range []int{1, 32, 256} {
		b.Run(fmt.Sprintf("append=%dx4KiB", n), func(b *testing.B) {
			m := &Append{Commit: 5}
			for range n {
				m.Records = append(m.Records, sealed(4096))
			}
			var w Writer
			b.ReportAllocs()
			for b.Loop() {
				w.Reset()
				if err := w.Add(1, m); err != nil {
					b.Fatal(err)
				}
				_ = w.Buffers()
			}
			b.SetBytes(int64(w.Len()))
		})
	}
	b.Run("heartbeat", func(b *testing.B) {
		var w Writer
		b.ReportAllocs()
		for b.Loop() {
			w.Reset()
			if err := w.Add(1, &Heartbeat{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// again repeats the same bytes without end.
type again struct {
	b   []byte
	off int
}

func (a *again) Read(p []byte) (int, error) {
	n := copy(p, a.b[a.off:])
	a.off = (a.off + n) % len(a.b)
	return n, nil
}

func BenchmarkReader(b *testing.B) {
	for _, c := range []struct{ records, size int }{{1, 4096}, {32, 4096}, {256, 4096}, {1, 1 << 20}} {
		b.Run(fmt.Sprintf("append=%dx%dKiB", c.records, c.size>>10), func(b *testing.B) {
			m := &Append{Commit: 5}
			for range c.records {
				m.Records = append(m.Records, sealed(c.size))
			}
			bytes := stream(b, m)
			benchNext(b, bytes)
		})
	}
	b.Run("ack", func(b *testing.B) { benchNext(b, stream(b, &Ack{})) })
}

func benchNext(b *testing.B, frame []byte) {
	r := NewReader(&again{b: frame})
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Next(); err != nil {
			b.Fatal(err)
		}
	}
}
