package blockrepl

import (
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the volume's loop, which has handed batches to the journal in
// order. Does: waits, in that order, until each is fsynced.
// Goes to: the loop (Stored) and the marks file. One goroutine a volume.
//
// While one fsync runs the loop hands on the next batches, and the journal syncs
// all that came meanwhile at once: groups form by themselves.
type committer struct {
	v     *Volume
	queue chan storing // closed by the loop, its only sender
	at    mark         // what is durable, noted in the marks file
	lower bool         // the mark may go back: the state says that the past is lost or replaced
}

// storing is a batch under way.
type storing struct {
	id      uint64
	pending *journal.Pending
	last    record.Pos    // the journal's end behind the batch
	hard    *replica.Hard // when the batch carries it
}

// run ends when queue is closed and everything in it is durable or failed.
func (c *committer) run() {
	failed := false
	for s := range c.queue {
		if failed {
			continue
		}
		if mutant.Is("call a batch durable before its fsync") {
			c.v.in.stored(s.id)
		}
		if err := s.pending.Wait(); err != nil {
			// Final: no retry is believed. Nothing later may be called durable.
			failed = true
			c.v.fail("journal", err)
			continue
		}
		c.at.durable = s.last
		if s.hard != nil {
			c.at.following, c.at.promised = s.hard.Following, s.hard.Promised
			c.lower = s.hard.Resync != nil || s.hard.Forgot != ""
		}
		if id := c.v.uuid.Load(); id != nil { // before it has one there is nothing to lose
			c.v.s.marks.set(*id, c.at, c.lower)
		}
		if !mutant.Is("call a batch durable before its fsync") {
			c.v.in.stored(s.id)
		}
	}
}
