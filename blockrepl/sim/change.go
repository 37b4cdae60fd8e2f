package sim

import (
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

// changing checks rule 6 when a master puts a change of the in-sync set into force:
// it is durable on every server of the new set but the one that is admitted, and a
// shrink that nobody forced on a majority of the members. Whoever is admitted has a
// whole image.
func (s *Sim) changing(n *node, h *replica.Hard) {
	old, st := &n.journal.os.hard.State, &h.State
	if st.Epoch != old.Epoch || st.Number <= old.Number || st.Epoch.Server != n.id || n.rep.View(n.now()).Role != wire.RoleMaster {
		return
	}
	shrink := false
	for i := range old.InSync {
		shrink = shrink || !inState(st, old.InSync[i].ID)
	}
	noted := 1
	for _, m := range s.nodes {
		if m == n {
			continue
		}
		d := &m.journal.durable.hard
		if inState(st, m.id) && !inState(old, m.id) && d.Resync != nil && !m.damaged && !st.Epoch.Less(d.Promised) {
			s.fail("in sync is whole", "%v admits %v in state %d of %v, whose image is being copied", n.id, m.id, st.Number, st.Epoch)
			return
		}
		if !newerState(st, &d.State) || m.damaged {
			noted++
			continue
		}
		if inState(st, m.id) && inState(old, m.id) {
			s.fail("a change is noted first", "%v puts state %d of %v into force; %v, which is in sync, has not noted it", n.id, st.Number, st.Epoch, m.id)
			return
		}
	}
	if shrink && !st.Forced && noted < len(st.Members)/2+1 {
		s.fail("a change is noted first", "%v puts state %d of %v into force, a shrink; %d of %d members have noted it", n.id, st.Number, st.Epoch, noted, len(st.Members))
	}
}
