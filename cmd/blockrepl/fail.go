package main

import (
	"errors"
	"fmt"
	"strings"
)

// The exit codes. They are listed in doc.go and in every help text.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitRefused     = 3
	exitUnhealthy   = 4
	exitSplitBrain  = 5
	exitUnreachable = 6
)

// failure is an error with its exit code and the way out.
type failure struct {
	code int
	err  error
	next string // what the operator can do, "" when the error says it
}

// Error gives the error and the way out in one line.
func (f *failure) Error() string {
	if f.next == "" {
		return f.err.Error()
	}
	return f.err.Error() + "; " + f.next
}

// Unwrap gives the error alone.
func (f *failure) Unwrap() error { return f.err }

// lines is what is printed: one line an error, also for a list of them.
func (f *failure) lines() []string {
	lines := strings.Split(strings.TrimRight(f.err.Error(), "\n"), "\n")
	if f.next != "" {
		lines[len(lines)-1] += "; " + f.next
	}
	return lines
}

// usagef is a failure of usage or configuration: nothing was touched.
func usagef(format string, args ...any) error {
	return &failure{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// asFailure finds the failure in err, or makes one with exit code 1.
func asFailure(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	return &failure{code: exitError, err: err}
}

// quietExit ends with a code and without a message: all was said already.
type quietExit int

// Error gives the code.
func (q quietExit) Error() string { return fmt.Sprintf("exit status %d", int(q)) }

// didYouMean gives ` (did you mean "x"?)` for the nearest of names, or "".
func didYouMean(word string, names []string) string {
	if near := nearest(word, names); near != "" {
		return fmt.Sprintf(" (did you mean %q?)", near)
	}
	return ""
}

// nearest gives the name with the smallest edit distance to word, "" when none
// is near enough to be a slip of the finger.
func nearest(word string, names []string) string {
	best, bestDistance := "", max(2, len(word)/2)+1
	for _, name := range names {
		if d := editDistance(word, name); d < bestDistance && d < max(len(word), len(name)) {
			best, bestDistance = name, d
		}
	}
	return best
}

// editDistance counts inserted, dropped and changed bytes (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
