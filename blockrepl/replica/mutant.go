//go:build mutants

package replica

// Mutant names the rule that is broken in this run. The simulator sets it to prove
// that it finds out; never part of a server.
var Mutant string

func mutated(rule string) bool { return rule == Mutant }
