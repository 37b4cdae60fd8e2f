package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/nbd"
)

// Comes from: an NBD client's negotiation. Does: reads the export's name, finds
// volume, identity and permission, connects. Goes to: disk.go.

// exports shows the server's volumes to NBD clients.
type exports struct {
	server    *blockrepl.Server
	names     []string // in the order of the configuration
	admission *admission
	about     string // "cluster lab, server a"
}

var _ nbd.Exports = (*exports)(nil)

// List gives the volumes that the client may open.
func (e *exports) List(_ context.Context, c *nbd.Client) ([]string, error) {
	var names []string
	for _, name := range e.names {
		if _, ok := e.admission.access(c.TLSName, name); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// Describe says what Open would give now, but does not wait: on a server that is behind
// it may be the size of before a resize.
func (e *exports) Describe(ctx context.Context, c *nbd.Client, name string) (nbd.Info, error) {
	want, v, err := e.find(c, name)
	if err != nil {
		return nbd.Info{}, err
	}
	readOnly, _, err := v.Offers(ctx, clientInfo(c, &want))
	if err != nil {
		return nbd.Info{}, clientError(err)
	}
	return e.info(v, v.Size(), readOnly), nil
}

// Open connects the client. It waits until the volume has come into being.
func (e *exports) Open(ctx context.Context, c *nbd.Client, name string) (nbd.Disk, nbd.Info, error) {
	want, v, err := e.find(c, name)
	if err != nil {
		return nil, nbd.Info{}, err
	}
	conn, err := v.Connect(ctx, clientInfo(c, &want))
	if err != nil {
		return nil, nbd.Info{}, clientError(err)
	}
	d := &disk{conn: conn, admission: e.admission}
	if !e.admission.enter(d, visit{client: c, volume: v.Name(), writes: !conn.ReadOnly()}) {
		return nil, nbd.Info{}, errors.Join(fmt.Errorf("%w: %w", nbd.ErrHang, errRevoked), conn.Close())
	}
	return d, e.info(v, conn.Size(), conn.ReadOnly()), nil
}

// clientInfo is the client in the words of the replication.
func clientInfo(c *nbd.Client, want *exportName) blockrepl.ClientInfo {
	return blockrepl.ClientInfo{
		Addr:     c.Addr,
		Identity: want.identity(c.TLSName, c.Addr),
		Token:    want.Token,
		Takeover: want.Takeover,
		ReadOnly: want.ReadOnly,
		StaleOK:  want.Stale,
		Gone:     c.Gone,
		Abort:    c.Abort,
	}
}

// find reads the name and decides whether this client may have it. A volume that
// it may not see does not exist for it.
func (e *exports) find(c *nbd.Client, name string) (exportName, *blockrepl.Volume, error) {
	want, err := parseExportName(name)
	if err != nil {
		return want, nil, fmt.Errorf("%w: %w", nbd.ErrNotPermitted, err)
	}
	if want.Volume == "" {
		if len(e.names) != 1 {
			return want, nil, fmt.Errorf("%w: the empty name is the only volume, and there are %d", nbd.ErrUnknownExport, len(e.names))
		}
		want.Volume = e.names[0]
	}
	writes, ok := e.admission.access(c.TLSName, want.Volume)
	v := e.server.Volume(want.Volume)
	if !ok || v == nil {
		return want, nil, fmt.Errorf("%w: %q", nbd.ErrUnknownExport, want.Volume)
	}
	want.ReadOnly = want.ReadOnly || !writes
	return want, v, nil
}

func (e *exports) info(v *blockrepl.Volume, size int64, readOnly bool) nbd.Info {
	return nbd.Info{
		Name:        v.Name(),
		Description: "blockrepl volume " + v.Name() + ", " + e.about,
		Size:        size,
		ReadOnly:    readOnly,
		// A write completes when it is durable, so any connection's flush, to
		// any server, covers all.
		MultiConn: true,
		// A zero is a record without payload; what is left is this server's image.
		FastZero: v.FastZero(),
	}
}

// clientError translates the replication's errors into what the door knows.
func clientError(err error) error {
	if errors.Is(err, blockrepl.ErrAborted) || errors.Is(err, blockrepl.ErrStopped) {
		return fmt.Errorf("%w: %w", nbd.ErrHang, err)
	}
	var old *blockrepl.OldTokenError
	if errors.As(err, &old) {
		return fmt.Errorf("%w: %w", nbd.ErrNotPermitted, oldTokenRefusal(old))
	}
	return err
}

// permissions say what each certificate's name may open; nil lets everyone do
// everything.
type permissions map[string]PermissionConfig

func newPermissions(list []PermissionConfig) permissions {
	if len(list) == 0 {
		return nil
	}
	p := permissions{}
	for _, c := range list {
		p[c.Name] = c
	}
	return p
}

// access reports whether the named client may open the volume, and write to it.
func (p permissions) access(tlsName, volume string) (writes, ok bool) {
	if p == nil {
		return true, true
	}
	c, ok := p[tlsName]
	if !ok || tlsName == "" {
		return false, false
	}
	for _, v := range c.Volumes {
		if v == volume {
			return c.Access == accessReadWrite, true
		}
	}
	return c.Access == accessReadWrite, len(c.Volumes) == 0
}
