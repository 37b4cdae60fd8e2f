package replica

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: Submit of local clients, Forward of slaves. Does: gives each change
// of an old generation the refusal it needs, and each other its number or its way
// to the master. Goes to: master.go (number), or out as Forward; back by found.

// forwarding is the changes of local clients under way.
type forwarding struct {
	next  uint64 // operation numbers given so far
	links uint64 // links to masters so far
	conns []*conn
	atts  []*attachment
	held  []*Op         // wait for a master
	sent  map[opKey]*Op // forwarded or numbered, not completed
	found []*Op         // numbered: ascending by seq
	out   []*record.Record
}

// submit takes local clients' changes.
func (r *Replica) submit(ops []*Op) {
	for _, op := range ops {
		c := r.conn(op.Conn)
		if c == nil {
			continue // the connection ended
		}
		a := c.att
		op.att = a
		switch {
		case a.ended:
			r.out.Abort = append(r.out.Abort, Abort{op.Conn, "a newer attachment of this client was heard"})
		case a.gen != 0:
			op.key.attachment = a.gen
			r.route(op)
		default:
			a.waiting = append(a.waiting, op)
			r.attach(a)
		}
	}
	r.sendForwards()
}

// route numbers a change here, forwards it, or holds it while there is no master.
func (r *Replica) route(op *Op) {
	if op.key.operation == 0 {
		r.f.next++
		op.key.operation = r.f.next
	}
	op.Rec.Origin, op.Rec.Attachment, op.Rec.Operation = r.cfg.Self, op.key.attachment, op.key.operation
	op.Rec.Volume = r.hard.State.UUID
	switch {
	case r.numbering():
		r.numberLocal(op)
	case r.role == wire.RoleSlave && r.s.joined:
		op.stage, op.link = opForwarded, r.s.link
		r.track(op)
		op.Rec.SealDraft()
		r.f.out = append(r.f.out, op.Rec)
		r.count("forwards", 1)
	default:
		op.stage = opHeld
		r.f.held = append(r.f.held, op)
	}
}

func (r *Replica) track(op *Op) {
	if r.f.sent == nil {
		r.f.sent = map[opKey]*Op{}
	}
	r.f.sent[op.key] = op
}

// sendForwards sends what route collected, in one frame.
func (r *Replica) sendForwards() {
	if len(r.f.out) == 0 {
		return
	}
	p := r.peer(r.s.master)
	for len(r.f.out) > 0 {
		n, bytes := 0, 0
		for n < len(r.f.out) && (n == 0 || bytes+len(r.f.out[n].Raw) <= forwardBytesMax && n < forwardRecordsMax) {
			bytes += len(r.f.out[n].Raw)
			n++
		}
		r.s.index++
		r.send(p, &wire.Forward{Epoch: r.hard.Following, Index: r.s.index, Records: r.f.out[:n:n]})
		r.f.out = r.f.out[n:]
	}
	r.f.out = nil
}

// numberLocal numbers a local client's change as the master.
func (r *Replica) numberLocal(op *Op) {
	if code, why := r.admissible(op.Rec); code != 0 {
		r.refuseOp(op, code, why)
		return
	}
	r.track(op)
	r.number(op.Rec)
	r.foundOp(op, op.Rec.Seq)
}

// onForward takes what a slave's clients asked for. A frame out of turn ends the
// link: the next one draws a line below which each is found or never comes. A
// slave forwards from the moment it follows, before its Joined is durable and
// sent; dropping what comes meanwhile would lose it for good.
func (r *Replica) onForward(p *peer, f *wire.Forward) {
	switch {
	case r.role != wire.RoleMaster || !p.joined && !p.joining || f.Epoch != r.epoch():
		return
	case f.Index <= p.forwards:
		r.count("forwards_duplicate", 1)
		return
	case f.Index != p.forwards+1:
		r.closeLink(p, fmt.Sprintf("forward %d came after %d", f.Index, p.forwards))
		return
	}
	p.forwards = f.Index
	p.wants = true
	if r.numbering() && len(r.m.early) == 0 {
		r.numberForward(p, f)
		return
	}
	if len(r.m.early) >= earlyForwardsMax {
		r.closeLink(p, "too many forwards while the master does not number")
		return
	}
	r.m.early = append(r.m.early, early{p.id, p.session, f})
}

