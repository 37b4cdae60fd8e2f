package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/urfave/cli/v2"
)

func journalCommand() *cli.Command {
	return &cli.Command{
		Name:      "journal",
		Usage:     "look into a server's journal",
		UsageText: "blockrepl journal list|show|verify|dump|drop [--admin ADDR] [VOLUME] …\n   blockrepl journal list|show|verify|dump|remove DATA [VOLUME] …",
		Description: `Asks a running server, as all commands do; its journal cannot be opened by a second
process. Of a stopped server name the data directory first, DATA; nothing in it is
changed, but by remove.

VOLUME is a name; on a stopped server its uuid will do, too.

EXAMPLES:
   blockrepl journal list
   blockrepl journal show vol0 1230 1240 --admin 127.0.0.1:10821
   blockrepl journal show /var/lib/blockrepl vol0 1240
   blockrepl journal verify /var/lib/blockrepl vol0

EXIT STATUS:
   0 done   1 an error   2 wrong usage   4 damage was found   6 the server does not answer`,
		Subcommands: []*cli.Command{journalListCommand(), journalShowCommand(), journalVerifyCommand(), journalDumpCommand(), journalDropCommand(), journalRemoveCommand()},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usagef("journal: no command %q%s", c.Args().First(), didYouMean(c.Args().First(), []string{"list", "show", "verify", "dump", "drop", "remove"}))
			}
			return usagef("journal: wants list, show, verify, dump, drop or remove; see `blockrepl journal --help`")
		},
	}
}

const journalExits = `

EXIT STATUS:
   0 done   1 an error   2 wrong usage   4 damage was found   6 the server does not answer`

func quarantineFlag() cli.Flag {
	return &cli.StringFlag{Name: "quarantine", Usage: "the records of the quarantine `NAME` instead of the log's"}
}

func journalListCommand() *cli.Command {
	return &cli.Command{
		Name:      "list",
		Usage:     "volumes, numbers kept, quarantines",
		UsageText: "blockrepl journal list [DATA] [--admin ADDR] [--json]",
		Description: `Prints for each volume the first and last record kept, their bytes, and the
quarantines: diverged tails that were set aside. Of a stopped server also which
volumes' logs are damaged as a whole.` + journalExits,
		Flags:  adminFlags(),
		Action: journalList,
	}
}

func journalShowCommand() *cli.Command {
	return &cli.Command{
		Name:      "show",
		Usage:     "records, down to one",
		UsageText: "blockrepl journal show [DATA] VOLUME [FROM [TO]] [--quarantine NAME] [--data] [--json]",
		Description: `Prints a line a record: number, epoch, kind, extent, codec, sizes, time, origin,
sums. Without FROM the last 20; without TO only FROM. --data adds the payload,
uncompressed, as a hex dump (in JSON: base64).` + journalExits,
		Flags: adminFlags(quarantineFlag(),
			&cli.BoolFlag{Name: "data", Usage: "print payloads too"}),
		Action: journalShow,
	}
}

func journalVerifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "check every record and the chain of sums",
		UsageText: "blockrepl journal verify [DATA] [VOLUME] [--json]",
		Description: `Reads every record of VOLUME, or of all, with its quarantines, and checks payload
sums, header sums, and that each record names the one before it. On a running
server too, beside its work.` + journalExits,
		Flags:  withTimeout(adminFlags(), 24*time.Hour),
		Action: journalVerify,
	}
}

func journalDumpCommand() *cli.Command {
	return &cli.Command{
		Name:      "dump",
		Usage:     "write records as they are stored",
		UsageText: "blockrepl journal dump [DATA] VOLUME [FROM [TO]] [--quarantine NAME] --output FILE",
		Description: `Writes the encoded records, one behind the other, to FILE ("-" = standard output,
not to a terminal). The layout is that of "go doc ./journal/record". Without FROM
all. Use it to keep a quarantine before it is dropped.

EXAMPLES:
   blockrepl journal dump vol0 --quarantine 20261128T144007.204-8 -o lost.records` + journalExits,
		Flags: withTimeout(withoutJSON(adminFlags(quarantineFlag(),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "-", Usage: "`FILE` to make; it must not exist"})), 24*time.Hour),
		Action: journalDump,
	}
}

func journalDropCommand() *cli.Command {
	return &cli.Command{
		Name:      "drop",
		Usage:     "remove a quarantine for ever",
		UsageText: "blockrepl journal drop VOLUME QUARANTINE [--admin ADDR]",
		Description: `Removes from the asked server, which must run, the records that were set aside as
QUARANTINE. They may hold writes that were once acknowledged and are nowhere else:
look with "blockrepl journal show --quarantine", keep them with "blockrepl journal
dump".

EXAMPLES:
   blockrepl journal drop vol0 20261128T144007.204-8

EXIT STATUS:
   0 done   1 an error, or no such quarantine   2 wrong usage   6 the server does not answer`,
		Flags:  adminFlags(),
		Action: journalDrop,
	}
}

