package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// runningJournal is asked through its server's admin address. Each question may
// take timeout.
type runningJournal struct {
	*admin
	timeout time.Duration
}

func (r *runningJournal) close() {}

func (r *runningJournal) get(ctx context.Context, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	return r.stopped(r.admin.get(ctx, path, out))
}

// stopped adds the other way to ask.
func (r *runningJournal) stopped(err error) error {
	if f, ok := errors.AsType[*failure](err); ok && f.code == exitUnreachable {
		return &failure{code: f.code, err: f.err, next: f.next + "; or name the data directory of a stopped server"}
	}
	return err
}

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

func (r *runningJournal) info(ctx context.Context, volume string) (blockrepl.JournalInfo, error) {
	var info blockrepl.JournalInfo
	return info, r.get(ctx, volumePath(volume, "journal/info"), &info)
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

// records asks for a page at a time: the server bounds an answer.
func (r *runningJournal) records(ctx context.Context, q recordQuery, f func(*blockrepl.JournalRecord) error) error {
	for {
		last := uint64(0)
		err := r.page(ctx, q, func(j *blockrepl.JournalRecord) error {
			last = j.Seq
			return f(j)
		})
		if err != nil || last == 0 || q.to != 0 && last >= q.to {
			return err
		}
		if q.from = last + 1; q.to == 0 {
			q.to = ^uint64(0)
		}
	}
}

func (r *runningJournal) page(ctx context.Context, q recordQuery, f func(*blockrepl.JournalRecord) error) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	body, err := r.open(ctx, http.MethodGet, volumePath(q.volume, "journal")+"?"+q.values().Encode(), nil)
	if err != nil {
		return r.stopped(err)
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

func (r *runningJournal) dump(ctx context.Context, q recordQuery, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	values := q.values()
	values.Set("raw", "1")
	body, err := r.open(ctx, http.MethodGet, volumePath(q.volume, "journal")+"?"+values.Encode(), nil)
	if err != nil {
		return r.stopped(err)
	}
	defer body.Close()
	if _, err := io.Copy(w, body); err != nil {
		return fmt.Errorf("answer of %s ended early; its log says why: %w", r.addr, err)
	}
	return nil
}

// values writes the query as the journal endpoint reads it.
func (q *recordQuery) values() url.Values {
	values := url.Values{}
	if q.from != 0 {
		values.Set("from", strconv.FormatUint(q.from, 10))
		values.Set("to", strconv.FormatUint(q.to, 10))
	}
	if q.data {
		values.Set("data", "1")
	}
	if q.quarantine != "" {
		values.Set("quarantine", q.quarantine)
	}
	return values
}
