package blockrepl

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the journal, as the last run or a bad disk left it. Does: makes whole
// what is damaged, and finds the volumes' names. Goes to: the start, and the journal
// commands on a stopped server, which only look.

// salvage gives the volumes whose journal has a damaged end or state another one. What
// they lost is gone, so that they are not believed, but the others are not kept from
// starting.
func (s *Server) salvage() error {
	ids, err := s.journal.Volumes()
	if err != nil && !errors.Is(err, journal.ErrIncomplete) { // findLogs tells that
		return fmt.Errorf("list volumes of the journal: %w", err)
	}
	for _, id := range ids {
		l, err := s.journal.Log(id)
		var damage *journal.CorruptError
		if !errors.As(err, &damage) {
			continue // findLogs tells all other errors
		}
		h, _, err := LoadHard(l)
		if err != nil {
			continue // nothing can be noted; findLogs tells it
		}
		part := "end"
		if damage.Seq == 0 {
			part = "state"
		}
		h.Forgot = fmt.Sprintf("the journal's %s is damaged: %v", part, damage)
		last, err := l.Salvage(journal.Cut{
			Quarantine: quarantineID(s.opt.Wall(), damage.Seq), Reason: "damaged " + part + " of the journal", Time: s.opt.Wall().UnixNano(),
		}, metaOps(&replica.Store{Hard: &h}))
		if errors.As(err, &damage) {
			continue // findLogs tells it
		}
		if err != nil {
			return fmt.Errorf("volume %q: %w", h.State.Name, err)
		}
		s.opt.Logger.Error("journal of a volume is damaged and what does not hang together was set aside; this server must be resynced",
			"volume", h.State.Name, "seq", last.Seq, "err", damage)
	}
	return nil
}

// NamedLog is what a journal has of a volume.
type NamedLog struct {
	Name string // the volume's, its uuid where the name is damaged, too
	Log  *journal.Log
	Err  error // damage: there is no more than Meta and quarantines; nil: all can be read
}

// NamedLogs gives the logs of a journal's volumes, also damaged ones, by name. The
// error is about the journal as a whole: what volumes it has is not known; with
// journal.ErrIncomplete there are those that are given, and there may be more.
func NamedLogs(j *journal.Journal) ([]NamedLog, error) {
	ids, listErr := j.Volumes()
	if listErr != nil {
		listErr = fmt.Errorf("list volumes of the journal: %w", listErr)
	}
	if listErr != nil && !errors.Is(listErr, journal.ErrIncomplete) {
		return nil, listErr
	}
	var logs []NamedLog
	for _, id := range ids {
		l, err := j.Log(id)
		var damage *journal.CorruptError
		if err != nil && !errors.As(err, &damage) {
			return nil, fmt.Errorf("open journal of volume %s: %w", id, err)
		}
		h, _, metaErr := LoadHard(l)
		n := NamedLog{Name: h.State.Name, Log: l, Err: errors.Join(err, metaErr)}
		if n.Name == "" {
			if n.Err == nil {
				continue // a promise for a volume that did not come into being
			}
			n.Name = id.String()
		}
		logs = append(logs, n)
	}
	slices.SortFunc(logs, func(a, b NamedLog) int { return cmp.Compare(a.Name, b.Name) })
	return logs, listErr
}

// RemoveVolume removes from a stopped server's journal all that it keeps of a volume: what
// was promised and remembered under the name before the volume existed, then the log that
// it is found by. A new volume may have the name then.
func RemoveVolume(j *journal.Journal, name string, uuid record.VolumeID) error {
	for _, id := range []record.VolumeID{nameID(name), uuid} {
		if err := j.DropVolume(id); err != nil {
			return err
		}
	}
	return nil
}

// LogsByName is NamedLogs where no damage can be gone on with.
func LogsByName(j *journal.Journal) (map[string]*journal.Log, error) {
	list, err := NamedLogs(j)
	if err != nil {
		return nil, err
	}
	logs := map[string]*journal.Log{}
	for _, n := range list {
		if n.Err != nil {
			return nil, fmt.Errorf("volume %s: %w", n.Name, n.Err)
		}
		if other := logs[n.Name]; other != nil {
			return nil, fmt.Errorf("the journal has two volumes called %q: %s and %s", n.Name, other.Volume(), n.Log.Volume())
		}
		logs[n.Name] = n.Log
	}
	return logs, nil
}

// foundLogs are a journal's logs as the volumes of the configuration look for them.
type foundLogs struct {
	whole    map[string]*journal.Log
	damaged  map[string]error
	nameless []error // damage of logs whose volumes are not known
}

// findLogs is LogsByName for a start: damage is for the volume to which it happened.
func (s *Server) findLogs() (*foundLogs, error) {
	f := &foundLogs{whole: map[string]*journal.Log{}, damaged: map[string]error{}}
	list, err := NamedLogs(s.journal)
	if errors.Is(err, journal.ErrIncomplete) {
		s.opt.Logger.Error("the journal's list of volumes is damaged; those that have records were found by them", "err", err)
		f.nameless = append(f.nameless, err)
	} else if err != nil {
		return nil, err
	}
	promises := map[record.VolumeID]bool{} // these volumes find by themselves (Volume.load)
	configured := map[string]bool{}
	for _, v := range s.opt.Volumes {
		promises[nameID(v.Name)], configured[v.Name] = true, true
	}
	for _, n := range list {
		id := n.Log.Volume()
		switch other := f.whole[n.Name]; {
		case n.Err == nil && other != nil:
			return nil, fmt.Errorf("the journal has two volumes called %q: %s and %s", n.Name, other.Volume(), id)
		case n.Err == nil:
			f.whole[n.Name] = n.Log
			if !configured[n.Name] {
				s.opt.Logger.Warn("the journal keeps a volume that is not in the configuration: this server takes no part in it; if it is retired, remove it with `blockrepl journal remove`",
					"volume", n.Name, "uuid", id.String())
			}
		case n.Name != id.String():
			f.damaged[n.Name] = n.Err
		case !promises[id]:
			f.nameless = append(f.nameless, fmt.Errorf("volume %s: %w", id, n.Err))
			s.opt.Logger.Error("journal of a volume is damaged, with its name", "uuid", id.String(), "err", n.Err)
		}
	}
	return f, nil
}

// of gives a volume's log, nil when the journal has none. A volume without one may be
// any of those whose names are damaged: it must not be taken for new.
func (f *foundLogs) of(name string) (*journal.Log, error) {
	if err := f.damaged[name]; err != nil {
		return nil, err
	}
	log := f.whole[name]
	if log == nil && len(f.nameless) > 0 {
		return nil, fmt.Errorf("this may be the volume whose name is damaged: %w", errors.Join(f.nameless...))
	}
	return log, nil
}
