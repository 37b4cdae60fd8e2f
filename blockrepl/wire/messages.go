package wire

import (
	"fmt"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Message is one of the structs of this file, by pointer. Each travels in one
// frame, tagged with the volume it speaks of.
type Message interface{ messageType() Type }

// OnDegraded is what the master does when an in-sync slave is silent.
type OnDegraded uint8

// The policies. Zero is invalid.
const (
	Suspend  OnDegraded = 1 // writes wait until it is back or forgotten
	Continue OnDegraded = 2 // the operator has allowed the shrink beforehand
)

func (d OnDegraded) String() string {
	switch d {
	case Suspend:
		return "suspend"
	case Continue:
		return "continue"
	}
	return fmt.Sprintf("policy %d", uint8(d))
}

// Member is a server of the in-sync set with the incarnation that was found equal.
type Member struct {
	ID          record.ServerID
	Incarnation record.Incarnation
}

// State is a volume's state c, which only its authority changes.
// Ordered by (Epoch, Number). The zero value is: never heard of.
type State struct {
	Number     uint64 // grows by one with every change
	Epoch      record.Epoch
	Master     record.ServerID
	InSync     []Member          // ascending by ID; invariant: contains Master
	Members    []record.ServerID // ascending; every server that holds the volume
	Size       int64             // bytes, at creation
	OnDegraded OnDegraded
	Shared     bool
	Keep       int64 // bytes of kept records for servers that are away
	UUID       record.VolumeID
	Name       string
	// Forced: the operator (or "continue") made this state although no majority
	// of the members could note it.
	Forced bool
	// Overruled: states of epochs below this lost a split brain by the
	// operator's decision.
	Overruled record.Epoch
}

// EpochStart is one line of the epoch history (package replica says when old ones
// go).
type EpochStart struct {
	Epoch record.Epoch
	First record.Pos // of the epoch record
	// BaseNumber is State.Number of the previous epoch on which this one was
	// built. A state of that epoch with a higher number is not our ancestor.
	BaseNumber uint64
	// Loss: the operator accepted that committed writes may be missing.
	Loss bool
	// Set is the in-sync set that the epoch began with: they promised it. Empty in
	// older lines (package replica says which).
	Set []Member
}

// Memory is what one server remembers of another: the highest durable position
// that it acknowledged or announced, and in which epoch's stream.
type Memory struct {
	Server      record.ServerID
	Incarnation record.Incarnation
	Epoch       record.Epoch
	Durable     record.Pos
}

// Role is what a server is for a volume.
type Role uint8

// The roles. Zero is invalid.
const (
	RoleSlave     Role = 1
	RoleCandidate Role = 2
	RoleMaster    Role = 3
	RoleFailed    Role = 4 // its disk or journal failed; acknowledges nothing
)

// Greeting says what a server holds of a volume: first message on a link, and
// again when something in it changed that the other side must know.
type Greeting struct {
	Name        string
	UUID        record.VolumeID // zero: blank
	Incarnation record.Incarnation
	State       State
	Promised    record.Epoch
	Rivals      []record.Epoch // promised to others before, and not known to have begun
	Following   record.Epoch   // whose stream the tail belongs to
	History     []EpochStart
	Last        record.Pos
	First       record.Seq // lowest number kept; Last+1 when none is
	Checkpoint  record.Seq
	Applied     record.Seq
	Committed   record.Seq
	Role        Role
	Resyncing   bool
	Forgot      bool // own marks say that it once held more
	SplitBrain  bool
	Size        int64 // bytes, from the configuration; for creation
	Memory      []Memory
	Free        int64 // journal bytes that may still be reserved
	// Servers are those of the configuration, the one that creates the volume first;
	// for creation.
	Servers []record.ServerID
}

// Prepare asks for a promise: nothing of an older epoch will be accepted.
type Prepare struct {
	Epoch   record.Epoch
	State   State // the newest the candidate knows
	Resolve bool  // the operator chose this side of a split brain
	Loss    bool  // the operator accepts that writes may be lost
}

// Promise answers Prepare, after the promise is durable.
type Promise struct {
	Epoch    record.Epoch
	OK       bool
	Reason   string // when refused
	Greeting Greeting
}

// Join tells a slave of the epoch that it now follows and where its journal
// must agree. The slave sets aside what it holds above Match.
type Join struct {
	Epoch   record.Epoch
	State   State
	History []EpochStart
	Match   record.Pos // last common record; stream begins behind it
	Resync  bool       // drop the journal, begin after Match, copy the extents
	Last    record.Seq // the line of rule 8: forwards of older links are numbered up to here or never
	Commit  record.Seq
	// Table is, with Resync, the attachment table and size at Match (package
	// replica says how it is encoded).
	Table []byte
}

// Joined answers Join after it is durable.
type Joined struct {
	Epoch  record.Epoch
	OK     bool
	Reason string
	Last   record.Pos
	Resync bool // asks to be resynced instead (its image may hold what was cut)
}

// Append carries records, as encoded, one behind the other, or none: then it
// carries only the commit number.
type Append struct {
	Epoch   record.Epoch
	Commit  record.Seq
	Floor   record.Seq // records below may be trimmed by the slave, up to its checkpoint
	Records []*record.Record
}

// Ack says what a slave holds. Cumulative.
type Ack struct {
	Epoch       record.Epoch
	Incarnation record.Incarnation
	Durable     record.Pos
	Applied     record.Seq
	Free        int64 // journal bytes that may still be reserved
	Image       Room
	Resyncing   bool
}

// Room is how many bytes, uncompressed, a server's image may still take for records
// above At. Zero bytes: not known.
type Room struct {
	Bytes int64
	At    record.Seq
}

// Request asks for the records From..To again.
type Request struct {
	Epoch    record.Epoch
	From, To record.Seq
}

// Heartbeat keeps links and leases. SentAt is the sender's boot-time clock, ns,
// and comes back unchanged.
type Heartbeat struct {
	Epoch  record.Epoch // zero: not from a master
	SentAt int64
	Last   record.Seq
	Commit record.Seq
	Floor  record.Seq
}

// HeartbeatAck answers Heartbeat. With OK the slave will not be promoted for Lease from
// now: its own peer_timeout, which need not be the master's.
type HeartbeatAck struct {
	Ack
	SentAt int64
	OK     bool
	Lease  int64 // ns
}

// ReadIndex asks the master for its commit number, for one round of reads.
type ReadIndex struct {
	Epoch record.Epoch
	ID    uint64
}

// ReadIndexOK answers ReadIndex: a read that sees everything through Commit is current.
type ReadIndexOK struct {
	Epoch  record.Epoch
	ID     uint64
	Commit record.Seq
}

// Forward carries clients' writes from a slave to the master. The records have
// origin, attachment, operation, extent and payload, but neither epoch nor
// number yet. Index counts a link's forwards from 1 without gap; what is out of
// turn ends the link.
type Forward struct {
	Epoch   record.Epoch
	Index   uint64
	Records []*record.Record
}

// Code is why the master refused a forwarded operation.
type Code uint8

// The codes. Zero is invalid.
const (
	CodeOldGeneration Code = 1 // a newer attachment of this identity was heard: close without reply
	CodeHeld          Code = 2 // another identity holds the volume
	CodeNoSpace       Code = 3
	CodeRange         Code = 4 // outside the volume
)

// Refuse answers one forwarded operation that will never be numbered.
type Refuse struct {
	Epoch      record.Epoch
	Attachment uint64
	Operation  uint64
	Code       Code
	Reason     string
}

// StateUpdate carries a changed State to be stored.
type StateUpdate struct{ State State }

// StateAck says that the state with this epoch and number, or a newer, is durable here.
type StateAck struct {
	Epoch  record.Epoch
	Number uint64
}

// Handover asks the master to stop numbering and to let Epoch.Server take over.
type Handover struct{ Epoch record.Epoch }

// HandoverReady answers Handover: everything through Last is committed and
// nothing above will ever be numbered in this epoch.
type HandoverReady struct {
	Epoch  record.Epoch // of the master that steps down
	OK     bool
	Reason string
	Last   record.Pos
	State  State
}

// TakeOver is the reverse: a master that stops asks an in-sync slave to be promoted.
type TakeOver struct{ Epoch record.Epoch }

// Query asks for a Greeting (promotion, status).
type Query struct{ ID uint64 }

// HashQuery asks the master to compare its image with these hashes of
// consecutive blocks (the last may be short), XXH3-64 each.
type HashQuery struct {
	Epoch  record.Epoch
	ID     uint64
	Offset int64
	Block  int64 // bytes
	Length int64 // bytes covered
	Hashes []uint64
}

// Chunk is one differing extent.
type Chunk struct {
	Offset int64
	Length int64        // bytes
	Zero   bool         // reads as zeroes; Data is empty
	Codec  record.Codec // of Data
	Data   []byte
}

// ExtentData answers HashQuery with what differs, read when everything through
// Applied, and nothing above, was in the master's image... for each byte at
// least as new as the query.
type ExtentData struct {
	Epoch   record.Epoch
	ID      uint64
	Offset  int64
	Length  int64
	Applied record.Seq
	Chunks  []Chunk
}

// room is at least what the message takes, in bytes.
func (m *ExtentData) room() int {
	n := 128
	for i := range m.Chunks {
		n += 64 + len(m.Chunks[i].Data)
	}
	return n
}

// Fetch asks for one record that is damaged in the sender's journal.
type Fetch struct{ Seq record.Seq }

// Fetched answers Fetch: the record, or none when it is not kept.
type Fetched struct {
	Seq     record.Seq
	Records []*record.Record // at most one
}

// SizeQuery asks whether the receiver's image could become so large.
type SizeQuery struct {
	ID   uint64
	Size int64 // bytes
}

// SizeAnswer answers SizeQuery. It promises nothing: it is about a slip of the
// operator's, not about what else may fill the disk until the size is numbered.
type SizeAnswer struct {
	ID     uint64
	OK     bool
	Force  bool // not OK, but the operator may know better
	Reason string
}

// Leaving says that a server stops taking part, and why, before it closes the link.
type Leaving struct {
	Reason  string
	Failed  bool // disk or journal failed
	Restart bool // an orderly stop; it will be back
	// Vow is the epoch under whose master this server stops, and has made durable
	// that it will not be promoted before it follows that master again or a newer
	// one, unless the operator says that it is dead: a lease without an end. Zero:
	// no such vow.
	Vow record.Epoch
}
