package replica

import (
	"fmt"
	"strings"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// What scripts show: effects in words, in the order of effect.go.

// show tells what one step of n wants done.
func (s *script) show(n *node, e *Effects) {
	for i := range e.Stores {
		s.store(n, &e.Stores[i])
	}
	for _, m := range e.Sends {
		if text := message(m.Msg); text != "" {
			s.say("%v → %v  %s", n.id, m.To, text)
		}
	}
	for _, st := range e.Streams {
		if st.From != 0 {
			s.say("%v ⇒ %v  records %d..%d of %v", n.id, st.To, st.From, st.End, st.Epoch)
		} else {
			s.say("%v ⇒ %v  records to %d of %v", n.id, st.To, st.End, st.Epoch)
		}
	}
	if e.Apply != 0 {
		s.say("%v applies to %d", n.id, e.Apply)
	}
	for _, d := range e.Complete {
		switch name := s.ops[d.Op]; {
		case name == "":
		case d.Err != nil:
			s.say("%v refuses %s: %v", n.id, name, d.Err)
		default:
			s.say("%v answers %s, number %d", n.id, name, d.Op.seq)
		}
	}
	for _, id := range e.Reads {
		s.say("%v reads for %s", n.id, s.reads[id])
	}
	for _, a := range e.Abort {
		for name, k := range s.conns {
			if k.id == a.Conn {
				s.say("%v closes %s without a reply: %s", n.id, name, a.Reason)
			}
		}
	}
	for _, l := range e.CloseLinks {
		s.say("%v closes the link to %v: %s", n.id, l.Peer, l.Reason)
	}
	if o := e.Resync; o != nil && !o.Stop {
		s.say("%v copies extents from %v", n.id, o.To)
	}
	for i := range e.Results {
		s.result(n, &e.Results[i])
	}
	for _, note := range e.Notes {
		if note.Warn {
			s.say("%v warns: %s", n.id, strings.TrimSpace(fmt.Sprintln(append([]any{note.Text}, note.Args...)...)))
		}
	}
}

// store tells what a batch makes durable, as far as it is of interest.
func (s *script) store(n *node, st *Store) {
	if st.Cut != nil {
		s.say("%v sets aside what is above %d", n.id, st.Cut.Seq)
	}
	if st.Reset != nil {
		s.say("%v begins its journal anew behind %d", n.id, st.Reset.Seq)
	}
	for _, rec := range st.Records {
		s.say("%v stores %d %v of %v", n.id, rec.Seq, rec.Kind, rec.Epoch)
	}
	h := st.Hard
	if h == nil {
		return
	}
	old := s.hards[n]
	s.hards[n] = *h
	if h.Promised != old.Promised {
		s.say("%v stores: promised %v", n.id, h.Promised)
	}
	if h.Following != old.Following {
		s.say("%v stores: follows %v", n.id, h.Following)
	}
	if h.State.Epoch != old.State.Epoch || h.State.Number != old.State.Number {
		s.say("%v stores: state %s", n.id, stateText(&h.State))
	}
	if h.Proposed != nil && old.Proposed != h.Proposed {
		s.say("%v stores: proposed %s", n.id, stateText(h.Proposed))
	}
	if h.Forgot != old.Forgot && h.Forgot != "" {
		s.say("%v stores: not believed, %s", n.id, h.Forgot)
	}
	if (h.Resync != nil) != (old.Resync != nil) {
		s.say("%v stores: resyncing %v", n.id, h.Resync != nil)
	}
}

func stateText(st *wire.State) string {
	forced := ""
	if st.Forced {
		forced = ", forced"
	}
	if st.OnDegraded == wire.Continue {
		forced += ", continue"
	}
	return fmt.Sprintf("%d of %v, in sync %s%s", st.Number, st.Epoch, names(ids(st.InSync)), forced)
}

func (s *script) result(n *node, res *Result) {
	text := "done"
	if res.Err != nil {
		text = res.Err.Error()
	}
	if rep := res.Report; rep != nil {
		if rep.Needs != "" {
			text += "; needs --" + rep.Needs
		}
		if rep.MissingFirst != 0 {
			text += fmt.Sprintf("; may miss %d..%d", rep.MissingFirst, rep.MissingLast)
		}
	}
	if res.Note != "" {
		text += "; " + res.Note
	}
	s.say("%v: %s", n.id, text)
}

func typeName(m wire.Message) string { return strings.TrimPrefix(fmt.Sprintf("%T", m), "*wire.") }

// message puts a message into words; "" for what only keeps links alive.
func message(m wire.Message) string {
	yes := func(ok bool, why string) string {
		if ok {
			return "yes"
		}
		return "no: " + why
	}
	switch m := m.(type) {
	case *wire.Heartbeat, *wire.HeartbeatAck, *wire.Greeting, *wire.Query:
		return ""
	case *wire.Prepare:
		return fmt.Sprintf("Prepare %v", m.Epoch)
	case *wire.Promise:
		return fmt.Sprintf("Promise %v %s", m.Epoch, yes(m.OK, m.Reason))
	case *wire.Join:
		return fmt.Sprintf("Join %v from %d, resync %v, line %d", m.Epoch, m.Match.Seq, m.Resync, m.Last)
	case *wire.Joined:
		return fmt.Sprintf("Joined %v %s", m.Epoch, yes(m.OK && !m.Resync, m.Reason))
	case *wire.Append:
		return fmt.Sprintf("Append commit %d", m.Commit)
	case *wire.Ack:
		return fmt.Sprintf("Ack %v durable %d", m.Epoch, m.Durable.Seq)
	case *wire.Request:
		return fmt.Sprintf("Request %d..%d", m.From, m.To)
	case *wire.Forward:
		return fmt.Sprintf("Forward %d, %d changes", m.Index, len(m.Records))
	case *wire.Refuse:
		return fmt.Sprintf("Refuse: %s", m.Reason)
	case *wire.StateUpdate:
		return "StateUpdate " + stateText(&m.State)
	case *wire.StateAck:
		return fmt.Sprintf("StateAck %d of %v", m.Number, m.Epoch)
	case *wire.ReadIndexOK:
		return fmt.Sprintf("ReadIndexOK commit %d", m.Commit)
	case *wire.HandoverReady:
		return fmt.Sprintf("HandoverReady %s", yes(m.OK, m.Reason))
	}
	return typeName(m)
}

// status shows every server.
func (s *script) status() {
	for _, n := range s.c.nodes {
		if !n.up {
			s.say("%v is down", n.id)
			continue
		}
		v := n.r.View(s.c.now)
		s.say("%v is %s, %v, last %d, committed %d, applied %d", n.id, roleName(v.Role), v.State, v.Last, v.Committed, v.Applied)
		if v.Reason != "" {
			s.say("    because: %s", v.Reason)
		}
		if v.Next != "" {
			s.say("    next: %s", v.Next)
		}
	}
}

func roleName(r wire.Role) string {
	return map[wire.Role]string{wire.RoleSlave: "slave", wire.RoleCandidate: "candidate", wire.RoleMaster: "master", wire.RoleFailed: "failed"}[r]
}

// journal shows a journal's durable records, and what was set aside.
func (s *script) journal(n *node) {
	list := func(recs []*record.Record) string {
		var out []string
		for _, rec := range recs {
			out = append(out, fmt.Sprintf("%d %v %v", rec.Seq, rec.Kind, rec.Epoch))
		}
		return strings.Join(out, ", ")
	}
	s.say("%v holds: %s", n.id, list(n.log))
	if len(n.aside) > 0 {
		s.say("%v set aside: %s", n.id, list(n.aside))
	}
}
