package replica

import (
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Time is the boot-time clock in nanoseconds: monotonic, counting suspension.
// Wall time never decides anything here.
type Time int64

// Add moves t by d.
func (t Time) Add(d time.Duration) Time { return t + Time(d) }

// Sub is the distance t-u.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t - u) }

// Event is one thing that happened. Every type below is one.
type Event interface{ event() }

// Tick: time passed. Due at Effects.Wake, and at least every Config.PeerTimeout/8.
type Tick struct{}

// LinkUp: a link to Peer is open, both Hellos agreed. Session is never used
// again and differs from every other session, of any peer.
type LinkUp struct {
	Peer        record.ServerID
	Session     uint64
	Incarnation record.Incarnation
}

// LinkDown: the link is closed; nothing of Session arrives after it.
type LinkDown struct {
	Peer    record.ServerID
	Session uint64
	Reason  string
}

// Received: a message came over the link.
type Received struct {
	Peer    record.ServerID
	Session uint64
	Msg     wire.Message
}

// Submit: clients of this server ask for changes. The shell has checked just now
// that their connections still live.
type Submit struct{ Ops []*Op }

// Open: a client's connection opened the volume for writing.
type Open struct {
	Conn     uint64 // this server's name for the connection, never used again
	Identity string
	Token    uint64 // 0: none; else a newer one is greater
	Takeover bool
}

// Gone: a client's connection ended. Its operations that are not numbered or
// forwarded yet are dropped without completion.
type Gone struct{ Conn uint64 }

// Read: a read waits for its turn; Effects.Reads names ID when it may look at
// the image now.
type Read struct{ ID uint64 }

// Stored: the Store with this ID and all before it are durable.
type Stored struct{ ID uint64 }

// Applied: everything through Seq is in the image. Missed are the records of Saved.Missed
// among it, ascending, now that they could be read.
type Applied struct {
	Seq    record.Seq
	Missed []*record.Record
}

// ImageSynced: the image is fsynced with everything through Seq. Image are samples
// of it, each as of Seq or as left by records above Seq that touch it.
type ImageSynced struct {
	Seq   record.Seq
	Image []Sample
}

// Looked answers all Lookups of Seq. OK is false when the record is not kept, or damaged as the
// next one is.
type Looked struct {
	Seq record.Seq
	Pos record.Pos
	OK  bool
}

// Unreadable: record Seq cannot be read from this journal to be sent, and no other
// server has given it. Its end, above what is applied, may be read again later.
//
// With Apply it was to go to the image, and is damaged: what the disk gives is not it.
// Nothing more is applied until the journal begins anew; or Effects.Fail says that this
// server is to fail.
type Unreadable struct {
	Seq   record.Seq
	Apply bool
}

// Failed: journal or image failed; final until a restart.
type Failed struct {
	What string // "journal" or "image"
	Err  error
}

// Space: how many journal and image bytes may still be promised here, and what the
// image may take of them uncompressed.
type Space struct {
	Free  int64
	Image wire.Room
}

// ResyncProgress: every extent below Offset is copied and fsynced in the image;
// none of them was read at the master beyond Applied.
type ResyncProgress struct {
	Order   uint64 // ResyncOrder.ID; of an order that was replaced or stopped it is ignored
	Offset  int64
	Applied record.Seq // highest so far; with Done it is S1
	Done    bool
}

// Promote: the operator wants this server to be the master.
type Promote struct {
	ID            uint64 // answered by a Result
	DryRun        bool
	OldMasterDead bool
	AcceptLoss    bool
}

// Forget: the operator takes Server out of the in-sync set.
type Forget struct {
	ID     uint64
	Server record.ServerID
	Force  bool
}

// Resolve: the operator keeps this server's side of a split brain.
type Resolve struct{ ID uint64 }

// Resize: the operator changes the volume's size.
type Resize struct {
	ID   uint64
	Size int64
}

// SetOptions: the operator changes options of the volume.
type SetOptions struct {
	ID         uint64          // answered by a Result
	OnDegraded wire.OnDegraded // 0: as it is
	Keep       int64           // bytes; 0: as it is
}

// InitStart: the operator is about to give this server's image the content that the
// volume will begin with. From its Result on the volume comes into being by Init
// only, also after a restart, and until Init or InitEnd no volume of another server
// is joined either, which would write to the same image.
type InitStart struct{ ID uint64 }

// Init: the operator creates the volume with this server alone, from what its
// image holds. It ends what InitStart began, also when it is refused.
type Init struct{ ID uint64 }

// InitEnd: nothing writes to the image any more that InitStart announced: it failed, or
// was called off. Behind an Init it says nothing new.
type InitEnd struct{}

// Stop: the server is about to stop. With Handover a master first asks a live
// in-sync slave to take over; Result comes when that is done or hopeless.
type Stop struct {
	ID       uint64
	Handover bool
}

func (Tick) event()           {}
func (LinkUp) event()         {}
func (LinkDown) event()       {}
func (Received) event()       {}
func (Submit) event()         {}
func (Open) event()           {}
func (Gone) event()           {}
func (Read) event()           {}
func (Stored) event()         {}
func (Applied) event()        {}
func (ImageSynced) event()    {}
func (Looked) event()         {}
func (Unreadable) event()     {}
func (Failed) event()         {}
func (Space) event()          {}
func (ResyncProgress) event() {}
func (Promote) event()        {}
func (Forget) event()         {}
func (Resolve) event()        {}
func (Resize) event()         {}
func (SetOptions) event()     {}
func (InitStart) event()      {}
func (Init) event()           {}
func (InitEnd) event()        {}
func (Stop) event()           {}
