package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// table aligns columns. Cells are plain; paint colours a cell without counting
// the colour's bytes, which text/tabwriter does.
type table struct {
	w      io.Writer
	indent string
	rows   [][]cell
}

type cell struct{ text, colour string }

func newTable(w io.Writer) *table { return &table{w: w} }

func (t *table) row(texts ...string) {
	cells := make([]cell, len(texts))
	for i, text := range texts {
		cells[i].text = text
	}
	t.rows = append(t.rows, cells)
}

// line adds a line that is no part of the columns.
func (t *table) line(text string) { t.rows = append(t.rows, []cell{{text: text}}) }

// A row of one cell is a line.
func isLine(r []cell) bool { return len(r) == 1 }

// paint colours column i of the last row.
func (t *table) paint(i int, colour string) {
	t.rows[len(t.rows)-1][i].colour = colour
}

// flush prints the rows, two spaces between columns, none at the end of a line.
func (t *table) flush() {
	var widths []int
	for _, r := range t.rows {
		if isLine(r) {
			continue
		}
		for i, c := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	for _, r := range t.rows {
		if isLine(r) {
			fmt.Fprintln(t.w, t.indent+r[0].text)
			continue
		}
		var b strings.Builder
		pending := t.indent
		for i, c := range r {
			if c.text != "" {
				b.WriteString(pending)
				pending = ""
				b.WriteString(coloured(c.text, c.colour))
			}
			pending += strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2)
		}
		fmt.Fprintln(t.w, b.String())
	}
	t.rows = nil
}

// The colours that are used, as ECMA-48 parameters.
const (
	green  = "32"
	yellow = "33"
	red    = "31;1"
	bold   = "1"
	dim    = "2"
)

func coloured(text, colour string) string {
	if colour == "" || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// wantsColour reports whether w is a terminal whose owner did not refuse
// colours (NO_COLOR, see no-color.org).
func wantsColour(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(w)
}
