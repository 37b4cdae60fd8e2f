//go:build mutants

package sim

import (
	"flag"
	"slices"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
)

var (
	mutantFlag  = flag.String("mutant", "", "break only this rule")
	mutantsMost = flag.Int("mutant-schedules", 20000, "how many schedules a broken rule may survive")
)

// broken are the rules that package replica can break in a build with the tag
// mutants, each where the rule is decided.
var broken = []string{
	"create without all members",
	"ack before sync",
	"commit without one in-sync server",
	"shrink without the authority",
	"apply before commit",
	"read on a slave without asking",
	"read without a lease",
	"promote under a lease",
	"promise an older epoch",
	"promise before it is fsynced",
	"skip redo",
	"redo past the commit number",
	"end the redo at any commit number",
	"drop the generation check",
	"forward anew before the line",
	"count acknowledgements of an old epoch",
	"believe another incarnation",
	"believe a server that forgot",
	"grow without the union",
	"commit before the epoch record",
	"serve before the epoch record is committed",
	"trim above the floor",
	"resync behind the journal's end",
	"end a resync at its beginning",
	"change the set before others note it",
	"promote a server that is not in sync",
	"restart without promises",
	"checkpoint what is applied",
	"promote without a majority",
	"begin without the longest tail",
}

// defended are broken rules that other rules make up for: none of tens of thousands
// of schedules found them. They are played by -mutant NAME only.
var defended = []string{
	"hand over without the old master's promise",
	"accept records after a newer promise",
	"break the vow of an orderly stop",
}

// TestMutants proves that the simulator finds each broken rule.
func TestMutants(t *testing.T) {
	defer func() { replica.Mutant = "" }()
	rules := broken
	if slices.Contains(defended, *mutantFlag) {
		rules = defended
	}
	for _, rule := range rules {
		if *mutantFlag != "" && rule != *mutantFlag {
			continue
		}
		replica.Mutant = rule
		began, found := time.Now(), false
		for seed := 1; seed <= *mutantsMost && !found; seed++ {
			if f := New(uint64(seed), Options{}).Run(); f != nil {
				found = true
				t.Logf("%-45s found by seed %5d after %6v: %s", rule, seed, time.Since(began).Round(time.Millisecond), f.Rule)
				if *mutantFlag != "" {
					t.Log(f)
				}
			}
		}
		if !found {
			t.Errorf("%q survives %d schedules (%v)", rule, *mutantsMost, time.Since(began).Round(time.Millisecond))
		}
	}
}
