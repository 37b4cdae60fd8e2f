package main

import (
	"log/slog"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/nbd"
)

// INFO said of a held volume that it can be written, and GO offered it read-only.
func TestDescriptionOfAHeldVolumeIsThatOfItsOpening(t *testing.T) {
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
	open := func(client *nbd.Client, name string) nbd.Disk {
		d, opened, err := e.Open(t.Context(), client, name)
		if err != nil {
			t.Fatal(err)
		}
		described, err := e.Describe(t.Context(), client, name)
		if err != nil || described != opened {
			t.Errorf("%s of %q is described as %+v (%v), and opened as %+v", name, client.TLSName, described, err, opened)
		}
		return d
	}
	holder, other := &nbd.Client{TLSName: "db1"}, &nbd.Client{TLSName: "db2"}
	first := open(holder, "vol0")
	defer first.Close()
	written := make(chan error, 1)
	first.Submit(t.Context(), &nbd.Write{Op: nbd.OpZero, Len: 512, Done: func(err error) { written <- err }})
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vol0", "vol0?readonly", "vol0?takeover", "vol0?stale=ok"} {
		for _, client := range []*nbd.Client{holder, other} {
			if err := open(client, name).Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
