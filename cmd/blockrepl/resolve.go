package main

import (
	"fmt"
	"io"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/urfave/cli/v2"
)

func resolveCommand() *cli.Command {
	return &cli.Command{
		Name:      "resolve",
		Usage:     "end a split brain by keeping one side",
		UsageText: "blockrepl resolve VOLUME --keep SERVER [--admin ADDR]",
		Description: `Two masterships of VOLUME both went on, by promotions with --accept-loss or a
wrong --old-master-dead. Nobody can merge disks; one side must be chosen. The
server named by --keep, which is asked, keeps its history and becomes master. The
others set their diverged records aside, as a quarantine that "blockrepl journal
list" shows and "blockrepl journal dump" prints, and follow it.

Compare both sides first: blockrepl status, and blockrepl journal list on each.

EXAMPLES:
   blockrepl resolve vol0 --keep b --admin 127.0.0.1:10821

EXIT STATUS:
   0 done   1 an error   2 --keep is missing   3 refused   6 the server does not answer`,
		Flags: adminFlags(
			&cli.StringFlag{Name: "keep", Usage: "the `SERVER` whose side is kept"},
		),
		Action: resolve,
	}
}

func resolve(c *cli.Context) error {
	if err := wantArgs(c, 1, 1, "VOLUME"); err != nil {
		return err
	}
	keep := c.String("keep")
	if keep == "" {
		return usagef("resolve: name the side to keep with --keep SERVER")
	}
	a, err := newAdmin(c)
	if err != nil {
		return err
	}
	var r blockrepl.PromoteReport
	return a.command(c, volumePath(c.Args().First(), "resolve"), blockrepl.ResolveRequest{Keep: keep}, &r, func(w io.Writer) {
		fmt.Fprintf(w, "%s: the side of %s is kept; the others set theirs aside and follow it\n", c.Args().First(), keep)
		showInSync(w, r.InSync, r.Warning)
	})
}
