package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/nbd"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:      "serve",
		Usage:     "run a server",
		UsageText: "blockrepl serve --config FILE [--no-handover]\n   blockrepl serve --cluster lab --id a --server a=HOST:PORT … --volume 'vol0 size=1GiB' …",
		Description: `Runs one server in the foreground: it serves its volumes to NBD clients, takes
records from masters and sends its own to slaves. Options win over the file, and the
file over defaults. "blockrepl check" says beforehand what is wrong.

A volume whose image or saved state cannot be opened leaves the others alone: it takes
no part until a restart, and "status" says why. The server does not start when none
can be opened.

A volume comes into being when all its servers are there and none has seen it; the
first of its list becomes master.

Under systemd it reports readiness (Type=notify) and takes sockets: those named
"admin" and "metrics", and all others for NBD.

SIGHUP reads file, flags and environment again, as "systemctl reload" does. What is
wrong is logged, and then everything stays as it was. What is right holds for what
begins from then on: TLS certificates, keys and CAs of both doors, log_level, and the
permissions of clients, whose connections are closed if they use what they have lost.
The log names what needs a restart or a command. Before: "blockrepl check --reload".

SIGTERM stops within 10 seconds: no request is read any more, those under way are
answered, records are applied and the image is fsynced, and mastership goes to a
slave that is in sync. SIGINT, or --no-handover, keeps it: the others' clients wait
until this server is back.

EXAMPLES:
   blockrepl serve --config /etc/blockrepl/blockrepl.toml
   blockrepl serve --cluster lab --id a --data /srv/br --volume 'vol0 size=10GiB'

EXIT STATUS:
   0 stopped by a signal   1 an error at the start, or disk or journal failed
   2 wrong usage or configuration; nothing was touched`,
		Flags: append(configFlags(),
			&cli.BoolFlag{Name: "no-handover", EnvVars: env("NO_HANDOVER"), Usage: "keep mastership at SIGTERM"}),
		Action: serve,
	}
}

// How the 10 seconds of a stop are spent.
const (
	stopWait  = 8500 * time.Millisecond // handover, apply, checkpoint
	drainWait = 3 * time.Second         // at the same time: requests under way; then connections close without a reply
)

func serve(c *cli.Context) error {
	hups := make(chan os.Signal, 1) // what comes before serving begins, or during a reload, is one more reload
	signal.Notify(hups, syscall.SIGHUP)
	defer signal.Stop(hups)
	if err := wantArgs(c, 0, 0, ""); err != nil {
		return err
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	problems, images := cfg.checkStart()
	if len(images) == len(cfg.own()) {
		problems, images = append(problems, images...), nil
	}
	if len(problems) > 0 {
		f := &failure{code: exitUsage, err: cfg.locate(problems)}
		if errors.Is(f.err, blockrepl.ErrInUse) {
			f.code = exitError // it may end; systemd shall try again
		}
		return f
	}
	level := new(slog.LevelVar)
	if l, err := logLevel(cfg.LogLevel); err == nil { // loadConfig has checked it
		level.Set(l)
	}
	d := &daemonProcess{cfg: cfg, log: newLogger(c.App.ErrWriter, cfg, level), handover: !c.Bool("no-handover"), hups: hups}
	for _, err := range images {
		d.log.Error("volume will take no part until a restart; the others start", "err", err)
	}
	d.reloads, err = newReloader(cfg, d.log, level, func() (*Config, error) { return loadConfig(c) }, d.notify)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 2) // a second one ends the wait of the first
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	return d.run(c.Context, signals)
}

// daemonProcess is a running server: the replication, the doors before it, and
// what ends them.
//
// Order of a stop: no NBD request is read any more, and mastership is handed over,
// while those under way are answered; then the replication ends; admin is last, so
// that the operator can look to the end.
type daemonProcess struct {
	cfg      *Config
	log      *slog.Logger
	handover bool
	reloads  *reloader
	hups     <-chan os.Signal

	server *blockrepl.Server
	nbd    *nbd.Server
	http   []*http.Server
	wg     sync.WaitGroup // one a listener
	failed chan error     // the first listener that failed; capacity: one a listener
}

