package main

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
)

// Bug: an option that was set to a number without a unit was "parse error".
func TestEveryDurationOptionSaysWhatItAccepts(t *testing.T) {
	const want = `want a number with ms, s, m or h, as "2s", "500ms" or "1m"; see`
	tried := 0
	walk(newApp(io.Discard, io.Discard).Commands, nil, func(words []string, c *cli.Command) {
		for _, f := range c.Flags {
			if _, ok := f.(*cli.DurationFlag); ok {
				t.Errorf("%v --%s is the library's own", words, f.Names()[0])
			}
			d, ok := f.(*durationFlag)
			if !ok {
				continue
			}
			tried++
			code, _, errs := runHere(t, append(slices.Clone(words), "--"+d.Name, "2")...)
			if want := `blockrepl: invalid value "2" for flag -` + d.Name + ": " + want; code != exitUsage || !strings.HasPrefix(errs, want) {
				t.Errorf("%v --%s 2: exit %d, %q, want %q", words, d.Name, code, errs, want)
			}
			for _, name := range d.EnvVars {
				t.Run(name, func(t *testing.T) {
					t.Setenv(name, "2")
					code, _, errs := runHere(t, words...)
					if want := "blockrepl: " + name + ` in the environment: duration "2": ` + want; code != exitUsage || !strings.HasPrefix(errs, want) {
						t.Errorf("%v: exit %d, %q, want %q", words, code, errs, want)
					}
				})
			}
		}
	})
	if tried < 6 {
		t.Errorf("%d options tried", tried)
	}
}

func TestDurationOfAnOptionWinsOverTheEnvironments(t *testing.T) {
	t.Setenv("BLOCKREPL_PEER_TIMEOUT", "20ms")
	for option, want := range map[string]string{"": "peer_timeout 20ms: want 100ms to 10m", "--peer-timeout=30ms": "peer_timeout 30ms: want"} {
		args := strings.Fields("check --cluster lab --id a " + option)
		if code, _, errs := runHere(t, args...); code != exitUsage || !strings.Contains(errs, want) {
			t.Errorf("%q: exit %d, %q, want %q", option, code, errs, want)
		}
	}
}

// As people write them; time.Duration's own text is "24h0m0s".
func TestDurationsAreToldWithoutZeroes(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0s", 10 * time.Second: "10s", 10 * time.Minute: "10m", time.Hour: "1h", 100 * time.Hour: "100h",
		time.Hour + 30*time.Second: "1h0m30s", 90 * time.Minute: "1h30m", 500 * time.Millisecond: "500ms", 43800 * time.Hour: "43800h"} {
		if got := Duration(d).String(); got != want {
			t.Errorf("%s: got %s, want %s", d, got, want)
		}
	}
	if _, out, _ := runHere(t, "verify", "--help"); !strings.Contains(out, "(default: 24h)") {
		t.Errorf("the help does not say (default: 24h):\n%s", out)
	}
}
