package sim

import (
	"fmt"
	"strings"
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
	count [faults][states]int
	Fine  bool // count frames too
}

func (m *Marks) hit(f fault, st state) { m.count[f][st]++ }

func (m *Marks) fine() bool { return m.Fine }

// String is a table.
func (m *Marks) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-10s", "")
	for _, st := range stateNames {
		fmt.Fprintf(&b, " %9s", st)
	}
	for f := range faults {
		fmt.Fprintf(&b, "\n%-10s", f)
		for st := range states {
			fmt.Fprintf(&b, " %9d", m.count[f][st])
		}
	}
	return b.String()
}
