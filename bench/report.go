package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// report writes RESULTS.md and results.svg and prints the two tables that matter.
func report(o *options, r *Result) error {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	for name, text := range map[string]string{"RESULTS.md": r.markdown(), "results.svg": r.svg()} {
		if err := os.WriteFile(filepath.Join(o.out, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	fmt.Printf("%s\n%s\n", r.speedTable(), r.targetTable())
	fmt.Printf("written: %s, and RESULTS.md and results.svg in %s\n", o.json, o.out)
	return nil
}

const methodText = `Every peer is one or more real processes on this machine; the client reaches it over loopback TCP. All peers stand filled
with the same content, one beside the other, and are asked in turn: round by round, job by job, peer by peer, the order of
the peers rotating from round to round. blockrepl's disks are filled until its journal uses its files again, as it does ever
after. A figure is the median of the rounds, ± half the distance of the extremes; × is the
ratio of the medians to nbdkit's. Where a range follows a ratio it is what the samples allow at the very most and least.

The client is fio's nbd engine (for the floor: its psync engine, depth 1), with fresh data for every write, half of every
block random and half zero; "incompressible" is all random. nbdkit, qemu-nbd and quorum acknowledge a write when it is in
the page cache and make it durable at the next flush; blockrepl acknowledges when it is fsynced in the journal of every
server. In the jobs without fsync blockrepl therefore does more work for its acknowledgement than the others. The quorum
driver compares all copies when it reads, which is its default.

CPU is that of all server processes of a peer, the client apart, from /proc/PID/stat, including what blockrepl does after
the last acknowledgement (applying to the image). Disk bytes are what the block device of the data has written, with the
file system's own, from a sync before the load to one after it (on a disk that others use, theirs too); peer bytes are what
the sockets between servers carried in both directions; each is per byte that the client read or wrote. The tree job formats ext4 on a loop device over nbdfuse,
unpacks source files and syncs; its client bytes are those that the loop device wrote.
`

// markdown is the whole report.
func (r *Result) markdown() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	p("# Results\n\nWritten by `%s` (package bench) at %s. Do not edit: run it again.\n\n", r.Command, r.When.Format("2006-01-02 15:04 MST"))
	if load, busy := r.Machine.busy(); busy {
		p("**The machine was busy** before this run began (load %.1f on %d cores), so others had a part of every figure. Such a "+
			"run is hard on what needs many processes for one answer. Where the spread is wide, the figure says little.\n\n", load, r.Machine.Cores)
	}
	p("![plot](results.svg)\n\n## Targets\n\nBound: of writes, the most that nbdkit itself would reach in this run if it waited, as a server of ours does, until a log "+
		"of every copy is durable, and all else cost nothing; of reads, the most that the client would reach if it never waited for a server.\n\n%s\n", r.targetTable())
	p("## Speed\n\nMedian ±spread ×ratio to nbdkit.\n\n%s\n", r.speedTable())
	p("## Special figures\n\n%s\n", r.specialTable())
	p("## Latency\n\n%s\n", r.detailTable("p50 / p99 / p99.9, µs", r.medians(p50, p99, p999)))
	p("## CPU of the servers\n\n%s\n", r.detailTable("µs a request", r.medians(cpuPerRequest)))
	p("%s\n", r.detailTable("seconds a GiB", r.medians(cpuPerGiB)))
	p("CPU seconds of each process, median over the rounds:\n\n%s\n", r.processTable())
	p("## Memory, disk, wire\n\n%s\n", r.detailTable("MiB resident, largest server", r.medians(func(s *Sample) float64 { return memory(s) / (1 << 20) })))
	p("%s\n", r.detailTable("disk bytes a client byte", r.medians(diskPerByte)))
	p("%s\n", r.detailTable("peer bytes a client byte", r.medians(peerPerByte)))
	if len(r.Problems) > 0 {
		p("## What did not run\n\n")
		for _, text := range r.Problems {
			p("- %s\n", text)
		}
		p("\n")
	}
	p("## Peers\n\n")
	for _, k := range kinds {
		p("- **%s**: %s\n", k.name, k.about)
	}
	p("\n## Method\n\n%s\n## Machine\n\n", methodText)
	m := r.Machine
	p("- %s, %d cores, %d GiB, Linux %s\n- data on: %s\n- volume %d MiB, %d rounds, %g s a load\n- load averages before: %s\n",
		m.CPU, m.Cores, m.MemoryGiB, m.Kernel, r.Place, r.SizeMiB, r.Rounds, r.Seconds, m.Load)
	var versions []string
	for name, v := range m.Versions {
		versions = append(versions, name+": "+v)
	}
	slices.Sort(versions)
	p("- %s\n", strings.Join(versions, "; "))
	return b.String()
}

// processTable tells the servers of a peer apart, for the peers that have several.
func (r *Result) processTable() table {
	t := table{{"job", "peer", "CPU seconds by process", "client"}}
	for _, j := range r.measuredJobs() {
		for _, p := range r.measuredPeers() {
			var roles []string
			for i := range r.Samples {
				if s := &r.Samples[i]; s.Job == j.name && s.Peer == p {
					for role := range s.CPUSeconds {
						if !slices.Contains(roles, role) {
							roles = append(roles, role)
						}
					}
				}
			}
			if len(roles) == 0 {
				continue
			}
			slices.Sort(roles)
			var parts []string
			for _, role := range roles {
				cpu := r.of(j.name, p, func(s *Sample) float64 { return s.CPUSeconds[role] })
				parts = append(parts, fmt.Sprintf("%s %.2f", role, cpu.median))
			}
			client := r.of(j.name, p, func(s *Sample) float64 { return s.ClientCPU })
			t.add(j.name, p, strings.Join(parts, ", "), fmt.Sprintf("%.2f", client.median))
		}
	}
	return t
}
