package bubble

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// cover counts which fault met a server in which state, so that a run shows what it
// tried, and not only that it passed.
type cover map[string]map[string]int

func (c cover) add(fault, state string, n int) {
	if c[fault] == nil {
		c[fault] = map[string]int{}
	}
	c[fault][state] += n
}

// missing are the faults that never struck.
func (c cover) missing() (names []string) {
	for _, name := range allFaults {
		if len(c[name]) == 0 && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func (c cover) String() string {
	var b strings.Builder
	for _, fault := range slices.Sorted(maps.Keys(c)) {
		fmt.Fprintf(&b, "\n%-16s", fault)
		for _, state := range slices.Sorted(maps.Keys(c[fault])) {
			fmt.Fprintf(&b, "  %s %d", state, c[fault][state])
		}
	}
	return b.String()
}

// doing is what a server is doing when a fault meets it.
func (m *machine) doing() string {
	p := m.process()
	switch {
	case p == nil || p.dead():
		return "off"
	case p.paused.Load() != nil:
		return "paused"
	}
	st, ok := m.status()
	switch {
	case !ok:
		return "silent"
	case st.State == blockrepl.StateResyncing, st.State == blockrepl.StateCatchingUp, st.State == blockrepl.StateFailed,
		st.State == blockrepl.StateDiverged, st.State == blockrepl.StateSplitBrain:
		return string(st.State)
	case st.Role == "candidate":
		return "promoting"
	case st.State == blockrepl.StateSuspended && st.Role == "slave":
		return "lost"
	case st.State == blockrepl.StateSuspended:
		return "suspended"
	case st.Role == "slave":
		return "following"
	case st.Committed < st.Last:
		return "writing"
	}
	return "serving"
}
