package bubble

import "github.com/blockrepl/blockrepl/blockrepl"

// What a careless operator does.

// rash notes that the command to come may lose writes.
func (o *operator) rash() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.wild {
		o.wild = true
		o.w.history.lose()
	}
}

func (o *operator) isWild() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.wild
}

// sober ends it: what status asks for from now on is what a careful one does.
func (o *operator) sober() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wild = false
	clear(o.warned)
}

// acceptLoss promotes m whoever else holds what.
func (o *operator) acceptLoss(m *machine, dead bool) {
	o.rash()
	o.run(m, "promote", blockrepl.PromoteRequest{AcceptLoss: true, OldMasterDead: dead}, nil)
}

// lie promotes m and asserts that the old master is dead, without a look.
func (o *operator) lie(m *machine) {
	o.rash()
	o.run(m, "promote", blockrepl.PromoteRequest{OldMasterDead: true}, nil)
}

// resolve chooses m's side.
func (o *operator) resolve(m *machine) {
	o.rash()
	o.run(m, "resolve", blockrepl.ResolveRequest{Keep: m.name}, nil)
}

// insist does in the calm what status says, with the flags that the answers ask for,
// since nobody else will do it.
func (o *operator) insist(m *machine) {
	o.tried[m]++
	n := o.tried[m]
	if o.barred(m) && n <= 3 {
		return
	}
	o.run(m, "promote", blockrepl.PromoteRequest{OldMasterDead: n > 1, AcceptLoss: n > 2}, nil)
}
