package main

import (
	"context"
	"crypto/tls"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
	"github.com/blockrepl/blockrepl/nbd"
)

// serverOptions translates a checked configuration for the replication.
func serverOptions(cfg *Config, peers *tls.Config, log *slog.Logger) blockrepl.Options {
	o := blockrepl.Options{
		Cluster:     cfg.Cluster,
		ID:          record.MustServerID(cfg.ID),
		DataDir:     cfg.Data,
		Peers:       string(cfg.Peers),
		PeerTimeout: time.Duration(cfg.PeerTimeout),
		IOTimeout:   time.Duration(cfg.IOTimeout),
		TLS:         peers,
		Insecure:    cfg.Insecure,
		Logger:      log,
		Version:     version,
		Pprof:       cfg.Pprof,
	}
	for _, s := range cfg.Servers {
		o.Servers = append(o.Servers, blockrepl.ServerAddr{ID: record.MustServerID(s.ID), Addr: string(s.Addr)})
	}
	for _, v := range cfg.own() {
		vo := blockrepl.VolumeOptions{Name: v.Name, Size: int64(v.Size), OnDegraded: wire.Suspend, Keep: int64(v.Keep), Shared: v.Shared, Image: v.Image}
		if v.OnDegraded == "continue" {
			vo.OnDegraded = wire.Continue
		}
		for _, id := range v.Servers {
			vo.Servers = append(vo.Servers, record.MustServerID(id))
		}
		o.Volumes = append(o.Volumes, vo)
	}
	return o
}

// newNBDServer puts the door for clients before the replication.
func newNBDServer(cfg *Config, server *blockrepl.Server, r *reloader, log *slog.Logger) (*nbd.Server, error) {
	e := &exports{server: server, admission: r.admission, about: "cluster " + cfg.Cluster + ", server " + cfg.ID}
	for _, v := range cfg.own() {
		e.names = append(e.names, v.Name)
	}
	mode := map[string]nbd.TLSMode{"off": nbd.TLSOff, "allow": nbd.TLSAllow, "require": nbd.TLSRequire}[cfg.NBDTLS.Mode]
	return nbd.NewServer(nbd.Options{
		Exports: e, Logger: log, TLSMode: mode, TLS: r.keys.clients,
		Limits: nbd.Limits{MaxClients: cfg.Limits.Connections, MaxHandshakes: cfg.Limits.Handshakes},
	})
}

// differentWait bounds how long the start waits for volumes to say what they have.
const differentWait = 2 * time.Second

// warnDifferent says what a volume has that is not as configured: at its creation
// it took the configuration's word, and from then on it has its own.
func warnDifferent(ctx context.Context, cfg *Config, server *blockrepl.Server, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, differentWait)
	defer cancel()
	for _, v := range cfg.own() {
		st := server.Volume(v.Name).Status(ctx)
		if len(st.Members) == 0 {
			continue // its loop does not answer
		}
		for _, d := range []struct{ key, configured, has, next string }{
			{"size", v.Size.String(), Size(st.SizeBytes).String(), "blockrepl resize, or correct the configuration"},
			{"servers", sortedNames(v.Servers), sortedNames(st.Members), "correct the configuration; they are as at the volume's creation"},
			{"on_degraded", v.OnDegraded, st.OnDegraded, "blockrepl set, or correct the configuration"},
			{"keep", v.Keep.String(), Size(st.KeepBytes).String(), "blockrepl set, or correct the configuration"},
			{"shared", strconv.FormatBool(v.Shared), strconv.FormatBool(st.Shared), "correct the configuration; it is as at the volume's creation"},
		} {
			if d.configured != d.has {
				log.Warn("the volume is not as configured and stays as it is", "volume", v.Name, "key", d.key, "configured", d.configured, "has", d.has, "next", d.next)
			}
		}
	}
}

func sortedNames(list []string) string { return strings.Join(slices.Sorted(slices.Values(list)), " ") }
