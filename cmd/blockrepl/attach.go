package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

func attachCommand() *cli.Command {
	return &cli.Command{
		Name:      "attach",
		Usage:     "attach a volume to the kernel's NBD driver, for good",
		UsageText: "blockrepl attach DEVICE VOLUME SERVER [SERVER …]",
		Description: `Connects DEVICE, as /dev/nbd0, to VOLUME on the first SERVER (host:port) that
serves it, and stays: when the connection dies it connects to the next one and
hands the new socket to the kernel. What was not answered is sent again there; a
mounted file system waits and sees no error. Each connection carries a newer token,
so that what is stuck in the old server can never be written any more. It is the time
of day. Where a client of this name had a clock that was ahead, a new start goes on
above that; a program that reconnects then says that requests wait, and why.

Needs root, the nbd module (modprobe nbd) and Linux 5.12 or later. The kernel
speaks plain TCP: over networks that are not trusted use a tunnel. Without the
driver use nbdfuse or QEMU, which speak TLS.

Under systemd it reports readiness (Type=notify) when the device is there.

SIGINT or SIGTERM detaches the device. While it is mounted or otherwise in use it
stays attached, without anybody to reconnect it; run the same command again to
take care of it again.

EXAMPLES:
   blockrepl attach /dev/nbd0 vol0 host-a:10809 host-b:10809 host-c:10809
   blockrepl attach /dev/nbd0 vol0 host-a:10809 host-b:10809 --client db1 --takeover

EXIT STATUS:
   0 detached   1 an error, or no NBD driver in this kernel, or still in use at the end
   2 wrong usage   3 refused: another client holds the volume, or one of this name
   has written with a token beyond all bounds`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "client", Usage: "this client's `NAME`, equal on every attach (default: the host's name)"},
			&cli.BoolFlag{Name: "takeover", Usage: "take the volume from the client that holds it"},
			&cli.BoolFlag{Name: "readonly", Usage: "attach read-only"},
			&durationFlag{cli.DurationFlag{Name: "timeout", Value: 10 * time.Second, Usage: "the kernel sends an unanswered request again after `TIME`, in whole seconds: the longest pause that a fail-over adds"}},
			&durationFlag{cli.DurationFlag{Name: "silence", Value: 4 * time.Second, Usage: "so does a server host that is silent for `TIME`"}},
			&durationFlag{cli.DurationFlag{Name: "give-up", Value: 24 * time.Hour, Usage: "without any server, I/O errors begin after `TIME`"}},
		},
		Action: attach,
	}
}

// Bounds of attach.
const (
	attachDialWait   = 5 * time.Second       // connect and negotiate with one server
	attachRetryFirst = 50 * time.Millisecond // pause after a round over all servers, doubled each round
	attachRetryMost  = 2 * time.Second       // so a server that is back is found at most this late
	maxAttachServers = 16
)

// attachment is one device kept attached.
//
// Invariant: token grows with every connection, also over restarts of this
// program: by the clock, and where that went back by what the servers know.
type attachment struct {
	device   string
	index    int // of the device
	volume   string
	servers  []Addr
	client   string
	flags    *cli.Context
	out      io.Writer
	kernel   *nbdKernel
	token    uint64
	attached bool  // a server has let this program in
	next     int   // index in servers to try first
	size     int64 // bytes, of the first connection
}

func attach(c *cli.Context) error {
	if err := wantArgs(c, 3, 2+maxAttachServers, "DEVICE, VOLUME and at least one SERVER"); err != nil {
		return err
	}
	a := &attachment{device: c.Args().Get(0), volume: c.Args().Get(1), client: c.String("client"), flags: c, out: c.App.Writer}
	for _, s := range c.Args().Slice()[2:] {
		addr := Addr(s)
		if err := addr.Check(); err != nil {
			return usagef("attach: %w", err)
		}
		a.servers = append(a.servers, addr)
	}
	if err := a.check(); err != nil {
		return err
	}
	ctx, stop := interruptible(c.Context)
	defer stop()
	kernel, err := openNBDKernel()
	if err != nil {
		return err
	}
	defer kernel.close()
	a.kernel = kernel
	return a.run(ctx)
}

func (a *attachment) check() error {
	if !namePattern.MatchString(a.volume) {
		return usagef("attach: %q is not a volume's name", a.volume)
	}
	number, ok := strings.CutPrefix(filepath.Base(a.device), "nbd")
	index, err := strconv.Atoi(number)
	if !ok || err != nil || index < 0 {
		return usagef("attach: %q is not an NBD device, as /dev/nbd0", a.device)
	}
	a.index = index
	if a.client == "" {
		if a.client, err = os.Hostname(); err != nil {
			return usagef("attach: %w; name this client with --client", err)
		}
	}
	if a.client == "" || len(a.client) > maxIdentityBytes || !printable(a.client) {
		return usagef("attach: --client %q: want 1 to %d printable characters", a.client, maxIdentityBytes)
	}
	if t := a.flags.Duration("timeout"); t < time.Second || t%time.Second != 0 {
		return usagef("attach: --timeout %s: want whole seconds", t)
	}
	if t := a.flags.Duration("silence"); t < time.Second {
		return usagef("attach: --silence %s: want at least 1s", t)
	}
	return nil
}

