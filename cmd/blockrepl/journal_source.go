package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
	"github.com/urfave/cli/v2"
)

// recordQuery says which records are wanted.
type recordQuery struct {
	volume     string // name; for a stopped server also the uuid
	quarantine string // "" = the log
	from, to   uint64 // closed; 0, 0 = all of a quarantine
	data       bool
}

// journalSource is a server's journal, stopped or running.
type journalSource interface {
	infos(ctx context.Context) ([]blockrepl.JournalInfo, error)
	info(ctx context.Context, volume string) (blockrepl.JournalInfo, error)
	records(ctx context.Context, q recordQuery, f func(*blockrepl.JournalRecord) error) error
	// dump writes the wanted records as they are stored.
	dump(ctx context.Context, q recordQuery, w io.Writer) error
	verify(ctx context.Context, volume string, f func(*blockrepl.JournalVerify) error) error
	close()
}

// openJournal opens what the command names, and gives the other arguments: a
// directory is a stopped server's, without one the running server is asked, as by
// every other command.
func openJournal(c *cli.Context, least, most int, names string) (journalSource, []string, error) {
	if !namesData(c.Args().First()) {
		if err := wantArgs(c, least, most, orNone(names)+", after DATA for a stopped server"); err != nil {
			return nil, nil, err
		}
		a, err := newAdmin(c)
		if err != nil {
			return nil, nil, err
		}
		return &runningJournal{a, c.Duration("timeout")}, c.Args().Slice(), nil
	}
	if err := wantArgs(c, least+1, most+1, strings.TrimSpace("DATA "+names)); err != nil {
		return nil, nil, err
	}
	s, err := openStopped(c.Args().First())
	return s, c.Args().Slice()[1:], err
}

// namesData tells a data directory from a volume's name, which has no slash.
func namesData(arg string) bool {
	if arg == "" {
		return false
	}
	_, err := os.Stat(blockrepl.JournalDir(arg))
	return err == nil || strings.Contains(arg, "/") || strings.HasPrefix(arg, ".")
}

// stoppedJournal is read from its files, by this process alone.
type stoppedJournal struct {
	data    string
	journal *journal.Journal
}

func openStopped(data string) (*stoppedJournal, error) {
	dir := blockrepl.JournalDir(data)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, usagef("journal: %s has no journal; name a server's data directory", data)
	} else if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	j, err := journal.OpenReadOnly(journal.Options{Dir: dir})
	if errors.Is(err, journal.ErrLocked) {
		return nil, &failure{code: exitError, err: fmt.Errorf("journal: %w", err), next: "its server runs: ask it, with --admin ADDR instead of " + data}
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return &stoppedJournal{data: data, journal: j}, nil
}

// close releases the lock. Nothing was written, so nothing can be lost.
func (s *stoppedJournal) close() { _ = s.journal.Close() }

// logs gives the volumes in the order of their names.
func (s *stoppedJournal) logs() ([]blockrepl.NamedLog, error) {
	logs, err := blockrepl.NamedLogs(s.journal)
	if err != nil { // also where only some may be missing: a list that looks whole must be
		return nil, fmt.Errorf("journal: %w", err)
	}
	return logs, nil
}

func (s *stoppedJournal) log(volume string) (*blockrepl.NamedLog, error) {
	logs, err := s.logs()
	if err != nil {
		return nil, err
	}
	var names []string
	for i := range logs {
		if logs[i].Name == volume || logs[i].Log.Volume().String() == volume {
			return &logs[i], nil
		}
		names = append(names, logs[i].Name)
	}
	return nil, fmt.Errorf("journal: %s has no volume %q%s", s.data, volume, didYouMean(volume, names))
}

