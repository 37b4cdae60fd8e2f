//go:build race

package sim

// A schedule has one goroutine, so the race detector finds nothing and takes ten
// times as long.
const coverSeeds, freshSeconds = 60, 5
