//go:build !mutants

package replica

// mutated is true only in builds with the tag mutants (mutant.go).
func mutated(string) bool { return false }
