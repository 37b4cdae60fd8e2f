package main

import "testing"

// Bug: an image of which all is allocated was said to lack 400 MiB, as one that is
// empty does.
func TestReserveIsNoMoreThanTheImagesCanTake(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		what       string
		r          room
		keep, full int64
	}{
		{"allocated, in place", room{}, 16 * mib, 16 * mib},
		{"a little is left", room{grow: 10 * mib}, 26 * mib, 16 * mib},
		{"sparse", room{grow: 1 << 40}, 272 * mib, 16 * mib},
		{"copy on write", room{spare: 1 << 60}, 272 * mib, 272 * mib},
		{"beside the journal", room{grow: 10 * mib, journal: journalReserve}, 400 * mib, 400 * mib},
	} {
		if keep, full := c.r.keep(), c.r.full(); keep != c.keep || full != c.full {
			t.Errorf("%s: %d must be free now and %d at the end, want %d and %d", c.what, keep, full, c.keep, c.full)
		}
	}
}
