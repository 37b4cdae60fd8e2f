// Package blockrepl replicates volumes between servers.
package blockrepl
