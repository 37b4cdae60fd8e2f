//go:build mutants

package mutant

import "os"

// Name is the rule that is broken in this process, "" for none. It is set before
// anything runs that looks at it.
var Name = os.Getenv("BLOCKREPL_MUTANT")

// Is reports whether rule is the one that is broken.
func Is(rule string) bool { return rule == Name }
