package blockrepl

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
)

func TestLinesThatComeAgainAndAgainAreLeftOutButTheNewest(t *testing.T) {
	var q quiet
	var got []string
	say := func(at time.Duration, key, text string) {
		q.say(replica.Time(at), key, func(left int) { got = append(got, fmt.Sprintf("%v %s %d", at, text, left)) })
	}
	late := func(at time.Duration) { callAll(q.due(replica.Time(at), false)) }
	want := func(lines ...string) {
		t.Helper()
		if !slices.Equal(got, lines) {
			t.Errorf("got %q, want %q", got, lines)
		}
		got = nil
	}
	var burst []string
	for i := range quietBurst {
		say(time.Second, "a", "x")
		burst = append(burst, "1s x 0")
		say(time.Second, fmt.Sprint("other", i), "y") // has a burst of its own
		burst = append(burst, "1s y 0")
	}
	want(burst...)
	say(2*time.Second, "a", "x2")
	say(50*time.Second, "a", "x3")
	late(time.Minute)
	want()
	late(time.Minute + time.Second)
	want("50s x3 1") // the newest, without the one that it replaced
	late(90 * time.Second)
	say(95*time.Second, "a", "x4")
	want()
	say(2*time.Minute+2*time.Second, "a", "x5") // nobody came by in time
	want("2m2s x5 1")
	say(4*time.Minute, "a", "x6") // it had been quiet
	say(4*time.Minute, "a", "x7")
	want("4m0s x6 0", "4m0s x7 0")
	for range quietBurst {
		say(5*time.Minute-1, "a", "x8")
	}
	got = nil
	callAll(q.due(replica.Time(5*time.Minute-1), true)) // the server stops
	want("4m59.999999999s x8 1")
	late(time.Hour)
	if len(q.spates) != 0 {
		t.Errorf("%d kinds are kept that are over", len(q.spates))
	}
}

func TestMoreKindsOfLinesThanAreCountedPass(t *testing.T) {
	var q quiet
	n := 0
	for i := range 2 * quietKeys {
		for range 2 * quietBurst {
			q.say(1, fmt.Sprint(i), func(int) { n++ })
		}
	}
	if want := quietKeys*quietBurst + quietKeys*2*quietBurst; n != want || len(q.spates) != quietKeys {
		t.Errorf("%d lines of %d kinds, want %d", n, len(q.spates), want)
	}
}

func TestLinkThatBreaksIsToldOnceAMinute(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lived time.Duration // of each link, a second after the one before
		links int
		want  []int // what is told, in turn
	}{
		{"a few", time.Second, flapMany - 1, nil},
		{"many", time.Second, 100, []int{flapMany, 30, 30, 30}},
		{"each lives long", flapLife, 100, nil},
		{"each lives almost long", flapLife - 1, flapMany + 3, []int{flapMany, 2}},
	} {
		var f flaps
		var got []int
		now := replica.Time(time.Hour)
		for range tt.links {
			now = now.Add(tt.lived + time.Second)
			if n := f.broke(now, tt.lived, "reset"); n > 0 {
				got = append(got, n)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: told %v, want %v", tt.name, got, tt.want)
		}
		if row := f.over(); row > 0 != (tt.want != nil) || f.over() != 0 {
			t.Errorf("%s: at the end %d are told", tt.name, row)
		}
	}
}

// A server that answers and does not agree, and then is not there, in turns, was told
// of each time.
func TestTroublesThatTakeTurnsAreToldOnceAMinute(t *testing.T) {
	var log bytes.Buffer
	now := replica.Time(time.Hour)
	ls := &links{ctx: t.Context(), s: &Server{opt: Options{
		Logger: slog.New(slog.NewTextHandler(&log, nil)), Clock: func() replica.Time { return now }}}}
	p := &peerLink{}
	for range 600 { // two minutes
		now = now.Add(200 * time.Millisecond)
		p.troubled(ls, errors.New("a handshake that ends"))
		p.troubled(ls, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
	}
	if n := strings.Count(log.String(), "\n"); n < 2 || n > 6 {
		t.Errorf("%d lines, want two a minute:\n%s", n, log.String())
	}
}

// What had been told before another trouble, and came back within the minute, was never
// told again: the log's last word was the other one.
func TestTroubleThatLastsIsTheLogsLastWord(t *testing.T) {
	var log bytes.Buffer
	now := replica.Time(time.Hour)
	ls := &links{ctx: t.Context(), s: &Server{opt: Options{
		Logger: slog.New(slog.NewTextHandler(&log, nil)), Clock: func() replica.Time { return now }}}}
	p := &peerLink{id: mustID("b")}
	dial := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	p.troubled(ls, dial)
	p.troubled(ls, errors.New("a handshake that ends"))
	for range 120 {
		now = now.Add(time.Second)
		p.troubled(ls, dial)
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[2], "not reached") {
		t.Errorf("got %q, want the trouble that lasts at the end", lines)
	}

	// A link that holds ends it all: the next time is news.
	l := &link{links: ls, peer: p, up: now, conn: nil}
	l.holds(now.Add(flapLife))
	log.Reset()
	if p.troubled(ls, dial); !strings.Contains(log.String(), "not reached") {
		t.Error("a server that is gone, after a link that held, was not told")
	}
}

// Lines of several kinds that waited came out in any order.
func TestLateLinesComeInTheirOrder(t *testing.T) {
	for range 20 {
		var q quiet
		var got []int
		for range quietBurst {
			for k := range 8 {
				q.say(1, fmt.Sprint(k), func(int) {})
			}
		}
		for k := range 8 {
			q.say(replica.Time(2+k), fmt.Sprint((k*5)%8), func(int) { got = append(got, k) })
		}
		callAll(q.due(replica.Time(2*time.Minute), false))
		if want := []int{0, 1, 2, 3, 4, 5, 6, 7}; !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	if a, b := kindOf(noSpace, nil), kindOf(spaceAgain, nil); a != b {
		t.Errorf("%q and %q are two kinds, and the last word may be the older one", a, b)
	}
}
