//go:build !race

package bubble

// coverSeeds is how many seeds TestCoverage plays.
const coverSeeds = 250
