package main

import (
	"crypto/tls"
	"log/slog"
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
