package main

import (
	"bytes"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func exitStatusOf(err error) string {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return strconv.Itoa(exit.ExitCode())
	}
	return err.Error()
}

// runHere runs the program in this process.
func runHere(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"blockrepl"}, args...), &out, &errs)
	return code, out.String(), errs.String()
}

// walk calls f for every command and subcommand with its words.
func walk(commands []*cli.Command, words []string, f func(words []string, c *cli.Command)) {
	for _, c := range commands {
		own := append(append([]string{}, words...), c.Name)
		f(own, c)
		walk(c.Subcommands, own, f)
	}
}

func TestEveryCommandSaysWhatItDoesAndItsExitStatus(t *testing.T) {
	app := newApp(&bytes.Buffer{}, &bytes.Buffer{})
	count := 0
	walk(app.Commands, nil, func(words []string, c *cli.Command) {
		count++
		code, out, errs := runHere(t, append(words, "--help")...)
		if code != 0 || errs != "" {
			t.Errorf("%v --help: exit %d, stderr %q", words, code, errs)
		}
		for _, want := range []string{"USAGE:\n   blockrepl " + strings.Join(words, " "), "EXIT STATUS:"} {
			if !strings.Contains(out, want) {
				t.Errorf("%v --help lacks %q:\n%s", words, want, out)
			}
		}
		if c.Usage == "" || len(c.Usage) > 66 {
			t.Errorf("%v: usage %q: want one short line", words, c.Usage)
		}
		for i, line := range strings.Split(c.Description, "\n") {
			if len(line) > 100 || strings.HasSuffix(line, " ") {
				t.Errorf("%v --help: line %d of the description is longer than 100 or ends with a space: %q", words, i, line)
			}
		}
		for _, f := range c.Flags {
			d, ok := f.(cli.DocGenerationFlag)
			if !ok || d.GetUsage() == "" {
				t.Errorf("%v: option %v has no description", words, f.Names())
			}
		}
	})
	if count < 10 {
		t.Errorf("looked at %d commands, want all", count)
	}
}

func TestEveryCommandRefusesAnUnknownOptionInOneLine(t *testing.T) {
	app := newApp(&bytes.Buffer{}, &bytes.Buffer{})
	walk(app.Commands, nil, func(words []string, c *cli.Command) {
		if len(c.Subcommands) > 0 {
			return
		}
		code, out, errs := runHere(t, append(words, "--no-such-option")...)
		if code != exitUsage || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "--help") {
			t.Errorf("%v --no-such-option: exit %d, stdout %q, stderr %q", words, code, out, errs)
		}
	})
}

func TestOptionsMayFollowArguments(t *testing.T) {
	app := newApp(&bytes.Buffer{}, &bytes.Buffer{})
	tests := []struct{ in, want string }{
		{"promote vol0 --dry-run", "promote --dry-run -- vol0"},
		{"promote vol0 --admin x:1 -n", "promote --admin x:1 -n -- vol0"},
		{"promote --admin=x:1 vol0", "promote --admin=x:1 -- vol0"},
		{"forget vol0 c --admin x:1", "forget --admin x:1 -- vol0 c"},
		{"forget -- vol0 --admin", "forget vol0 --admin"},
		{"promote vol0 --dry-run --admin", "promote --dry-run --admin"}, // whose value is missing, and must not be found behind it
		{"status", "status"},
		{"status --watch", "status --watch"},
		{"promote vol0 --generate-bash-completion", "promote vol0 --generate-bash-completion"},
		{"--help", "--help"},
	}
	for _, tt := range tests {
		got := strings.Join(permute(app, strings.Fields("blockrepl "+tt.in)), " ")
		if got != "blockrepl "+tt.want {
			t.Errorf("permute %q = %q, want %q", tt.in, got, "blockrepl "+tt.want)
		}
	}
}

func TestNearestKeyIsNamedOnlyWhenItIsNear(t *testing.T) {
	names := []string{"admin", "peers", "cluster", "on_degraded"}
	for word, want := range map[string]string{
		"amdin": "admin", "peer": "peers", "clutser": "cluster", "ondegraded": "on_degraded", "frobnicate": "", "x": "",
	} {
		if got := nearest(word, names); got != want {
			t.Errorf("nearest(%q) = %q, want %q", word, got, want)
		}
	}
}
