package nbd

import (
	"sync"
	"sync/atomic"
	"time"
)

// counters are what a connection has done. Written by its reader.
type counters struct {
	requests, reads, writes, readBytes, writeBytes atomic.Uint64
}

// ConnStats is a snapshot of one connection that has an export open.
type ConnStats struct {
	ID       uint64
	Addr     string
	TLSName  string
	Export   string
	ReadOnly bool
	Since    time.Time

	Requests   uint64 // all commands
	Reads      uint64
	ReadBytes  uint64
	Writes     uint64 // writes, trims and zeroes
	WriteBytes uint64 // payload
	InFlight   int    // requests read whose reply is not written yet
	HeldBytes  int64  // buffers they hold
}

// Stats is a snapshot of a server.
type Stats struct {
	Conns       []ConnStats // in order of ID
	Handshakes  int         // connections that are negotiating
	Accepted    uint64      // since the start
	Refused     uint64      // by MaxClients and MaxHandshakes
	BudgetBytes int64       // of MaxBytes still free
}

func (c *conn) snapshot() ConnStats {
	return ConnStats{
		ID: c.client.ID, Addr: c.client.Addr, TLSName: c.client.TLSName, Export: c.info.Name, ReadOnly: c.info.ReadOnly,
		Since: c.client.Since, Requests: c.stats.requests.Load(), Reads: c.stats.reads.Load(),
		ReadBytes: c.stats.readBytes.Load(), Writes: c.stats.writes.Load(), WriteBytes: c.stats.writeBytes.Load(),
		InFlight: int(c.quota.reqs.Load()), HeldBytes: c.quota.bytes.Load(),
	}
}

// logLimit bounds the log lines that clients can cause.
type logLimit struct {
	mu     sync.Mutex
	tokens int       // Invariant: 0 <= tokens <= logBurst
	last   time.Time // when tokens was brought up to date
	missed uint64
}

// allow reports whether one more line may be logged now.
func (l *logLimit) allow() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if gain := int(now.Sub(l.last) / logEvery); gain > 0 {
		l.tokens, l.last = min(logBurst, l.tokens+gain), now
	}
	if l.tokens == 0 {
		l.missed++
		return false
	}
	l.tokens--
	return true
}

// skipped gives, once, how many lines were left out.
func (l *logLimit) skipped() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.missed
	l.missed = 0
	return n
}
