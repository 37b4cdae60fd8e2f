package main

import (
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/urfave/cli/v2"
)

func initCommand() *cli.Command {
	return &cli.Command{
		Name:      "init",
		Usage:     "create a volume from one server's image",
		UsageText: "blockrepl init VOLUME --keep | --zero | --from FILE [--admin ADDR]",
		Description: `A volume comes into being by itself when all its servers are there, none has seen
it and their images are empty. This command creates it otherwise: with the asked
server alone, from what its image holds (--keep), empty (--zero, which destroys
what the image holds), or with the content of a FILE or device on that server's
host (--from). The other servers compare their images with it and copy what
differs, whatever they held.

It is refused when the volume exists, on that server or on one that answers.

EXAMPLES:
   blockrepl init vol0 --keep
   blockrepl init vol0 --from /srv/old-disk.img --admin unix:/run/blockrepl/admin.sock

EXIT STATUS:
   0 done   1 an error   2 none or several of the three were given   3 refused: the volume exists
   6 the server does not answer`,
		Flags: withTimeout(adminFlags(
			&cli.BoolFlag{Name: "keep", Usage: "the volume holds what the server's image holds now"},
			&cli.BoolFlag{Name: "zero", Usage: "the volume is empty; what the image holds is destroyed"},
			&cli.StringFlag{Name: "from", Usage: "the volume holds what `FILE`, or a device, holds; the rest is empty"},
		), 24*time.Hour),
		Action: initVolume,
	}
}

// withTimeout gives a command that may work for long another default.
func withTimeout(flags []cli.Flag, d time.Duration) []cli.Flag {
	for _, f := range flags {
		if t, ok := f.(*durationFlag); ok && t.Name == "timeout" {
			t.Value = d
		}
	}
	return flags
}

func initVolume(c *cli.Context) error {
	if err := wantArgs(c, 1, 1, "VOLUME"); err != nil {
		return err
	}
	q, err := initRequest(c)
	if err != nil {
		return err
	}
	a, err := newAdmin(c)
	if err != nil {
		return err
	}
	var r blockrepl.InitReport
	stop := a.showProgress(c, c.Args().First())
	defer stop()
	return a.command(c, volumePath(c.Args().First(), "init"), q, &r, func(w io.Writer) {
		stop()
		fmt.Fprintf(w, "%s exists now, %s; its other servers copy it as they come\n", r.Volume, humanBytes(r.SizeBytes))
	})
}

func initRequest(c *cli.Context) (blockrepl.InitRequest, error) {
	var q blockrepl.InitRequest
	given := 0
	for content, yes := range map[string]bool{blockrepl.InitKeep: c.Bool("keep"), blockrepl.InitZero: c.Bool("zero"), blockrepl.InitCopy: c.IsSet("from")} {
		if yes {
			q.Content = content
			given++
		}
	}
	if given != 1 {
		return q, usagef("init: say what the volume shall hold: one of --keep, --zero and --from FILE")
	}
	if q.Content == blockrepl.InitCopy {
		if q.From = c.String("from"); !filepath.IsAbs(q.From) {
			return q, usagef("init: --from %q: want an absolute path on the server's host", q.From)
		}
	}
	return q, nil
}