func (d *daemonProcess) run(ctx context.Context, signals <-chan os.Signal) error {
	doors, err := openListeners(ctx, d.cfg)
	if err != nil {
		return err
	}
	defer doors.close()
	defer boundHeap()()
	if d.server, err = blockrepl.NewServer(serverOptions(d.cfg, d.reloads.peerTLS(), d.log)); err != nil {
		return err
	}
	if err := d.server.Start(ctx); err != nil {
		return err
	}
	if err := d.openDoors(ctx, doors); err != nil {
		return errors.Join(err, d.stop(false))
	}
	d.log.Info("serving", "cluster", d.cfg.Cluster, "server", d.cfg.ID, "version", version, "volumes", len(d.cfg.own()),
		"nbd", addresses(doors.nbd), "peers", string(d.cfg.Peers), "admin", addresses([]net.Listener{doors.admin}))
	d.warnOpen(doors.nbd)
	left := outstanding(ctx, d.cfg, d.cfg, d.server)
	left.warn(d.log)
	for _, text := range slices.Concat(d.cfg.expiring(time.Now()), d.cfg.cramped()) {
		d.log.Warn(text)
	}
	d.notify(daemon.SdNotifyReady)
	reloading, endReloads := context.WithCancel(ctx)
	d.reloads.start(reloading, d.hups)
	handover := false
	select {
	case s := <-signals:
		handover = d.handover && s == syscall.SIGTERM
		d.log.Info("stopping", "signal", s.String(), "handover", handover)
	case <-ctx.Done():
		d.log.Info("stopping", "reason", context.Cause(ctx))
	case err = <-d.failed:
		d.log.Error("stopping", "err", err)
	}
	endReloads()
	d.notify(daemon.SdNotifyStopping)
	err = errors.Join(err, d.stop(handover))
	d.reloads.wait()
	return err
}

// openDoors begins to serve clients and commands.
func (d *daemonProcess) openDoors(ctx context.Context, doors *listeners) (err error) {
	if d.nbd, err = newNBDServer(d.cfg, d.server, d.reloads, d.log); err != nil {
		return err
	}
	d.reloads.server, d.reloads.nbd = d.server, d.nbd
	d.failed = make(chan error, len(doors.nbd)+2)
	serve := func(run func() error) {
		d.wg.Go(func() {
			err := run()
			if err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, nbd.ErrServerClosed) {
				d.failed <- err
			}
		})
	}
	for _, ln := range doors.nbd {
		serve(func() error { return d.nbd.Serve(ctx, ln) })
	}
	handler := d.server.AdminHandler()
	if doors.metrics != nil {
		doors.metrics = metricsDoor(doors.metrics)
	}
	for _, door := range []struct {
		ln  net.Listener
		srv *http.Server
	}{{doors.admin, newAdminServer(handler)}, {doors.metrics, newMetricsServer(handler)}} {
		if door.ln == nil {
			continue
		}
		d.http = append(d.http, door.srv)
		serve(func() error { return door.srv.Serve(door.ln) })
	}
	return nil
}

// warnOpen says when anyone on the network may write.
func (d *daemonProcess) warnOpen(doors []net.Listener) {
	for _, ln := range doors {
		if d.cfg.NBDTLS.Mode != "require" && ln.Addr().Network() == "tcp" && !Addr(ln.Addr().String()).Local() {
			d.log.Warn("anyone who reaches this address may read and write: set [nbd_tls] mode = \"require\", or guard the network", "nbd", ln.Addr().String())
		}
	}
}

// stop ends everything in order and waits.
func (d *daemonProcess) stop(handover bool) error {
	began := time.Now()
	drained := make(chan struct{})
	go func() { // ends within drainWait
		defer close(drained)
		if d.nbd == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), drainWait)
		defer cancel()
		if err := d.nbd.Shutdown(ctx); err != nil {
			d.log.Warn("requests under way were dropped without a reply; clients send them again", "err", err)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), stopWait)
	defer cancel()
	err := d.server.Stop(ctx, handover)
	<-drained
	for _, srv := range d.http {
		ctx, cancel := context.WithTimeout(context.Background(), adminStopWait)
		if srv.Shutdown(ctx) != nil {
			srv.Close() // a watcher that does not hang up
		}
		cancel()
	}
	d.wg.Wait()
	if err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	d.log.Info("stopped", "took", time.Since(began))
	return nil
}

// notify tells systemd, when it listens. Its absence is normal.
func (d *daemonProcess) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		d.log.Warn("tell systemd", "state", state, "err", err)
	}
}

func addresses(ls []net.Listener) []string {
	var out []string
	for _, ln := range ls {
		if ln != nil {
			out = append(out, ln.Addr().String())
		}
	}
	return out
}
