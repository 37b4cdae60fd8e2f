package main

import (
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/blockrepl/blockrepl/blockrepl"
)

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "compare a server's image with the master's",
		UsageText: "blockrepl verify VOLUME [--admin ADDR] [--repair]",
		Description: `Asks a slave to compare its image with the master's, by hashes, at one number of
the history, while both go on serving. It reads the whole image on both servers;
only hashes travel. It names what differs, in blocks of 64 KiB, at most 64 ranges. On
a terminal it shows how far it is; "blockrepl status" does, too.

--repair copies what differs from the master: that is right when this server's image
is the damaged one. With three servers ask both slaves without it first. If both
differ, the master's image may be the damaged one: promote a slave that is in sync,
then repair the old master. The journal has the last writes: "blockrepl journal show".

What it found is named by "blockrepl status" there, also after a restart, until a
later verify finds the image equal or repairs it, or the server is resynced.

EXAMPLES:
   blockrepl verify vol0 --admin 127.0.0.1:10821

EXIT STATUS:
   0 equal (or repaired)   4 they differ   1 an error   3 refused   6 the server does not answer`,
		Flags: withTimeout(adminFlags(
			&cli.BoolFlag{Name: "repair", Usage: "copy what differs from the master"},
		), 24*time.Hour),
		Action: verify,
	}
}

func verify(c *cli.Context) error {
	if err := wantArgs(c, 1, 1, "VOLUME"); err != nil {
		return err
	}
	a, err := newAdmin(c)
	if err != nil {
		return err
	}
	volume := c.Args().First()
	var r blockrepl.VerifyReport
	request := blockrepl.VerifyRequest{Repair: c.Bool("repair")}
	stop := a.showProgress(c, volume)
	defer stop()
	err = a.command(c, volumePath(volume, "verify"), request, &r, func(w io.Writer) {
		stop()
		outcome := "differ"
		if r.Repaired {
			outcome = "differed and were copied"
		}
		fmt.Fprintf(w, "%s: %s compared with server %s, %s %s\n", volume, humanBytes(r.ComparedBytes), r.Source, humanBytes(r.DifferentBytes), outcome)
		for _, x := range r.Different {
			fmt.Fprintf(w, "  %d bytes at %d\n", x.Length, x.Offset)
		}
	})
	if err != nil || r.DifferentBytes == 0 || r.Repaired {
		return err
	}
	return &failure{code: exitUnhealthy, err: fmt.Errorf("verify %s: the images differ", volume), next: "copy the master's with --repair"}
}
