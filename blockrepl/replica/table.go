package replica

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Table is who may write: the attachments of a volume after some number, and the
// volume's size there. It is a function of the log, so every server has the same
// one. An attachment's generation is the number of the record that made it.
type Table struct {
	AsOf    record.Seq
	Size    int64   // bytes
	Entries []Entry // ascending by Identity
	bytes   int     // size of Entries; 0: not counted yet
}

// Entry is one client identity's newest attachment.
type Entry struct {
	Identity string
	Gen      record.Seq      // number of the attach record
	Server   record.ServerID // through which it writes
	Token    uint64          // the highest seen
	Attached bool            // false: ended, or taken over
}

// mark is the payload of a KindMark record.
type mark struct {
	Detach   bool   `json:"detach,omitempty"` // ends the record's attachment
	Identity string `json:"identity,omitempty"`
	Token    uint64 `json:"token,omitempty"`
	Takeover bool   `json:"takeover,omitempty"`
}

func (m mark) encode() []byte {
	b, err := json.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("blockrepl: bug: encode mark: %v", err))
	}
	return b
}

func decodeMark(r *record.Record) (mark, error) {
	var m mark
	b, err := r.Payload(nil)
	if err != nil {
		return m, fmt.Errorf("mark record %d: %w", r.Seq, err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("mark record %d: %w", r.Seq, err)
	}
	if len(m.Identity) > identityMax {
		m.Identity = strings.ToValidUTF8(m.Identity[:identityMax], "") // else it would change on its way through JSON
	}
	return m, nil
}

// changesTable reports whether records of kind k do.
func changesTable(k record.Kind) bool { return k == record.KindMark || k == record.KindResize }

// clone copies the table, so that the copy may go on alone.
func (t *Table) clone() Table {
	c := *t
	c.Entries = slices.Clone(t.Entries)
	return c
}

func (t *Table) find(identity string) (int, bool) {
	return slices.BinarySearchFunc(t.Entries, identity, func(e Entry, id string) int { return cmp.Compare(e.Identity, id) })
}

// live reports whether gen is the current generation of its identity.
func (t *Table) live(gen uint64) bool {
	for i := range t.Entries {
		if t.Entries[i].Attached && uint64(t.Entries[i].Gen) == gen {
			return true
		}
	}
	return false
}

// holder is the attached identity of a volume that is not shared, nil if none.
func (t *Table) holder() *Entry {
	for i := range t.Entries {
		if t.Entries[i].Attached {
			return &t.Entries[i]
		}
	}
	return nil
}

// apply takes in a sealed record of a kind that changes the table. Records up to
// AsOf are ignored. A payload that does not parse changes nothing: it was
// numbered, so every server must treat it alike.
func (t *Table) apply(r *record.Record, shared bool) {
	if r.Seq <= t.AsOf {
		return
	}
	t.AsOf = r.Seq
	if r.Kind == record.KindResize {
		t.Size = r.Length
		return
	}
	m, err := decodeMark(r)
	if err != nil {
		return
	}
	if m.Detach {
		for i := range t.Entries {
			if uint64(t.Entries[i].Gen) == r.Attachment {
				t.Entries[i].Attached = false
			}
		}
		return
	}
	if !shared {
		for i := range t.Entries {
			t.Entries[i].Attached = false
		}
	}
	e := Entry{Identity: m.Identity, Gen: r.Seq, Server: r.Origin, Token: m.Token, Attached: true}
	i, found := t.find(m.Identity)
	if found {
		e.Token = max(e.Token, t.Entries[i].Token)
		t.Entries[i] = e
		return
	}
	t.bytes = t.size() - entryBytes + e.size()
	t.Entries = slices.Insert(t.Entries, i, e)
	for !t.fits() {
		t.forgetOldest()
	}
}

// fits reports whether the table is within its bounds.
func (t *Table) fits() bool { return len(t.Entries) <= entriesMax && t.size() <= tableBytesMax }

// size is at least what the table takes as JSON, in bytes. It is counted and not asked
// of the encoder: all servers must forget the same identities, whatever built them.
func (t *Table) size() int {
	if t.bytes == 0 {
		for i := range t.Entries {
			t.bytes += t.Entries[i].size()
		}
	}
	return entryBytes + t.bytes
}

func (e *Entry) size() int {
	n := entryBytes
	for _, c := range []byte(e.Identity) {
		if c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			n += escapeBytes
		} else {
			n++
		}
	}
	return n
}

// forgetOldest drops the detached identity with the lowest generation, or the
// attached one when all are.
func (t *Table) forgetOldest() {
	oldest := 0
	for i, e := range t.Entries {
		o := t.Entries[oldest]
		if e.Attached != o.Attached {
			if o.Attached {
				oldest = i
			}
		} else if e.Gen < o.Gen {
			oldest = i
		}
	}
	t.bytes = t.size() - entryBytes - t.Entries[oldest].size()
	t.Entries = slices.Delete(t.Entries, oldest, oldest+1)
}
