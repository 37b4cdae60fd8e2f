package main

import (
	"fmt"
	"runtime"

	"github.com/urfave/cli/v2"
)

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:      "version",
		Usage:     "print the version",
		UsageText: "blockrepl version [--json]",
		Description: `Prints version, commit, Go version and platform.

EXIT STATUS:
   0 done   2 wrong usage`,
		Flags: []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 0, 0, ""); err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, map[string]string{"version": version, "commit": commit, "date": date,
					"go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
			}
			fmt.Fprintf(c.App.Writer, "blockrepl %s", version)
			if commit != "" {
				fmt.Fprintf(c.App.Writer, " (%s, %s)", commit, date)
			}
			fmt.Fprintf(c.App.Writer, " %s %s/%s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}
