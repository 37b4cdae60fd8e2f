//go:build mutants

package sim

import (
	"flag"
	"slices"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/journal/mutant"
)

var (
	mutantFlag  = flag.String("mutant", "", "break only this rule")
	mutantsMost = flag.Int("mutant-schedules", 20000, "how many schedules a broken rule may survive")
	mutantsFor  = flag.Duration("mutant-time", 3*time.Minute, "how long a broken rule may survive")
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
	"believe that a lease lasts as long as ours",
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
	"restart beside a rival",
	"checkpoint what is applied",
	"promote without a majority",
	"begin without the longest tail",
	"keep a commit number that was given up",
	"resolve at any server",
	"drop a tail at a resync",
	"miss only what is longer",
	"create while an init fills an image",
	"join while an init fills an image",
	"see no split brain",
	"shrink by a late resize",
	"end a resync before that is durable",
}

// defended are broken rules that other rules make up for, or that only a test of
// package replica meets: none of tens of thousands of schedules found them. Those tests
// are played with them by TestMutants of package bubble; here by -mutant NAME only.
var defended = []string{
	"hand over without the old master's promise", // a restless schedule of 11,820 did
	"accept records after a newer promise",
	"break the vow of an orderly stop",
	"take a side of others' split brain",
	"forget an earlier promise",
	"forget a silent slave's resync", // a restless schedule of 119,000 did
	"forget the leases of an earlier run",
}

// known are seeds that found a rule once, tried first: only where the model has changed
// since must the rule be looked for anew.
var known = map[string]uint64{
	"restart beside a rival":                     14000051737,
	"change the set before others note it":       7983,
	"read without a lease":                       392,
	"promote under a lease":                      49,
	"promise before it is fsynced":               839,
	"believe that a lease lasts as long as ours": 104431,
	"believe another incarnation":                5129,
	"restart without promises":                   68,
	"begin without the longest tail":             832,
	"create while an init fills an image":        4226,
}

// TestMutants proves that the simulator finds each broken rule.
func TestMutants(t *testing.T) {
	defer func() { mutant.Name = "" }()
	rules := broken
	if slices.Contains(defended, *mutantFlag) {
		rules = defended
	}
	for _, rule := range rules {
		if *mutantFlag != "" && rule != *mutantFlag {
			continue
		}
		mutant.Name = rule
		began, found, played := time.Now(), false, 0
		opt := Options{}
		for seed := known[rule]; played <= *mutantsMost && !found && time.Since(began) < *mutantsFor; played++ {
			if f := New(seed, opt).Run(); seed > 0 && f != nil {
				found = true
				t.Logf("%-45s found by seed %5d, restless %-5v, after %6v: %s", rule, seed, opt.Restless, time.Since(began).Round(time.Millisecond), f.Rule)
				if *mutantFlag != "" {
					t.Log(f)
				}
			}
			seed, opt.Restless = uint64(played+1), played%2 == 1
		}
		if !found {
			t.Errorf("%q survives %d schedules (%v)", rule, played, time.Since(began).Round(time.Millisecond))
		}
	}
}
