package sim

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "replay this seed with its whole trace")
	offFlag    = flag.String("off", "", "faults that never strike, by name, separated by commas")
	restless   = flag.Bool("restless", false, "play schedules in which masterships change hands all the time")
	keepCache  = flag.Bool("keep-cache", false, "let a resync compare what the page cache shows after a failed fsync, which breaks rules")
	faultsFlag = flag.Duration("faults-for", 0, "how long faults strike; 0: drawn from the seed")
)

// options are what the flags say of every schedule.
func options() Options {
	opt := Options{Length: *faultsFlag, Restless: *restless, KeepCache: *keepCache}
	if *offFlag != "" {
		opt.Off = strings.Split(*offFlag, ",")
	}
	return opt
}

// TestSeed replays one seed: go test ./blockrepl/sim -run TestSeed -seed N -v.
// Without -seed it replays those that once failed.
func TestSeed(t *testing.T) {
	if *seedFlag == 0 {
		for _, seed := range saved {
			replaySaved(t, seed, Options{})
		}
		for _, seed := range savedRestless {
			replaySaved(t, seed, Options{Restless: true})
		}
		return
	}
	s := New(*seedFlag, options())
	s.Log = func(line string) { fmt.Println(line) }
	t.Logf("%+v", s.prof)
	if f := s.Run(); f != nil {
		t.Fatal(f)
	}
	if s.judge(); s.failure != nil {
		t.Fatal(s.failure)
	}
	t.Logf("%d events, %v virtual, %d committed", s.events, time.Duration(s.now), s.truth.last())
}

// replaySaved plays a seed as it is today and, where that has faults that were unknown
// when it was saved, as it was.
func replaySaved(t *testing.T, seed uint64, opt Options) {
	s := New(seed, opt)
	if f := s.Run(); f != nil {
		t.Error(f)
	}
	if s.prof.sick == 0 {
		return
	}
	opt.Off = []string{fSickImage.String()}
	if f := New(seed, opt).Run(); f != nil {
		t.Errorf("without %v: %v", fSickImage, f)
	}
}

// TestCoverage plays fixed seeds and looks what they tried: a schedule that meets
// no fault in the state where it hurts proves nothing.
func TestCoverage(t *testing.T) {
	marks := &Marks{}
	for seed := uint64(1); seed <= coverSeeds; seed++ {
		if f := New(seed, Options{Marks: marks}).Run(); f != nil {
			t.Fatal(report(f, Options{}))
		}
	}
	t.Logf("%d schedules\n%v", coverSeeds, marks)
	if coverSeeds < 1000 {
		return
	}
	for _, miss := range marks.missing() {
		t.Errorf("never tried in %d schedules: %s", coverSeeds, miss)
	}
}
