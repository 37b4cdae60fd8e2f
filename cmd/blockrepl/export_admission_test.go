package main

import (
	"log/slog"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/nbd"
)

func TestPermissionThatChangesWhileAnExportIsOpenedCounts(t *testing.T) {
	client := &nbd.Client{TLSName: "db1"}
	rules := func(access string) permissions {
		return newPermissions([]PermissionConfig{{Name: "db1", Access: access}})
	}
	a := newAdmission(rules(accessReadWrite))
	writer, reader := visit{client, "vol0", true}, visit{client, "vol0", false}
	early, late := new(disk), new(disk)
	if writes, ok := a.access("db1", "vol0"); !writes || !ok || !a.enter(early, writer) {
		t.Fatal("the writer is not let in")
	}
	if got := a.change(rules(accessReadOnly)); len(got) != 1 || got[0] != writer {
		t.Errorf("revoked: %v, want the writer", got)
	}
	if a.enter(late, writer) {
		t.Error("a writer enters that was permitted before the change only")
	}
	if !a.enter(late, reader) {
		t.Error("the reader is not let in")
	}
	a.leave(early) // its connection ends, after the change has dropped it
	a.leave(late)
	if got := a.change(permissions{}); len(got) != 0 {
		t.Errorf("revoked: %v, want nobody: all have left", got)
	}
}

func TestClosedExportIsForgotten(t *testing.T) {
	cfg := defaultConfig()
	cfg.Cluster, cfg.ID, cfg.Data = "lab", "a", t.TempDir()
	cfg.Volumes = []VolumeConfig{{Name: "vol0", Size: minSize}}
	cfg.complete()
	server, err := blockrepl.NewServer(serverOptions(cfg, nil, slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	e := &exports{server: server, names: []string{"vol0"}, admission: newAdmission(nil)}
	client := &nbd.Client{TLSName: "db1"}
	d, _, err := e.Open(t.Context(), client, "vol0")
	if err != nil {
		t.Fatal(err)
	}
	if got := e.admission.visits[d.(*disk)]; got != (visit{client, "vol0", true}) {
		t.Errorf("visit %+v, want a writer of vol0", got)
	}
	if err := d.Close(); err != nil || len(e.admission.visits) != 0 {
		t.Errorf("after the close: %v, %d visits, want none", err, len(e.admission.visits))
	}
}
