package main

import (
	"errors"
	"sync"

	"github.com/blockrepl/blockrepl/nbd"
)

// Comes from: the configuration's permissions, and each export that is opened or
// closed. Does: knows who has what open, so that permissions can change meanwhile.
// Goes to: export.go, which asks it; reload.go, which changes it.

// errRevoked closes the connection of a client that may no longer do what it does.
var errRevoked = errors.New("the client's permission was taken away")

// admission is who may open what, and who has.
type admission struct {
	mu    sync.Mutex // guards what follows; nothing is called under it
	rules permissions
	// Invariant: rules allow everything that is in visits. Bounded by limits.connections.
	visits map[*disk]visit
}

// visit is one open export of one connection.
type visit struct {
	client *nbd.Client
	volume string
	writes bool
}

func newAdmission(rules permissions) *admission {
	return &admission{rules: rules, visits: map[*disk]visit{}}
}

// access is permissions.access, of now.
func (a *admission) access(tlsName, volume string) (writes, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rules.access(tlsName, volume)
}

// enter notes a visit until leave; false when it is no longer allowed, since the
// rules have changed between access and here.
func (a *admission) enter(d *disk, v visit) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.rules.allow(v) {
		return false
	}
	a.visits[d] = v
	return true
}

func (a *admission) leave(d *disk) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.visits, d)
}

// change sets other rules and gives the visits that they do not allow: those are
// the caller's to end.
func (a *admission) change(rules permissions) []visit {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rules = rules
	var revoked []visit
	for d, v := range a.visits {
		if !rules.allow(v) {
			revoked = append(revoked, v)
			delete(a.visits, d)
		}
	}
	return revoked
}

// allow reports whether the visit may go on as it is.
func (p permissions) allow(v visit) bool {
	writes, ok := p.access(v.client.TLSName, v.volume)
	return ok && (writes || !v.writes)
}
