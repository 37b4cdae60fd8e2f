//go:build !race

package sim

// coverSeeds are the fixed seeds of TestCoverage, freshSeconds is how long
// TestSchedules plays when no flag says otherwise.
const coverSeeds, freshSeconds = 4000, 10
