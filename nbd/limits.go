package nbd

import (
	"fmt"
	"time"
)

// Bounds that are not configurable: part of what the server promises.
const (
	// MaxPayloadDefault is the longest READ or WRITE in bytes, the size every client may rely on (specification, "Size
	// constraints"). A longer one is refused, its payload skipped.
	MaxPayloadDefault = 32 << 20
	// maxOptionBytes bounds the data of one option that is looked at: two strings and some lists. Longer ones are skipped
	// and answered TOO_BIG.
	maxOptionBytes = 16 << 10
	// maxOptionSkip bounds what is skipped of one option. A client that announces more is cut off.
	maxOptionSkip = 1 << 20
	// maxQueries bounds the metadata queries of one option; more are answered TOO_BIG.
	maxQueries = 64
	// maxListed bounds the exports one LIST tells; the rest is left out, and logged.
	maxListed = 4096
	// maxExtents bounds the descriptors of one BLOCK_STATUS reply: 8 KiB. The specification allows 2^20; clients ask on.
	maxExtents = 1024

	// inputBytes is the read buffer of a connection: many requests a system call.
	inputBytes = 64 << 10
	// batchBytes is the piece in which small replies are gathered: many replies a system call.
	batchBytes = 256 << 10
	// gatherBytes is how much of small replies may wait while further requests are looked for.
	gatherBytes = 64 << 10
	// smallRead is the longest read whose data is copied next to its header into a batch.
	smallRead = 64 << 10
	// nowRead is the longest read that ReadNow is asked for: a longer one would keep the requests behind it waiting.
	nowRead = 1 << 20
	// holeBlock is the granularity in which zeroes inside a long read become hole chunks.
	holeBlock = 64 << 10
	// writevMax is the most pieces of one writev (IOV_MAX is 1024).
	writevMax = 64
	// replyBytes is the size of the pieces that gather the replies of goroutines other than the reader.
	replyBytes = 4 << 10

	// stallBytes is the progress that a client must make in StallTimeout while a message is under way.
	stallBytes = 64 << 10
	// reapEvery is how often stalled and departed clients are looked for.
	reapEvery = time.Second
	// connReserve is what a connection may hold of buffers without asking the server's budget: nobody else's slowness
	// can keep it from being served.
	connReserve = 512 << 10
	// unixSendBytes is the send buffer asked for on unix sockets: memory of the kernel, at most twice this a connection.
	unixSendBytes = 2 << 20
	// keepAliveProbes go out in the second half of Limits.KeepAlive.
	keepAliveProbes = 3
	// maxActivated bounds the sockets taken from systemd.
	maxActivated = 64
	// acceptRetryMax bounds the pause after a failed accept (out of file descriptors).
	acceptRetryMax = time.Second
	// logBurst and logEvery bound the log lines that clients can cause, comings and goings apart from refusals: logBurst at
	// once, then one each logEvery. What was left out is counted in the next line.
	logBurst = 20
	logEvery = 10 * time.Second
)

// Limits are the bounds an operator may set. Zero means the default.
//
// Memory: MaxBytes + MaxClients × (512 KiB + 64 KiB) + MaxHandshakes × 80 KiB of buffers, with the defaults
// 256 + 144 + 10 = 410 MiB, and a disk's own buffers for what it was submitted. Clients that read no reply can make it
// twice as much, not more: by the heads of small replies, and by two batches of 256 KiB each.
type Limits struct {
	// MaxClients is how many connections may have an export open. One more is refused with a policy error. Default 256.
	MaxClients int
	// MaxHandshakes is how many connections may be negotiating. At one more the one that has been at it longest is cut
	// off, so that silent connections cannot lock others out. Default 128.
	MaxHandshakes int
	// MaxOptions is how many options one connection may send. Default 64.
	MaxOptions int
	// HandshakeTimeout is how long negotiation may take, TLS included, waits of Exports excluded. Default 10 s.
	HandshakeTimeout time.Duration
	// StallTimeout is how long a client may take for 64 KiB in the middle of a message or of reading replies. Default 60 s.
	StallTimeout time.Duration
	// KeepAlive is how long a TCP peer that has vanished without a word keeps its connection. Default 60 s. A virtual
	// machine that is suspended for longer than this or StallTimeout finds its connection closed.
	KeepAlive time.Duration
	// MaxRequests is how many requests one connection may have in flight; further ones are not read. Default 256.
	MaxRequests int
	// MaxConnBytes is how many bytes of buffers the requests of one connection may hold. Default 64 MiB.
	MaxConnBytes int64
	// MaxBytes is how many bytes of buffers all connections may hold beyond 512 KiB each. While several exports are open
	// those of one may hold at most as much of it as they leave to the others, or one request. Default 256 MiB.
	MaxBytes int64
}

// withDefaults fills the zeroes and checks how the bounds relate.
func (l Limits) withDefaults() (Limits, error) {
	def(&l.MaxClients, 256)
	def(&l.MaxHandshakes, 128)
	def(&l.MaxOptions, 64)
	def(&l.HandshakeTimeout, 10*time.Second)
	def(&l.StallTimeout, time.Minute)
	def(&l.KeepAlive, time.Minute)
	def(&l.MaxRequests, 256)
	def(&l.MaxConnBytes, 64<<20)
	def(&l.MaxBytes, 256<<20)
	switch {
	case l.MaxClients < 0 || l.MaxHandshakes < 0 || l.MaxOptions < 0 || l.MaxRequests < 0 || l.HandshakeTimeout < 0 || l.StallTimeout < 0 || l.KeepAlive < 0:
		return l, fmt.Errorf("limits %+v: a bound is negative", l)
	case l.MaxConnBytes < MaxPayloadDefault:
		return l, fmt.Errorf("limits: MaxConnBytes %d is less than one payload of %d", l.MaxConnBytes, MaxPayloadDefault)
	case l.MaxBytes < MaxPayloadDefault:
		return l, fmt.Errorf("limits: MaxBytes %d is less than one payload of %d", l.MaxBytes, MaxPayloadDefault)
	}
	return l, nil
}

// def sets *v to d if it is zero.
func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}
