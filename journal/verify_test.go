package journal

import (
	"context"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Verify gave each record's buffer back before Read had counted its bytes: Read's
// bound never came, one iterator went over the whole journal (and kept what was
// trimmed meanwhile on disk), and nobody could stop it.
func TestVerifyStopsWithItsContext(t *testing.T) {
	j := mustOpen(t, options(t, vfs.NewMem()))
	l := mustLog(t, j, vol1)
	mustWrite(t, l, Batch{Records: chain(vol1, record.Pos{}, 64, 256<<10)}) // 16 MiB
	looks := 0
	if _, err := l.Verify(t.Context(), func(record.Seq) { looks++ }); err != nil {
		t.Fatal(err)
	}
	if looks < 8 {
		t.Errorf("16 MiB were verified in %d reads of 1 MiB", looks)
	}
	ctx, cancel := context.WithCancel(t.Context())
	seen := record.Seq(0)
	_, err := l.Verify(ctx, func(seq record.Seq) { seen = seq; cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Verify of a caller who went away after record %d of 64: %v", seen, err)
	}
}

// An fn that takes its time, as an asker's network may, holds nothing of the database:
// it can be closed, and later reads are refused. Pebble panicked.
func TestCloseWaitsForNoReader(t *testing.T) {
	for name, read := range map[string]func(*Log, func(*record.Record) error) error{
		"read": func(l *Log, fn func(*record.Record) error) error {
			_, err := l.Read(1, 64, 64<<20, fn)
			return err
		},
		"quarantine": func(l *Log, fn func(*record.Record) error) error { return l.ReadQuarantine("tail", fn) },
	} {
		t.Run(name, func(t *testing.T) {
			j := mustOpen(t, options(t, vfs.NewMem()))
			l := mustLog(t, j, vol1)
			recs := chain(vol1, record.Pos{}, 64, 64<<10)
			mustWrite(t, l, Batch{Records: recs})
			if name == "quarantine" {
				mustWrite(t, l, Batch{Cut: &Cut{After: record.Pos{}, Quarantine: "tail"}})
			}
			given := 0
			err := read(l, func(*record.Record) error {
				if given++; given > 1 {
					return nil
				}
				return j.Close()
			})
			if !errors.Is(err, ErrClosed) || given == 64 {
				t.Errorf("after Close %d of 64 records were given: %v, want %v", given, err, ErrClosed)
			}
			if n := j.DiskBytes(); n != 0 {
				t.Errorf("a closed journal has %d bytes on disk", n)
			}
			if _, _, err := l.Meta("k"); !errors.Is(err, ErrClosed) {
				t.Errorf("Meta of a closed journal: %v", err)
			}
		})
	}
}
