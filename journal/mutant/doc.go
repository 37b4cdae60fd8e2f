// Package mutant lets tests break one rule at a time, each where it is kept, to prove
// that other tests would notice. `make mutants` plays all of them.
//
// Without the build tag mutants Is is a constant false, which the compiler removes with
// all that depends on it: nothing of this is in a server. With the tag the environment
// variable BLOCKREPL_MUTANT names the rule that is broken, or the test sets Name.
//
// It lies below everything that has rules to break, and imports nothing of ours.
package mutant
