package blockrepl

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
)

// rotten starts two servers of which the second's image has a bad block that verify
// has found.
func rotten(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t, 2, nil)
	c.start(0, 1)
	c.connect(0, "client").write(0, noise(seeded(t), 1<<20))
	c.awaitHealthy(0, 1)
	c.equalImages(0, 1)
	rot(t, c, 1, 5<<20+77)
	if rep := c.verify(1, false); rep.DifferentBytes != resyncBlock {
		t.Fatalf("one rotten block: %+v", rep)
	}
	return c
}

// wantFinding waits until server i says what verify found.
func (c *cluster) wantFinding(i int, next string) {
	c.t.Helper()
	st := c.await(i, "degraded by what verify found", func(s VolumeStatus) bool {
		return s.State == StateDegraded && strings.Contains(s.Reason, "verify found 1 differing extents at number")
	})
	if !strings.Contains(st.Next, next) || st.Verify == nil || st.Verify.DifferentBytes != resyncBlock || st.Verify.Source != "a" {
		c.t.Errorf("next %q, want %q; verify %+v", st.Next, next, st.Verify)
	}
	rec := httptest.NewRecorder()
	c.servers[i].AdminHandler().ServeHTTP(rec, httptest.NewRequestWithContext(c.t.Context(), "GET", "/metrics", nil))
	for _, want := range []string{
		`blockrepl_volume_state{state="degraded",volume="vol0"} 1`,
		fmt.Sprintf(`blockrepl_volume_verify_different_bytes{volume="vol0"} %d`, resyncBlock),
	} {
		if !strings.Contains(rec.Body.String(), want) {
			c.t.Errorf("metrics lack %s", want)
		}
	}
}

// wantNoFinding waits until server i is healthy, also after a restart.
func (c *cluster) wantNoFinding(i int) {
	c.t.Helper()
	for range 2 {
		c.awaitHealthy(i)
		if st := c.status(i); st.Verify != nil {
			c.t.Errorf("still found: %+v", st.Verify)
		}
		c.stop(i, false)
		c.start(i)
	}
}

// A slave whose image verify had found to differ called itself healthy.
func TestWhatVerifyFoundIsNamedUntilItIsRepaired(t *testing.T) {
	c := rotten(t)
	const next = "blockrepl verify vol0 --repair"
	c.wantFinding(1, next)
	c.awaitHealthy(0)
	c.kill(1)
	c.start(1)
	c.wantFinding(1, next)
	if rep := c.verify(1, false); rep.DifferentBytes != resyncBlock {
		t.Errorf("verify again: %+v", rep)
	}
	c.wantFinding(1, next)
	if rep := c.verify(1, true); !rep.Repaired {
		t.Errorf("repair: %+v", rep)
	}
	c.wantNoFinding(1)
}

// The image may have become equal in another way, as by a write over the bad block.
func TestWhatVerifyFoundGoesWhenALaterOneFindsItEqual(t *testing.T) {
	c := rotten(t)
	c.wantFinding(1, "--repair")
	rot(t, c, 1, 5<<20+77) // flips it back
	if rep := c.verify(1, false); rep.DifferentBytes != 0 {
		t.Errorf("equal images: %+v", rep)
	}
	c.wantNoFinding(1)
}

func TestWhatVerifyFoundGoesWithAResync(t *testing.T) {
	c := rotten(t)
	c.stop(1, false)
	c.start(1)
	c.wantFinding(1, "--repair")
	rot(t, c, 1, 0) // a block that is looked at when it starts
	c.kill(1)
	c.start(1)
	c.await(1, "diverged", func(s VolumeStatus) bool { return s.State == StateDiverged })
	if err := c.forget(0, "b", true); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(0, 1)
	c.wantNoFinding(1)
	c.equalImages(0, 1)
}

// On a master nothing can be repaired: another one must be it first.
func TestMasterNamesWhatVerifyFoundWhenItWasASlave(t *testing.T) {
	c := rotten(t)
	if _, err := c.promote(1, replica.Promote{}); err != nil {
		t.Fatal(err)
	}
	c.await(1, "master", func(s VolumeStatus) bool { return s.Role == "master" })
	c.wantFinding(1, "on another server that is in sync: blockrepl promote vol0; then here: blockrepl verify vol0, with --repair")
}

// A verify that was interrupted has not seen all, and one of before a resync speaks of
// another image.
func TestVerifyThatDidNotSeeTheWholeImageClearsNothing(t *testing.T) {
	c := rotten(t)
	v := c.vol(1)
	began := v.finding.begin()
	v.finding.concluded(v, began, &VerifyReport{}, errors.New("interrupted"))
	c.wantFinding(1, "--repair")
	v.finding.resynced(v)
	c.awaitHealthy(1)
	v.finding.concluded(v, began, &VerifyReport{DifferentBytes: 512, Different: []DifferentExtent{{0, 512}}}, nil)
	c.wantNoFinding(1)
}

// Bug: a flipped bit in what verify had found, which is for status only, kept the server
// out of the volume.
func TestDamagedFindingIsToldAndCostsNothingElse(t *testing.T) {
	c := newCluster(t, 2, nil)
	warned := make(chan struct{}, 10)
	c.change = func(o *Options) {
		o.Logger = slog.New(slog.NewTextHandler(lineWriter(func(line []byte) {
			if bytes.Contains(line, []byte("run `blockrepl verify` again")) {
				warned <- struct{}{}
			}
		}), nil))
	}
	c.start(0, 1)
	c.connect(0, "client").write(0, noise(seeded(t), 1<<20))
	c.awaitHealthy(0, 1)
	c.equalImages(0, 1)
	rot(t, c, 1, 5<<20+77)
	if rep := c.verify(1, false); rep.DifferentBytes != resyncBlock {
		t.Fatalf("one rotten block: %+v", rep)
	}
	uuid := *c.vol(1).uuid.Load()
	c.stop(1, false)
	c.spoilMeta(1, append(append([]byte{'m'}, uuid[:]...), keyVerify...))
	wantWarnings := func(want int) {
		t.Helper()
		c.start(1)
		c.awaitHealthy(1)
		if got := len(warned); got != want {
			t.Errorf("%d warnings in a start, want %d", got, want)
		}
		for len(warned) > 0 {
			<-warned
		}
	}
	wantWarnings(1)
	v := c.vol(1)
	v.finding.concluded(v, v.finding.begin(), &VerifyReport{}, errors.New("interrupted"))
	c.stop(1, false)
	wantWarnings(1)        // nobody looked at the whole image since
	rot(t, c, 1, 5<<20+77) // flips it back
	if rep := c.verify(1, false); rep.DifferentBytes != 0 {
		t.Fatalf("equal images: %+v", rep)
	}
	c.stop(1, false)
	wantWarnings(0)
}