func (s *stoppedJournal) infos(context.Context) ([]blockrepl.JournalInfo, error) {
	logs, err := s.logs()
	if err != nil {
		return nil, err
	}
	list := []blockrepl.JournalInfo{}
	for i := range logs {
		if logs[i].Err != nil {
			list = append(list, blockrepl.DamagedInfoOf(&logs[i]))
			continue
		}
		info, err := blockrepl.JournalInfoOf(logs[i].Name, logs[i].Log)
		if err != nil {
			return nil, fmt.Errorf("journal: volume %s: %w", logs[i].Name, err)
		}
		list = append(list, info)
	}
	return list, nil
}

func (s *stoppedJournal) info(_ context.Context, volume string) (blockrepl.JournalInfo, error) {
	log, err := s.log(volume)
	if err == nil && log.Err != nil {
		err = &failure{code: exitUnhealthy, err: fmt.Errorf("journal: volume %s: %w", log.Name, log.Err), next: damagedNext(log.Name == log.Log.Volume().String())}
	}
	if err != nil {
		return blockrepl.JournalInfo{}, err
	}
	return blockrepl.JournalInfoOf(volume, log.Log)
}

// damagedNext is what becomes of a log that is damaged as a whole. Without the volume's
// name nothing can be noted in it, and its server takes no volume without a log for new.
func damagedNext(nameless bool) string {
	if nameless {
		return "its server starts without this volume: put the data directory back, or start with an empty one and have it resynced"
	}
	return "its server sets aside what is damaged when it starts, and is to be resynced for this volume"
}

func (s *stoppedJournal) dump(ctx context.Context, q recordQuery, w io.Writer) error {
	return s.raw(ctx, q, func(r *record.Record) error {
		_, err := w.Write(r.Raw)
		return err
	})
}

func (s *stoppedJournal) records(ctx context.Context, q recordQuery, f func(*blockrepl.JournalRecord) error) error {
	return s.raw(ctx, q, func(rec *record.Record) error {
		r, err := blockrepl.JournalRecordOf(rec, q.data)
		if err != nil {
			return fmt.Errorf("record %d: %w", rec.Seq, err)
		}
		return f(&r)
	})
}

// raw calls f for the wanted records.
func (s *stoppedJournal) raw(ctx context.Context, q recordQuery, f func(*record.Record) error) error {
	named, err := s.log(q.volume)
	if err != nil {
		return err
	}
	log := named.Log
	if q.quarantine != "" {
		return readQuarantine(log, q, f)
	}
	for from, to := record.Seq(q.from), record.Seq(q.to); from <= to; {
		if err := ctx.Err(); err != nil {
			return err
		}
		const bytesAtOnce = 8 << 20
		next, err := log.Read(from, to, bytesAtOnce, f)
		if err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		from = next
	}
	return nil
}

func readQuarantine(log *journal.Log, q recordQuery, f func(*record.Record) error) error {
	err := log.ReadQuarantine(q.quarantine, func(r *record.Record) error {
		if q.from != 0 && (uint64(r.Seq) < q.from || uint64(r.Seq) > q.to) {
			return nil
		}
		return f(r)
	})
	if !errors.Is(err, journal.ErrNoQuarantine) {
		return err
	}
	list, listErr := log.Quarantines()
	var names []string
	for _, q := range list {
		names = append(names, q.Name)
	}
	return errors.Join(fmt.Errorf("journal: %w; there are: %s", err, orNone(strings.Join(names, " "))), listErr)
}

func (s *stoppedJournal) verify(ctx context.Context, volume string, f func(*blockrepl.JournalVerify) error) error {
	logs, err := s.logs()
	if err != nil {
		return err
	}
	if volume != "" {
		log, err := s.log(volume)
		if err != nil {
			return err
		}
		logs = []blockrepl.NamedLog{*log}
	}
	for _, l := range logs {
		r := blockrepl.JournalVerify{Volume: l.Name, Damaged: 1}
		if l.Err != nil {
			r.Damage = []string{l.Err.Error()}
		} else if report, err := l.Log.Verify(ctx, nil); err != nil {
			return err
		} else {
			r = blockrepl.JournalVerifyOf(l.Name, &report)
		}
		if err := f(&r); err != nil {
			return err
		}
	}
	return nil
}
