package replica

import "time"

// Bounds. Each says what happens when it is reached.
const (
	// windowRecordsMax bounds the early records a slave holds back; further ones
	// are dropped and come again by a Request.
	windowRecordsMax = 4096
	// windowBytesMax bounds their bytes, likewise.
	windowBytesMax = 64 << 20
	// sumsMax is how many header sums of recent records are kept in memory (512 KiB), for positions
	// of acknowledgements under way;
	// older ones are asked for by Effects.Lookups.
	sumsMax = 1 << 16
	// sumsMin is how many a volume begins with.
	sumsMin = 1 << 10
	// entriesMax bounds the attachment table: beyond it the oldest detached
	// identities are forgotten, and what they still have under way is discarded.
	entriesMax = 4096
	// tableBytesMax bounds it as JSON, in bytes, likewise: the saved state must fit a
	// value of the journal. 4096 names of 128 letters do.
	tableBytesMax = 1<<20 - 64
	// entryBytes is what an entry takes beside its identity at most, escapeBytes what a
	// byte of that does.
	entryBytes  = 120
	escapeBytes = 6
	// identityMax bounds an identity's length in bytes; longer ones are cut.
	identityMax = 256
	// liveLag is how many records a slave may lack to count as Live and to be
	// admitted: it will be waited for, so it must be near.
	liveLag = 8192
	// liveLagBytes is that in bytes. More than tailMax, or a busy client would keep a
	// slave out for ever.
	liveLagBytes = tailMax + 32<<20
	// tailMax is how many bytes of records may be numbered and not committed;
	// further changes wait.
	tailMax = 64 << 20
	// applyLagRecords and applyLagBytes bound what a master has answered and its
	// image does not hold yet, uncompressed: reads wait for that. Beyond it answers
	// wait as well.
	applyLagRecords = 1024
	applyLagBytes   = 8 << 20
	// SpaceReserve is what the master leaves free on every in-sync server, in
	// bytes: for metadata, other volumes and records already under way.
	SpaceReserve = 16 << 20
	// forwardBytesMax and forwardRecordsMax bound one Forward frame; the rest goes
	// into further ones.
	forwardBytesMax   = 1 << 20
	forwardRecordsMax = 256
	// earlyForwardsMax bounds the Forward frames that wait for a master to serve;
	// beyond it the link is closed, and its forwards are asked for again.
	earlyForwardsMax = 4096
	// setsMax is how many of the newest lines of the epoch history tell the set that
	// the epoch began with. Two pasts that parted before are called a split brain
	// when the sets of today do not exclude it.
	setsMax = 64
	// HistoryMax bounds the lines of the epoch history: the saved state must fit a
	// value of the journal. No mastership begins beyond, and a peer that claims more
	// is not believed. Lines go when all members are in sync; so many masterships in
	// a row without that mean a member that has been away for very long.
	HistoryMax = 4352
	// historyReserve of them are for masterships that the operator commands.
	historyReserve = 256
	// historyKeep is Config.History when unset.
	historyKeep = 64
)

// pastAgain: the other servers are asked again for damaged records that tell a peer's
// past after that many times peer_timeout.
const pastAgain = 4

// trimStep is how many records go at a time.
const trimStep = 64

// leaseMargin: the master trusts a lease for its time less this fraction, for
// clocks of different rates.
const leaseMargin = 16

const (
	// beatLeast is the least time between two heartbeats to a slave that grants shorter
	// leases than this server would: a quarter of the shortest peer_timeout that there
	// is. With still shorter leases reads wait for the next heartbeat.
	beatLeast = 25 * time.Millisecond
	// commitDelay is how long a commit number may wait for a frame to ride on.
	commitDelay = time.Millisecond
	// requestAgain is how long a slave waits before it requests the same gap again.
	requestAgain = 100 * time.Millisecond
	// roundAgain is how long a slave waits for the master's answer to a read round.
	roundAgain = 500 * time.Millisecond
)
