package blockrepl

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: reads of the image that failed and took nothing down with them: a
// client's, where nobody else is in sync (reads.go), and those for a peer's resync
// (answer.go). Does: counts and keeps the last. Goes to: status.

// unreadable counts what could not be read of an image on which a volume depends.
type unreadable struct {
	mu   sync.Mutex
	n    uint64
	last string

	// A resync that cannot pass: whose, the offset of its query, and why.
	stuck  record.ServerID // zero: none
	offset int64
	why    string
}

func (u *unreadable) note(v *Volume, err *image.Error) {
	u.mu.Lock()
	u.n++
	first := u.n == 1
	u.last = err.Error()
	u.mu.Unlock()
	if first {
		v.logr.Error("image cannot be read, and no other server is in sync; the client is told", "err", err)
	}
}

// stop notes that the query at off of a server's resync cannot be answered.
func (u *unreadable) stop(v *Volume, peer record.ServerID, off int64, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	first := u.stuck != peer || u.offset != off || u.why != err.Error()
	u.stuck, u.offset, u.why = peer, off, err.Error()
	if first {
		v.logr.Error("image cannot be read, and a resync cannot pass", "peer", peer.String(), "err", err)
	}
}

// pass notes that a query is answered.
func (u *unreadable) pass(peer record.ServerID, off int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stuck == peer && u.offset == off {
		u.stuck = record.ServerID{}
	}
}

// tell puts it into a status that says nothing worse.
func (u *unreadable) tell(st *VolumeStatus) {
	u.mu.Lock()
	defer u.mu.Unlock()
	st.Counters["image_reads_failed"] += u.n
	if st.State != StateHealthy && st.State != StateDegraded {
		return
	}
	if u.n > 0 {
		st.add(fmt.Sprintf("%d reads of this server's image failed, and nobody else could answer; the last: %s", u.n, u.last),
			"bring another server in sync, then replace this one's disk")
	}
	waits := func(p PeerStatus) bool { return p.Server == u.stuck.String() && p.State == replica.Resync.String() }
	if u.stuck.IsZero() || !slices.ContainsFunc(st.Peers, waits) {
		return
	}
	// Before all else that status may advise: nothing else ends it.
	st.Next = "write over these bytes from a client (what they held is lost), and the resync goes on by itself"
	if others := slices.DeleteFunc(slices.Clone(st.InSync), func(s string) bool { return s == st.Master }); len(others) > 0 {
		st.Next = fmt.Sprintf("promote %s, which has these bytes; then replace the disk of %s", strings.Join(others, " or "), st.Master)
	}
	st.add(fmt.Sprintf("the resync of %s cannot pass: %s", u.stuck, u.why), st.Next)
}

// add puts one more reason behind those that there are, and the next step if there is none.
func (st *VolumeStatus) add(why, next string) {
	if st.Reason != "" {
		why = st.Reason + "; " + why
	}
	st.Reason = why
	if st.Next == "" {
		st.Next = next
	}
}
