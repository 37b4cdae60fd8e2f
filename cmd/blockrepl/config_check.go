package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: config_load.go, completed. Does: everything that can be said
// without touching disk, network or another server. Goes to: serve, check.

// Bounds of a configuration.
const (
	maxServers = 7                    // the design's: acknowledgements of all are waited for
	maxVolumes = 1024                 // a goroutine set and a journal range each
	maxSize    = Size(64) << 40       // bytes; what is tested
	sector     = 512                  // bytes; the kernel's NBD client counts in these
	minSize    = Size(1 << 20)        // bytes; below it no file system fits
	minKeep    = Size(64 << 20)       // bytes; two of the largest records
	minAnswers = 2 * time.Millisecond // io_timeout below this closes every connection
)

const (
	accessReadWrite = "read-write"
	accessReadOnly  = "read-only"
)

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Check gives everything that is wrong, in the order of the file; empty when
// the configuration can be used.
func (c *Config) Check() []error {
	var p problems
	c.checkIdentity(&p)
	c.checkAddresses(&p)
	c.checkServers(&p)
	c.checkTLS(&p)
	c.checkVolumes(&p)
	c.checkRest(&p)
	return p
}

type problems []error

func (p *problems) addf(format string, args ...any) { *p = append(*p, fmt.Errorf(format, args...)) }

func (p *problems) add(err error) {
	if err != nil {
		*p = append(*p, err)
	}
}

func (c *Config) checkIdentity(p *problems) {
	if c.Cluster == "" {
		p.addf("cluster is missing: give the cluster a name, the same on every server")
	} else if !namePattern.MatchString(c.Cluster) {
		p.addf("cluster %q: 1 to 64 letters, digits, dots, dashes and underscores are allowed", c.Cluster)
	}
	if c.ID == "" {
		p.addf("id is missing: give this server an id, as \"a\"")
	} else if _, err := record.ParseServerID(c.ID); err != nil {
		p.add(err)
	}
	if c.Data == "" {
		p.addf("data is missing: name a directory")
	} else if !filepath.IsAbs(c.Data) {
		p.addf("data %q: want an absolute path", c.Data)
	}
}

func (c *Config) checkAddresses(p *problems) {
	used := map[Addr]string{}
	take := func(what string, a Addr) {
		if a == "" {
			return
		}
		if err := a.Check(); err != nil {
			p.addf("%s: %w", what, err)
			return
		}
		if other, ok := used[a]; ok && !strings.HasSuffix(string(a), ":0") {
			p.addf("%s %q: used for %s already", what, a, other)
		}
		used[a] = what
	}
	for _, a := range c.NBD {
		take("nbd", a)
	}
	take("peers", c.Peers)
	take("admin", c.Admin)
	take("metrics", c.Metrics)
	if c.Peers.Network() == "unix" {
		p.addf("peers %q: servers connect over TCP; want \"host:port\"", c.Peers)
	}
	if !c.Insecure && c.Admin.Check() == nil && !c.Admin.Local() {
		p.addf("admin %q: anyone who reaches it may promote and forget; use 127.0.0.1 or unix:/path, `metrics` for monitoring, or insecure = true", c.Admin)
	}
}

func (c *Config) checkServers(p *problems) {
	if len(c.Servers) > maxServers {
		p.addf("%d servers: at most %d", len(c.Servers), maxServers)
	}
	ids, addrs := map[string]bool{}, map[Addr]string{}
	for _, s := range c.Servers {
		if _, err := record.ParseServerID(s.ID); err != nil {
			p.add(err)
		} else if ids[s.ID] {
			p.addf("server %q is listed twice", s.ID)
		}
		ids[s.ID] = true
		if s.Addr == "" {
			p.addf("server %q: addr is missing", s.ID)
			continue
		}
		if s.Addr.Network() == "unix" {
			p.addf("server %q: addr %q: servers connect over TCP; want \"host:port\"", s.ID, s.Addr)
		} else if err := s.Addr.Check(); err != nil {
			p.addf("server %q: %w", s.ID, err)
		} else if len(c.Servers) > 1 && !s.Addr.reachable() {
			p.addf("server %q: addr %q: want the host and port at which the others reach it; where it listens is its key peers", s.ID, s.Addr)
		}
		if other, ok := addrs[s.Addr]; ok {
			p.addf("servers %q and %q have the same addr %q", other, s.ID, s.Addr)
		}
		addrs[s.Addr] = s.ID
	}
	if _, err := record.ParseServerID(c.ID); err == nil && !ids[c.ID] {
		p.addf("id %q is not in the list of servers: add [[server]] id = %q with its addr", c.ID, c.ID)
	}
}

