package main

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMedianAndSpreadOfSamples(t *testing.T) {
	for _, tc := range []struct {
		values           []float64
		median, min, max float64
	}{
		{[]float64{5}, 5, 5, 5},
		{[]float64{9, 1, 4}, 4, 1, 9},
		{[]float64{8, 2, 4, 6}, 5, 2, 8},
	} {
		s := newStat(tc.values)
		if s.median != tc.median || s.min != tc.min || s.max != tc.max {
			t.Errorf("stat of %v: got %+v, want median %g in %g..%g", tc.values, s, tc.median, tc.min, tc.max)
		}
	}
	if s := newStat(nil); !math.IsNaN(s.median) {
		t.Errorf("median of nothing: got %g, want not a number", s.median)
	}
}

func TestRatioSpansWhatTheSamplesAllow(t *testing.T) {
	got := newStat([]float64{90, 100, 110}).over(newStat([]float64{40, 50, 60}))
	if got.median != 2 || got.min != 1.5 || got.max != 2.75 {
		t.Errorf("got %+v, want 2 in 1.5..2.75", got)
	}
}

func TestFioResultWithFsyncCountsBoth(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "fio-fsync.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s Sample
	if err := parseFio(text, &s); err != nil {
		t.Fatal(err)
	}
	if s.Requests != 6411 || s.ClientBytes != 6411*4096 || s.IOPS != 6411 {
		t.Errorf("got %d requests, %d bytes, %g IOPS; want 6411 writes, the fsyncs not counted", s.Requests, s.ClientBytes, s.IOPS)
	}
	if s.P50Micros != 47+43 || s.P99Micros != 200+554 {
		t.Errorf("p50 %g, p99 %g; want 90 and 754: write and fsync together", s.P50Micros, s.P99Micros)
	}
	if s.ClientCPU != 0.5 {
		t.Errorf("client CPU %g s, want 25 %% of 2 s", s.ClientCPU)
	}
}

func TestFioFailureIsAnError(t *testing.T) {
	for _, text := range []string{``, `{}`, `{"jobs":[{"error":5,"read":{"total_ios":1}}]}`, `{"jobs":[{"error":0}]}`} {
		if err := parseFio([]byte(text), &Sample{}); err == nil {
			t.Errorf("result %q: got no error", text)
		}
	}
}

func TestProcessTimesBehindAStrangeName(t *testing.T) {
	stat := "7 (a) R (b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 100 1000000 300 18446744073709551615 1\n"
	cpu, rss, err := parseStat([]byte(stat))
	if err != nil {
		t.Fatal(err)
	}
	if cpu != 3*time.Second || rss != 300*int64(os.Getpagesize()) {
		t.Errorf("got %s and %d bytes, want 3 s and 300 pages", cpu, rss)
	}
	if _, _, err := parseStat([]byte("7 (x) S 1")); err == nil {
		t.Error("a short line: got no error")
	}
}

