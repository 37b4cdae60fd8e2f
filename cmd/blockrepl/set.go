package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/urfave/cli/v2"
)

func setCommand() *cli.Command {
	return &cli.Command{
		Name:      "set",
		Usage:     "change options of a volume",
		UsageText: "blockrepl set VOLUME [on_degraded=suspend|continue] [keep=SIZE] [--admin ADDR]",
		Description: `Asks the master of VOLUME to change what the volume does from now on, on all its
servers; the configuration files count for volumes that are yet to be created.

  on_degraded  what the master does when a server in sync is silent: suspend waits,
               continue goes on without it (see the README for what that costs)
  keep         how much is kept for servers that are away; beyond it they are
               resynced

It takes effect when every server in sync and a majority of all have noted it, so
all that are in sync must answer.

EXAMPLES:
   blockrepl set vol0 on_degraded=continue
   blockrepl set vol0 keep=32GiB --admin 127.0.0.1:10821

EXIT STATUS:
   0 done   1 an error   2 not an option   3 refused   6 the server does not answer`,
		Flags:  adminFlags(),
		Action: set,
	}
}

var setKeys = []string{"on_degraded", "keep"}

func set(c *cli.Context) error {
	if err := wantArgs(c, 2, 1+len(setKeys), "VOLUME and KEY=VALUE"); err != nil {
		return err
	}
	request, err := parseSet(c.Args().Tail())
	if err != nil {
		return err
	}
	a, err := newAdmin(c)
	if err != nil {
		return err
	}
	var r blockrepl.SetReport
	return a.command(c, volumePath(c.Args().First(), "set"), request, &r, func(w io.Writer) {
		var now []string // all, unless the server was too slow to tell
		if r.OnDegraded != "" {
			now = append(now, "on_degraded "+r.OnDegraded)
		}
		if r.KeepBytes != 0 {
			now = append(now, "keep "+Size(r.KeepBytes).String())
		}
		fmt.Fprintf(w, "%s: %s\n", r.Volume, strings.Join(now, ", "))
	})
}

// parseSet reads KEY=VALUE words.
func parseSet(words []string) (blockrepl.SetRequest, error) {
	var q blockrepl.SetRequest
	seen := map[string]bool{}
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok {
			return q, usagef("set: %q: want KEY=VALUE, as on_degraded=continue", word)
		}
		if seen[key] {
			return q, usagef("set: %s is there twice", key)
		}
		seen[key] = true
		switch key {
		case "on_degraded":
			if value != "suspend" && value != "continue" {
				return q, usagef("set: on_degraded %q: want suspend or continue", value)
			}
			q.OnDegraded = value
		case "keep":
			n, err := ParseSize(value)
			if err == nil && n < minKeep {
				err = fmt.Errorf("keep %s: want at least %s", n, minKeep)
			}
			if err != nil {
				return q, usagef("set: %w", err)
			}
			q.KeepBytes = int64(n)
		default:
			return q, usagef("set: unknown option %q%s; those that can be set: %s", key, didYouMean(key, setKeys), strings.Join(setKeys, ", "))
		}
	}
	return q, nil
}
