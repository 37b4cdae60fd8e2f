package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/coreos/go-systemd/v22/activation"
)

// listeners are the open doors of a server.
type listeners struct {
	nbd     []net.Listener
	admin   net.Listener
	metrics net.Listener // nil without
}

// openListeners opens all addresses, or none. Sockets that systemd passed by
// FileDescriptorName "admin" and "metrics" take that address's place; all others,
// whatever their name, take the place of nbd. The address for peers is the
// replication's own and opened there.
func openListeners(ctx context.Context, cfg *Config) (_ *listeners, err error) {
	l := &listeners{}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	passed, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("take sockets from systemd: %w", err)
	}
	for name, ls := range passed {
		for _, ln := range ls {
			if ln == nil {
				return nil, fmt.Errorf("take sockets from systemd: %q is not a stream socket", name)
			}
			slot := l.slot(name)
			switch {
			case slot == nil:
				l.nbd = append(l.nbd, ln)
			case *slot == nil:
				*slot = ln
			default: // never a door for clients, what was meant for the operator
				return nil, fmt.Errorf("take sockets from systemd: two are named %q; one is wanted", name)
			}
		}
	}
	if len(l.nbd) == 0 {
		for _, addr := range cfg.NBD {
			ln, err := listen(ctx, "nbd", addr, &cfg.NBDSocket)
			if err != nil {
				return nil, err
			}
			l.nbd = append(l.nbd, ln)
		}
	}
	// Commands through a unix socket are for its owner alone.
	private := &SocketConfig{Mode: "0600"}
	for name, addr := range map[string]Addr{"admin": cfg.Admin, "metrics": cfg.Metrics} {
		slot := l.slot(name)
		if *slot != nil || addr == "" {
			continue
		}
		if *slot, err = listen(ctx, name, addr, private); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *listeners) slot(name string) *net.Listener {
	switch name {
	case "admin":
		return &l.admin
	case "metrics":
		return &l.metrics
	}
	return nil
}

// close closes what is open. Closing twice is harmless.
func (l *listeners) close() {
	for _, ln := range append([]net.Listener{l.admin, l.metrics}, l.nbd...) {
		if ln != nil {
			ln.Close() // an error means closed already
		}
	}
}

func listen(ctx context.Context, what string, addr Addr, socket *SocketConfig) (net.Listener, error) {
	if addr.Network() == "unix" {
		return listenUnix(what, addr, socket)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr.Target())
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s: %q is in use by another process; `ss -ltnp` says by which: %w", what, addr, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: listen at %q: %w", what, addr, err)
	}
	return ln, nil
}

// listenUnix makes the socket with its mode and owner. It replaces one that
// nobody listens on any more, and nothing else.
func listenUnix(what string, addr Addr, socket *SocketConfig) (net.Listener, error) {
	u := nbd.UnixSocket{Path: addr.Target()}
	var err error
	if u.Mode, err = socket.mode(); err != nil {
		return nil, err
	}
	if u.UID, u.GID, err = socket.ids(); err != nil {
		return nil, err
	}
	ln, err := nbd.ListenUnix(u)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return ln, nil
}
