package main

import (
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/nbd"
)

// Zeroes stayed allocated whatever the client allowed, and what had been read of them
// was shown as data by block status.
func TestZeroesBecomeAHoleWhereTheClientAllowsIt(t *testing.T) {
	for _, tt := range []struct {
		r    nbd.Write
		want blockrepl.OpKind
	}{
		{nbd.Write{Op: nbd.OpZero, Len: 1 << 20}, blockrepl.OpTrim},
		{nbd.Write{Op: nbd.OpZero, Len: 1 << 20, NoHole: true}, blockrepl.OpZero},
		{nbd.Write{Op: nbd.OpZero, Len: 4096}, blockrepl.OpZero},
		{nbd.Write{Op: nbd.OpTrim, Len: 512}, blockrepl.OpTrim},
		{nbd.Write{Op: nbd.OpWrite, Len: 1 << 20}, blockrepl.OpWrite},
	} {
		if got := opKind(&tt.r); got != tt.want {
			t.Errorf("%+v becomes kind %d, want %d", tt.r, got, tt.want)
		}
	}
}