// numberForward numbers a slave's changes, those that must wait later.
func (r *Replica) numberForward(p *peer, f *wire.Forward) {
	for i, rec := range f.Records {
		if i > 0 && !r.numbering() {
			rest := &wire.Forward{Epoch: f.Epoch, Index: f.Index, Records: f.Records[i:]}
			r.m.early = slices.Insert(r.m.early, 0, early{p.id, p.session, rest})
			return
		}
		if rec.Origin != p.id {
			r.closeLink(p, fmt.Sprintf("it forwards a change of %v", rec.Origin))
			return
		}
		if code, why := r.admissible(rec); code != 0 {
			r.send(p, &wire.Refuse{Epoch: r.epoch(), Attachment: rec.Attachment, Operation: rec.Operation, Code: code, Reason: why})
			continue
		}
		r.number(rec)
	}
}

// numberWaiting numbers what came while the master could not: slaves' forwards
// and local clients' changes, as far as it can now.
func (r *Replica) numberWaiting() {
	r.numberEarly()
	held := r.f.held
	r.f.held = nil
	for _, op := range held {
		r.route(op)
	}
}

func (r *Replica) numberEarly() {
	for len(r.m.early) > 0 && r.numbering() {
		e := r.m.early[0]
		r.m.early = r.m.early[1:]
		if p := r.peer(e.peer); p != nil && p.session == e.session && (p.joined || p.joining) {
			r.numberForward(p, e.frame)
		}
	}
}

// admissible decides whether a draft may be numbered now; zero: yes.
func (r *Replica) admissible(rec *record.Record) (wire.Code, string) {
	switch rec.Kind {
	case record.KindMark:
		return r.admissibleMark(rec)
	case record.KindResize:
		// It was looked at when it was given; another one may have come between.
		if rec.Length < r.numbered.Size && !mutated("shrink by a late resize") {
			return wire.CodeRange, shrinks(r.numbered.Size)
		}
		return 0, ""
	case record.KindWrite, record.KindZero, record.KindTrim:
	default:
		return wire.CodeRange, fmt.Sprintf("kind %d is not a client's to ask for", rec.Kind)
	}
	if !r.numbered.live(rec.Attachment) && !mutated("drop the generation check") {
		return wire.CodeOldGeneration, fmt.Sprintf("generation %d is not the newest", rec.Attachment)
	}
	if rec.Offset < 0 || rec.Length < 0 || rec.Offset > r.numbered.Size-rec.Length {
		return wire.CodeRange, fmt.Sprintf("extent %v of a volume of %d bytes", rec.Extent(), r.numbered.Size)
	}
	if !r.room(int64(len(rec.Raw))) {
		return wire.CodeNoSpace, "an in-sync server has no room for it"
	}
	return 0, ""
}

// room keeps records that no in-sync server could store from being numbered
// (rule 11): twice their bytes, for journal and image, beyond the reserve.
func (r *Replica) room(n int64) bool { return r.cramped(n).IsZero() }

// cramped gives the first in-sync server that has no room for a record of n bytes,
// zero when all have.
func (r *Replica) cramped(n int64) record.ServerID {
	if r.free-r.kept.above(r.durable)-2*n < SpaceReserve {
		return r.cfg.Self
	}
	for _, p := range r.peers {
		if p.joined && p.free > 0 && inSync(&r.hard.State, p.id) && p.free-r.kept.above(p.durable)-2*n < SpaceReserve {
			return p.id
		}
	}
	return record.ServerID{}
}

// rooms gives what is known of the images of the in-sync servers.
func (r *Replica) rooms() iter.Seq[wire.Room] {
	return func(yield func(wire.Room) bool) {
		if r.image.Bytes > 0 && !yield(r.image) {
			return
		}
		for _, p := range r.peers {
			if p.joined && p.image.Bytes > 0 && inSync(&r.hard.State, p.id) && !yield(p.image) {
				return
			}
		}
	}
}

