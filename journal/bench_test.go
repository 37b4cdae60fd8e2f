package journal

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

func benchLog(b *testing.B, syncEach bool) (*Journal, *Log) {
	b.Helper()
	j, err := Open(Options{Dir: b.TempDir(), ReserveBytes: -1, syncEach: syncEach})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := j.Close(); err != nil {
			b.Error(err)
		}
	})
	return j, mustLog(b, j, vol1)
}

// seal makes the next record out of the same payload, without the cost of making
// and compressing it.
func seal(b *testing.B, payload []byte, prev record.Pos) *record.Record {
	raw := record.AllocRaw(record.HeaderSize + len(payload))
	copy(raw[record.HeaderSize:], payload)
	r, err := record.NewStored(0, int64(len(payload)), record.CodecNone, raw[record.HeaderSize:])
	if err != nil {
		b.Fatal(err)
	}
	r.Volume, r.Origin = vol1, epoch.Server
	r.Seal(epoch, prev, 1)
	return r
}

// BenchmarkCommit appends 4 KiB records, each a batch of its own, with so many on
// their way to the disk: the two ways that pebble offers to one goroutine.
func BenchmarkCommit(b *testing.B) {
	payload := one(vol1, record.Pos{}, 4096, 1).StoredPayload()
	for _, depth := range []int{1, 8, 32, 128} {
		for _, syncEach := range []bool{false, true} {
			if syncEach && depth > 1 {
				continue // one goroutine can wait for one only
			}
			b.Run(fmt.Sprintf("depth=%d/syncEach=%t", depth, syncEach), func(b *testing.B) {
				_, l := benchLog(b, syncEach)
				pending := make(chan *Pending, depth-1)
				done := make(chan error, 1)
				go func() {
					var err error
					for p := range pending {
						if e := p.Wait(); err == nil {
							err = e
						}
					}
					done <- err
				}()
				b.SetBytes(int64(len(payload)))
				b.ReportAllocs()
				for b.Loop() {
					r := seal(b, payload, l.Last())
					p, err := l.Write(Batch{Records: []*record.Record{r}})
					if err != nil {
						b.Fatal(err)
					}
					if depth == 1 {
						err = p.Wait()
					} else {
						pending <- p
					}
					if err != nil {
						b.Fatal(err)
					}
					r.Free()
				}
				close(pending)
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// BenchmarkWriteTrim streams batches of 32 records and trims what is older than
// keep bytes, as a healthy volume does, and counts what reaches the disk for a byte
// of records.
func BenchmarkWriteTrim(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		for _, keep := range []int64{4 << 20, 256 << 20} {
			b.Run(fmt.Sprintf("record=%d/keep=%dMiB", size, keep>>20), func(b *testing.B) {
				j, l := benchLog(b, false)
				payload := one(vol1, record.Pos{}, size, 1).StoredPayload()
				perBatch := max(1, 128<<10/size)
				written := int64(0)
				b.SetBytes(int64(perBatch * size))
				b.ReportAllocs()
				for b.Loop() {
					recs := make([]*record.Record, perBatch)
					prev := l.Last()
					for i := range recs {
						recs[i] = seal(b, payload, prev)
						prev = recs[i].Pos()
						written += int64(len(recs[i].Raw))
					}
					p, err := l.Write(Batch{Records: recs})
					if err == nil {
						err = p.Wait()
					}
					for _, r := range recs {
						r.Free()
					}
					if err == nil && l.Bytes() > keep {
						var upto record.Seq
						upto, err = l.TrimPoint(keep)
						if err == nil {
							err = l.Trim(upto)
						}
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				m := j.db.Metrics()
				disk := m.WAL.BytesWritten
				for _, lv := range m.Levels {
					disk += lv.TableBytesFlushed + lv.TableBytesCompacted
				}
				if testing.Verbose() {
					b.Log(m)
				}
				b.ReportMetric(float64(disk)/float64(written), "disk-B/B")
				b.ReportMetric(float64(j.DiskBytes())/(1<<20), "disk-MiB")
				b.ReportMetric(float64(m.Compact.Count), "compactions")
			})
		}
	}
}

func BenchmarkRead(b *testing.B) {
	o := Options{Dir: "j", FS: vfs.NewMem(), ReserveBytes: -1}
	j := mustOpen(b, o)
	l := mustLog(b, j, vol1)
	mustWrite(b, l, Batch{Records: chain(vol1, record.Pos{}, 10_000, 4096)})
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(4096)
		for i := 0; b.Loop(); i++ {
			r, err := l.Get(record.Seq(1 + i*7919%10_000))
			if err != nil {
				b.Fatal(err)
			}
			r.Free()
		}
	})
	b.Run("read-256", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(256 * 4096)
		for i := 0; b.Loop(); i++ {
			from := record.Seq(1 + i*256%9000)
			if _, err := l.Read(from, from+255, 64<<20, func(r *record.Record) error { r.Free(); return nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
}
