package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
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
	from, to   uint64 // 0, 0 = the last showLast of a log, all of a quarantine
	data       bool
}

// journalSource is a server's journal, stopped or running.
type journalSource interface {
	infos(ctx context.Context) ([]blockrepl.JournalInfo, error)
	records(ctx context.Context, q recordQuery, f func(*blockrepl.JournalRecord) error) error
	verify(ctx context.Context, volume string, f func(*blockrepl.JournalVerify) error) error
	close()
}

// openJournal opens what the command names, and gives the other arguments.
func openJournal(c *cli.Context, least, most int, names string) (journalSource, []string, error) {
	// BLOCKREPL_ADMIN may be set for all commands; a directory says what is meant.
	if st, err := os.Stat(c.Args().First()); c.IsSet("admin") && (err != nil || !st.IsDir()) {
		if err := wantArgs(c, least, most, names+", without DATA"); err != nil {
			return nil, nil, err
		}
		a, err := newAdmin(c)
		if err != nil {
			return nil, nil, err
		}
		return &runningJournal{a}, c.Args().Slice(), nil
	}
	if err := wantArgs(c, least+1, most+1, strings.TrimPrefix("DATA "+names, " ")); err != nil {
		return nil, nil, err
	}
	s, err := openStopped(c.Args().First())
	return s, c.Args().Slice()[1:], err
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
		return nil, &failure{code: exitError, err: fmt.Errorf("journal: %w", err), next: "its server runs: ask it with --admin ADDR instead of " + data}
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return &stoppedJournal{data: data, journal: j}, nil
}

// close releases the lock. Nothing was written, so nothing can be lost.
func (s *stoppedJournal) close() { _ = s.journal.Close() }

// logs gives the volumes by name and the names in order.
func (s *stoppedJournal) logs() (map[string]*journal.Log, []string, error) {
	logs, err := blockrepl.LogsByName(s.journal)
	if err != nil {
		return nil, nil, fmt.Errorf("journal: %w", err)
	}
	var names []string
	for name := range logs {
		names = append(names, name)
	}
	slices.Sort(names)
	return logs, names, nil
}

func (s *stoppedJournal) log(volume string) (*journal.Log, error) {
	logs, names, err := s.logs()
	if err != nil {
		return nil, err
	}
	if l := logs[volume]; l != nil {
		return l, nil
	}
	for _, l := range logs {
		if l.Volume().String() == volume {
			return l, nil
		}
	}
	return nil, fmt.Errorf("journal: %s has no volume %q%s", s.data, volume, didYouMean(volume, names))
}

func (s *stoppedJournal) infos(context.Context) ([]blockrepl.JournalInfo, error) {
	logs, names, err := s.logs()
	if err != nil {
		return nil, err
	}
	list := []blockrepl.JournalInfo{}
	for _, name := range names {
		info, err := blockrepl.JournalInfoOf(name, logs[name])
		if err != nil {
			return nil, fmt.Errorf("journal: volume %s: %w", name, err)
		}
		list = append(list, info)
	}
	return list, nil
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
	log, err := s.log(q.volume)
	if err != nil {
		return err
	}
	if q.quarantine != "" {
		return readQuarantine(log, q, f)
	}
	from, to := record.Seq(q.from), min(record.Seq(q.to), log.Last().Seq)
	if q.from == 0 {
		to = log.Last().Seq
		from = max(log.First(), to-min(to, showLast-1))
	}
	for from <= to {
		if err := ctx.Err(); err != nil {
			return err
		}
		const bytesAtOnce = 8 << 20
		next, err := log.Read(from, to, bytesAtOnce, f)
		if errors.Is(err, journal.ErrTrimmed) {
			return fmt.Errorf("journal: %w; the first kept is %d", err, log.First())
		}
		if err != nil {
			return err
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
	logs, names, err := s.logs()
	if err != nil {
		return err
	}
	if volume != "" {
		log, err := s.log(volume)
		if err != nil {
			return err
		}
		logs, names = map[string]*journal.Log{volume: log}, []string{volume}
	}
	for _, name := range names {
		report, err := logs[name].Verify(ctx, nil)
		if err != nil {
			return err
		}
		r := blockrepl.JournalVerifyOf(name, &report)
		if err := f(&r); err != nil {
			return err
		}
	}
	return nil
}

// runningJournal is asked through its server's admin address.
type runningJournal struct{ *admin }

func (r *runningJournal) close() {}

func (r *runningJournal) volumes(ctx context.Context) ([]string, error) {
	var s blockrepl.Status
	if err := r.get(ctx, "/v1/status", &s); err != nil {
		return nil, err
	}
	var names []string
	for _, v := range s.Volumes {
		names = append(names, v.Name)
	}
	return names, nil
}

func (r *runningJournal) infos(ctx context.Context) ([]blockrepl.JournalInfo, error) {
	names, err := r.volumes(ctx)
	list := []blockrepl.JournalInfo{}
	for _, name := range names {
		var info blockrepl.JournalInfo
		if err := r.get(ctx, volumePath(name, "journal/info"), &info); err != nil {
			return nil, err
		}
		list = append(list, info)
	}
	return list, err
}

func (r *runningJournal) verify(ctx context.Context, volume string, f func(*blockrepl.JournalVerify) error) error {
	names := []string{volume}
	if volume == "" {
		var err error
		if names, err = r.volumes(ctx); err != nil {
			return err
		}
	}
	for _, name := range names {
		var report blockrepl.JournalVerify
		if err := r.get(ctx, volumePath(name, "journal/verify"), &report); err != nil {
			return err
		}
		if err := f(&report); err != nil {
			return err
		}
	}
	return nil
}

// maxRecordLine bounds one line of the answer: a payload of 32 MiB in base64,
// and the rest.
const maxRecordLine = 64 << 20

func (r *runningJournal) records(ctx context.Context, q recordQuery, f func(*blockrepl.JournalRecord) error) error {
	query, err := r.query(ctx, q)
	if err != nil {
		return err
	}
	body, err := r.open(ctx, http.MethodGet, volumePath(q.volume, "journal")+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxRecordLine)
	for lines.Scan() {
		// The last line may be an error instead of a record.
		var line struct {
			blockrepl.JournalRecord
			blockrepl.CommandError
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return fmt.Errorf("answer of %s: %w", r.addr, err)
		}
		if line.Error != "" {
			return fmt.Errorf("journal: %s", line.Error)
		}
		if err := f(&line.JournalRecord); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("answer of %s: %w", r.addr, err)
	}
	return nil
}

func (r *runningJournal) query(ctx context.Context, q recordQuery) (url.Values, error) {
	if q.from == 0 && q.quarantine == "" {
		var info blockrepl.JournalInfo
		if err := r.get(ctx, volumePath(q.volume, "journal/info"), &info); err != nil {
			return nil, err
		}
		q.from, q.to = max(info.First, info.Last-min(info.Last, showLast-1)), info.Last
	}
	query := url.Values{}
	if q.from != 0 {
		query.Set("from", strconv.FormatUint(q.from, 10))
		query.Set("to", strconv.FormatUint(q.to, 10))
	}
	if q.data {
		query.Set("data", "1")
	}
	if q.quarantine != "" {
		query.Set("quarantine", q.quarantine)
	}
	return query, nil
}
