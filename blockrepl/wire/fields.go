package wire

import "github.com/blockrepl/blockrepl/journal/record"

// The fields of every message in the order of their bytes. Both encoder and
// decoder run these lists. A new field of messages.go gets a line here and a word
// in the package comment; the tests fail until it has both. Before the first
// release `go test -rewrite` then brings the goldens up to date; after it, a
// new protocol version does.

func (m *Member) fields(c *coder) {
	c.server("id", &m.ID)
	c.incarnation("incarnation", &m.Incarnation)
}

func (s *State) fields(c *coder) {
	c.u64("state number", &s.Number)
	c.epoch("state epoch", &s.Epoch)
	c.server("master", &s.Master)
	list(c, "in-sync", &s.InSync, MaxServers, 24, func(c *coder, m *Member) { m.fields(c) })
	list(c, "members", &s.Members, MaxServers, 8, func(c *coder, id *record.ServerID) { c.server("member", id) })
	c.size("size", &s.Size)
	c.enum("on degraded", (*uint8)(&s.OnDegraded), uint8(Continue))
	c.flag("shared", &s.Shared)
	c.size("keep", &s.Keep)
	c.volume("uuid", &s.UUID)
	c.text("name", &s.Name, MaxName)
	c.flag("forced", &s.Forced)
	c.epoch("overruled", &s.Overruled)
}

func (h *EpochStart) fields(c *coder) {
	c.epoch("history epoch", &h.Epoch)
	c.pos("history first", &h.First)
	c.u64("history base", &h.BaseNumber)
	c.flag("history loss", &h.Loss)
	list(c, "history set", &h.Set, MaxServers, 24, func(c *coder, m *Member) { m.fields(c) })
}

func (m *Memory) fields(c *coder) {
	c.server("remembered server", &m.Server)
	c.incarnation("remembered incarnation", &m.Incarnation)
	c.epoch("remembered epoch", &m.Epoch)
	c.pos("remembered durable", &m.Durable)
}

func (c *coder) history(v *[]EpochStart) {
	list(c, "history", v, MaxHistory, 45, func(c *coder, h *EpochStart) { h.fields(c) })
}

func (c *coder) memory(v *[]Memory) {
	list(c, "memory", v, MaxServers, 56, func(c *coder, m *Memory) { m.fields(c) })
}

func (m *Greeting) fields(c *coder) {
	c.text("name", &m.Name, MaxName)
	c.volume("uuid", &m.UUID)
	c.incarnation("incarnation", &m.Incarnation)
	m.State.fields(c)
	c.epoch("promised", &m.Promised)
	list(c, "rivals", &m.Rivals, MaxServers, 16, func(c *coder, e *record.Epoch) { c.epoch("rival", e) })
	c.epoch("following", &m.Following)
	c.history(&m.History)
	c.pos("last", &m.Last)
	c.seq("first", &m.First)
	c.seq("checkpoint", &m.Checkpoint)
	c.seq("applied", &m.Applied)
	c.seq("committed", &m.Committed)
	c.enum("role", (*uint8)(&m.Role), uint8(RoleFailed))
	c.flag("resyncing", &m.Resyncing)
	c.flag("forgot", &m.Forgot)
	c.flag("split brain", &m.SplitBrain)
	c.size("size", &m.Size)
	c.memory(&m.Memory)
	c.clock("free", &m.Free)
	list(c, "servers", &m.Servers, MaxServers, 8, func(c *coder, id *record.ServerID) { c.server("server", id) })
}

func (m *Prepare) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	m.State.fields(c)
	c.flag("resolve", &m.Resolve)
	c.flag("loss", &m.Loss)
}

func (m *Promise) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	c.flag("ok", &m.OK)
	c.reason("reason", &m.Reason)
	m.Greeting.fields(c)
}

func (m *Join) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	m.State.fields(c)
	c.history(&m.History)
	c.pos("match", &m.Match)
	c.flag("resync", &m.Resync)
	c.seq("last", &m.Last)
	c.seq("commit", &m.Commit)
	c.blob("table", &m.Table)
}

