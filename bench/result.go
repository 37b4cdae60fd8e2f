package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Result is the JSON file: all samples, and what is needed to judge them.
type Result struct {
	Version  int       `json:"version"` // of this shape: 1
	When     time.Time `json:"when"`
	Command  string    `json:"command"`
	Machine  Machine   `json:"machine"`
	Place    string    `json:"place"` // the file system
	Rounds   int       `json:"rounds"`
	Seconds  float64   `json:"seconds"`
	SizeMiB  int64     `json:"size_mib"`
	Samples  []Sample  `json:"samples"`
	Specials []Special `json:"specials"`
	Problems []string  `json:"problems"` // loads that did not run, and why
}

// Machine is where it ran.
type Machine struct {
	CPU       string            `json:"cpu"`
	Cores     int               `json:"cores"`
	MemoryGiB int64             `json:"memory_gib"`
	Kernel    string            `json:"kernel"`
	Load      string            `json:"load"` // averages at the start: what else was running
	Versions  map[string]string `json:"versions"`
}

// busy says whether others used the machine just before the run.
func (m *Machine) busy() (load float64, busy bool) {
	first, _, _ := strings.Cut(m.Load, " ")
	load, err := strconv.ParseFloat(first, 64)
	return load, err == nil && load > float64(m.Cores)/2
}

// Sample is one load on one peer in one round.
type Sample struct {
	Round int    `json:"round"`
	Job   string `json:"job"`
	Peer  string `json:"peer"`

	IOPS        float64 `json:"iops"`
	BytesPerSec float64 `json:"bytes_per_sec"`
	P50Micros   float64 `json:"p50_us"`
	P99Micros   float64 `json:"p99_us"`
	P999Micros  float64 `json:"p999_us"`
	ClientBytes int64   `json:"client_bytes"`
	Requests    int64   `json:"requests"`

	CPUSeconds    map[string]float64 `json:"cpu_seconds"` // of each server process
	ClientCPU     float64            `json:"client_cpu_seconds"`
	MemoryBytes   map[string]int64   `json:"memory_bytes"`
	DiskBytes     int64              `json:"disk_bytes"`
	PeerBytes     int64              `json:"peer_bytes"` // between servers, both directions
	WriteCalls    int64              `json:"write_calls"`
	ElapsedSecond float64            `json:"elapsed_seconds"`
}

// cpu is what all servers of the peer used.
func (s *Sample) cpu() float64 {
	sum := 0.0
	for _, c := range s.CPUSeconds {
		sum += c
	}
	return sum
}

// memory is what the largest server of the peer held.
func (s *Sample) memory() int64 {
	most := int64(0)
	for _, m := range s.MemoryBytes {
		most = max(most, m)
	}
	return most
}

// Special is one figure that is not a load on all peers.
type Special struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Note  string  `json:"note"`
}

const resultVersion = 1

func newResult(ctx context.Context, o *options, pl *place) *Result {
	return &Result{
		Version: resultVersion, When: time.Now().UTC().Truncate(time.Second),
		Command: o.command(),
		Machine: thisMachine(ctx), Place: pl.kind,
		Rounds: o.rounds, Seconds: o.seconds, SizeMiB: o.sizeMiB,
	}
}

// special notes a figure and prints it, so that a person who waits sees it.
func (r *Result) special(name string, value float64, unit, note string) {
	r.Specials = append(r.Specials, Special{name, value, unit, note})
	fmt.Fprintf(os.Stderr, "  %-34s %10.4g %s\n", name, value, unit)
}

// problem notes a load that did not run. A comparison with one bar missing is worth more than none.
func (r *Result) problem(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.Problems = append(r.Problems, text)
	fmt.Fprintln(os.Stderr, "bench:", text)
}

func (r *Result) write(path string) error {
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

func readResult(path string) (*Result, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	var r Result
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("read results of %s: %w", path, err)
	}
	if r.Version != resultVersion {
		return nil, fmt.Errorf("read results of %s: version %d, this program reads %d: measure again", path, r.Version, resultVersion)
	}
	return &r, nil
}

// stat is the median of some samples and how far they lie apart.
type stat struct {
	n                int
	median, min, max float64
}

func newStat(values []float64) stat {
	if len(values) == 0 {
		return stat{median: math.NaN(), min: math.NaN(), max: math.NaN()}
	}
	s := slices.Sorted(slices.Values(values))
	mid := s[len(s)/2]
	if len(s)%2 == 0 {
		mid = (s[len(s)/2-1] + s[len(s)/2]) / 2
	}
	return stat{n: len(s), median: mid, min: s[0], max: s[len(s)-1]}
}

// over is the ratio of the medians, and the least and the most it can be with the samples at hand.
func (s stat) over(b stat) stat {
	return stat{n: min(s.n, b.n), median: s.median / b.median, min: s.min / b.max, max: s.max / b.min}
}

// spread is half the distance of the extremes, in parts of the median.
func (s stat) spread() float64 { return (s.max - s.min) / 2 / s.median }

// of gathers one figure of all samples of a job on a peer.
func (r *Result) of(job, peer string, figure func(*Sample) float64) stat {
	var values []float64
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Job == job && s.Peer == peer {
			values = append(values, figure(s))
		}
	}
	return newStat(values)
}

// specialValue gives a special figure by name.
func (r *Result) specialValue(name string) (float64, bool) {
	for _, s := range r.Specials {
		if s.Name == name {
			return s.Value, true
		}
	}
	return 0, false
}

// The figures that tables and targets use.
func iops(s *Sample) float64        { return s.IOPS }
func bytesPerSec(s *Sample) float64 { return s.BytesPerSec }
func p50(s *Sample) float64         { return s.P50Micros }
func p99(s *Sample) float64         { return s.P99Micros }
func p999(s *Sample) float64        { return s.P999Micros }
func diskPerByte(s *Sample) float64 { return float64(s.DiskBytes) / float64(s.ClientBytes) }
func peerPerByte(s *Sample) float64 { return float64(s.PeerBytes) / float64(s.ClientBytes) }
func memory(s *Sample) float64      { return float64(s.memory()) }
func elapsed(s *Sample) float64     { return s.ElapsedSecond }
func cpuPerRequest(s *Sample) float64 {
	return s.cpu() * 1e6 / float64(s.Requests)
}
func cpuPerGiB(s *Sample) float64 { return s.cpu() / (float64(s.ClientBytes) / (1 << 30)) }

func thisMachine(ctx context.Context) Machine {
	m := Machine{Cores: runtime.NumCPU(), Versions: map[string]string{"go": runtime.Version()}}
	m.CPU = procField("/proc/cpuinfo", "model name")
	fmt.Sscanf(procField("/proc/meminfo", "MemTotal"), "%d", &m.MemoryGiB)
	m.MemoryGiB >>= 20
	m.Kernel = procLine("/proc/sys/kernel/osrelease")
	m.Load = procLine("/proc/loadavg")
	for name, args := range map[string][]string{
		"fio": {"--version"}, "nbdkit": {"--version"}, "qemu-nbd": {"--version"}, "nbdfuse": {"--version"},
	} {
		if out, err := exec.CommandContext(ctx, name, args...).Output(); err == nil {
			first, _, _ := strings.Cut(string(out), "\n")
			m.Versions[name] = strings.TrimSpace(first)
		}
	}
	return m
}

// procField finds "name : value" in a file of /proc; "" when there is none.
func procField(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func procLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
