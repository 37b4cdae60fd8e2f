package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/BurntSushi/toml"
	"github.com/urfave/cli/v2"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/journal"
)

// Comes from: the command line. Does: forgets a retired volume on a stopped server. Goes
// to: its journal, the only thing that a command writes to without a server.

func journalRemoveCommand() *cli.Command {
	return &cli.Command{
		Name:      "remove",
		Usage:     "remove what a stopped server keeps of a retired volume",
		UsageText: "blockrepl journal remove DATA VOLUME [--config FILE] [--dry-run] [--json]",
		Description: `Removes from the data directory DATA of a stopped server everything that its journal
keeps of VOLUME, for ever: records, quarantines, and that there ever was such a volume.
The space is free then, and a new volume may have the name. The image is not touched:
remove it yourself.

Only for a volume that is retired, and on all its servers. Where others still have it,
this one is not believed any more and is to be resynced, as after the loss of its disk.
It is refused while the configuration has the volume, and wants the user that the
server runs as: what another user writes there, the server could not open.

EXAMPLES:
   runuser -u blockrepl -g disk -- blockrepl journal remove /var/lib/blockrepl vol1 --dry-run
   runuser -u blockrepl -g disk -- blockrepl journal remove /var/lib/blockrepl vol1

EXIT STATUS:
   0 done   1 an error, no such volume, or the server runs   2 wrong usage, or another user
   3 refused: the configuration has the volume`,
		Flags: []cli.Flag{configFlag(), jsonFlag(),
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "change nothing, say what would be removed"}},
		Action: journalRemove,
	}
}

// removeReport says what was removed, or would be.
type removeReport struct {
	blockrepl.JournalInfo
	Image   string `json:"image"` // at its default place, "" where none is there
	Removed bool   `json:"removed"`
}

func journalRemove(c *cli.Context) error {
	if err := wantArgs(c, 2, 2, "DATA and VOLUME"); err != nil {
		return err
	}
	data := c.Args().Get(0)
	r := removeReport{}
	log, err := stoppedLog(data, c.Args().Get(1), &r.JournalInfo)
	if err != nil {
		return err
	}
	if err := refuseConfigured(c.String("config"), data, log.Name); err != nil {
		return err
	}
	if v := (&VolumeConfig{Name: log.Name}); isThere(v.imagePath(data)) {
		r.Image = v.imagePath(data)
	}
	if !c.Bool("dry-run") {
		if err := dropLog(data, log); err != nil {
			return err
		}
		r.Removed = true
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, r)
	}
	return r.print(c.App.Writer)
}

func (r *removeReport) print(w io.Writer) error {
	what := "what is damaged"
	if r.Damage == "" {
		what = fmt.Sprintf("records %d to %d, %s", r.First, r.Last, Size(r.Bytes))
	}
	if n := len(r.Quarantines); n > 0 {
		what += ", " + count(uint64(n), "quarantine")
	}
	verb := "would be removed"
	if r.Removed {
		verb = "removed"
	}
	_, err := fmt.Fprintf(w, "%s (%s): %s: %s\n", r.Volume, r.UUID, verb, what)
	if err == nil && r.Image != "" {
		_, err = fmt.Fprintf(w, "its image is still there: %s\n", r.Image)
	}
	return err
}

// stoppedLog finds the volume by name or uuid and describes its log, also a damaged one as
// long as its name is known: it might be a volume's that the configuration has.
func stoppedLog(data, volume string, info *blockrepl.JournalInfo) (*blockrepl.NamedLog, error) {
	s, err := openStopped(data)
	if errors.Is(err, journal.ErrLocked) {
		return nil, fmt.Errorf("journal remove: %s is in use: stop its server first", data)
	}
	if err != nil {
		return nil, err
	}
	defer s.close()
	log, err := s.log(volume)
	if err != nil {
		return nil, err
	}
	if log.Name == log.Log.Volume().String() {
		return nil, &failure{code: exitError, err: fmt.Errorf("journal remove: %s: whose it is, is damaged: %w", volume, log.Err), next: damagedNext(true)}
	}
	if log.Err != nil {
		*info = blockrepl.DamagedInfoOf(log)
		return log, nil
	}
	*info, err = blockrepl.JournalInfoOf(log.Name, log.Log)
	return log, err
}

// dropLog removes the log for ever. Invariant: the journal is there, stoppedLog has seen it.
func dropLog(data string, log *blockrepl.NamedLog) (err error) {
	dir := blockrepl.JournalDir(data)
	if err := wantOwner(dir); err != nil {
		return err
	}
	j, err := journal.Open(journal.Options{Dir: dir})
	if err != nil {
		return fmt.Errorf("journal remove: %w", err)
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	if err := blockrepl.RemoveVolume(j, log.Name, log.Log.Volume()); err != nil {
		return fmt.Errorf("journal remove: volume %s: %w", log.Name, err)
	}
	return nil
}

// wantOwner refuses to write as anybody but the server's user: it could not open what
// root leaves there.
func wantOwner(dir string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("journal remove: %w", err)
	}
	own, ok := st.Sys().(*syscall.Stat_t)
	if !ok || int(own.Uid) == os.Geteuid() {
		return nil
	}
	name := strconv.Itoa(int(own.Uid))
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	return usagef("journal remove: %s belongs to %s, who could not open what you write there: runuser -u %s -- blockrepl journal remove …", dir, name, name)
}

// refuseConfigured refuses while the configuration of data's server has the volume.
// Like configuredAdmin it reads no more of the file than it needs.
func refuseConfigured(path, data, volume string) error {
	named := path != ""
	if !named {
		path = defaultConfigFile
	}
	text, err := readConfigFile(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return nil
	}
	cfg := struct {
		Data    string `toml:"data"`
		Volumes []struct {
			Name string `toml:"name"`
		} `toml:"volume"`
	}{Data: defaultConfig().Data}
	if err == nil {
		_, err = toml.Decode(text, &cfg)
	}
	if err != nil {
		return usagef("journal remove: config %s: %w", path, err)
	}
	if !named && !sameDir(cfg.Data, data) {
		return nil
	}
	for _, v := range cfg.Volumes {
		if v.Name == volume {
			return &failure{code: exitRefused, err: fmt.Errorf("journal remove: refused: %s has the volume %q", path, volume),
				next: "take it out of the files of all servers first"}
		}
	}
	return nil
}

func sameDir(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return filepath.Clean(a) == filepath.Clean(b) || errX == nil && errY == nil && os.SameFile(x, y)
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
