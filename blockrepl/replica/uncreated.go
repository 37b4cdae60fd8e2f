package replica

import (
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: greetings of blank servers. Does: says what keeps the volume from coming
// into being. Goes to: mayCreate and refusal, which wait for it to go; status.

// creatorFirst is a list of members with the one before them that creates the volume.
// The order of the others means nothing.
func creatorFirst(first record.ServerID, members []record.ServerID) []record.ServerID {
	list := []record.ServerID{first}
	for _, id := range members {
		if id != first {
			list = append(list, id)
		}
	}
	return list
}

// differs says in what the volume that the configuration of server id makes differs
// from ours, "" when in nothing that keeps it from coming into being.
func (r *Replica) differs(id record.ServerID, servers []record.ServerID, size int64) string {
	if ours := creatorFirst(r.cfg.First, r.cfg.Create.Members); !slices.Equal(servers, ours) {
		return fmt.Sprintf("the volume's servers, beginning with the one that creates it, are %s on %v and %s on %v",
			names(ours), r.cfg.Self, names(servers), id)
	}
	if size != r.cfg.Create.Size {
		return fmt.Sprintf("the volume has %d bytes on %v and %d on %v", r.cfg.Create.Size, r.cfg.Self, size, id)
	}
	return ""
}

// uncreated says why the volume does not come into being, and what the operator can do.
// Every blank server says it, not only the one that would create the volume.
func (r *Replica) uncreated(name string) (reason, next string) {
	keeper := r.keeper()
	var missing, filled []record.ServerID
	for _, p := range r.peers {
		switch g := p.greeting; {
		case g == nil:
			missing = append(missing, p.id)
		case !keeper.IsZero():
		case r.differs(p.id, g.Servers, g.Size) != "":
			return "the configurations differ: " + r.differs(p.id, g.Servers, g.Size), "make the configurations equal, then restart the servers where that changed something"
		case g.Forgot:
			filled = append(filled, p.id)
		}
	}
	switch by := r.hard.Promised.Server; {
	case !keeper.IsZero() && !contains(r.cfg.Create.Members, r.peer(keeper).greeting.State.Master):
		return fmt.Sprintf("the volume exists on %v; its master %v is not among its servers in the configuration of this one (%s)",
			keeper, r.peer(keeper).greeting.State.Master, names(r.cfg.Create.Members)), "make the configurations equal, then restart this server"
	case len(missing) > 0:
		return "the volume comes into being when all members are there; missing: " + names(missing), ""
	case !keeper.IsZero():
		return fmt.Sprintf("this data directory has never seen the volume, which exists on %v; its master will copy it here, and says in its status if it waits for something", keeper), ""
	case len(filled) > 0:
		return fmt.Sprintf("the volume does not come into being by itself: the image of %s has content, or an init gives it some", names(filled)),
			"see there what to do: blockrepl status " + name
	case r.cfg.First == r.cfg.Self && !by.IsZero() && by != r.cfg.Self && r.now >= r.promisedAt.Add(2*r.cfg.PeerTimeout):
		return fmt.Sprintf("this server promised %v that it may create the volume, so it does not do that any more; was the order of the servers changed?", by),
			"blockrepl init " + name + " with --keep, --zero or --from FILE"
	}
	return "never seen the volume; waiting for " + r.cfg.First.String(), ""
}
