package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of CPU time in /proc: USER_HZ, 100 on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// usage is what a process has used since its start.
type usage struct {
	cpu        time.Duration
	rssBytes   int64 // now
	writeCalls int64
}

// readUsage asks the kernel about one process.
func readUsage(pid int) (usage, error) {
	var u usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, fmt.Errorf("read CPU time: %w", err)
	}
	if u.cpu, u.rssBytes, err = parseStat(stat); err != nil {
		return u, fmt.Errorf("read CPU time of process %d: %w", pid, err)
	}
	io, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return u, fmt.Errorf("read write calls: %w", err)
	}
	for line := range strings.Lines(string(io)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return u, fmt.Errorf("read write calls of process %d: %w", pid, err)
		}
		if key == "syscw" {
			u.writeCalls = n
		}
	}
	return u, nil
}

// parseStat takes user and system time and the resident size from /proc/PID/stat. The command's name is in parentheses
// and may hold anything, so fields are counted from the last one.
func parseStat(stat []byte) (cpu time.Duration, rssBytes int64, err error) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 22 {
		return 0, 0, fmt.Errorf("%d fields in %q, want 22 and more", len(fields), stat)
	}
	var n [3]int64
	for i, at := range []int{11, 12, 21} { // utime, stime, rss, counted behind the name
		if n[i], err = strconv.ParseInt(string(fields[at]), 10, 64); err != nil {
			return 0, 0, fmt.Errorf("field %d: %w", at+3, err)
		}
	}
	return time.Duration(n[0]+n[1]) * clockTick, n[2] * int64(os.Getpagesize()), nil
}

// peakMemory is the most resident memory a process ever had.
func peakMemory(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read peak memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read peak memory of process %d: %w", pid, err)
			}
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("read peak memory of process %d: no VmHWM", pid)
}

// peerBytes sums what the sockets at these ports have carried in both directions. Only the side that accepted is
// counted, so a byte counts once.
func peerBytes(ctx context.Context, ports []int) (int64, error) {
	if len(ports) == 0 {
		return 0, nil
	}
	filter := make([]string, 0, len(ports))
	for _, p := range ports {
		filter = append(filter, fmt.Sprintf("sport = :%d", p))
	}
	out, err := output(ctx, "ss", "-tinH", strings.Join(filter, " or "))
	if err != nil {
		return 0, err
	}
	return sumSocketBytes(string(out)), nil
}

// sumSocketBytes adds bytes_sent and bytes_received of the lines of ss -i.
func sumSocketBytes(text string) int64 {
	var sum int64
	for _, word := range strings.Fields(text) {
		key, value, _ := strings.Cut(word, ":")
		if key != "bytes_sent" && key != "bytes_received" {
			continue
		}
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			sum += n
		}
	}
	return sum
}

// sectorBytes is the unit of /sys/block/DEVICE/stat on every disk.
const sectorBytes = 512

// deviceWritten is how many bytes a block device was told to write, from its stat file.
func deviceWritten(path string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read sectors written: %w", err)
	}
	fields := strings.Fields(string(text))
	if len(fields) < 7 {
		return 0, fmt.Errorf("read sectors written: %d fields in %s, want 7 and more", len(fields), path)
	}
	sectors, err := strconv.ParseInt(fields[6], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read sectors written in %s: %w", path, err)
	}
	return sectors * sectorBytes, nil
}

// meter measures what a load costs a peer's servers.
type meter struct {
	place  *place
	peer   *peer
	before map[string]usage
	sent   int64
	disk   int64
}

// startMeter first lets the file system write out what earlier loads have left in the page cache: else the next peer would
// wait for it, and its disk bytes would hold it.
func startMeter(ctx context.Context, pl *place, p *peer) (*meter, error) {
	m := &meter{place: pl, peer: p, before: map[string]usage{}}
	var err error
	if m.disk, err = pl.written(ctx); err != nil {
		return nil, err
	}
	for _, proc := range p.procs {
		u, err := readUsage(proc.pid())
		if err != nil {
			return nil, err
		}
		m.before[proc.role] = u
	}
	m.sent, err = peerBytes(ctx, p.peerPorts)
	return m, err
}

// stop waits until the peer has done what it put off, and fills in the costs.
func (m *meter) stop(ctx context.Context, s *Sample) error {
	if m.peer.settle != nil {
		if err := m.peer.settle(ctx); err != nil {
			return err
		}
	}
	s.CPUSeconds = map[string]float64{}
	s.MemoryBytes = map[string]int64{}
	for _, proc := range m.peer.procs {
		u, err := readUsage(proc.pid())
		if err != nil {
			return err
		}
		was := m.before[proc.role]
		s.CPUSeconds[proc.role] = (u.cpu - was.cpu).Seconds()
		s.MemoryBytes[proc.role] = u.rssBytes
		s.WriteCalls += u.writeCalls - was.writeCalls
	}
	disk, err := m.place.written(ctx)
	if err != nil {
		return err
	}
	s.DiskBytes = disk - m.disk
	sent, err := peerBytes(ctx, m.peer.peerPorts)
	s.PeerBytes = max(0, sent-m.sent) // a link that broke starts from 0
	return err
}