func (m *Joined) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	c.flag("ok", &m.OK)
	c.reason("reason", &m.Reason)
	c.pos("last", &m.Last)
	c.flag("resync", &m.Resync)
}

func (m *Append) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	c.seq("commit", &m.Commit)
	c.seq("floor", &m.Floor)
	c.records(&m.Records, record.DecodeNext)
}

func (m *Ack) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	c.incarnation("incarnation", &m.Incarnation)
	c.pos("durable", &m.Durable)
	c.seq("applied", &m.Applied)
	c.clock("free", &m.Free)
	c.clock("image room", &m.Image.Bytes)
	c.seq("image at", &m.Image.At)
	c.flag("resyncing", &m.Resyncing)
}

func (m *Request) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	c.seq("from", &m.From)
	c.seq("to", &m.To)
}

func (m *Heartbeat) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	c.clock("sent at", &m.SentAt)
	c.seq("last", &m.Last)
	c.seq("commit", &m.Commit)
	c.seq("floor", &m.Floor)
}

func (m *HeartbeatAck) fields(c *coder) {
	m.Ack.fields(c)
	c.clock("sent at", &m.SentAt)
	c.flag("ok", &m.OK)
	c.clock("lease", &m.Lease)
}

func (m *ReadIndex) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	c.u64("id", &m.ID)
}

func (m *ReadIndexOK) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	c.u64("id", &m.ID)
	c.seq("commit", &m.Commit)
}

func (m *Forward) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	c.u64("index", &m.Index)
	c.records(&m.Records, record.DecodeDraft)
}

func (m *Refuse) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	c.u64("attachment", &m.Attachment)
	c.u64("operation", &m.Operation)
	c.enum("code", (*uint8)(&m.Code), uint8(CodeRange))
	c.reason("reason", &m.Reason)
}

func (m *StateUpdate) fields(c *coder) { m.State.fields(c) }

func (m *StateAck) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	c.u64("number", &m.Number)
}

func (m *Handover) fields(c *coder) { c.epoch("epoch", &m.Epoch) }

func (m *HandoverReady) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	c.flag("ok", &m.OK)
	c.reason("reason", &m.Reason)
	c.pos("last", &m.Last)
	m.State.fields(c)
}

func (m *TakeOver) fields(c *coder) { c.epoch("epoch", &m.Epoch) }

func (m *Query) fields(c *coder) { c.u64("id", &m.ID) }

func (m *HashQuery) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	c.u64("id", &m.ID)
	c.size("offset", &m.Offset)
	c.size("block", &m.Block)
	c.size("length", &m.Length)
	list(c, "hashes", &m.Hashes, MaxHashes, 8, func(c *coder, h *uint64) { c.u64("hash", h) })
}

func (k *Chunk) fields(c *coder) {
	c.size("chunk offset", &k.Offset)
	c.size("chunk length", &k.Length)
	c.flag("zero", &k.Zero)
	c.enum("codec", (*uint8)(&k.Codec), uint8(record.CodecZstd))
	c.part("data", &k.Data)
}

func (m *ExtentData) fields(c *coder) {
	c.epoch("epoch", &m.Epoch)
	c.u64("id", &m.ID)
	c.size("offset", &m.Offset)
	c.size("length", &m.Length)
	c.seq("applied", &m.Applied)
	list(c, "chunks", &m.Chunks, MaxChunks, 22, func(c *coder, k *Chunk) { k.fields(c) })
}

func (m *Leaving) fields(c *coder) {
	c.reason("reason", &m.Reason)
	c.flag("failed", &m.Failed)
	c.flag("restart", &m.Restart)
	c.epoch("vow", &m.Vow)
}

func (m *Fetch) fields(c *coder) {
	c.seq("seq", &m.Seq)
}

func (m *Fetched) fields(c *coder) {
	c.seq("seq", &m.Seq)
	c.records(&m.Records, record.DecodeNext)
}

func (m *SizeQuery) fields(c *coder) {
	c.u64("id", &m.ID)
	c.size("size", &m.Size)
}

func (m *SizeAnswer) fields(c *coder) {
	c.u64("id", &m.ID)
	c.flag("ok", &m.OK)
	c.flag("force", &m.Force)
	c.reason("reason", &m.Reason)
}
