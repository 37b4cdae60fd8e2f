package sim

import (
	"fmt"
	"strings"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

// state is what a server was doing when a fault met it.
type state uint8

const (
	stDown state = iota
	stBlank
	stLost      // a slave without a master
	stRedo      // a slave whose image is not readable yet
	stFollowing // a slave
	stCatchUp
	stResync
	stCandidate
	stStarting // a master before its epoch record is committed
	stServing
	stWriting // a master with records under way
	stChanging
	stSuspended
	stFailed
	states
)

var stateNames = [states]string{"down", "blank", "lost", "redo", "following", "catch-up", "resync", "candidate",
	"starting", "serving", "writing", "changing", "suspended", "failed"}

// Marks count which fault met a server in which state, so that a run shows what
// it tried and not only that it passed.
type Marks struct {
	count  [faults][states]int
	frames [faults]int // of the faults that come too often to look at states
	things [notables]int
}

// notable is something that a schedule brought about.
type notable uint8

const (
	ntFork        notable = iota // two lines of committed records
	ntLoss                       // committed records were given up by --accept-loss
	ntDeadLie                    // committed records were given up by a wrong --old-master-dead
	ntBarred                     // a server was promoted that must not be
	ntSplit                      // status names split brain
	ntResolved                   // split brain was resolved
	ntRefused                    // resolve was refused
	ntAside                      // committed records of the line that is given up were set aside
	ntInit                       // a volume was created by init
	ntInitRefused                // init was refused
	ntInitCrash                  // the server crashed in the middle of init
	ntMended                     // a record was fetched again from another server
	ntUnreadable                 // nobody had a record that was to be sent
	ntFailedRead                 // nobody had a record that was to be applied
	ntSecond                     // the second of two promotions at once was carried out
	ntHungCalm                   // a disk hung until it was repaired
	ntRepaired                   // the operator did so because status said it
	ntImageSync                  // an fsync of an image failed
	ntCopyLost                   // one of what a resync had copied
	ntImageWrite                 // a write to an image failed
	ntImageFull                  // an image had no room for one
	ntImageRead                  // an image could not be read, and its server failed
	ntReadTold                   // a client was told that its read failed
	ntBlind                      // a resync waited for sectors that could not be read
	notables
)

var notableNames = [notables]string{"two lines", "accepted loss", "wrong old-master-dead", "promoted against the warning",
	"split brain named", "split brain resolved", "resolve refused", "committed records set aside",
	"created by init", "init refused", "crash in init", "record mended", "record not mended", "failed at a record", "second promotion", "hung into the calm", "hung disk repaired",
	"image fsync failed", "fsync of a resync failed", "image write failed", "image full", "image read failed", "client told of failed read", "resync waited for a bad sector"}

func (m *Marks) note(t notable) { m.things[t]++ }

func (m *Marks) hit(f fault, st state) { m.count[f][st]++ }

// must are the meetings that any run of some size has to bring about: every fault of
// a machine with a server in every state, and every other fault at least once.
var must = func() (list [faults][states]bool) {
	for _, f := range []fault{fCrash, fPower, fPause, fIsolate} {
		for st := stBlank; st < stFailed; st++ {
			list[f][st] = true
		}
	}
	for _, f := range []fault{fCut, fOneWay, fSlowDisk, fSickDisk, fReplace, fOldCopy, fLoseTail, fPromote, fStop, fUsurp} {
		for _, st := range []state{stLost, stFollowing} {
			list[f][st] = true
		}
	}
	for _, f := range []fault{fSickDisk, fReplace, fLoseTail, fForget, fStop, fResize, fNoSpace} {
		for _, st := range []state{stServing, stWriting} {
			list[f][st] = true
		}
	}
	list[fOldDead][stLost] = true
	for _, f := range []fault{fWildLoss, fWildDead} {
		for _, st := range []state{stLost, stFollowing, stServing, stCatchUp} {
			list[f][st] = true
		}
	}
	list[fWildForget][stServing], list[fWildForget][stSuspended] = true, true
	list[fHungDisk][stFollowing], list[fHungDisk][stWriting] = true, true
	list[fSet][stServing], list[fSet][stWriting] = true, true
	list[fUneven][stDown] = true
	list[fTwo][stLost], list[fTwo][stFollowing] = true, true
	for _, st := range []state{stFollowing, stServing, stWriting, stLost, stCatchUp} {
		list[fRot][st] = true
	}
	for _, st := range []state{stFollowing, stServing, stWriting, stLost, stCatchUp, stResync, stSuspended} {
		list[fSickImage][st] = true
	}
	list[fResolve][stLost], list[fResolve][stServing] = true, true
	return list
}()

// missing are the meetings of must that did not come about.
func (m *Marks) missing() []string {
	var out []string
	for f := range faults {
		if f.often() && m.frames[f] == 0 {
			out = append(out, f.String())
		}
	}
	for t, n := range m.things {
		if n == 0 {
			out = append(out, notableNames[t])
		}
	}
	for f := range faults {
		for st := range states {
			if must[f][st] && m.count[f][st] == 0 {
				out = append(out, fmt.Sprintf("%v at a server that is %s", f, stateNames[st]))
			}
		}
	}
	return out
}

// String is a table.
func (m *Marks) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-10s", "")
	for _, st := range stateNames {
		fmt.Fprintf(&b, " %9s", st)
	}
	for f := range faults {
		if f.often() {
			continue
		}
		fmt.Fprintf(&b, "\n%-10s", f)
		for st := range states {
			fmt.Fprintf(&b, " %9d", m.count[f][st])
		}
	}
	for f := range faults {
		if f.often() {
			fmt.Fprintf(&b, "\n%-10s %9d", f, m.frames[f])
		}
	}
	for t, n := range m.things {
		fmt.Fprintf(&b, "\n%-30s %9d", notableNames[t], n)
	}
	return b.String()
}

// state names what the node is doing, for the marks.
func (n *node) state() state {
	if !n.up {
		return stDown
	}
	v := n.rep.View(n.now())
	h := &n.journal.os.hard
	switch {
	case v.Role == wire.RoleFailed:
		return stFailed
	case v.Blank:
		return stBlank
	case v.Role == wire.RoleCandidate:
		return stCandidate
	case v.Role == wire.RoleMaster && !v.Serving:
		return stStarting
	case v.Role == wire.RoleMaster && h.Proposed != nil:
		return stChanging
	case v.Role == wire.RoleMaster && v.State == replica.Suspended:
		return stSuspended
	case v.Role == wire.RoleMaster && v.Committed < v.Last:
		return stWriting
	case v.Role == wire.RoleMaster:
		return stServing
	case v.Resync != nil:
		return stResync
	case v.State == replica.CatchingUp:
		return stCatchUp
	case v.State == replica.Suspended:
		return stLost
	case !n.stale:
		return stRedo
	}
	return stFollowing
}
