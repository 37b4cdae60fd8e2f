package replica

import "github.com/blockrepl/blockrepl/journal/mutant"

// mutated reports whether a test breaks this rule: never in a server. The simulator
// proves that it finds out.
func mutated(rule string) bool { return mutant.Is(rule) }
