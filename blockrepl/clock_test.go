package blockrepl

import (
	"testing"
	"time"
)

func TestClockSeesASuspendAndAsksTheKernelForNothingElse(t *testing.T) {
	const ms, s = int64(time.Millisecond), int64(time.Second)
	var wall, mono, slept, asked int64 = 1000 * s, 0, 7 * s, 0
	c := &clock{
		now:  func() (int64, int64) { return wall, mono },
		boot: func() int64 { asked++; return mono + slept },
	}
	pass := func(d int64) { wall, mono = wall+d, mono+d }
	for _, step := range []struct {
		what  string
		do    func()
		asked int64
	}{
		{"first", func() {}, 1},
		{"a moment", func() { pass(ms / 4) }, 0},
		{"an hour", func() { pass(3600 * s) }, 0},
		{"a suspend", func() { wall, slept = wall+30*s, slept+30*s }, 1},
		{"after it", func() { pass(10 * ms) }, 0},
		{"a short suspend", func() { wall, slept = wall+2*ms, slept+2*ms }, 1},
		{"wall clock set back", func() { wall -= 3600 * s }, 1},
		{"after that", func() { pass(s) }, 0},
		{"a suspend in which somebody set the wall clock, too", func() { wall, slept = wall-5*s, slept+30*s }, 1},
	} {
		before := asked
		step.do()
		if got, want := int64(c.read()), mono+slept; got != want {
			t.Errorf("%s: %d, want %d", step.what, got, want)
		}
		if asked-before != step.asked {
			t.Errorf("%s: the kernel was asked %d times, want %d", step.what, asked-before, step.asked)
		}
	}
}

// Whoever is put aside between the readings must not leave a wrong difference behind.
func TestClockKeepsNoDifferenceThatWasReadSlowly(t *testing.T) {
	var wall, mono, slow int64 = 1e12, 0, 50 * int64(time.Millisecond)
	c := &clock{
		now:  func() (int64, int64) { return wall, mono },
		boot: func() int64 { wall, mono = wall+slow, mono+slow; return mono + 5 },
	}
	for i := range 3 {
		if got := int64(c.read()); got != mono+5 {
			t.Fatalf("reading %d: %d, the clock was at %d", i, got, mono+5)
		}
	}
	slow = 0
	c.read()
	slow = int64(time.Hour)
	for i := range 3 {
		wall, mono = wall+1000, mono+1000
		if got := int64(c.read()); got != mono+5 {
			t.Fatalf("later reading %d: %d, want %d", i, got, mono+5)
		}
	}
}

func TestClockAgreesWithTheKernel(t *testing.T) {
	c := newClock()
	last := c.read()
	for range 10000 {
		before := bootTime()
		got := c.read()
		if int64(got) < before-int64(time.Microsecond) || int64(got) < int64(last)-clockStep/8 {
			t.Fatalf("%d after %d, and the kernel said %d before", got, last, before)
		}
		last = got
	}
}

func BenchmarkClock(b *testing.B) {
	b.Run("kernel", func(b *testing.B) {
		for range b.N {
			bootTime()
		}
	})
	c := newClock()
	b.Run("cheap", func(b *testing.B) {
		for range b.N {
			c.read()
		}
	})
}
