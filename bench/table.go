package main

import (
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// table is rows of cells; the first is the head. It is markdown, and aligned, so that it reads well as plain text too.
type table [][]string

func (t *table) add(cells ...string) { *t = append(*t, cells) }

func (t table) String() string {
	var widths []int
	for _, row := range t {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 3)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for n, row := range t {
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				fmt.Fprintf(&b, "| %s%s ", cell, pad)
			} else {
				fmt.Fprintf(&b, "| %s%s ", pad, cell)
			}
		}
		b.WriteString("|\n")
		if n > 0 {
			continue
		}
		for i, w := range widths {
			if i == 0 {
				fmt.Fprintf(&b, "|%s", strings.Repeat("-", w+2))
			} else {
				fmt.Fprintf(&b, "|%s:", strings.Repeat("-", w+1))
			}
		}
		b.WriteString("|\n")
	}
	return b.String()
}

// measuredPeers are the peers with samples, in the order of kinds.
func (r *Result) measuredPeers() []string {
	var names []string
	for _, k := range kinds {
		for i := range r.Samples {
			if r.Samples[i].Peer == k.name {
				names = append(names, k.name)
				break
			}
		}
	}
	return names
}

// measuredJobs are the jobs with samples, in the order of jobs.
func (r *Result) measuredJobs() []job {
	var found []job
	for _, j := range append(jobs[:len(jobs):len(jobs)], job{name: treeJob, about: "mkfs, unpack a tree, flush, through nbdfuse"}) {
		for i := range r.Samples {
			if r.Samples[i].Job == j.name {
				found = append(found, j)
				break
			}
		}
	}
	return found
}

// reference is the peer that ratios are about.
const reference = "nbdkit"

// speedTable has a row a job: the median of each peer, its spread, and its ratio to the reference.
func (r *Result) speedTable() table {
	peers := r.measuredPeers()
	t := table{append([]string{"job"}, peers...)}
	for _, j := range r.measuredJobs() {
		f, unit, scale := mainFigure(j)
		row := []string{j.about + ", " + unit}
		base := r.of(j.name, reference, f)
		for _, p := range peers {
			row = append(row, cell(r.of(j.name, p, f), base, scale))
		}
		t.add(row...)
	}
	return t
}

// mainFigure is what a job is about.
func mainFigure(j job) (f func(*Sample) float64, unit string, scale float64) {
	switch {
	case j.name == treeJob:
		return elapsed, "seconds", 1
	case j.bs == "1m":
		return bytesPerSec, "MB/s", 1e6
	}
	return iops, "IOPS", 1
}

// cell is "median ±spread ×ratio".
func cell(s, base stat, scale float64) string {
	if math.IsNaN(s.median) {
		return "–"
	}
	text := compact(s.median / scale)
	if s.n > 1 {
		text += fmt.Sprintf(" ±%.0f%%", s.spread()*100)
	}
	if !math.IsNaN(base.median) {
		text += fmt.Sprintf(" ×%.2f", s.median/base.median)
	}
	return text
}

// compact writes a figure with three digits that matter.
func compact(v float64) string {
	switch {
	case v >= 1000:
		digits := fmt.Sprintf("%.0f", v)
		for i := len(digits) - 3; i > 0; i -= 3 {
			digits = digits[:i] + "," + digits[i:]
		}
		return digits
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	if v != 0 && v < 0.1 {
		return fmt.Sprintf("%.2g", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// detailTable has a row a job and a column a peer for any figure.
func (r *Result) detailTable(head string, format func(job, peer string) string) table {
	peers := r.measuredPeers()
	t := table{append([]string{head}, peers...)}
	for _, j := range r.measuredJobs() {
		row := []string{j.name}
		for _, p := range peers {
			row = append(row, format(j.name, p))
		}
		t.add(row...)
	}
	return t
}

// medians formats the medians of some figures of one job on one peer.
func (r *Result) medians(figures ...func(*Sample) float64) func(job, peer string) string {
	return func(job, peer string) string {
		var parts []string
		for _, f := range figures {
			if s := r.of(job, peer, f); !math.IsNaN(s.median) && !math.IsInf(s.median, 0) {
				parts = append(parts, compact(s.median))
			}
		}
		if len(parts) == 0 {
			return "–"
		}
		return strings.Join(parts, " / ")
	}
}

// targetTable has a row a target.
func (r *Result) targetTable() table {
	t := table{{"target", "rule", "measured", "", "bound"}}
	for i := range targets {
		figure, verdict := targets[i].judge(r)
		t.add(targets[i].what, targets[i].rule, figure, verdict, targets[i].most(r))
	}
	return t
}

// specialTable has a row a special figure.
func (r *Result) specialTable() table {
	t := table{{"what", "figure", "how"}}
	for _, s := range r.Specials {
		t.add(s.Name, compact(s.Value)+" "+s.Unit, s.Note)
	}
	return t
}
