package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/nbd"
	"github.com/coreos/go-systemd/v22/daemon"
)

// Comes from: SIGHUP. Does: reads the configuration again and checks it whole, then
// exchanges what can change while the server runs. Goes to: the doors for clients and
// peers, permissions, the log; what cannot change is named (reload_diff.go).

// reloader holds what of the configuration is in force, and exchanges it.
//
// One goroutine, of start: it carries out one reload after the other. It ends with
// its context, and never changes anything after that.
type reloader struct {
	load   func() (*Config, error) // the same file, flags and environment, checked
	notify func(state string)      // tells systemd
	log    *slog.Logger
	level  *slog.LevelVar

	admission *admission
	peers     *rotatingTLS // nil: peers speak plain TCP
	// Set before start.
	server *blockrepl.Server
	nbd    *nbd.Server

	cfg  *Config // what cannot change is as at the start
	keys *keys
	done chan struct{} // closed when the goroutine has ended
}

// keys are the TLS configurations of both doors, nil where there is none. They are
// read once, so that what is checked is what is used.
type keys struct {
	clients, peers *tls.Config
}

// loadKeys reads the keys of cfg; peers must be servers of cluster.
func loadKeys(cfg *Config, cluster string) (*keys, error) {
	clients, err := nbdTLS(&cfg.NBDTLS)
	if err != nil {
		return nil, err
	}
	peers, err := peerTLS(&cfg.PeerTLS, cluster)
	return &keys{clients, peers}, err
}

// newReloader takes cfg as what is in force.
func newReloader(cfg *Config, log *slog.Logger, level *slog.LevelVar, load func() (*Config, error), notify func(string)) (*reloader, error) {
	k, err := loadKeys(cfg, cfg.Cluster)
	if err != nil {
		return nil, err
	}
	r := &reloader{
		load: load, notify: notify, log: log, level: level, cfg: cfg, keys: k, done: make(chan struct{}),
		admission: newAdmission(newPermissions(cfg.NBDTLS.Clients)),
	}
	if k.peers != nil {
		r.peers = newRotatingTLS(k.peers)
	}
	return r, nil
}

// peerTLS is what links between servers use, nil for plain TCP.
func (r *reloader) peerTLS() *tls.Config {
	if r.peers == nil {
		return nil
	}
	return r.peers.config()
}

// start carries out each signal of hups, until ctx ends. What comes during a reload
// waits in hups, which has room for one.
func (r *reloader) start(ctx context.Context, hups <-chan os.Signal) {
	go func() { // ends with ctx; wait waits for it
		defer close(r.done)
		for {
			select {
			case <-hups:
				r.reload(ctx)
			case <-ctx.Done():
				return
			}
		}
	}()
}

// reloadStopWait bounds how long a stop waits for a reload that reads a file which
// does not come, as of a network that is away: the process ends all the same.
const reloadStopWait = 500 * time.Millisecond

// wait returns when the goroutine has ended, after its context has.
func (r *reloader) wait() {
	t := time.NewTimer(reloadStopWait)
	defer t.Stop()
	select {
	case <-r.done:
	case <-t.C:
		r.log.Warn("a reload still reads its files; it is left behind")
	}
}

// reload reads everything before it changes anything.
func (r *reloader) reload(ctx context.Context) {
	r.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
	next, err := r.read(ctx)
	if ctx.Err() != nil {
		return // the server stops; systemd has been told
	}
	if err == nil {
		err = r.apply(next)
	}
	if err == nil {
		for _, text := range r.cfg.expiring(time.Now()) {
			r.log.Warn(text)
		}
	} else {
		r.log.Error("configuration not reloaded; everything stays as it was", "err", strings.Join(asFailure(err).lines(), "; "))
	}
	r.notify(daemon.SdNotifyReady)
}

// candidate is a configuration that is right, and all that it takes to use it.
type candidate struct {
	*Config
	keys  *keys
	level slog.Level
	left  leftOver
}

