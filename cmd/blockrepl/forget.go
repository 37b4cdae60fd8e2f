package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/urfave/cli/v2"
)

func forgetCommand() *cli.Command {
	return &cli.Command{
		Name:      "forget",
		Usage:     "go on without a server that is away",
		UsageText: "blockrepl forget VOLUME SERVER [--admin ADDR] [--force]",
		Description: `Asks the master of VOLUME to stop waiting for SERVER: it leaves the in-sync set
and writes go on. The server is not removed: when it is back it catches up and
is in sync again by itself.

From then on completed writes are not on SERVER. Do not promote it before it is
in sync again; the answer says so. --force goes on although no majority of the
members can take note: then nobody can warn you later.

EXAMPLES:
   blockrepl forget vol0 c
   blockrepl forget vol0 c --admin 127.0.0.1:10821

EXIT STATUS:
   0 done   1 an error   3 refused, the message names the flag   6 the server does not answer`,
		Flags: adminFlags(
			&cli.BoolFlag{Name: "force", Usage: "although no majority of the members can take note"},
		),
		Action: forget,
	}
}

func forget(c *cli.Context) error {
	if err := wantArgs(c, 2, 2, "VOLUME and SERVER"); err != nil {
		return err
	}
	a, err := newAdmin(c)
	if err != nil {
		return err
	}
	var r blockrepl.ForgetReport
	request := blockrepl.ForgetRequest{Server: c.Args().Get(1), Force: c.Bool("force")}
	return a.command(c, volumePath(c.Args().First(), "forget"), request, &r, func(w io.Writer) {
		fmt.Fprintf(w, "%s goes on without %s; in sync: %s\n", c.Args().First(), request.Server, cmp.Or(strings.Join(r.InSync, " "), "not told, see status"))
		if r.Warning != "" {
			fmt.Fprintf(w, "warning: %s\n", r.Warning)
		}
	})
}
