package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the volume's loop, after a round of Steps. Does: hands each effect
// to who carries it out, Stores first; nothing here waits but the journal, when
// the disk is behind. Goes to: journal and committer, links, applier, clients.

func (v *Volume) carryOut(e *replica.Effects) {
	for i := range e.Stores {
		v.store(&e.Stores[i])
	}
	for _, c := range e.CloseLinks {
		v.s.links.close(v, c.Peer, c.Session, v.name+": "+c.Reason)
	}
	for i := range e.Sends {
		m := &e.Sends[i]
		v.s.links.send(m.To, m.Session, v.tag, m.Msg)
	}
	for i := range e.Streams {
		st := &e.Streams[i]
		v.s.links.stream(v, st)
	}
	if e.Apply != 0 {
		v.app.to(e.Apply)
	}
	if e.SyncImage != 0 {
		v.check.ask(e.SyncImage)
	}
	for i := range e.Complete {
		v.clients.complete(e.Complete[i])
	}
	for _, id := range e.Reads {
		v.clients.grant(id)
	}
	for _, a := range e.Abort {
		v.clients.abort(a.Conn, a.Reason)
	}
	for _, l := range e.Lookups {
		v.lookUp(l)
	}
	if e.Resync != nil {
		v.order(e.Resync)
	}
	if e.Trim != 0 {
		v.trim(e.Trim)
	}
	if e.Fail != nil {
		v.app.close()
		v.fail(e.Fail.What, e.Fail.Err)
	}
	for i := range e.Results {
		v.results.deliver(e.Results[i])
	}
	for i := range e.Notes {
		v.note(&e.Notes[i])
	}
}

// lookUp answers a question for the header sum of an old record.
func (v *Volume) lookUp(l replica.Lookup) {
	pos, err := v.position(l.Seq)
	if l.Mend && err != nil && v.mender.forLookup(l.Seq, err) {
		return
	}
	v.looked(l.Seq, pos, err)
}

func (v *Volume) looked(seq record.Seq, pos record.Pos, err error) {
	if err != nil {
		v.logr.Debug("record looked up is not there", "seq", seq, "err", err)
	}
	v.in.post(replica.Looked{Seq: seq, Pos: pos, OK: err == nil})
}

func (v *Volume) position(seq record.Seq) (record.Pos, error) {
	log := v.log.Load()
	if log == nil {
		return record.Pos{}, errors.New("the journal is not open")
	}
	return log.Position(seq)
}

// note writes a state change to the log and to the recent events. Those that come again
// and again are left out but for the newest (quiet): a peer's states as one kind, so that
// the last one written is the present one.
func (v *Volume) note(n *replica.Note) {
	level := slog.LevelInfo
	if n.Warn {
		level = slog.LevelWarn
	}
	at := v.s.opt.Wall()
	v.quiet.say(v.s.opt.Clock(), kindOf(n.Text, n.Args), func(left int) {
		args := unlogged(n.Args, left)
		v.logr.Log(context.Background(), level, n.Text, args...)
		v.s.events.add(at, v.name, &replica.Note{Text: n.Text, Args: args, Warn: n.Warn})
	})
}

// say writes a line to the log, bounded in the same way.
func (v *Volume) say(level slog.Level, text string, args ...any) {
	v.quiet.say(v.s.opt.Clock(), kindOf(text, args), func(left int) {
		v.logr.Log(context.Background(), level, text, unlogged(args, left)...)
	})
}

// kindOf is what of lines counts as the same: the text, and the peer that it is about.
func kindOf(text string, args []any) string {
	switch {
	case strings.HasPrefix(text, peerIs):
		text = peerIs
	case text == noSpace || text == spaceAgain:
		text = "space"
	}
	for i := 0; i+1 < len(args); i += 2 {
		if args[i] == "peer" {
			return fmt.Sprint(text, " ", args[i+1])
		}
	}
	return text
}

// peerIs begins the notes of a peer's states; noSpace and spaceAgain are a journal's. Of a
// state that comes and goes the last one must be the last word.
const (
	peerIs     = "peer is "
	noSpace    = "no space for the journal; writes wait until there is"
	spaceAgain = "there is space for the journal again"
)

func unlogged(args []any, left int) []any {
	if left == 0 {
		return args
	}
	return append(slices.Clone(args), "unlogged", left)
}

// sayLate writes what has waited its time. The loop does it, which writes most of it:
// the newest line of a kind comes last.
func (v *Volume) sayLate() {
	if writes := v.quiet.due(v.s.opt.Clock(), false); len(writes) > 0 {
		if !v.in.call(func() { callAll(writes) }) { // the volume ends, and its loop has
			callAll(writes)
		}
	}
}

func callAll(fs []func()) {
	for _, f := range fs {
		f()
	}
}