func withoutJSON(flags []cli.Flag) []cli.Flag {
	return slices.DeleteFunc(flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), "json") })
}

// showLast is how many records show prints when no number is given.
const showLast = 20

func journalList(c *cli.Context) error {
	s, _, err := openJournal(c, 0, 0, "")
	if err != nil {
		return err
	}
	defer s.close()
	list, err := s.infos(c.Context)
	if err != nil {
		return err
	}
	damaged := slices.ContainsFunc(list, func(i blockrepl.JournalInfo) bool { return i.Damage != "" })
	if err := printInfos(c.App.Writer, c.Bool("json"), list); err != nil || !damaged {
		return err
	}
	return quietExit(exitUnhealthy)
}

func journalShow(c *cli.Context) error {
	s, args, err := openJournal(c, 1, 3, "VOLUME [FROM [TO]]")
	if err != nil {
		return err
	}
	defer s.close()
	q, err := newRecordQuery(c, s, args, showLast)
	if err != nil {
		return err
	}
	p := &recordPrinter{w: c.App.Writer, json: c.Bool("json")}
	return s.records(c.Context, q, p.print)
}

// newRecordQuery reads VOLUME [FROM [TO]] and the options. Without FROM it wants
// the last records of the log, or all of a quarantine.
func newRecordQuery(c *cli.Context, s journalSource, args []string, last uint64) (recordQuery, error) {
	q := recordQuery{volume: args[0], quarantine: c.String("quarantine"), data: c.Bool("data")}
	var n [2]uint64
	for i, arg := range args[1:] {
		var err error
		if n[i], err = strconv.ParseUint(arg, 10, 64); err != nil || n[i] == 0 {
			return q, usagef("journal: %q is not a record's number", arg)
		}
	}
	if len(args) == 2 {
		n[1] = n[0]
	}
	if n[1] < n[0] {
		return q, usagef("journal: the range %d to %d is empty", n[0], n[1])
	}
	q.from, q.to = n[0], n[1]
	if q.quarantine != "" {
		return q, nil
	}
	info, err := s.info(c.Context, q.volume)
	switch {
	case err != nil:
		return q, err
	case info.First > info.Last:
		return q, fmt.Errorf("journal: volume %s keeps no records now; the next is %d", q.volume, info.First)
	case q.from == 0:
		q.from, q.to = max(info.First, info.Last-min(info.Last, last-1)), info.Last
	case q.from < info.First || q.from > info.Last:
		return q, fmt.Errorf("journal: volume %s has no record %d; it keeps %d to %d", q.volume, q.from, info.First, info.Last)
	}
	q.to = min(q.to, info.Last)
	return q, nil
}

func journalVerify(c *cli.Context) error {
	s, args, err := openJournal(c, 0, 1, "[VOLUME]")
	if err != nil {
		return err
	}
	defer s.close()
	damaged := false
	err = s.verify(c.Context, append(args, "")[0], func(r *blockrepl.JournalVerify) error {
		damaged = damaged || r.Damaged > 0
		return printVerify(c.App.Writer, c.Bool("json"), r)
	})
	if err == nil && damaged {
		return quietExit(exitUnhealthy)
	}
	return err
}

func journalDump(c *cli.Context) (err error) {
	s, args, err := openJournal(c, 1, 3, "VOLUME [FROM [TO]]")
	if err != nil {
		return err
	}
	defer s.close()
	q, err := newRecordQuery(c, s, args, math.MaxUint64)
	if err != nil {
		return err
	}
	out, finish, err := dumpOutput(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, finish()) }()
	return s.dump(c.Context, q, out)
}

func journalDrop(c *cli.Context) error {
	if err := wantArgs(c, 2, 2, "VOLUME and QUARANTINE"); err != nil {
		return err
	}
	a, err := newAdmin(c)
	if err != nil {
		return err
	}
	var r blockrepl.DropReport
	request := blockrepl.DropRequest{Quarantine: c.Args().Get(1)}
	return a.command(c, volumePath(c.Args().First(), "drop"), request, &r, func(w io.Writer) {
		fmt.Fprintf(w, "%s: the quarantine %s is dropped\n", r.Volume, r.Quarantine)
	})
}

// dumpOutput opens what --output names; finish makes it durable.
func dumpOutput(c *cli.Context) (w io.Writer, finish func() error, err error) {
	path := c.String("output")
	if path != "-" {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return nil, nil, usagef("journal dump: %s exists and is not overwritten; name another with --output", path)
		}
		if err != nil {
			return nil, nil, usagef("journal dump: %w", err)
		}
		return f, func() error { return errors.Join(f.Sync(), f.Close()) }, nil
	}
	if isTerminal(c.App.Writer) {
		return nil, nil, usagef("journal dump: records are binary and not for a terminal; name a file with --output")
	}
	return c.App.Writer, func() error { return nil }, nil
}
