package main

import (
	"fmt"
	"io"
	"strings"
	"text/template"

	"github.com/urfave/cli/v2"
)

const appHelp = `{{.Name}} - {{.Usage}}

USAGE:
   {{.UsageText}}

{{.Description}}

COMMANDS:{{range .VisibleCommands}}
   {{printf "%-11s" .Name}} {{.Usage}}{{end}}

   blockrepl COMMAND --help says more: what it does, defaults, cost, examples.

EXIT STATUS:
   0 done, 1 error, 2 wrong usage or configuration, 3 refused (a flag allows it),
   4 a volume is not healthy, 5 split brain, 6 the server does not answer
`

const commandHelp = `{{.HelpName}} - {{.Usage}}

USAGE:
   {{.UsageText}}

{{.Description}}{{if .VisibleCommands}}

COMMANDS:{{range .VisibleCommands}}
   {{printf "%-8s" .Name}} {{.Usage}}{{end}}{{end}}{{if .VisibleFlags}}

OPTIONS:
{{options .VisibleFlags}}{{end}}
`

// indented moves each line but empty ones by the three columns of the help.
func indented(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if line != "" {
			lines[i] = "   " + line
		}
	}
	return strings.Join(lines, "\n")
}

// printHelp renders the two templates above. The library's own printer pads
// every option to the longest one.
func printHelp(w io.Writer, text string, data any, _ map[string]any) {
	t := template.Must(template.New("help").Funcs(template.FuncMap{"options": optionsHelp}).Parse(text))
	if err := t.Execute(w, data); err != nil {
		fmt.Fprintln(w, err)
	}
}

// optionColumn is where an option's description begins.
const optionColumn = 24

// optionsHelp lists options, a description beside a short one and below a long one.
func optionsHelp(flags []cli.Flag) string {
	var b strings.Builder
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		value, usage := flagValue(d.GetUsage())
		var names []string
		for _, n := range f.Names() {
			names = append(names, strings.Repeat("-", min(len(n), 2))+n)
		}
		option := "   " + strings.Join(names, ", ")
		if d.TakesValue() {
			option += " " + value
		}
		if len(option)+1 < optionColumn {
			fmt.Fprintf(&b, "%-*s", optionColumn, option)
		} else {
			fmt.Fprintf(&b, "%s\n%*s", option, optionColumn, "")
		}
		b.WriteString(usage)
		if dd, ok := f.(*durationFlag); ok && dd.Value != 0 {
			fmt.Fprintf(&b, " (default: %s)", Duration(dd.Value))
		} else if !ok && d.TakesValue() && d.GetDefaultText() != "" {
			fmt.Fprintf(&b, " (default: %s)", strings.Trim(d.GetDefaultText(), `"`))
		}
		if vars := d.GetEnvVars(); len(vars) > 0 {
			fmt.Fprintf(&b, " [$%s]", strings.Join(vars, ", $"))
		}
		b.WriteString("\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// flagValue takes the name of an option's value out of its usage, where it
// stands in back quotes.
func flagValue(usage string) (value, text string) {
	before, rest, ok := strings.Cut(usage, "`")
	value, after, closed := strings.Cut(rest, "`")
	if !ok || !closed {
		return "VALUE", usage
	}
	return value, before + value + after
}
