package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/urfave/cli/v2"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "how volumes and servers are doing",
		UsageText: "blockrepl status [VOLUME] [--admin ADDR] [--watch] [--json]",
		Description: `Prints a line for each volume and each other server as the asked server sees
them, with the reason and the next command when something is wrong. Lags are known
to the master only. Asking is cheap.

Volume states: healthy; degraded (serving; a member is missing, or verify found that
this server's image differs and nothing has mended it since); catching-up and
resyncing (this server lacks records, or its image is being copied); suspended (writes
wait); diverged; split-brain; failed.
Peer states: live, catch-up, resync, probe, down.

--json prints what GET /v1/status answers. With --watch: one object a line.

EXAMPLES:
   blockrepl status
   blockrepl status vol0 --watch
   blockrepl status --json | jq -r '.volumes[].state'

EXIT STATUS:
   0 all volumes are healthy   4 one is not   5 one is in split brain
   1 an error, or no such volume   6 the server does not answer`,
		Flags: adminFlags(
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "print again and again, until interrupted"},
			&durationFlag{cli.DurationFlag{Name: "interval", Value: 2 * time.Second, Usage: "`TIME` between two prints of --watch"}},
		),
		Action: status,
	}
}

func status(c *cli.Context) error {
	if err := wantArgs(c, 0, 1, "at most one VOLUME"); err != nil {
		return err
	}
	a, err := newAdmin(c)
	if err != nil {
		return err
	}
	if c.Bool("watch") {
		return watchStatus(c, a)
	}
	s, err := askStatus(c.Context, c, a)
	if err != nil {
		return err
	}
	if err := printStatus(c, s, false); err != nil {
		return err
	}
	return statusExit(s)
}

// askStatus asks once and keeps the named volume only, when one is named.
func askStatus(ctx context.Context, c *cli.Context, a *admin) (*blockrepl.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Duration("timeout"))
	defer cancel()
	var s blockrepl.Status
	if err := a.get(ctx, "/v1/status", &s); err != nil {
		return nil, err
	}
	name := c.Args().First()
	if name == "" {
		return &s, nil
	}
	var names []string
	for _, v := range s.Volumes {
		if v.Name == name {
			s.Volumes = []blockrepl.VolumeStatus{v}
			return &s, nil
		}
		names = append(names, v.Name)
	}
	return nil, fmt.Errorf("status: server %s has no volume %q%s", s.Server, name, didYouMean(name, names))
}

func printStatus(c *cli.Context, s *blockrepl.Status, line bool) error {
	switch {
	case c.Bool("json") && line:
		return printJSONLine(c.App.Writer, s)
	case c.Bool("json"):
		return printJSON(c.App.Writer, s)
	}
	renderStatus(c.App.Writer, s, wantsColour(c.App.Writer))
	return nil
}

