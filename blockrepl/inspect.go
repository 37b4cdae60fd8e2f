package blockrepl

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the journal endpoints, and the journal commands on a stopped server.
// Does: writes records as JSON. Goes to: the operator.

// JournalRecordOf describes a record; with data, its payload too.
func JournalRecordOf(rec *record.Record, data bool) (JournalRecord, error) {
	j := JournalRecord{
		Seq: uint64(rec.Seq), Epoch: rec.Epoch.String(), Kind: rec.Kind.String(), Offset: rec.Offset, Length: rec.Length,
		Codec: rec.Codec.String(), StoredBytes: rec.Stored, Time: time.Unix(0, rec.Time).UTC(), Origin: rec.Origin.String(),
		Attachment: rec.Attachment, Operation: rec.Operation,
		PayloadSum: fmt.Sprintf("%08x", rec.PayloadSum), Prev: hex64(rec.Prev), Sum: hex64(rec.Sum),
	}
	if !data {
		return j, nil
	}
	var err error
	j.Data, err = rec.AppendPayload(nil)
	return j, err
}

// JournalInfoOf describes a volume's journal.
func JournalInfoOf(name string, l *journal.Log) (JournalInfo, error) {
	last := l.Last()
	qs, err := quarantines(l)
	if qs == nil {
		qs = []QuarantineStatus{}
	}
	return JournalInfo{Volume: name, UUID: l.Volume().String(), First: uint64(l.First()), Last: uint64(last.Seq),
		Sum: hex64(last.Sum), Bytes: l.Bytes(), Quarantines: qs}, err
}

// Wanted is what a volume's journal expects of its image.
type Wanted struct {
	Size int64 // bytes; 0: the volume does not exist yet
	Grow bool  // a file may be shorter, after a crash
}

// WantedOf reads of a volume's journal what a start reads. ErrMeta for a saved state that
// is damaged.
func WantedOf(l *journal.Log) (Wanted, error) {
	saved, img, err := loadSaved(l)
	if err != nil || saved.Hard.State.Epoch.IsZero() {
		return Wanted{}, err
	}
	return Wanted{sizeOf(&saved), img.short}, nil
}

// DamagedInfoOf describes the journal of a volume whose records are not known.
func DamagedInfoOf(n *NamedLog) JournalInfo {
	qs, err := quarantines(n.Log)
	if qs == nil {
		qs = []QuarantineStatus{}
	}
	return JournalInfo{Volume: n.Name, UUID: n.Log.Volume().String(), Quarantines: qs, Damage: errors.Join(n.Err, err).Error()}
}

func quarantines(l *journal.Log) ([]QuarantineStatus, error) {
	list, err := l.Quarantines()
	if err != nil {
		return nil, err
	}
	var out []QuarantineStatus
	for _, q := range list {
		s := QuarantineStatus{ID: q.Name, First: uint64(q.After.Seq) + 1, Last: uint64(q.Last.Seq)}
		err := l.ReadQuarantine(q.Name, func(rec *record.Record) error {
			s.Epoch = rec.Epoch.String()
			return errEnough
		})
		var c *journal.CorruptError
		if err != nil && !errors.Is(err, errEnough) && !errors.As(err, &c) {
			return nil, err // damaged records are what some were made for
		}
		out = append(out, s)
	}
	return out, nil
}

// streamJournal answers with one JournalRecord a line. After the first line an
// error can only end the answer; it is told by a last line that is a CommandError.
func streamJournal(w http.ResponseWriter, r *http.Request, v *Volume) error {
	log := v.log.Load()
	if log == nil {
		return fmt.Errorf("volume %q has no journal yet: %w", v.name, errNotFound)
	}
	q := r.URL.Query()
	from, err := number(q.Get("from"), uint64(log.First()))
	if err != nil {
		return err
	}
	to, err := number(q.Get("to"), uint64(log.Last().Seq))
	if err != nil {
		return err
	}
	limit, err := number(q.Get("limit"), listMax)
	if err != nil {
		return err
	}
	data := q.Get("data") != "" && q.Get("data") != "0"
	raw := q.Get("raw") != "" && q.Get("raw") != "0"
	if raw {
		limit = math.MaxUint64
	}
	enc := json.NewEncoder(w)
	lines := uint64(0)
	give := func(rec *record.Record) error {
		if err := r.Context().Err(); err != nil {
			return err
		}
		if uint64(rec.Seq) < from || lines >= limit {
			return nil
		}
		if uint64(rec.Seq) > to {
			return errEnough
		}
		if raw {
			if lines == 0 {
				w.Header().Set("Content-Type", "application/octet-stream")
			}
			lines++
			_, err := w.Write(rec.Raw)
			return err
		}
		j, err := JournalRecordOf(rec, data)
		if err != nil {
			return err
		}
		if lines == 0 {
			w.Header().Set("Content-Type", "application/x-ndjson")
		}
		lines++
		if err := enc.Encode(j); err != nil {
			return err
		}
		if lines >= limit {
			return errEnough
		}
		return nil
	}
	if name := q.Get("quarantine"); name != "" {
		to = max(to, ^uint64(0))
		from, err = number(q.Get("from"), 1)
		if err == nil {
			err = log.ReadQuarantine(name, give)
		}
	} else {
		err = readRecords(log, record.Seq(from), min(record.Seq(to), log.Last().Seq), give)
	}
	switch {
	case err == nil, errors.Is(err, errEnough):
		return nil
	case lines > 0 && raw:
		panic(http.ErrAbortHandler) // the asker must not take what it has for all
	case lines > 0:
		return enc.Encode(CommandError{Error: err.Error(), Code: "refused"})
	case errors.Is(err, journal.ErrTrimmed), errors.Is(err, journal.ErrNotYet), errors.Is(err, journal.ErrNoQuarantine):
		return fmt.Errorf("%w: %w", errNotFound, err)
	}
	return err
}

func number(text string, unset uint64) (uint64, error) {
	if text == "" {
		return unset, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errBadRequest, err)
	}
	return n, nil
}

func journalInfo(w http.ResponseWriter, _ *http.Request, v *Volume) error {
	log := v.log.Load()
	if log == nil {
		return fmt.Errorf("volume %q has no journal yet: %w", v.name, errNotFound)
	}
	info, err := JournalInfoOf(v.name, log)
	if err == nil {
		answerJSON(w, info)
	}
	return err
}

// JournalVerifyOf writes what Verify found.
func JournalVerifyOf(name string, rep *journal.Report) JournalVerify {
	out := JournalVerify{Volume: name, First: uint64(rep.First), Last: uint64(rep.Last), Records: rep.Records,
		Bytes: rep.Bytes, Damaged: rep.Damaged, Quarantined: rep.Quarantined}
	for _, d := range rep.Damage {
		out.Damage = append(out.Damage, d.Error())
	}
	return out
}

func journalVerify(w http.ResponseWriter, r *http.Request, v *Volume) error {
	log := v.log.Load()
	if log == nil {
		return fmt.Errorf("volume %q has no journal yet: %w", v.name, errNotFound)
	}
	rep, err := log.Verify(r.Context(), nil)
	if err == nil {
		answerJSON(w, JournalVerifyOf(v.name, &rep))
	}
	return err
}
