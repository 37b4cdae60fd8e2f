package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/urfave/cli/v2"
)

func completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print shell completion for bash, zsh or fish",
		UsageText: "blockrepl completion bash|zsh|fish",
		Description: `Prints a script for the shell; it completes commands and options,
in bash and zsh also the volumes of the server that would be asked.

EXAMPLES:
   blockrepl completion bash > /etc/bash_completion.d/blockrepl
   blockrepl completion zsh  > "${fpath[1]}/_blockrepl"
   blockrepl completion fish > ~/.config/fish/completions/blockrepl.fish

EXIT STATUS:
   0 done   2 no such shell`,
		Action: completion,
	}
}

func completion(c *cli.Context) error {
	if err := wantArgs(c, 1, 1, "bash, zsh or fish"); err != nil {
		return err
	}
	var script string
	switch shell := c.Args().First(); shell {
	case "bash":
		script = bashCompletion
	case "zsh":
		script = zshCompletion
	case "fish":
		script = fishCompletion(c.App.Commands)
	default:
		return usagef("completion: no shell %q: want bash, zsh or fish", shell)
	}
	_, err := fmt.Fprint(c.App.Writer, script)
	return err
}

// completionWait bounds what a TAB waits for a server.
const completionWait = 500 * time.Millisecond

// ofVolume lets the shell complete a command's first argument, a volume's name, as the
// server says it.
func ofVolume(command *cli.Command) *cli.Command {
	options := cli.DefaultCompleteWithFlags(command)
	command.BashComplete = func(c *cli.Context) {
		options(c)
		if c.NArg() > 0 || len(os.Args) < 2 || strings.HasPrefix(os.Args[len(os.Args)-2], "-") {
			return
		}
		a, err := newAdmin(c)
		if err != nil {
			return // the command itself will say it
		}
		ctx, cancel := context.WithTimeout(c.Context, completionWait)
		defer cancel()
		var s blockrepl.Status
		if a.get(ctx, "/v1/status", &s) != nil {
			return
		}
		for _, v := range s.Volumes {
			fmt.Fprintln(c.App.Writer, v.Name)
		}
	}
	return command
}

// The scripts ask the program itself, so they never fall behind it. The words
// are passed as an array: nothing of what was typed is evaluated.
const bashCompletion = `# bash completion for blockrepl
_blockrepl() {
	local cur=${COMP_WORDS[COMP_CWORD]} words=("${COMP_WORDS[@]:1:COMP_CWORD-1}")
	[[ $cur == -* ]] && words+=("$cur")
	mapfile -t COMPREPLY < <(compgen -W "$("${COMP_WORDS[0]}" "${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur")
}
complete -o bashdefault -o default -F _blockrepl blockrepl
`

const zshCompletion = `#compdef blockrepl
_blockrepl() {
	local -a opts args
	args=("${(@)words[2,$((CURRENT-1))]}")
	[[ ${words[CURRENT]} == -* ]] && args+=("${words[CURRENT]}")
	opts=("${(@f)$(${words[1]} "${args[@]}" --generate-bash-completion 2>/dev/null)}")
	if [[ -n ${opts[1]} ]]; then compadd -- "${opts[@]%%:*}"; else _files; fi
}
# From a directory of fpath this file is the function's body at its first call.
if [[ ${funcstack[1]} == _blockrepl ]]; then _blockrepl "$@"; else compdef _blockrepl blockrepl; fi
`

// fishCompletion lists commands and options: fish wants them declared.
func fishCompletion(commands []*cli.Command) string {
	var b strings.Builder
	b.WriteString("# fish completion for blockrepl\n")
	for _, c := range commands {
		fmt.Fprintf(&b, "complete -c blockrepl -n __fish_use_subcommand -f -a %s -d %s\n", c.Name, fishQuote(c.Usage))
		seen := "__fish_seen_subcommand_from " + c.Name
		for _, sub := range c.Subcommands {
			fmt.Fprintf(&b, "complete -c blockrepl -n '%s' -f -a %s -d %s\n", seen, sub.Name, fishQuote(sub.Usage))
			fishOptions(&b, seen+"; and __fish_seen_subcommand_from "+sub.Name, sub.Flags)
		}
		fishOptions(&b, seen, c.Flags)
	}
	return b.String()
}

func fishOptions(b *strings.Builder, when string, flags []cli.Flag) {
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		fmt.Fprintf(b, "complete -c blockrepl -n '%s' -l %s", when, f.Names()[0])
		if d.TakesValue() {
			b.WriteString(" -r")
		}
		fmt.Fprintf(b, " -d %s\n", fishQuote(strings.ReplaceAll(d.GetUsage(), "`", "")))
	}
}

func fishQuote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}
