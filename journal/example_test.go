package journal_test

import (
	"fmt"
	"log"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
)

// A write is numbered, made durable and read back.
func ExampleOpen() {
	j, err := journal.Open(journal.Options{Dir: "journal", FS: vfs.NewMem()})
	if err != nil {
		log.Fatal(err)
	}
	volume := record.VolumeID{1}
	l, err := j.Log(volume)
	if err != nil {
		log.Fatal(err)
	}

	r := record.NewWrite(4096, []byte("hello"))
	r.Volume, r.Origin = volume, record.MustServerID("a")
	r.Seal(record.Epoch{Counter: 1, Server: record.MustServerID("a")}, l.Last(), 0)
	p, err := l.Write(journal.Batch{Records: []*record.Record{r}})
	if err == nil {
		err = p.Wait() // now it survives a power cut
	}
	if err != nil {
		log.Fatal(err)
	}

	got, err := l.Get(1)
	if err != nil {
		log.Fatal(err)
	}
	payload, err := got.Payload(nil)
	fmt.Println(l.First(), l.Last().Seq, got.Extent(), string(payload), err)
	fmt.Println(j.Close())
	// Output:
	// 1 1 [4096,4101) hello <nil>
	// <nil>
}