// watchStatus prints until interrupted. A server that stops answering is said
// and asked again: the watch is for looking at exactly such moments.
func watchStatus(c *cli.Context, a *admin) error {
	interval := c.Duration("interval")
	if interval < 100*time.Millisecond {
		return usagef("status: --interval %s: want at least 100ms", interval)
	}
	ctx, stop := interruptible(c.Context)
	defer stop()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		s, err := askStatus(ctx, c, a)
		if ctx.Err() != nil {
			return nil
		}
		if wantsColour(c.App.Writer) && !c.Bool("json") {
			fmt.Fprint(c.App.Writer, "\x1b[H\x1b[2J") // home, clear
		}
		if !c.Bool("json") {
			fmt.Fprintln(c.App.Writer, time.Now().Format(time.DateTime))
		}
		if err != nil {
			report(c.App.ErrWriter, err)
		} else if err := printStatus(c, s, true); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// statusExit makes the worst volume the exit status.
func statusExit(s *blockrepl.Status) error {
	code := exitOK
	for _, v := range s.Volumes {
		switch v.State {
		case blockrepl.StateHealthy:
		case blockrepl.StateSplitBrain:
			return quietExit(exitSplitBrain)
		default:
			code = exitUnhealthy
		}
	}
	if code == exitOK {
		return nil
	}
	return quietExit(code)
}

// renderStatus prints s for people.
func renderStatus(w io.Writer, s *blockrepl.Status, colour bool) {
	fmt.Fprintf(w, "cluster %s, server %s, blockrepl %s\n", s.Cluster, s.Server, s.Version)
	if len(s.Volumes) == 0 {
		fmt.Fprintln(w, "no volumes")
	}
	paint := func(t *table, column int, c string) {
		if colour {
			t.paint(column, c)
		}
	}
	t := newTable(w)
	for i := range s.Volumes {
		v := &s.Volumes[i]
		t.row(v.Name, string(v.State), roleText(v), humanBytes(v.SizeBytes), positionText(v), inSyncText(v))
		paint(t, 0, bold)
		paint(t, 1, volumeColour(v.State))
		for j := range v.Peers {
			p := &v.Peers[j]
			t.row("  "+p.Server, p.State, peerSync(p), since(p.SinceMilli), lagText(v, p), p.Reason)
			paint(t, 1, peerColour(p.State))
			if p.Link != "" {
				t.line("    " + p.Link)
			}
		}
		t.note(v, colour)
	}
	t.flush()
}

// note adds the lines below a volume that are not part of the columns.
func (t *table) note(v *blockrepl.VolumeStatus, colour bool) {
	line := func(mark, text, c string) {
		if text == "" {
			return
		}
		if !colour {
			c = ""
		}
		t.line("  " + coloured(mark+text, c))
	}
	line("! ", v.Reason, volumeColour(v.State))
	if r := v.Resync; r != nil {
		line("  ", fmt.Sprintf("resync from %s: %s of %s compared, %s differed and travelled, %s left", r.Source, humanBytes(r.DoneBytes),
			humanBytes(r.TotalBytes), humanBytes(r.SentBytes), humanDuration(time.Duration(r.LeftSeconds*float64(time.Second)))), "")
	}
	if v.Work != nil {
		line("  ", workText(v.Work), "")
	}
	for _, q := range v.Quarantines {
		line("  ", fmt.Sprintf("quarantine %s: records %d to %d of epoch %s are set aside", q.ID, q.First, q.Last, q.Epoch), "")
	}
	line("next: ", v.Next, bold)
}

// roleText names the master, or the last one that is known, beside a slave.
func roleText(v *blockrepl.VolumeStatus) string {
	if v.Role == "slave" && v.Master != "" {
		return "slave of " + v.Master
	}
	return v.Role
}

func positionText(v *blockrepl.VolumeStatus) string {
	return fmt.Sprintf("epoch %s last %d committed %d applied %d", v.Epoch, v.Last, v.Committed, v.Applied)
}

func inSyncText(v *blockrepl.VolumeStatus) string {
	text := "in sync"
	for _, id := range v.InSync {
		text += " " + id
	}
	if v.Shared {
		return text + ", shared"
	}
	if v.Holder != "" {
		text += ", held by " + v.Holder
	}
	return text
}

func peerSync(p *blockrepl.PeerStatus) string {
	if p.InSync {
		return "in sync"
	}
	return "-"
}

func since(ms int64) string { return humanDuration(time.Duration(ms) * time.Millisecond) }

// lagText says what the master knows; a slave does not know.
func lagText(v *blockrepl.VolumeStatus, p *blockrepl.PeerStatus) string {
	switch {
	case v.Role != "master":
		return ""
	case p.State == "resync": // the records that it has say nothing about its image
		return "gets the image"
	case p.LagRecords == 0 && (p.State == "down" || p.State == "probe"): // and may have lost it since
		return "had everything"
	case p.LagRecords == 0:
		return "has everything"
	case p.Durable == 0: // a new master was not told yet what it has
		return "behind at most " + count(p.LagRecords, "record")
	}
	text := fmt.Sprintf("behind %s, %s", count(p.LagRecords, "record"), humanBytes(p.LagBytes))
	if p.LagSeconds > 0 { // else it was never heard
		text += ", " + humanDuration(time.Duration(p.LagSeconds*float64(time.Second)))
	}
	return text
}

func volumeColour(s blockrepl.VolumeState) string {
	switch s {
	case blockrepl.StateHealthy:
		return green
	case blockrepl.StateDegraded, blockrepl.StateCatchingUp, blockrepl.StateResyncing:
		return yellow
	}
	return red
}

func peerColour(state string) string {
	switch state {
	case "live":
		return green
	case "down":
		return red
	}
	return yellow
}