// imagesMayFill reports whether what is numbered might fill an in-sync server's image: its
// bytes are counted uncompressed and as if none were allocated yet, from where that
// image was when its room was looked at. This is a reason to wait and none to refuse:
// with the next look it is known what they took, and room decides by that. Where all
// is looked at, one change may go however large it is: SpaceReserve, and what the
// server keeps free beyond, must take it.
func (r *Replica) imagesMayFill() bool {
	for at := range r.rooms() {
		if n := r.onWay(at.At); n > 0 && at.Bytes >= SpaceReserve && at.Bytes-n < SpaceReserve {
			return true
		}
	}
	return false
}

// onWay is what records above seq write into an image, in bytes.
func (r *Replica) onWay(seq record.Seq) int64 {
	if seq >= r.last.Seq {
		return 0
	}
	return r.plain.above(seq)
}

// found notes that a change of ours has a number: it came back in the stream.
func (r *Replica) found(rec *record.Record) {
	if op := r.f.sent[opKey{rec.Attachment, rec.Operation}]; op != nil && op.stage != opNumbered {
		r.foundOp(op, rec.Seq)
	}
}

func (r *Replica) foundOp(op *Op, seq record.Seq) {
	op.stage, op.seq = opNumbered, seq
	r.f.found = append(r.f.found, op)
}

// unfind forgets numbers above last: their records were set aside.
func (r *Replica) unfind(last record.Seq) {
	n := len(r.f.found)
	for n > 0 && r.f.found[n-1].seq > last {
		n--
		op := r.f.found[n]
		op.seq, op.stage = 0, opForwarded
	}
	r.f.found = r.f.found[:n]
}

// forgetForwards gives up on what clients have under way when this journal begins
// anew: whether it was numbered among the records that are skipped cannot be seen
// here any more, and to forward it once more could number it twice, over newer
// writes. The clients are sent away without a reply; they ask again.
func (r *Replica) forgetForwards() {
	for _, op := range r.f.sent {
		if op.att != nil {
			op.stage = opDone
		} else {
			op.seq, op.stage = 0, opForwarded // the end of an attachment, a resize: no harm in twice
		}
	}
	maps.DeleteFunc(r.f.sent, func(_ opKey, op *Op) bool { return op.stage == opDone })
	r.f.found = nil
	for _, a := range r.f.atts {
		if a.ended {
			continue
		}
		r.endAttachment(a, "this server's journal begins anew")
		if a.gen != 0 && r.table.live(a.gen) {
			rec := record.NewState(record.KindMark, mark{Detach: true}.encode())
			r.f.held = append(r.f.held, &Op{Rec: rec, key: opKey{attachment: a.gen}})
		}
	}
}

// complete answers what has come about. On a slave that is what is applied here: an
// unanswered forward is found by the log (rule 8). A master in service answers its
// clients when their change is committed: reads wait for the image themselves, so
// nobody can see that it comes later. Attachments and commands wait for it too.
func (r *Replica) complete() {
	early := r.role == wire.RoleMaster && r.m.serving
	n, kept := 0, 0
	for n < len(r.f.found) && r.f.found[n].seq <= r.commit {
		op := r.f.found[n]
		switch {
		case op.seq <= r.applied:
		case !early || r.lagging(op.seq):
			r.cutFound(n, kept)
			return
		case op.Conn == 0:
			r.f.found[kept] = op
			kept++
			n++
			continue
		}
		delete(r.f.sent, op.key)
		op.stage = opDone
		switch {
		case op.Conn != 0:
			r.out.Complete = append(r.out.Complete, Completion{Op: op})
		case op.att != nil:
			r.attached(op.att, op.seq)
		default:
			r.result(Result{ID: op.result})
		}
		n++
	}
	r.cutFound(n, kept)
}

// cutFound takes out the first n, but for kept of them, which stand in front.
func (r *Replica) cutFound(n, kept int) {
	copy(r.f.found[n-kept:n], r.f.found[:kept])
	clear(r.f.found[:n-kept])
	r.f.found = r.f.found[n-kept:]
}

// lagging reports whether the image is too far behind to answer for seq.
func (r *Replica) lagging(seq record.Seq) bool {
	return seq > r.applied+applyLagRecords || r.plain.above(r.applied)-r.plain.above(seq) > applyLagBytes
}

// onRefuse hears that a forwarded change will never be numbered.
func (r *Replica) onRefuse(p *peer, m *wire.Refuse) {
	if r.role != wire.RoleSlave || p.id != r.s.master || m.Epoch != r.hard.Following {
		return
	}
	op := r.f.sent[opKey{m.Attachment, m.Operation}]
	if op == nil || op.stage != opForwarded {
		return
	}
	delete(r.f.sent, op.key)
	r.refuseOp(op, m.Code, m.Reason)
}

