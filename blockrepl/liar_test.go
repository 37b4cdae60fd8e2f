package blockrepl

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"sync/atomic"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// A server that lies is cut off with the reason, and nothing of what it said is taken.
// The lies go over the real link of the server that tells them; b is the slave of a.
func TestServerThatLiesIsCutOffWithTheReason(t *testing.T) {
	const master, slave = 0, 1
	next := func(v *Volume, rec *record.Record) *record.Record { // the record behind the last one of all
		pos := v.log.Load().Last()
		if rec.Volume.IsZero() {
			rec.Volume = *v.uuid.Load()
		}
		rec.Seal(*v.epoch.Load(), pos, 1)
		return rec
	}
	for _, lie := range []struct {
		name   string
		by     int
		reason string
		tell   func(v *Volume) wire.Message
	}{
		{"a number that was never given is acknowledged", slave, "it acknowledges number 1000; the last is", func(v *Volume) wire.Message {
			return &wire.Ack{Epoch: *v.epoch.Load(), Incarnation: v.s.id.Incarnation, Durable: record.Pos{Seq: 1000}}
		}},
		{"another record is acknowledged", slave, "has sum", func(v *Volume) wire.Message {
			pos := v.log.Load().Last()
			pos.Sum++
			return &wire.Ack{Epoch: *v.epoch.Load(), Incarnation: v.s.id.Incarnation, Durable: pos}
		}},
		{"more is committed than there is", master, "it calls number 1000 committed; by its own word its last is 3", func(v *Volume) wire.Message {
			return &wire.Heartbeat{Epoch: *v.epoch.Load(), Last: 3, Commit: 1000}
		}},
		{"a record that follows another past", master, "ours ends at", func(v *Volume) wire.Message {
			rec := record.NewWrite(0, []byte("a lie"))
			rec.Volume = *v.uuid.Load()
			pos := v.log.Load().Last()
			pos.Sum++
			rec.Seal(*v.epoch.Load(), pos, 1)
			return &wire.Append{Epoch: *v.epoch.Load(), Records: []*record.Record{rec}}
		}},
		{"a record whose sum is wrong", master, "payload sum is", func(v *Volume) wire.Message {
			rec := next(v, record.NewWrite(0, bytes.Repeat([]byte("a lie"), 100)))
			rec.Raw[len(rec.Raw)-1] ^= 1
			return &wire.Append{Epoch: *v.epoch.Load(), Records: []*record.Record{rec}}
		}},
		{"a record of another volume", master, "is of volume 66666666", func(v *Volume) wire.Message {
			rec := record.NewWrite(0, []byte("a lie"))
			rec.Volume = record.VolumeID(bytes.Repeat([]byte{0x66}, 16))
			return &wire.Append{Epoch: *v.epoch.Load(), Records: []*record.Record{next(v, rec)}}
		}},
		{"a record of an epoch that is to come", master, "is followed here", func(v *Volume) wire.Message {
			e := *v.epoch.Load()
			rec := record.NewWrite(0, []byte("a lie"))
			rec.Volume = *v.uuid.Load()
			e.Counter++
			rec.Seal(e, v.log.Load().Last(), 1)
			return &wire.Append{Epoch: *v.epoch.Load(), Records: []*record.Record{rec}}
		}},
	} {
		t.Run(lie.name, func(t *testing.T) {
			var told atomic.Int64
			c := newCluster(t, 2, nil)
			c.change = func(o *Options) { countLines(o, string(rune('a'+1-lie.by)), lie.reason, &told) }
			c.start(0, 1)
			cl := c.connect(master, "client")
			cl.write(0, []byte("true"))
			c.equalImages(0, 1)
			if told.Load() != 0 {
				t.Fatal("the reason was told before the lie")
			}
			v := c.vol(lie.by)
			l := v.s.links.peers[c.addrs[1-lie.by].ID].cur.Load()
			l.out.control(v.tag, lie.tell(v))
			c.await(1-lie.by, "told: "+lie.reason, func(VolumeStatus) bool { return told.Load() > 0 })
			<-l.done
			c.awaitHealthy(0, 1) // over a new link
			cl.write(4096, []byte("true"))
			cl.wantRead(0, []byte("true"))
			c.equalImages(0, 1)
		})
	}
}

// The header of a frame is whole and gives a length that no frame has.
func TestHugeLengthClosesTheLinkWithTheReason(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.start(1)
	conn := c.hostile(1, "a")
	var w wire.Writer
	if err := w.Add(wire.Tag("vol0"), &wire.Query{}); err != nil {
		t.Fatal(err)
	}
	head := w.AppendTo(nil)[:wire.HeaderSize]
	binary.LittleEndian.PutUint32(head[16:], 1<<31)
	binary.LittleEndian.PutUint32(head[28:], crc32.Checksum(head[:28], crc32.MakeTable(crc32.Castagnoli)))
	if _, err := conn.Write(head); err != nil {
		t.Fatal(err)
	}
	closed(t, conn)
	c.await(1, "the reason", func(s VolumeStatus) bool {
		return s.Peers[0].State == "down" && bytes.Contains([]byte(s.Peers[0].Reason), []byte("of 2147483648 bytes, at most"))
	})
}
