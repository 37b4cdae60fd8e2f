package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// Duration is a time.Duration, written "2s" in the configuration.
type Duration time.Duration

var errDuration = errors.New(`want a number with ms, s, m or h, as "2s", "500ms" or "1m"`)

// ParseDuration reads time.ParseDuration's form: a number without a unit is refused,
// since nobody could know whether seconds were meant.
func ParseDuration(s string) (Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("duration %q: %w", s, errDuration)
	}
	return Duration(d), nil
}

// UnmarshalText reads ParseDuration's form; the decoder gives a number as its text.
func (d *Duration) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDuration(string(b))
	return err
}

// String gives "2s", "10m" and "24h": without the zeroes of time.Duration's text.
func (d Duration) String() string {
	text := time.Duration(d).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// durationFlag is the option of a command whose errors say what is accepted, by
// ParseDuration; the library's is "parse error".
type durationFlag struct{ cli.DurationFlag }

// Apply adds the option to set, with the environment's value over the default.
func (f *durationFlag) Apply(set *flag.FlagSet) error {
	for _, name := range f.EnvVars {
		if text := os.Getenv(name); text != "" {
			if _, err := ParseDuration(text); err != nil {
				return fmt.Errorf("%s in the environment: %w", name, err)
			}
		}
	}
	if err := f.DurationFlag.Apply(set); err != nil {
		return err
	}
	for _, name := range f.Names() {
		option := set.Lookup(name)
		option.Value = durationValue{option.Value}
	}
	return nil
}

// durationValue is the library's value with our error.
type durationValue struct{ flag.Value }

// Set takes ParseDuration's form.
func (v durationValue) Set(s string) error {
	if v.Value.Set(s) != nil {
		return errDuration // the option and what it was set to are told before it
	}
	return nil
}
