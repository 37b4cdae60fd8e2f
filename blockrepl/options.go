package blockrepl

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Options is what a Server is made from. The hooks at the end exist for the
// simulator; nil means the real thing.
type Options struct {
	Cluster string // must be equal on every server
	ID      record.ServerID
	DataDir string
	Peers   string       // address to listen on for other servers; "" with a single server
	Servers []ServerAddr // every server, itself included
	Volumes []VolumeOptions

	PeerTimeout time.Duration // silence after which a peer is down; 0: DefaultPeerTimeout
	IOTimeout   time.Duration // how long a client's request may wait; 0: DefaultIOTimeout
	RingBytes   int64         // memory for recent records of all volumes; 0: 32 MiB

	TLS      *tls.Config // between servers, mutual; nil: plain TCP
	Insecure bool        // plain TCP is allowed off loopback

	Logger  *slog.Logger
	Version string
	Pprof   bool // /debug/pprof on the admin handler

	Clock       func() replica.Time // boot-time clock
	Wall        func() time.Time    // for people
	Rand        func() uint64
	Files       Files
	Net         Net
	OpenJournal func(journal.Options) (*journal.Journal, error)
	OpenImage   func(image.Options) (*image.Image, error)
}

// ServerAddr is where a server listens for its peers.
type ServerAddr struct {
	ID   record.ServerID
	Addr string // host:port
}

// VolumeOptions is one volume as the configuration names it. Size, OnDegraded,
// Shared and Keep count when the volume is created; later they are its own.
type VolumeOptions struct {
	Name       string
	Size       int64             // bytes, a multiple of 512
	Servers    []record.ServerID // the first creates it; all keep it
	OnDegraded wire.OnDegraded   // 0: wire.Suspend
	Keep       int64             // bytes; 0: DefaultKeep
	Shared     bool
	Image      string // a device or file; "": DataDir/images/NAME.img
}

// Net opens the links between servers.
type Net interface {
	Listen(ctx context.Context, addr string) (net.Listener, error)
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

type tcpNet struct{}

func (tcpNet) Listen(ctx context.Context, addr string) (net.Listener, error) {
	var c net.ListenConfig
	return c.Listen(ctx, "tcp", addr)
}

func (tcpNet) Dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

// fill sets what is zero to its default.
func (o *Options) fill() {
	if o.PeerTimeout == 0 {
		o.PeerTimeout = DefaultPeerTimeout
	}
	if o.IOTimeout == 0 {
		o.IOTimeout = DefaultIOTimeout
	}
	if o.RingBytes == 0 {
		o.RingBytes = ringBytes
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = newClock().read
	}
	if o.Wall == nil {
		o.Wall = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Uint64
	}
	if o.Files == nil {
		o.Files = osFiles{}
	}
	if o.Net == nil {
		o.Net = tcpNet{}
	}
	if o.OpenJournal == nil {
		o.OpenJournal = journal.Open
	}
	if o.OpenImage == nil {
		o.OpenImage = image.Open
	}
	o.Volumes = slices.Clone(o.Volumes)
	for i := range o.Volumes {
		v := &o.Volumes[i]
		if v.OnDegraded == 0 {
			v.OnDegraded = wire.Suspend
		}
		if v.Keep == 0 {
			v.Keep = DefaultKeep
		}
		if v.Image == "" {
			v.Image = filepath.Join(o.DataDir, "images", v.Name+".img")
		}
	}
}

// Check says what is wrong with o, before anything is touched; nil if nothing is.
func (o *Options) Check() error {
	if o.Cluster == "" || len(o.Cluster) > wire.MaxName {
		return fmt.Errorf("cluster %q: must have 1 to %d bytes", o.Cluster, wire.MaxName)
	}
	if o.ID.IsZero() {
		return errors.New("id: is missing")
	}
	if o.DataDir == "" {
		return errors.New("data: is missing")
	}
	if len(o.Volumes) > volumesMax {
		return fmt.Errorf("%d volumes, at most %d are allowed", len(o.Volumes), volumesMax)
	}
	if err := o.checkPlain(); err != nil {
		return err
	}
	known := map[record.ServerID]bool{}
	for _, s := range o.Servers {
		if known[s.ID] {
			return fmt.Errorf("server %s: is listed twice", s.ID)
		}
		known[s.ID] = true
	}
	if !known[o.ID] {
		return fmt.Errorf("server %s: this server is not in the list of servers", o.ID)
	}
	if len(o.Servers) > 1 && o.Peers == "" {
		return errors.New("peers: the address to listen on for other servers is missing")
	}
	names, images := map[string]bool{}, map[string]string{}
	for i := range o.Volumes {
		v := &o.Volumes[i]
		if err := v.check(known); err != nil {
			return fmt.Errorf("volume %q: %w", v.Name, err)
		}
		if names[v.Name] {
			return fmt.Errorf("volume %q: is listed twice", v.Name)
		}
		names[v.Name] = true
		if v.Image != "" && images[v.Image] != "" {
			return fmt.Errorf("volume %q: image %s is also that of volume %q", v.Name, v.Image, images[v.Image])
		}
		images[v.Image] = v.Name
	}
	return nil
}

// checkPlain refuses plain TCP to addresses that are known to leave this host.
// What a name stands for is not known here; the program asks.
func (o *Options) checkPlain() error {
	if o.TLS != nil || o.Insecure {
		return nil
	}
	for _, s := range append([]ServerAddr{{o.ID, o.Peers}}, o.Servers...) {
		host, _, err := net.SplitHostPort(s.Addr)
		if err != nil {
			continue
		}
		if ip := net.ParseIP(host); ip != nil && !ip.IsLoopback() {
			return fmt.Errorf("server %s: address %s is not on this host and there are no TLS keys: configure them, or set insecure = true", s.ID, s.Addr)
		}
	}
	return nil
}

func (v *VolumeOptions) check(known map[record.ServerID]bool) error {
	if !validName(v.Name) {
		return errors.New("a name has 1 to 64 of the characters a-z, A-Z, 0-9, ., _ and -, and begins with a letter or digit")
	}
	if v.Size <= 0 || v.Size%512 != 0 || v.Size > record.MaxSize {
		return fmt.Errorf("size %d: must be a multiple of 512 bytes, at least 512 and at most %d", v.Size, int64(record.MaxSize))
	}
	if v.Keep < 0 {
		return fmt.Errorf("keep %d: must not be negative", v.Keep)
	}
	if len(v.Servers) == 0 {
		return errors.New("servers: is empty")
	}
	if len(v.Servers) > serversMax {
		return fmt.Errorf("%d servers, at most %d can hold a volume", len(v.Servers), serversMax)
	}
	for i, id := range v.Servers {
		if !known[id] {
			return fmt.Errorf("server %s: is not in the list of servers", id)
		}
		if slices.Contains(v.Servers[:i], id) {
			return fmt.Errorf("server %s: is listed twice", id)
		}
	}
	return nil
}

// serversMax bounds the servers that hold one volume.
const serversMax = 7

// validName reports whether a volume may have this name: it becomes a file name
// and an NBD export's name.
func validName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}