func (c *Config) checkTLS(p *problems) {
	if !slices.Contains([]string{"off", "allow", "require"}, c.NBDTLS.Mode) {
		p.addf("nbd_tls: mode %q: want off, allow or require", c.NBDTLS.Mode)
	}
	if (c.NBDTLS.Mode == "allow" || c.NBDTLS.Mode == "require") && (c.NBDTLS.Cert == "" || c.NBDTLS.Key == "") {
		p.addf("nbd_tls: mode %q wants cert and key; `blockrepl cert` makes them", c.NBDTLS.Mode)
	}
	if len(c.NBDTLS.Clients) > 0 && (c.NBDTLS.Mode != "require" || c.NBDTLS.CA == "") {
		p.addf("nbd_tls: permissions by client want mode \"require\" and ca: without them nobody has a name")
	}
	names := map[string]bool{}
	for _, client := range c.NBDTLS.Clients {
		if client.Name == "" || names[client.Name] {
			p.addf("nbd_tls: client %q: want each name once", client.Name)
		}
		names[client.Name] = true
		if client.Access != accessReadWrite && client.Access != accessReadOnly {
			p.addf("nbd_tls: client %q: access %q: want %s or %s", client.Name, client.Access, accessReadWrite, accessReadOnly)
		}
		for _, v := range client.Volumes {
			if c.volume(v) == nil {
				p.addf("nbd_tls: client %q: no volume %q", client.Name, v)
			}
		}
	}
	set := 0
	for _, s := range []string{c.PeerTLS.Cert, c.PeerTLS.Key, c.PeerTLS.CA} {
		if s != "" {
			set++
		}
	}
	if set != 0 && set != 3 {
		p.addf("peer_tls: want cert, key and ca together")
	}
	if set == 3 || c.Insecure {
		return
	}
	if c.Peers != "" && c.Peers.Check() == nil && !c.Peers.Local() {
		p.addf("peers %q is off loopback without TLS: set [peer_tls] cert, key and ca (`blockrepl cert` makes them) or insecure = true", c.Peers)
	}
	for _, s := range c.Servers {
		if s.ID != c.ID && s.Addr.Check() == nil && !s.Addr.Local() {
			p.addf("server %q: addr %q is off loopback without TLS: set [peer_tls] cert, key and ca (`blockrepl cert` makes them) or insecure = true", s.ID, s.Addr)
		}
	}
}

func (c *Config) checkVolumes(p *problems) {
	if len(c.Volumes) > maxVolumes {
		p.addf("%d volumes: at most %d", len(c.Volumes), maxVolumes)
	}
	names, images := map[string]bool{}, map[string]string{}
	for _, v := range c.Volumes {
		if !namePattern.MatchString(v.Name) {
			p.addf("volume %q: 1 to 64 letters, digits, dots, dashes and underscores are allowed as a name", v.Name)
		}
		if names[v.Name] {
			p.addf("volume %q is listed twice", v.Name)
		}
		names[v.Name] = true
		p.add(v.checkSizes())
		c.checkMembers(p, v)
		if v.OnDegraded != "suspend" && v.OnDegraded != "continue" {
			p.addf("volume %q: on_degraded %q: want suspend or continue", v.Name, v.OnDegraded)
		}
		if v.Image == "" {
			continue
		}
		if !filepath.IsAbs(v.Image) {
			p.addf("volume %q: image %q: want an absolute path", v.Name, v.Image)
		}
		image := filepath.Clean(v.Image)
		if other, ok := images[image]; ok {
			p.addf("volumes %q and %q have the same image %q", other, v.Name, v.Image)
		}
		images[image] = v.Name
	}
}

func (v *VolumeConfig) checkSizes() error {
	switch {
	case v.Size == 0:
		return fmt.Errorf("volume %q: size is missing", v.Name)
	case v.Size%sector != 0:
		up := (v.Size/sector + 1) * sector
		return fmt.Errorf("volume %q: size %d is no multiple of %d bytes; the next is %d", v.Name, v.Size, sector, up)
	case v.Size < minSize || v.Size > maxSize:
		return fmt.Errorf("volume %q: size %s: want %s to %s", v.Name, v.Size, minSize, maxSize)
	case v.Keep < minKeep:
		return fmt.Errorf("volume %q: keep %s: want at least %s", v.Name, v.Keep, minKeep)
	}
	return nil
}

