package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Each server with clocks of its own, as on machines of their own. All servers of one
// host else read the same monotonic and boot-time clock, also across restarts, and a
// server that kept such a time on its disk, or told one to another server, would pass
// every test here and fail where it matters.
//
// A time namespace shifts both clocks for the processes in it, so most starts are in
// a new one: the clocks of that server's next life are years ahead of its last one's,
// or behind it, as after a reboot. What runs keeps its clocks; the kernel shifts none
// below a process.
//
// The wall clock is not among them: CLOCK_REALTIME has no namespace, so to set it is to
// set the whole machine's, under everything else that runs there; and the program is
// static and reads the clock without a system call, so there is no library and no call
// to put something in between. A switch in the program for this test only would be a
// switch too many. Clocks on the wall that jump while a server runs are played against
// whole servers in blockrepl/sim/bubble (its fault "wall").

const (
	clockAhead = 80 * 365 * 24 * time.Hour // the kernel takes up to 146 years in all
	clockSlept = 30 * 24 * time.Hour       // what a boot-time clock is ahead of a monotonic one
)

// newClocks reports whether this kernel lets a program start with other clocks. It may
// without the namespace (CONFIG_TIME_NS), or enter it at fork only and not at exec.
func newClocks(t *testing.T) bool {
	t.Helper()
	need(t, "unshare")
	const ahead = 1_000_000
	out, err := tryTool("unshare", append(clockArgs(ahead, ahead), "cat", "/proc/uptime")...)
	uptime, _ := strconv.ParseFloat(strings.SplitN(out, " ", 2)[0], 64)
	if err != nil || uptime < ahead {
		t.Logf("no clocks of their own: `unshare --time` does not shift them on this kernel: %v %s", err, out)
		return false
	}
	return true
}

func clockArgs(monotonic, boot int64) []string {
	return []string{"--time", "--monotonic", fmt.Sprint(monotonic), "--boottime", fmt.Sprint(boot)}
}

// clock draws the clocks of a server's next life: what goes before its program.
func (x *chaos) clock() []string {
	which, part, slept := x.rng.IntN(4), x.rng.Float64(), x.rng.Int64N(int64(clockSlept/time.Second))
	if !x.clocks {
		return nil
	}
	var shift int64 // s
	switch which {
	case 0:
		return nil // this host's
	case 1: // behind: a machine that was booted between now and when this one was
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			x.t.Fatal(err)
		}
		shift = -int64(part * float64(now.Sec))
	default:
		shift = int64(part * float64(clockAhead/time.Second))
	}
	x.done["start with other clocks"]++
	return append([]string{"unshare"}, clockArgs(shift, shift+slept)...)
}

// prefix is what goes before a server's program at its next start.
func (x *chaos) prefix(id string) []string { return append(x.n.prefix(id), x.clock()...) }

func (x *chaos) start(s *server) {
	s.prefix = x.prefix(s.id)
	s.start()
}

// clocksShifted looks whether the servers that run have the clocks that were drawn.
func (x *chaos) clocksShifted() {
	x.t.Helper()
	here, err := os.Readlink("/proc/self/ns/time")
	if err != nil && x.clocks {
		x.t.Error(err)
	}
	for _, s := range x.c.servers {
		if !s.running() || !x.clocks {
			continue
		}
		there, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/time", s.cmd.Process.Pid))
		if err != nil {
			x.t.Error(err)
		}
		if drawn := len(s.prefix) > len(x.n.prefix(s.id)); drawn != (there != here) {
			x.t.Errorf("server %s, started by %v, has the clocks %s; this process has %s", s.id, s.prefix, there, here)
		}
	}
}
