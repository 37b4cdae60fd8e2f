//go:build mutants

package bubble

import (
	"flag"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
)

// With the tag mutants -mutant breaks one rule of the state machine, by the name it
// has there: the schedules must fail.
func init() { flag.StringVar(&replica.Mutant, "mutant", "", "the rule that is broken") }