func (r *reloader) read(ctx context.Context) (*candidate, error) {
	cfg, err := r.load()
	if err != nil {
		return nil, err
	}
	if problems := cfg.checkReload(r.holds); len(problems) > 0 {
		return nil, cfg.locate(problems)
	}
	next := &candidate{Config: cfg}
	if next.keys, err = loadKeys(cfg, r.cfg.Cluster); err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.source(), err)
	}
	if next.level, err = logLevel(cfg.LogLevel); err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.source(), err)
	}
	next.left = outstanding(ctx, r.cfg, cfg, r.server)
	return next, nil
}

// holds reports whether the image is one that this server has open, or would have: what
// was wrong with it at the start, or is by now, is not for a reload to refuse.
func (r *reloader) holds(image string) bool {
	st, statErr := os.Stat(image)
	for _, v := range r.cfg.own() {
		path := v.imagePath(r.cfg.Data)
		if path == filepath.Clean(image) {
			return true
		}
		if own, err := os.Stat(path); err == nil && statErr == nil && os.SameFile(st, own) {
			return true
		}
	}
	return false
}

// imagePath is where the volume's bytes are.
func (v *VolumeConfig) imagePath(data string) string {
	if v.Image == "" {
		return filepath.Join(data, "images", v.Name+".img")
	}
	return filepath.Clean(v.Image)
}

// apply exchanges what can change, and says what has and what has not. When it
// fails nothing has changed.
func (r *reloader) apply(next *candidate) error {
	now := *r.cfg
	changed := []string{} // not null for who reads the JSON
	// A mode is the door's own. What belongs to another one must not count under
	// this one: without certificates nobody would have a name to be permitted by.
	if next.NBDTLS.Mode == now.NBDTLS.Mode {
		if err := r.nbd.SetTLS(next.keys.clients); err != nil {
			return err
		}
		changed = append(changed, r.changeClients(next)...)
		now.NBDTLS, r.keys.clients = next.NBDTLS, next.keys.clients
	}
	if next.keys.peers != nil && r.peers != nil {
		changed = append(changed, changedKeys("peer_tls", r.keys.peers, next.keys.peers)...)
		r.peers.set(next.keys.peers)
		now.PeerTLS, r.keys.peers = next.PeerTLS, next.keys.peers
	}
	if next.LogLevel != now.LogLevel {
		changed = append(changed, "log_level")
		now.LogLevel = next.LogLevel
	}
	r.cfg = &now
	r.level.Set(min(next.level, r.level.Level())) // so that these lines are seen whichever way it goes
	next.left.warn(r.log)
	r.log.Info("configuration reloaded", "file", next.source(), "changed", changed)
	r.level.Set(next.level)
	return nil
}

// changeClients sets the permissions, sends those away who lost theirs, and names
// what is new towards clients.
func (r *reloader) changeClients(next *candidate) (changed []string) {
	changed = changedKeys("nbd_tls", r.keys.clients, next.keys.clients)
	rules := newPermissions(next.NBDTLS.Clients)
	if reflect.DeepEqual(rules, newPermissions(r.cfg.NBDTLS.Clients)) {
		return changed
	}
	for _, v := range r.admission.change(rules) {
		r.log.Warn("client may no longer do what it does; its connection is closed", "name", v.client.TLSName, "addr", v.client.Addr,
			"volume", v.volume, "writes", v.writes)
		v.client.Abort(errRevoked)
	}
	return append(changed, "nbd_tls.client")
}

// changedKeys names what differs between two configurations of one door.
func changedKeys(table string, was, is *tls.Config) (changed []string) {
	if is == nil {
		return nil
	}
	if !sameCertificate(was, is) {
		changed = append(changed, table+".cert")
	}
	if !sameAuthorities(was, is) {
		changed = append(changed, table+".ca")
	}
	return changed
}
