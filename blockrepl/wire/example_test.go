package wire

import (
	"fmt"
	"reflect"

	"github.com/blockrepl/blockrepl/journal/record"
	"pgregory.net/rapid"
)

// allTypes lists every message type that newMessage knows.
func allTypes() []Type {
	var ts []Type
	for i := range 256 {
		if newMessage(Type(i)) != nil {
			ts = append(ts, Type(i))
		}
	}
	return ts
}

// filler fills messages by reflection, so that a field that is added to a
// message, and forgotten in fields.go, fails the tests.
type filler struct {
	u64  func(name string) uint64
	text func(name string) string
	n    func(name string, max int) int // of a list, or one of max choices
}

func (f *filler) message(t Type) Message {
	m := newMessage(t)
	f.value(t.String(), reflect.ValueOf(m).Elem(), t)
	return m
}

func (f *filler) value(name string, v reflect.Value, t Type) {
	switch p := v.Addr().Interface().(type) {
	case *record.ServerID:
		*p = record.MustServerID([]string{"a", "b", "c", "node-42", "z"}[f.n(name, 5)])
		return
	case *record.VolumeID:
		*p = record.VolumeID(f.bytes16(name))
		return
	case *record.Incarnation:
		*p = record.Incarnation(f.bytes16(name))
		return
	case *OnDegraded:
		*p = OnDegraded(f.n(name, int(Continue)+1))
		return
	case *Role:
		*p = Role(f.n(name, int(RoleFailed)+1))
		return
	case *Code:
		*p = Code(f.n(name, int(CodeRange)+1))
		return
	case *record.Codec:
		*p = record.Codec(f.n(name, int(record.CodecZstd)+1))
		return
	case *[]*record.Record:
		*p = f.records(name, t)
		return
	case *[]byte:
		if s := f.text(name); s != "" {
			*p = []byte(s)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			f.value(name+"."+v.Type().Field(i).Name, v.Field(i), t)
		}
	case reflect.Slice:
		if n := f.n(name, 4); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				f.value(fmt.Sprintf("%s[%d]", name, i), v.Index(i), t)
			}
		}
	case reflect.String:
		v.SetString(f.text(name))
	case reflect.Bool:
		v.SetBool(f.n(name, 2) == 1)
	case reflect.Int64:
		v.SetInt(int64(f.u64(name) % (record.MaxSize + 1)))
	case reflect.Uint64:
		v.SetUint(f.u64(name))
	default:
		panic(fmt.Sprintf("%s: no rule for %s: add one here and in fields.go", name, v.Type()))
	}
}

func (f *filler) bytes16(name string) (b [16]byte) {
	for i := range 8 {
		b[i] = byte(f.u64(name) >> (8 * i))
		b[15-i] = b[i] ^ 0x5a
	}
	return b
}

func (f *filler) records(name string, t Type) (rs []*record.Record) {
	for i := range f.n(name, 4) {
		var r *record.Record
		switch f.n(name+" kind", 3) {
		case 0:
			r = record.NewTrim(4096, 1<<40)
		case 1:
			r = record.NewWrite(512, []byte("8 bytes?"+f.text(name+" data")))
		default:
			r = record.NewState(record.KindMark, []byte("mark"))
		}
		r.Volume = record.VolumeID{1, 2, 3}
		r.Origin = record.MustServerID("b")
		r.Attachment, r.Operation = 7, f.u64(name+" operation")
		if t == TypeForward {
			r.SealDraft()
		} else {
			prev := record.Pos{Seq: record.Seq(10 + i), Sum: f.u64(name + " prev")}
			r.Seal(record.Epoch{Counter: 3, Server: record.MustServerID("a")}, prev, 1_700_000_000_000_000_000)
		}
		rs = append(rs, r)
	}
	return rs
}

// drawn gives messages from rapid.
func drawn(t *rapid.T) *filler {
	return &filler{
		u64:  func(name string) uint64 { return rapid.Uint64().Draw(t, name) },
		text: func(name string) string { return rapid.StringN(0, 40, 200).Draw(t, name) },
		n:    func(name string, max int) int { return rapid.IntRange(0, max-1).Draw(t, name) },
	}
}

// counted gives the same messages always, every field different from zero.
func counted() *filler {
	n := uint64(0)
	return &filler{
		u64:  func(string) uint64 { n++; return n<<8 | 0x11 },
		text: func(string) string { n++; return fmt.Sprintf("text %d", n) },
		n:    func(_ string, max int) int { n++; return 1 + int(n)%(max-1) },
	}
}
