package journal

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

func TestFatalfNeverReturns(t *testing.T) {
	var told error
	l := &logger{log: slog.New(slog.DiscardHandler), fatal: func(err error) { told = err }}
	defer func() {
		var f *FatalError
		err, _ := recover().(error)
		if !errors.As(err, &f) || f.Reason != "manifest 7" || !errors.Is(told, f) {
			t.Errorf("panic with %v, hook told %v", err, told)
		}
	}()
	l.Fatalf("manifest %d", 7)
	t.Error("Fatalf returned although its hook did")
}

func TestErrorsOfPebbleAreLoggedOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := &logger{log: slog.New(slog.NewTextHandler(&out, nil))}
		for range 500 {
			l.Errorf("no space left")
		}
		time.Sleep(logEvery)
		l.Errorf("no space left")
		if got := strings.Count(out.String(), "\n"); got != 2 || !strings.Contains(out.String(), "suppressed=499") {
			t.Errorf("%d lines, want 2, the second with 499 suppressed:\n%s", got, out.String())
		}
	})
}

func TestNothingWorksAfterClose(t *testing.T) {
	j := mustOpen(t, options(t, vfs.NewMem()))
	l := mustLog(t, j, vol1)
	mustWrite(t, l, Batch{Records: chain(vol1, record.Pos{}, 3, 100)})
	mustClose(t, j)
	if err := j.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	_, errLog := j.Log(vol1)
	_, errVolumes := j.Volumes()
	_, errWrite := l.Write(Batch{})
	_, errGet := l.Get(1)
	_, errRead := l.Read(1, 3, 1, nil)
	_, _, errMeta := l.Meta("k")
	_, errAll := l.MetaAll()
	_, errVerify := l.Verify(t.Context(), nil)
	_, errQuarantines := l.Quarantines()
	for name, err := range map[string]error{
		"Log": errLog, "Volumes": errVolumes, "Write": errWrite, "Get": errGet, "Read": errRead, "Meta": errMeta, "MetaAll": errAll,
		"Verify": errVerify, "Quarantines": errQuarantines, "Trim": l.Trim(1), "DropVolume": j.DropVolume(vol1),
		"Replace": l.Replace(chain(vol1, record.Pos{}, 1, 100)[0]), "DropQuarantine": l.DropQuarantine("q"),
		"ReadQuarantine": l.ReadQuarantine("q", nil),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", name, err)
		}
	}
}
