package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// The plot's measures, in pixels.
const (
	svgWidth   = 900
	labelWidth = 110
	barWidth   = 560
	barHeight  = 16
	panelHead  = 30
	panelGap   = 14
)

// colours of the peers; blockrepl's are one hue, so that the eye finds them.
var colours = map[string]string{
	"floor": "#b0b0b0", "nbdkit": "#8c6d31", "qemu-nbd": "#bd9e39", "quorum": "#ad494a",
	"blockrepl-1": "#9ecae1", "blockrepl-2": "#4292c6", "blockrepl-3": "#08519c",
}

// svg draws one panel a job: a bar a peer with its median, a line from the least to the most sample.
func (r *Result) svg() string {
	var b strings.Builder
	y := 52
	for _, j := range r.measuredJobs() {
		y = r.panel(&b, j, y)
	}
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", svgWidth, y, svgWidth, y)
	fmt.Fprintf(&out, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	fmt.Fprintf(&out, `<text x="16" y="24" font-size="16" font-weight="bold">blockrepl beside other NBD servers</text>`+"\n")
	fmt.Fprintf(&out, `<text x="16" y="42" fill="#555">%s; median of %d rounds, line: least to most; × = ratio to %s</text>`+"\n",
		html.EscapeString(r.Place), r.Rounds, reference)
	out.WriteString(b.String())
	out.WriteString("</svg>\n")
	return out.String()
}

// panel draws one job from y on and gives the y below it.
func (r *Result) panel(b *strings.Builder, j job, y int) int {
	f, unit, scale := mainFigure(j)
	better := "more is better"
	if j.name == treeJob {
		better = "less is better"
	}
	fmt.Fprintf(b, `<text x="16" y="%d" font-weight="bold">%s <tspan font-weight="normal" fill="#555">(%s, %s)</tspan></text>`+"\n",
		y+20, html.EscapeString(j.about), unit, better)
	y += panelHead
	most := 0.0
	for _, p := range r.measuredPeers() {
		if s := r.of(j.name, p, f); !math.IsNaN(s.max) {
			most = max(most, s.max)
		}
	}
	base := r.of(j.name, reference, f)
	for _, p := range r.measuredPeers() {
		s := r.of(j.name, p, f)
		if math.IsNaN(s.median) {
			continue
		}
		at := func(v float64) float64 { return labelWidth + v/most*barWidth }
		mid := y + barHeight/2
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, labelWidth-6, mid+4, p)
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, labelWidth, y+1, at(s.median)-labelWidth, barHeight-3, colours[p])
		fmt.Fprintf(b, `<path d="M%.1f %dH%.1fM%.1f %dv6M%.1f %dv6" stroke="#333" fill="none"/>`,
			at(s.min), mid, at(s.max), at(s.min), mid-3, at(s.max), mid-3)
		text := compact(s.median / scale)
		if !math.IsNaN(base.median) {
			text += fmt.Sprintf("  ×%.2f", s.median/base.median)
		}
		fmt.Fprintf(b, `<text x="%.1f" y="%d">%s</text>`+"\n", at(s.max)+8, mid+4, text)
		y += barHeight
	}
	return y + panelGap
}