// refuseOp answers a change that is not numbered. An old generation never gets
// an error reply: its connections are closed. Neither does what a newer master
// refuses for a reason that this program does not know: to ask again is better than
// an error that ends the client's file system.
func (r *Replica) refuseOp(op *Op, code wire.Code, why string) {
	op.stage = opDone
	var err error
	switch code {
	case wire.CodeHeld:
		err = ErrHeld
	case wire.CodeNoSpace:
		err = ErrNoSpace
	case wire.CodeRange:
		err = ErrRange
	}
	switch {
	case op.result != 0:
		r.refuse(op.result, "%s", why)
	case op.Conn == 0 && op.att == nil: // a detach: nothing is left to detach
	case code == wire.CodeOldGeneration, err == nil:
		r.endAttachment(op.att, why)
	case op.Conn == 0:
		r.refuseWaiting(op.att, fmt.Errorf("%w: %s", err, why))
	default:
		r.out.Complete = append(r.out.Complete, Completion{op, fmt.Errorf("%w: %s", err, why)})
	}
}

// drawLine resolves what was forwarded over older links once every record is here
// that those links can have led to (rule 8): what was not found can never come,
// and is asked for anew while its client's connection lives.
func (r *Replica) drawLine() {
	if r.s.lined || r.last.Seq < r.s.line && !mutated("forward anew before the line") {
		return
	}
	r.s.lined = true
	r.again(r.older(r.s.link))
	r.sendForwards()
}

// allLinks is no link's count.
const allLinks = ^uint64(0)

// older are the changes that were forwarded and not found, but for those of link
// keep, in the order of their operations.
func (r *Replica) older(keep uint64) []*Op {
	var ops []*Op
	for _, op := range r.f.sent {
		if op.stage == opForwarded && op.link != keep {
			ops = append(ops, op)
		}
	}
	slices.SortFunc(ops, func(a, b *Op) int { return cmp.Compare(a.key.operation, b.key.operation) })
	return ops
}

// again routes changes anew, as copies: the old bytes may still be on their way out.
func (r *Replica) again(ops []*Op) {
	for _, op := range ops {
		delete(r.f.sent, op.key)
		switch {
		case op.Conn != 0 && r.conn(op.Conn) == nil:
			op.stage = opDone // its client is gone
		case op.att != nil && op.Conn == 0 && op.att.conns == 0:
			op.stage = opDone // an attachment that nobody waits for
		default:
			op.Rec = draft(op.Rec)
			r.count("forwards_again", 1)
			r.route(op)
		}
	}
}

// draft copies a record without its place in the history.
func draft(rec *record.Record) *record.Record {
	c := &record.Record{Header: rec.Header, Raw: slices.Clone(rec.Raw)}
	c.Seq, c.Epoch, c.Prev, c.Sum, c.Volume = 0, record.Epoch{}, 0, 0, record.VolumeID{}
	return c
}

// forwardAgain begins a link as a slave: what was held goes out.
func (r *Replica) forwardAgain() {
	r.f.links++
	r.s.link = r.f.links
	r.routeHeld()
}

// routeHeld gives what waited for a master its way. As a new master everything
// that was forwarded and is not in the journal can never come (rule 8: the epoch
// record is the line).
func (r *Replica) routeHeld() {
	held := r.f.held
	r.f.held, r.f.out = nil, nil // what did not leave over an older link is among sent
	if r.inService() {
		r.numberEarly()
		r.again(r.older(allLinks))
	}
	for _, op := range held {
		r.route(op)
	}
	r.sendForwards()
}

// resize numbers a change of the volume's size.
func (r *Replica) resize(ev Resize) {
	if ev.Size < r.numbered.Size {
		r.refuse(ev.ID, "%s", shrinks(r.numbered.Size))
		return
	}
	r.route(&Op{Rec: record.NewResize(ev.Size), result: ev.ID})
	r.sendForwards()
}

func shrinks(size int64) string {
	return fmt.Sprintf("the volume has %d bytes; shrinking would cut off data", size)
}
