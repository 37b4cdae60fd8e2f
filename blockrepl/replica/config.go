package replica

import (
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Config is what a replica is born with. It does not change.
type Config struct {
	Self        record.ServerID
	Incarnation record.Incarnation
	// PeerTimeout is how long a peer may be silent; leases that this server grants last
	// as long, and it trusts none for longer. Servers may differ in it.
	PeerTimeout time.Duration
	// Create is the state that a volume gets when it comes into being: Members,
	// ascending, Size, OnDegraded, Shared, Keep, Name and a UUID drawn for the case that
	// this server creates it. Epoch, Master, InSync and Number are ignored.
	Create wire.State
	// First is the server that creates the volume when all members are there
	// and none has seen it.
	First record.ServerID
	// History is how many lines of the epoch history stay when older ones may go;
	// 0: 64.
	History int
	// OpBase is a random number: operations of this run count up from it, so that
	// none is taken for one of an earlier run.
	OpBase uint64
}

// Saved is what the journal held at the start. The zero value is a server that
// has never seen the volume.
type Saved struct {
	Hard   Hard
	First  record.Seq // lowest number kept; Last.Seq+1 when none is
	Last   record.Pos // the journal's end
	Table  Table
	Memory []wire.Memory
	// Marks are the kept records above Table.AsOf that change the table: kinds
	// mark and resize, ascending.
	Marks []*record.Record
	// Missed are the numbers above Table.AsOf whose records could not be read, ascending:
	// what they do to the table is told when they are applied.
	Missed []record.Seq
	// Sums are the header sums of the last records, the newest last: Sums[len-1]
	// is Last.Sum. At least those above Hard.Checkpoint, as far as kept.
	Sums []uint64
	// Forgot says why this server's own marks prove that its journal once held
	// more; "" when they do not.
	Forgot string
	// Unlike says why the image is not the one that the journal speaks of, "" when it
	// may be. It holds for this run: the next start looks again, at the samples that
	// are kept as they are meanwhile, and believes the right image when it is back.
	Unlike string
	// Bytes is how many bytes of records First..Last are.
	Bytes int64
	// Free is how many journal and image bytes may still be promised.
	Free int64
	// Image is what of them the image may take.
	Image wire.Room
}
