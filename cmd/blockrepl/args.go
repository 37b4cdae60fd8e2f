package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// permute puts a command's options before its arguments, so that
// `blockrepl promote vol0 --dry-run` means what it says: the flag package stops
// at the first argument. What follows "--" stays where it is.
func permute(app *cli.App, args []string) []string {
	if len(args) < 2 {
		return args
	}
	out := []string{args[0]}
	rest := asOthersSay(args[1:])
	commands, flags := app.Commands, []cli.Flag(nil)
	for len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		c := findCommand(commands, rest[0])
		if c == nil && len(commands) > 0 {
			return append(out, rest[0]) // the name alone is refused, also before --help
		}
		if c == nil {
			break
		}
		out, rest = append(out, rest[0]), rest[1:]
		commands, flags = c.Subcommands, c.Flags
	}
	var options, arguments []string
	for len(rest) > 0 {
		word := rest[0]
		rest = rest[1:]
		if word == "--" {
			arguments = append(arguments, rest...)
			break
		}
		if !strings.HasPrefix(word, "-") || word == "-" {
			arguments = append(arguments, word)
			continue
		}
		options = append(options, word)
		if !takesValue(flags, word) {
			continue
		}
		if len(rest) == 0 {
			return append(out, options...) // refused; with what follows it, that would be its value
		}
		options, rest = append(options, rest[0]), rest[1:]
	}
	out = append(out, options...)
	// The shell completion's word must stay last.
	if n := len(options); n > 0 && options[n-1] == "--generate-bash-completion" {
		out = append(out[:len(out)-1], arguments...)
		return append(out, "--generate-bash-completion")
	}
	if len(arguments) > 0 && len(options) > 0 {
		out = append(out, "--")
	}
	return append(out, arguments...)
}

// asOthersSay takes what most programs understand: --version, help, help COMMAND.
func asOthersSay(words []string) []string {
	switch words[0] {
	case "--version":
		return append([]string{"version"}, words[1:]...)
	case "help":
		return append(slices.Clone(words[1:]), "--help")
	}
	return words
}

func findCommand(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// takesValue reports whether the option word is followed by its value.
func takesValue(flags []cli.Flag, word string) bool {
	name := strings.TrimLeft(word, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range flags {
		for _, n := range f.Names() {
			if n == name {
				d, ok := f.(cli.DocGenerationFlag)
				return ok && d.TakesValue()
			}
		}
	}
	return false
}

// wantArgs checks the number of arguments; names is how they are called in USAGE.
func wantArgs(c *cli.Context, least, most int, names string) error {
	name := strings.TrimPrefix(c.Command.HelpName, "blockrepl ")
	switch n := c.NArg(); {
	case n < least:
		return usagef("%s: wants %s; see `%s --help`", name, names, c.Command.HelpName)
	case n > most:
		return usagef("%s: too many arguments, from %q on; it wants %s", name, c.Args().Get(most), orNone(names))
	}
	return nil
}

func orNone(names string) string {
	if names == "" {
		return "none"
	}
	return names
}
