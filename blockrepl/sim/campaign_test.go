package sim

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	schedules    = flag.Int("schedules", 0, "how many schedules to play; 0: as many as -length allows")
	lengthFlag   = flag.Duration("length", freshSeconds*time.Second, "how long to play schedules")
	fromFlag     = flag.Uint64("from", 0, "the first seed; 0: drawn from the clock")
	failuresFlag = flag.String("failures", "", "append what fails to this file (an absolute path) at once, and go on with the next schedule")
)

const (
	// failuresMax ends a campaign with -failures that fails this often.
	failuresMax = 20
	// restlessEvery: one schedule of so many is a restless one.
	restlessEvery = 5
	// progressEvery is how often a campaign with -failures says how far it is.
	progressEvery = 5 * time.Minute
)

// TestSchedules plays fresh seeds. A failing one is printed, with what is left of
// it when it is shortened; with -failures it is written down before anything else
// is done, and the campaign goes on.
func TestSchedules(t *testing.T) {
	c := &campaign{t: t, began: time.Now(), marks: &Marks{}, first: *fromFlag}
	if c.first == 0 {
		c.first = uint64(c.began.UnixNano())
	}
	t.Logf("first seed %d", c.first)
	c.note("# campaign from seed %d", c.first)
	said := c.began
	for ; *schedules > 0 && c.played < *schedules || *schedules == 0 && time.Since(c.began) < *lengthFlag; c.played++ {
		opt := options()
		opt.Restless = opt.Restless || c.played%restlessEvery == restlessEvery-1
		opt.Marks = c.marks
		s := New(c.first+uint64(c.played), opt)
		f := s.Run()
		if f == nil && s.Seed%judgeEvery == 0 {
			f = c.judge(s)
		}
		c.events += s.events
		c.committed += int(s.truth.last())
		if f != nil {
			c.fail(f, opt)
			if *failuresFlag == "" || c.failed >= failuresMax {
				c.played++
				break
			}
		}
		if time.Since(said) > progressEvery {
			said = time.Now()
			c.note("# so far %v", c)
		}
	}
	c.note("# ends: %v", c)
	t.Logf("%v\n%v", c, c.marks)
}

// campaign counts what TestSchedules played.
type campaign struct {
	t      *testing.T
	began  time.Time
	first  uint64
	marks  *Marks
	played int
	failed int

	judged            int // by porcupine, too
	undecided         int // of those, within its bound
	events, committed int
}

func (c *campaign) String() string {
	return fmt.Sprintf("%d schedules from seed %d, %d failed, %d events, %.0f events/s, %d records committed, %d judged as registers, %d of them undecided",
		c.played, c.first, c.failed, c.events, float64(c.events)/time.Since(c.began).Seconds(), c.committed, c.judged, c.undecided)
}

// judge has porcupine look at a schedule that broke no rule.
func (c *campaign) judge(s *Sim) *Failure {
	ops, decided := s.judge()
	if ops > 0 {
		c.judged++
	}
	if !decided {
		c.undecided++
	}
	return s.failure
}

// fail notes a failing seed: first that it failed, then what can be found out.
func (c *campaign) fail(f *Failure, opt Options) {
	c.failed++
	c.note("FAIL %v", f)
	text := report(f, opt)
	c.t.Error(text)
	c.note("%s\n", strings.TrimPrefix(text, f.Error()+"\n"))
}

// note appends to the file of -failures. Several campaigns may share one.
func (c *campaign) note(format string, args ...any) {
	if *failuresFlag == "" {
		return
	}
	f, err := os.OpenFile(*failuresFlag, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		c.t.Fatalf("note a failing schedule: %v", err)
	}
	_, err = fmt.Fprintf(f, format+"\n", args...)
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		c.t.Fatalf("note a failing schedule: %v", err)
	}
}

// report is all that is known of a failing seed that was played with opt: the
// broken rule, what happened last, how to replay it, and what is left of it when
// it is shortened.
func report(f *Failure, opt Options) string {
	replay := func(opt Options) string {
		line := fmt.Sprintf("go test ./blockrepl/sim -run TestSeed -v -seed %d", f.Seed)
		if opt.Length > 0 {
			line += fmt.Sprintf(" -faults-for %v", opt.Length)
		}
		if opt.Restless {
			line += " -restless"
		}
		if opt.KeepCache {
			line += " -keep-cache"
		}
		if len(opt.Off) > 0 {
			line += " -off " + strings.Join(opt.Off, ",")
		}
		return line
	}
	out := f.Error() + "\nreplay: " + replay(opt)
	short, g := shorten(f, opt)
	if g == nil {
		return out + "\nnothing of it can be left out"
	}
	return out + "\nshortened: " + replay(short) + "\n" + g.Error()
}

// shorten looks which faults a failing seed needs, and for how long: what it
// returns breaks the same rule. nil: nothing can be left out.
func shorten(f *Failure, opt Options) (Options, *Failure) {
	var found *Failure
	try := func(o Options) bool {
		g := New(f.Seed, o).Run()
		if g == nil || g.Rule != f.Rule {
			return false
		}
		opt, found = o, g
		return true
	}
	opt.Marks = nil
	for kind := range faults {
		o := opt
		o.Off = append(slices.Clone(opt.Off), kind.String())
		try(o)
	}
	for l := 200 * time.Millisecond; l < 4*time.Second; l += 200 * time.Millisecond {
		o := opt
		o.Length = l
		if try(o) {
			break
		}
	}
	return opt, found
}
