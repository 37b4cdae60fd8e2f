package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/journal/record"
	"github.com/cockroachdb/pebble/v2"
)

// twoVolumes gives the data directory of a stopped server with vol0 and vol1, and the
// uuid of vol0.
func twoVolumes(t *testing.T) (data, uuid string) {
	t.Helper()
	return twoVolumesTo(t, (*blockrepl.Server).Close)
}

// twoVolumesTo is twoVolumes with another end of the server.
func twoVolumesTo(t *testing.T, end func(*blockrepl.Server) error) (data, uuid string) {
	t.Helper()
	id := record.MustServerID("a")
	o := blockrepl.Options{Cluster: "lab", ID: id, DataDir: filepath.Join(t.TempDir(), "data"), Peers: "127.0.0.1:0",
		Servers: []blockrepl.ServerAddr{{ID: id, Addr: "127.0.0.1:0"}}}
	for _, name := range []string{"vol0", "vol1"} {
		o.Volumes = append(o.Volumes, blockrepl.VolumeOptions{Name: name, Size: 1 << 20, Servers: []record.ServerID{id}})
	}
	s, err := blockrepl.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, v := range s.Volumes() { // which exists then
		c, err := v.Connect(t.Context(), blockrepl.ClientInfo{Identity: "test", Addr: "test", Abort: func(error) {}})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	uuid = s.Volume("vol0").Status(t.Context()).UUID
	if err := end(s); err != nil {
		t.Fatal(err)
	}
	return o.DataDir, uuid
}

// spoilKey flips a bit in a value of vol0: of the log's state, or of its small state.
func spoilKey(t *testing.T, data, uuid string, prefix byte, name string) {
	t.Helper()
	db, err := pebble.Open(blockrepl.JournalDir(data), &pebble.Options{FormatMajorVersion: pebble.FormatNewest, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefix}, UpperBound: []byte{prefix + 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		k := bytes.Clone(it.Key())
		if record.VolumeID(k[1:17]).String() != uuid || string(k[17:]) != name {
			continue
		}
		v := bytes.Clone(it.Value())
		v[len(v)/2] ^= 1
		if err := db.Set(k, v, pebble.Sync); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("no key %c %s %q", prefix, uuid, name)
}

// quiet is a pebble.Logger that says nothing.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(f string, args ...any) {
	panic(f)
}

// Damage of one volume's log kept all of a stopped server's journal from being looked at.
func TestJournalOfAStoppedServerShowsWhatIsWhole(t *testing.T) {
	data, uuid := twoVolumes(t)
	spoilKey(t, data, uuid, 'l', "")
	checkDamaged(t, data, "vol0", "sets aside what is damaged")
	// Not even the name is known any more.
	spoilKey(t, data, uuid, 'm', "hard")
	checkDamaged(t, data, uuid, "starts without this volume")
}

// checkDamaged uses the journal commands where the log called name is damaged, and vol1
// is not.
func checkDamaged(t *testing.T, data, name, next string) {
	t.Helper()
	for _, tt := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"list", data}, exitUnhealthy, []string{name, "DAMAGED: ", "state is corrupt", next, "vol1", " 1 "}},
		{[]string{"list", data, "--json"}, exitUnhealthy, []string{`"volume": "` + name, `"damage": "`, `"volume": "vol1"`}},
		{[]string{"show", data, "vol1"}, exitOK, []string{"epoch"}},
		{[]string{"show", data, name}, exitUnhealthy, []string{"state is corrupt", next}},
		{[]string{"show", data, name, "--quarantine", "q"}, exitError, []string{"there are: none"}},
		{[]string{"verify", data}, exitUnhealthy, []string{name + ": records are not known", "1 DAMAGED", "state is corrupt", "vol1: records 1 to", ": good"}},
		{[]string{"verify", data, "vol1"}, exitOK, []string{"vol1: records 1 to", ": good"}},
		{[]string{"dump", data, name, "--output", filepath.Join(t.TempDir(), "none")}, exitUnhealthy, []string{"state is corrupt"}},
	} {
		code, out, errs := runHere(t, append([]string{"journal"}, tt.args...)...)
		if code != tt.code {
			t.Errorf("%v: exit %d, want %d: %s%s", tt.args, code, tt.code, out, errs)
		}
		for _, want := range tt.want {
			if !strings.Contains(out+errs, want) {
				t.Errorf("%v: lacks %q: %s%s", tt.args, want, out, errs)
			}
		}
	}
}