// run connects, watches and reconnects until ctx ends.
func (a *attachment) run(ctx context.Context) error {
	// Listening before connecting: no death is missed.
	dead, err := a.kernel.deadLinks(ctx, a.index)
	if err != nil {
		return err
	}
	adopted := a.kernel.backend(a.index) == a.backend()
	conn, err := a.dialAny(ctx, !adopted)
	if err != nil {
		return err
	}
	if adopted {
		// The kernel takes the socket if the device's own is dead, else drops it.
		err = a.kernel.reconfigure(a.index, a.backend(), conn.socket)
	} else {
		err = a.kernel.connect(a.config(conn), conn.socket)
	}
	conn.socket.Close()
	if err != nil {
		return a.kernelFailure(err)
	}
	fmt.Fprintf(a.out, "%s is %s at %s, %s, client %s\n", a.device, a.volume, conn.server, humanBytes(conn.info.size), a.client)
	// Mounts that are ordered after the unit wait for this. An error means that
	// nobody listens any more.
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	for {
		select {
		case <-ctx.Done():
			return a.detach()
		case _, ok := <-dead:
			if !ok {
				return errors.New("attach: the kernel's messages ended")
			}
		}
		if err := a.reconnect(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

func (a *attachment) reconnect(ctx context.Context) error {
	began := time.Now()
	fmt.Fprintf(a.out, "connection to %s died\n", a.servers[(a.next+len(a.servers)-1)%len(a.servers)])
	conn, err := a.dialAny(ctx, false)
	if err != nil {
		return err
	}
	defer conn.socket.Close()
	if err := a.kernel.reconfigure(a.index, a.backend(), conn.socket); err != nil {
		return a.kernelFailure(err)
	}
	fmt.Fprintf(a.out, "%s continues at %s after %s\n", a.device, conn.server, humanDuration(time.Since(began)))
	return nil
}

// dialAny tries the servers in turn, from the one after the last that worked,
// until one serves the volume. With once it gives up after the first round: then
// the operator is there to read why.
func (a *attachment) dialAny(ctx context.Context, once bool) (*nbdConn, error) {
	told := false
	for pause := attachRetryFirst; ; pause = min(2*pause, attachRetryMost) {
		var errs []error
		for range a.servers {
			server := a.servers[a.next]
			a.next = (a.next + 1) % len(a.servers)
			conn, err := a.dial(ctx, server)
			if err == nil {
				a.attached = true
				return conn, nil
			}
			errs = append(errs, fmt.Errorf("attach: %s: %w", server, err))
		}
		err := errors.Join(errs...)
		var old *oldTokenError
		refused := errors.As(err, &old)
		if once {
			f := &failure{code: exitError, err: err}
			if refused {
				f.code, f.next = exitRefused, "attach with another --client and --takeover, after umount and nbd-client -d where the device is still attached"
			}
			if errors.Is(err, errHeld) {
				f.code = exitRefused
			}
			return nil, f
		}
		if refused && !told {
			told = true
			fmt.Fprintf(a.out, "%v\n%s\n", err, a.superseded())
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
	}
}

var errHeld = errors.New("offers the volume read-only, another client holds it: take it over with --takeover or attach with --readonly")

// dial connects to one server and checks that it offers what the device needs.
func (a *attachment) dial(ctx context.Context, server Addr) (*nbdConn, error) {
	ctx, cancel := context.WithTimeout(ctx, attachDialWait)
	defer cancel()
	a.nextToken()
	conn, err := dialNBD(ctx, server, a.exportName(), a.flags.Duration("silence"))
	if a.raiseToken(err) {
		conn, err = dialNBD(ctx, server, a.exportName(), a.flags.Duration("silence"))
	}
	if err != nil {
		return nil, err
	}
	switch {
	case conn.info.readOnly() && !a.flags.Bool("readonly"):
		err = errHeld
	case a.size != 0 && conn.info.size < a.size:
		err = fmt.Errorf("volume has %d bytes there, the device %d: another volume?", conn.info.size, a.size)
	}
	if err != nil {
		return nil, errors.Join(err, conn.socket.Close())
	}
	if a.size == 0 {
		a.size = conn.info.size
	}
	return conn, nil
}

func (a *attachment) exportName() string {
	name := a.volume + "?client=" + queryEscape(a.client) + "&token=" + strconv.FormatUint(a.token, 10)
	if a.flags.Bool("takeover") {
		name += "&takeover"
	}
	if a.flags.Bool("readonly") {
		name += "&readonly"
	}
	return name
}

// backend is the mark that the kernel keeps with the device: only a command
// with the same one may change it.
func (a *attachment) backend() string { return "blockrepl:" + a.volume + ":" + a.client }

func (a *attachment) config(conn *nbdConn) deviceConfig {
	return deviceConfig{
		index: a.index, sizeBytes: conn.info.size, flags: conn.info.flags, backend: a.backend(),
		timeout: a.flags.Duration("timeout"), deadTimeout: a.flags.Duration("give-up"),
	}
}

func (a *attachment) kernelFailure(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return &failure{code: exitError, err: fmt.Errorf("attach %s: %w", a.device, err), next: "run as root"}
	case errors.Is(err, unix.EBUSY):
		return &failure{code: exitError, err: fmt.Errorf("attach %s: another program has it attached: %w", a.device, err),
			next: "choose another device, or detach it with nbd-client -d " + a.device}
	}
	return fmt.Errorf("attach %s: %w", a.device, err)
}

// detach disconnects the device unless somebody uses it.
func (a *attachment) detach() error {
	f, err := os.OpenFile(a.device, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return &failure{code: exitError, err: fmt.Errorf("attach: %s is in use and stays attached, but nobody reconnects it", a.device),
			next: "run the same command again, or umount and nbd-client -d " + a.device}
	}
	if err == nil {
		f.Close()
	}
	if err := a.kernel.disconnect(a.index); err != nil {
		return fmt.Errorf("detach %s: %w", a.device, err)
	}
	fmt.Fprintf(a.out, "%s is detached\n", a.device)
	return nil
}
