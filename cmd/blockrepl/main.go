package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"
)

// version, commit and date are stamped by the linker (see the Makefile).
var (
	version = "0.1.0-dev"
	commit  = ""
	date    = ""
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		signal.Ignore(syscall.SIGHUP) // a reload; serve listens for it before it reads its configuration
		coarsenTimers()
	}
	os.Exit(run(context.Background(), os.Args, os.Stdout, os.Stderr))
}

// run is main without the exit, so that tests can call it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	return report(stderr, app.RunContext(ctx, permute(app, args)))
}

// newApp puts the commands together. Order is the order of the help.
func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:      "blockrepl",
		Usage:     "a disk that outlives any one machine",
		UsageText: "blockrepl COMMAND [options] [arguments]",
		Description: "Two to seven servers each hold a full copy of a volume; a client attaches it over\n" +
			"NBD. Every completed write is on disk on every in-sync server.\n\n" +
			"Start here:  blockrepl dev           three servers on this host, to try it\n" +
			"             blockrepl serve -c FILE a server\n" +
			"             blockrepl status        how it is doing",
		Version:                version,
		HideVersion:            true,
		HideHelpCommand:        true,
		Writer:                 stdout,
		ErrWriter:              stderr,
		SliceFlagSeparator:     ";",
		UseShortOptionHandling: false,
		EnableBashCompletion:   true,
		Suggest:                true,
		ExitErrHandler:         func(*cli.Context, error) {}, // report prints and main exits
		Commands: []*cli.Command{
			serveCommand(), checkCommand(), devCommand(), certCommand(),
			ofVolume(statusCommand()), ofVolume(promoteCommand()), ofVolume(forgetCommand()), ofVolume(resolveCommand()),
			ofVolume(resizeCommand()), ofVolume(setCommand()), ofVolume(initCommand()), ofVolume(verifyCommand()),
			journalCommand(), attachCommand(),
			versionCommand(), completionCommand(),
		},
	}
	cli.HelpPrinterCustom = printHelp
	app.Description = indented(app.Description)
	app.CustomAppHelpTemplate = appHelp
	app.Action = func(c *cli.Context) error {
		if name := c.Args().First(); name != "" {
			return usagef("unknown command %q%s; `blockrepl --help` lists them", name, didYouMean(name, commandNames(app)))
		}
		return cli.ShowAppHelp(c)
	}
	app.OnUsageError = usageError
	for _, c := range app.Commands {
		prepare(c)
	}
	return app
}

// prepare gives a command and its subcommands what all have in common.
func prepare(c *cli.Command) {
	c.OnUsageError = usageError
	c.HideHelpCommand = true
	c.CustomHelpTemplate = commandHelp
	c.Description = indented(c.Description)
	for _, sub := range c.Subcommands {
		prepare(sub)
	}
}

func usageError(c *cli.Context, err error, _ bool) error {
	name := "blockrepl"
	if c != nil && c.Command != nil && c.Command.HelpName != "" {
		name = c.Command.HelpName
	}
	return usagef("%w; see `%s --help`", err, name)
}

func commandNames(app *cli.App) []string {
	var names []string
	for _, c := range app.Commands {
		names = append(names, c.Name)
	}
	return names
}

// report prints err as one line and gives the exit status.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	var quiet quietExit
	if errors.As(err, &quiet) {
		return int(quiet)
	}
	f := asFailure(err)
	for _, line := range f.lines() {
		fmt.Fprintln(w, "blockrepl: "+line)
	}
	return f.code
}
