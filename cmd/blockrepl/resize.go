package main

import (
	"fmt"
	"io"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/urfave/cli/v2"
)

func resizeCommand() *cli.Command {
	return &cli.Command{
		Name:      "resize",
		Usage:     "make a volume larger",
		UsageText: "blockrepl resize VOLUME SIZE [--admin ADDR] [--force]",
		Description: `Gives VOLUME a new SIZE, as 2GiB, on all its servers at one place of its history.
Clients see it when they attach again; then grow the file system (resize2fs,
xfs_growfs). The size in the configuration counts at the volume's creation only.

No volume gets smaller again. The asked server looks at its own image and asks all
other members. It refuses what an image cannot take: enlarge block devices on all
servers first. Without --force it also refuses what a file system has no space for, and
when a member does not answer within peer_timeout or is not linked: a server that
cannot follow when it is back fails. With a member away ask the master.

EXAMPLES:
   blockrepl resize vol0 2GiB

EXIT STATUS:
   0 done   1 an error   2 not a size   3 refused, the message may name the flag
   6 the server does not answer`,
		Flags: append(adminFlags(),
			&cli.BoolFlag{Name: "force", Usage: "although a file system lacks space for all of it, or a server cannot be asked"}),
		Action: resize,
	}
}

func resize(c *cli.Context) error {
	if err := wantArgs(c, 2, 2, "VOLUME and SIZE"); err != nil {
		return err
	}
	v := VolumeConfig{Name: c.Args().First(), Keep: defaultKeep}
	var err error
	if v.Size, err = ParseSize(c.Args().Get(1)); err == nil {
		err = v.checkSizes()
	}
	if err != nil {
		return usagef("resize: %w", err)
	}
	a, err := newAdmin(c)
	if err != nil {
		return err
	}
	var r blockrepl.ResizeReport
	return a.command(c, volumePath(v.Name, "resize"), blockrepl.ResizeRequest{SizeBytes: int64(v.Size), Force: c.Bool("force")}, &r, func(w io.Writer) {
		fmt.Fprintf(w, "%s has %s now; attached clients see it when they attach again\n", v.Name, v.Size)
		if r.Warning != "" {
			fmt.Fprintln(w, "warning: the size is numbered although", r.Warning)
		}
	})
}