func TestOwnUsageIsReadable(t *testing.T) {
	u, err := readUsage(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	peak, err := peakMemory(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if u.rssBytes <= 0 || peak < u.rssBytes/2 {
		t.Errorf("got %d bytes resident and %d at most", u.rssBytes, peak)
	}
}

func TestSocketBytesAreSummed(t *testing.T) {
	text := "ESTAB 0 0 127.0.0.1:1 127.0.0.1:2\n\t cubic bytes_sent:100 bytes_acked:101 bytes_received:20 segs_out:3\n" +
		"ESTAB 0 0 127.0.0.1:1 127.0.0.1:3\n\t cubic bytes_received:3\n"
	if got := sumSocketBytes(text); got != 123 {
		t.Errorf("got %d, want 123", got)
	}
}

func TestLoopbackCopyMovesAllBytes(t *testing.T) {
	rate, err := copyTCP(t.Context(), 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	if rate <= 0 {
		t.Errorf("got %g bytes a second", rate)
	}
}

func TestReportSaysWhatWasMeasuredAndWhatNot(t *testing.T) {
	r := &Result{Version: resultVersion, Rounds: 1, Place: "a <disk>"}
	r.Samples = append(r.Samples, []Sample{
		{Job: "randwrite-4k-qd32", Peer: "nbdkit", IOPS: 40000, ClientBytes: 1 << 20, Requests: 256},
		{Job: "randwrite-4k-qd32", Peer: "blockrepl-3", IOPS: 30000, ClientBytes: 1 << 20, Requests: 256,
			CPUSeconds: map[string]float64{"a": 1, "b": 2}, DiskBytes: 2 << 20},
	}...)
	r.Specials = append(r.Specials, Special{Name: "failover", Value: 0.7, Unit: "s"})
	dir := t.TempDir()
	if err := r.write(filepath.Join(dir, "r.json")); err != nil {
		t.Fatal(err)
	}
	read, err := readResult(filepath.Join(dir, "r.json"))
	if err != nil {
		t.Fatal(err)
	}
	got := read.markdown()
	for _, want := range []string{
		"30,000 ×0.75",             // the speed table, with its ratio
		"a 1.00, b 2.00",           // the processes apart
		"of nbdkit and qemu-nbd",   // a target
		"0.75 |          met",      // one that is met
		"0.70 |       missed",      // one that is not
		"not measured", "a <disk>", // what is missing; where
		"| randwrite-4k-qd32 |", // the details
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the report lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
	if svg := read.svg(); !strings.Contains(svg, "×0.75") || !strings.Contains(svg, "a &lt;disk&gt;") || strings.Contains(svg, "NaN") {
		t.Errorf("the plot is not sound:\n%s", svg)
	}
}

func TestResultsOfAnotherVersionAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	if err := os.WriteFile(path, []byte(`{"version":99}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readResult(path); err == nil || !strings.Contains(err.Error(), "version 99") {
		t.Errorf("got %v, want an error that names version 99", err)
	}
}

func TestTargetsAreJudgedInTheirDirection(t *testing.T) {
	one := func(v float64) stat { return newStat([]float64{v}) }
	least, most := target{goal: 2, least: true}, target{goal: 2}
	for _, tc := range []struct {
		t     *target
		value float64
		want  string
	}{
		{&least, 3, "met"}, {&least, 2, "met"}, {&least, 1, "missed"},
		{&most, 3, "missed"}, {&most, 2, "met"}, {&most, 1, "met"}, {&most, math.NaN(), "not measured"},
	} {
		if got := tc.t.verdict(one(tc.value)); got != tc.want {
			t.Errorf("%g against %g, least %t: got %s, want %s", tc.value, tc.t.goal, tc.t.least, got, tc.want)
		}
	}
}

func TestDiskTargetIsNotJudgedInMemory(t *testing.T) {
	about := target{disk: true, goal: 1, value: func(*Result) stat { return newStat([]float64{1}) }}
	if _, got := about.judge(&Result{Place: "ext4 on a loop device in memory"}); got != "needs a disk" {
		t.Errorf("in memory: got %q", got)
	}
	if _, got := about.judge(&Result{Place: givenPlace + "/mnt"}); got != "met" {
		t.Errorf("in a given directory: got %q, want met", got)
	}
}

func TestBusyMachineIsSaid(t *testing.T) {
	for load, want := range map[string]bool{"0.40 0.2 0.1 1/99 7": false, "3.10 2 1 1/99 7": true, "": false} {
		r := &Result{Machine: Machine{Cores: 2, Load: load}}
		if got := strings.Contains(r.markdown(), "The machine was busy"); got != want {
			t.Errorf("load %q: said busy %t, want %t", load, got, want)
		}
	}
}

func TestContentIsHalfCompressible(t *testing.T) {
	buf := make([]byte, 1<<20)
	fillHalf(rand.NewChaCha8([32]byte{1}), buf)
	zero := 0
	for _, b := range buf {
		if b == 0 {
			zero++
		}
	}
	if zero < len(buf)/2 || zero > len(buf)*51/100 {
		t.Errorf("%d of %d bytes are zero, want half", zero, len(buf))
	}
}

func TestBoundAddsTheSyncsToTheReference(t *testing.T) {
	r := &Result{Samples: []Sample{{Job: "randwrite-4k-qd1", Peer: reference, IOPS: 10000}}}
	bound := withSyncs("randwrite-4k-qd1", iops, syncsFigure(3), 1)
	if got := bound(r); !math.IsNaN(got) {
		t.Errorf("without the floor: got %g", got)
	}
	r.special(syncsFigure(3), 2500, "IOPS", "")
	if got := bound(r); got != 0.2 {
		t.Errorf("got %g, want 100 of 500 µs", got)
	}
	if text := r.targetTable().String(); !strings.Contains(text, "0.20") {
		t.Errorf("the table does not show the bound:\n%s", text)
	}
}

func TestBoundOfReadsIsAClientThatNeverWaits(t *testing.T) {
	sample := func(peer string, iops, clientCPU float64) Sample {
		return Sample{Job: "randread-4k-qd32", Peer: peer, IOPS: iops, Requests: int64(2 * iops), ClientCPU: clientCPU} // 2 s
	}
	bound := withClientOnly("randread-4k-qd32", iops, "nbdkit", "qemu-nbd")
	r := &Result{Samples: []Sample{sample("qemu-nbd", 50000, 1.6), sample("blockrepl-1", 88000, 1.6)}}
	if got, want := bound(r), 110000.0/50000; got != want {
		t.Errorf("without nbdkit: got %g, want %g", got, want)
	}
	r.Samples = append(r.Samples, sample("nbdkit", 80000, 1.8))
	if got, want := bound(r), 110000.0/80000; got != want {
		t.Errorf("got %g, want %g: ours let the client work for 80 %% of the time", got, want)
	}
	r.Samples = r.Samples[:1]
	r.Samples[0].ClientCPU = 0
	if got := bound(r); !math.IsNaN(got) {
		t.Errorf("without the client's CPU: got %g", got)
	}
}

func TestBareCopyIsWrittenRoundItsLog(t *testing.T) {
	c := &bareCopy{data: make([]byte, bareLoad)}
	path := filepath.Join(t.TempDir(), "log")
	var err error
	if c.log, err = os.Create(path); err != nil {
		t.Fatal(err)
	}
	for _, k := range []int64{0, 1, boundLog / 4096, boundLog/4096 + 2} {
		if err := c.append(k, 4096); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := c.log.Stat(); err != nil || st.Size() != 3*4096 {
		t.Errorf("log of %v bytes, %v; want three blocks", st.Size(), err)
	}
	if err := c.remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the log is still there: %v", err)
	}
}

// A run without the floors called every catch-up a miss: its ratio to nothing was 0.
func TestPartOfAFloorNeedsTheFloor(t *testing.T) {
	r := &Result{}
	part := special("catch-up", "floor: disk", "floor: loopback TCP")
	r.special("catch-up", 300, "MB/s", "")
	r.special("floor: disk", 600, "MB/s", "")
	if s := part(r); !math.IsNaN(s.median) {
		t.Errorf("without one floor: got %g", s.median)
	}
	r.special("floor: loopback TCP", 900, "MB/s", "")
	if s := part(r); s.median != 0.5 {
		t.Errorf("got %g, want half of the lower floor", s.median)
	}
}
