package sim

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "replay this seed with its whole trace")
	schedules  = flag.Int("schedules", 0, "how many schedules to play; 0: as many as -length allows")
	lengthFlag = flag.Duration("length", freshSeconds*time.Second, "how long to play schedules")
	fromFlag   = flag.Uint64("from", 0, "the first seed; 0: drawn from the clock")
	offFlag    = flag.String("off", "", "faults that never strike, by name, separated by commas")
)

func off() []string {
	if *offFlag == "" {
		return nil
	}
	return strings.Split(*offFlag, ",")
}

// TestSeed replays one seed: go test ./blockrepl/sim -run TestSeed -seed N -v.
// Without -seed it replays those that once failed.
func TestSeed(t *testing.T) {
	if *seedFlag == 0 {
		for _, seed := range saved {
			if f := New(seed, Options{}).Run(); f != nil {
				t.Error(f)
			}
		}
		return
	}
	s := New(*seedFlag, Options{Off: off()})
	s.Log = func(line string) { fmt.Println(line) }
	t.Logf("%+v", s.prof)
	if f := s.Run(); f != nil {
		t.Fatal(f)
	}
	t.Logf("%d events, %v virtual, %d committed", s.events, time.Duration(s.now), s.truth.last())
}

// TestSchedules plays fresh seeds. A failing one is shortened and printed.
func TestSchedules(t *testing.T) {
	began := time.Now()
	first := *fromFlag
	if first == 0 {
		first = uint64(began.UnixNano())
	}
	t.Logf("first seed %d", first)
	marks := &Marks{}
	events, played, committed := 0, 0, 0
	for ; *schedules > 0 && played < *schedules || *schedules == 0 && time.Since(began) < *lengthFlag; played++ {
		s := New(first+uint64(played), Options{Marks: marks, Off: off()})
		f := s.Run()
		events += s.events
		committed += int(s.truth.last())
		if f != nil {
			t.Fatalf("%v\n%s", f, shorten(f))
		}
	}
	took := time.Since(began)
	t.Logf("%d schedules, %d events, %.0f events/s, %d records committed\n%v", played, events, float64(events)/took.Seconds(), committed, marks)
}

// TestCoverage plays fixed seeds and looks what they tried: a schedule that meets
// no fault in the state where it hurts proves nothing.
func TestCoverage(t *testing.T) {
	marks := &Marks{}
	for seed := uint64(1); seed <= coverSeeds; seed++ {
		if f := New(seed, Options{Marks: marks}).Run(); f != nil {
			t.Fatalf("%v\n%s", f, shorten(f))
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

// shorten looks which faults a failing seed needs, and how long.
func shorten(f *Failure) string {
	opt := Options{}
	for kind := range faults {
		try := opt
		try.Off = append(slices.Clone(opt.Off), kind.String())
		if g := New(f.Seed, try).Run(); g != nil && g.Rule == f.Rule {
			opt = try
		}
	}
	for l := 200 * time.Millisecond; l < 4*time.Second; l += 200 * time.Millisecond {
		try := opt
		try.Length = l
		if g := New(f.Seed, try).Run(); g != nil && g.Rule == f.Rule {
			opt = try
			break
		}
	}
	out := fmt.Sprintf("replay: go test ./blockrepl/sim -run TestSeed -v -seed %d\nit also fails with", f.Seed)
	if opt.Length > 0 {
		out += fmt.Sprintf(" faults for %v and", opt.Length)
	}
	return out + " -off " + strings.Join(opt.Off, ",")
}
