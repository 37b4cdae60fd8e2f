package main

import (
	"errors"
	"io"
	"os"
	"strconv"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/journal/record"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

func journalCommand() *cli.Command {
	return &cli.Command{
		Name:      "journal",
		Usage:     "look into a server's journal",
		UsageText: "blockrepl journal list|show|verify|dump DATA [VOLUME] …\n   blockrepl journal list|show|verify --admin ADDR [VOLUME] …",
		Description: `DATA is the data directory of a stopped server; nothing in it is changed. A
running server's journal cannot be opened by a second process: ask the server,
with --admin and without DATA.

VOLUME is a name; on a stopped server its uuid will do, too.

EXAMPLES:
   blockrepl journal list /var/lib/blockrepl
   blockrepl journal show /var/lib/blockrepl vol0 1230 1240
   blockrepl journal show --admin 127.0.0.1:10811 vol0 1240
   blockrepl journal verify /var/lib/blockrepl vol0

EXIT STATUS:
   0 done   1 an error   2 wrong usage   4 verify found damage   6 the server does not answer`,
		Subcommands: []*cli.Command{journalListCommand(), journalShowCommand(), journalVerifyCommand(), journalDumpCommand()},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usagef("journal: no command %q%s", c.Args().First(), didYouMean(c.Args().First(), []string{"list", "show", "verify", "dump"}))
			}
			return usagef("journal: wants list, show, verify or dump; see `blockrepl journal --help`")
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
		UsageText: "blockrepl journal list DATA [--json]\n   blockrepl journal list --admin ADDR [--json]",
		Description: `Prints for each volume the first and last record kept, their bytes, and the
quarantines: diverged tails that were set aside.` + journalExits,
		Flags:  adminFlags(),
		Action: journalList,
	}
}

func journalShowCommand() *cli.Command {
	return &cli.Command{
		Name:      "show",
		Usage:     "records, down to one",
		UsageText: "blockrepl journal show DATA VOLUME [FROM [TO]] [--data] [--json]\n   blockrepl journal show --admin ADDR VOLUME [FROM [TO]]",
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
		UsageText: "blockrepl journal verify DATA [VOLUME] [--json]\n   blockrepl journal verify --admin ADDR [VOLUME] [--json]",
		Description: `Reads every record of VOLUME, or of all, with its quarantines, and checks payload
sums, header sums, and that each record names the one before it.` + journalExits,
		Flags:  adminFlags(),
		Action: journalVerify,
	}
}

func journalDumpCommand() *cli.Command {
	return &cli.Command{
		Name:      "dump",
		Usage:     "write records as they are stored",
		UsageText: "blockrepl journal dump DATA VOLUME [FROM [TO]] [--quarantine NAME] --output FILE",
		Description: `Writes the encoded records, one behind the other, to FILE ("-" = standard output,
not to a terminal). The layout is that of "go doc ./journal/record". Without FROM
all. Use it to keep a quarantine before it is dropped.` + journalExits,
		Flags: []cli.Flag{quarantineFlag(),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "-", Usage: "`FILE` to make; it must not exist"}},
		Action: journalDump,
	}
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
	return printInfos(c.App.Writer, c.Bool("json"), list)
}

func journalShow(c *cli.Context) error {
	s, args, err := openJournal(c, 1, 3, "VOLUME [FROM [TO]]")
	if err != nil {
		return err
	}
	defer s.close()
	q, err := newRecordQuery(c, args)
	if err != nil {
		return err
	}
	p := &recordPrinter{w: c.App.Writer, json: c.Bool("json")}
	return s.records(c.Context, q, p.print)
}

// newRecordQuery reads VOLUME [FROM [TO]] and the options.
func newRecordQuery(c *cli.Context, args []string) (recordQuery, error) {
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
	if err := wantArgs(c, 2, 4, "DATA VOLUME [FROM [TO]]"); err != nil {
		return err
	}
	q, err := newRecordQuery(c, c.Args().Slice()[1:])
	if err != nil {
		return err
	}
	s, err := openStopped(c.Args().First())
	if err != nil {
		return err
	}
	defer s.close()
	log, err := s.log(q.volume)
	if err != nil {
		return err
	}
	if q.from == 0 && q.quarantine == "" {
		q.from, q.to = uint64(log.First()), uint64(log.Last().Seq)
	}
	out, finish, err := dumpOutput(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, finish()) }()
	return s.raw(c.Context, q, func(r *record.Record) error {
		_, err := out.Write(r.Raw)
		return err
	})
}

// dumpOutput opens what --output names; finish makes it durable.
func dumpOutput(c *cli.Context) (w io.Writer, finish func() error, err error) {
	path := c.String("output")
	if path != "-" {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, nil, usagef("journal dump: %w", err)
		}
		return f, func() error { return errors.Join(f.Sync(), f.Close()) }, nil
	}
	if f, ok := c.App.Writer.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return nil, nil, usagef("journal dump: records are binary and not for a terminal; name a file with --output")
	}
	return c.App.Writer, func() error { return nil }, nil
}
