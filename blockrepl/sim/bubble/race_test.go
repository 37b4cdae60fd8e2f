//go:build race

package bubble

const coverSeeds = 0