func (c *Config) checkMembers(p *problems, v VolumeConfig) {
	seen := map[string]bool{}
	var ids []string
	for _, s := range c.Servers {
		ids = append(ids, s.ID)
	}
	for _, id := range v.Servers {
		if c.server(id) == nil {
			p.addf("volume %q: no server %q%s", v.Name, id, didYouMean(id, ids))
		}
		if seen[id] {
			p.addf("volume %q: server %q is listed twice", v.Name, id)
		}
		seen[id] = true
	}
}

func (c *Config) checkRest(p *problems) {
	if c.Log != "text" && c.Log != "json" {
		p.addf("log %q: want text or json", c.Log)
	}
	if _, err := logLevel(c.LogLevel); err != nil {
		p.add(err)
	}
	if t := time.Duration(c.PeerTimeout); t < minPeerTimeout || t > maxPeerTimeout {
		p.addf("peer_timeout %s: want %s to %s", t, minPeerTimeout, maxPeerTimeout)
	}
	if t := time.Duration(c.IOTimeout); t < minAnswers || t > maxIOTimeout {
		p.addf("io_timeout %s: want %s to %s", t, minAnswers, maxIOTimeout)
	}
	if _, err := c.NBDSocket.mode(); err != nil {
		p.add(err)
	}
	if c.Limits.Connections < 1 || c.Limits.Handshakes < 1 {
		p.addf("limits: connections %d and handshakes %d must be at least 1", c.Limits.Connections, c.Limits.Handshakes)
	}
}

// mode reads the octal mode of unix sockets.
func (s SocketConfig) mode() (os.FileMode, error) {
	n, err := strconv.ParseUint(s.Mode, 8, 32)
	if err != nil || n > 0o777 {
		return 0, fmt.Errorf("nbd_socket: mode %q: want an octal number as \"0660\"", s.Mode)
	}
	return os.FileMode(n), nil
}

// compareConfigs says where the configurations of one cluster's servers differ
// in what must be the same. Each is valid by itself.
func compareConfigs(configs []*Config) []error {
	var p problems
	ids := map[string]string{}
	first := configs[0]
	for _, c := range configs {
		if other, ok := ids[c.ID]; ok {
			p.addf("%s and %s have the same id %q", other, c.path, c.ID)
		}
		ids[c.ID] = c.path
		if c.Cluster != first.Cluster {
			p.addf("%s: cluster %q, but %s has %q", c.path, c.Cluster, first.path, first.Cluster)
		}
		if c.PeerTimeout != first.PeerTimeout {
			p.addf("%s: peer_timeout %s, but %s in %s: leases rest on it", c.path, c.PeerTimeout, first.PeerTimeout, first.path)
		}
		if (c.PeerTLS.Cert == "") != (first.PeerTLS.Cert == "") {
			p.addf("%s and %s: only one has peer_tls, so no link comes about", first.path, c.path)
		}
		for _, s := range c.Servers {
			if o := first.server(s.ID); o == nil {
				p.addf("%s: server %q is unknown to %s", c.path, s.ID, first.path)
			}
		}
		for _, v := range c.Volumes {
			o := first.volume(v.Name)
			switch {
			case o == nil:
				p.addf("%s: volume %q is unknown to %s", c.path, v.Name, first.path)
			case o.Size != v.Size:
				p.addf("%s: volume %q: size %s, but %s in %s", c.path, v.Name, v.Size, o.Size, first.path)
			case !slices.Equal(o.Servers, v.Servers):
				p.addf("%s: volume %q: servers %v, but %v in %s", c.path, v.Name, v.Servers, o.Servers, first.path)
			case o.Shared != v.Shared || o.OnDegraded != v.OnDegraded:
				p.addf("%s: volume %q: shared or on_degraded differ from %s", c.path, v.Name, first.path)
			}
		}
		for _, v := range first.Volumes {
			if c.volume(v.Name) == nil && slices.Contains(v.Servers, c.ID) {
				p.addf("%s: volume %q of %s is missing", c.path, v.Name, first.path)
			}
		}
	}
	return p
}
func logLevel(name string) (slog.Level, error) {
	var level slog.Level
	switch name {
	case "debug", "info", "warn", "error":
		return level, level.UnmarshalText([]byte(name))
	}
	return level, fmt.Errorf("log_level %q: want debug, info, warn or error", name)
}
