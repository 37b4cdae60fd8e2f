// Package wire is how blockrepl's servers speak with each other: the messages,
// their encoding, and the frames that carry them.
package wire
