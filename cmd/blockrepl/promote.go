package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/urfave/cli/v2"
)

func promoteCommand() *cli.Command {
	return &cli.Command{
		Name:      "promote",
		Usage:     "make the asked server the master of a volume",
		UsageText: "blockrepl promote VOLUME [--admin ADDR] [--dry-run] [--old-master-dead] [--accept-loss]",
		Description: `Asks the server at --admin to become master of VOLUME.

When the old master answers it finishes what it has, steps down and nothing is
lost: clients wait for some milliseconds. When it does not answer, the server
takes over if it can know that it holds every completed write. Alone it often
cannot; then you must say what it cannot see:

   --old-master-dead   the old master is stopped and will not come back as master.
                       Look first: it must really be off, or cut from its clients.
   --accept-loss       go on although completed writes may be missing here. The
                       report says which numbers, as far as anyone who answers knows.

--dry-run changes nothing and prints who answers, the last number that each
holds and what could be missing. Run it first.

Asked of a server that is the master already it changes nothing and is done, as long as
clients are served there; where writes wait it is refused, and says for what.

Servers that did not answer are left out of the in-sync set. The answer names them: do
not promote them before they are in sync again.

The old master returns as a slave. What only it had is set aside (quarantined),
never applied and never dropped: see "blockrepl journal list".

EXAMPLES:
   blockrepl promote vol0 --admin 127.0.0.1:10821 --dry-run
   blockrepl promote vol0 --admin 127.0.0.1:10821 --old-master-dead

EXIT STATUS:
   0 it is master now, or was already (or could be, with --dry-run)
   1 an error   3 refused, the message names the flag or what is to be done
   5 split brain, see "blockrepl resolve"   6 the server does not answer`,
		Flags: adminFlags(
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "change nothing, say what would happen"},
			&cli.BoolFlag{Name: "old-master-dead", Usage: "assert that the old master is stopped"},
			&cli.BoolFlag{Name: "accept-loss", Usage: "go on although completed writes may be missing"},
		),
		Action: promote,
	}
}

func promote(c *cli.Context) error {
	if err := wantArgs(c, 1, 1, "VOLUME"); err != nil {
		return err
	}
	a, err := newAdmin(c)
	if err != nil {
		return err
	}
	volume := c.Args().First()
	request := blockrepl.PromoteRequest{
		DryRun:        c.Bool("dry-run"),
		OldMasterDead: c.Bool("old-master-dead"),
		AcceptLoss:    c.Bool("accept-loss"),
	}
	var r blockrepl.PromoteReport
	err = a.command(c, volumePath(volume, "promote"), request, &r, func(w io.Writer) {
		showPromote(w, &r, request.DryRun)
		showInSync(w, r.InSync, r.Warning)
	})
	if err != nil || r.Allowed {
		return err
	}
	code := exitRefused
	if r.Split {
		code = exitSplitBrain
	}
	return &failure{code: code, err: fmt.Errorf("promote %s on %s: %s", volume, r.Candidate, r.Reason), next: needs(c, &r)}
}

// needs gives the command that would be carried out, at the same server.
func needs(c *cli.Context, r *blockrepl.PromoteReport) string {
	if r.Needs == "" {
		return ""
	}
	next := "if that is so: blockrepl promote " + r.Volume + " " + r.Needs
	if c.IsSet("admin") {
		next += " --admin " + c.String("admin")
	}
	return next
}

// showPromote prints the table of servers, what could be missing, and the outcome.
func showPromote(w io.Writer, r *blockrepl.PromoteReport, dryRun bool) {
	t := newTable(w)
	t.row("SERVER", "ANSWERS", "ROLE", "EPOCH", "LAST", "IN SYNC")
	for _, s := range r.Servers {
		if !s.Answers {
			t.row(s.Server, "no", "", "", "", yesNo(s.InSync))
			continue
		}
		t.row(s.Server, "yes", s.Role, s.Epoch, fmt.Sprint(s.Last), yesNo(s.InSync))
	}
	t.flush()
	if r.MissingFirst != 0 {
		fmt.Fprintf(w, "could be missing on %s: %s, %d to %d%s\n", r.Candidate, count(r.MissingLast-r.MissingFirst+1, "record"),
			r.MissingFirst, r.MissingLast, unheard(r.MissingSeconds))
	}
	switch {
	case !r.Allowed: // the error line says it
	case r.Already:
		fmt.Fprintf(w, "%s is master of %s already, epoch %s\n", r.Candidate, r.Volume, r.Epoch)
	case dryRun && r.Graceful:
		fmt.Fprintf(w, "%s would become master of %s; the old master steps down itself, nothing is lost\n", r.Candidate, r.Volume)
	case dryRun:
		fmt.Fprintf(w, "%s would take over %s\n", r.Candidate, r.Volume)
	default:
		fmt.Fprintf(w, "%s is master of %s, epoch %s\n", r.Candidate, r.Volume, r.Epoch)
	}
}

// showInSync says with whom a new mastership goes on, and who must not be promoted now:
// nobody else tells the operator at this moment.
func showInSync(w io.Writer, inSync []string, warning string) {
	if len(inSync) > 0 {
		fmt.Fprintf(w, "in sync: %s\n", strings.Join(inSync, " "))
	}
	if warning != "" {
		fmt.Fprintf(w, "warning: %s\n", warning)
	}
}

// unheard says since when nothing was heard of a master whose records may be missing.
func unheard(seconds float64) string {
	if seconds == 0 {
		return ""
	}
	return ", of a master not heard for " + humanDuration(time.Duration(seconds*float64(time.Second)))
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
