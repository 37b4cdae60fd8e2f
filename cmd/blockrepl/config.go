package main

import (
	"slices"
	"time"
)

// Config is a server's configuration: the TOML file, with flags and environment
// over it. defaultConfig gives what is not set.
type Config struct {
	Cluster     string   `toml:"cluster"`
	ID          string   `toml:"id"`
	Data        string   `toml:"data"`
	NBD         []Addr   `toml:"nbd"`
	Peers       Addr     `toml:"peers"`
	Admin       Addr     `toml:"admin"`
	Metrics     Addr     `toml:"metrics"` // a second, read-only HTTP address; "" = none
	Log         string   `toml:"log"`
	LogLevel    string   `toml:"log_level"`
	Insecure    bool     `toml:"insecure"`
	Pprof       bool     `toml:"pprof"`
	PeerTimeout Duration `toml:"peer_timeout"`
	IOTimeout   Duration `toml:"io_timeout"`

	NBDTLS    NBDTLSConfig   `toml:"nbd_tls"`
	PeerTLS   PeerTLSConfig  `toml:"peer_tls"`
	NBDSocket SocketConfig   `toml:"nbd_socket"`
	Limits    LimitsConfig   `toml:"limits"`
	Servers   []ServerConfig `toml:"server"`
	Volumes   []VolumeConfig `toml:"volume"`

	path string // the file it came from, "" when from flags alone
}

// ServerConfig is one server of the cluster.
type ServerConfig struct {
	ID   string `toml:"id"`
	Addr Addr   `toml:"addr"` // its peers address, as the others reach it
}

// VolumeConfig is one volume. What the volume has at its creation is its own
// afterwards: size is then changed by `blockrepl resize`, on_degraded and keep by
// `blockrepl set`; servers and shared stay.
type VolumeConfig struct {
	Name       string   `toml:"name"`
	Size       Size     `toml:"size"`
	Servers    []string `toml:"servers"`
	OnDegraded string   `toml:"on_degraded"`
	Keep       Size     `toml:"keep"`
	Shared     bool     `toml:"shared"`
	Image      string   `toml:"image"`
}

// NBDTLSConfig is TLS towards NBD clients.
type NBDTLSConfig struct {
	Mode    string             `toml:"mode"` // off, allow, require
	Cert    string             `toml:"cert"`
	Key     string             `toml:"key"`
	CA      string             `toml:"ca"` // "" = client certificates are not asked for
	Clients []PermissionConfig `toml:"client"`
}

// PermissionConfig says what the certificate of one name may do. With none in
// the configuration every verified client may do everything.
type PermissionConfig struct {
	Name    string   `toml:"name"`
	Volumes []string `toml:"volumes"` // empty = all
	Access  string   `toml:"access"`  // read-write, read-only
}

// PeerTLSConfig is mutual TLS between servers.
type PeerTLSConfig struct {
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
	CA   string `toml:"ca"`
}

// SocketConfig is how the unix sockets of nbd look to others.
type SocketConfig struct {
	Mode  string `toml:"mode"`  // octal, as "0660"
	Owner string `toml:"owner"` // "user", "user:group" or ":group"; "" = the server's own
}

// LimitsConfig bounds what clients can take.
type LimitsConfig struct {
	Connections int `toml:"connections"` // of NBD, in all
	Handshakes  int `toml:"handshakes"`  // of NBD, before an export is open
}

// defaultConfig is what holds without a word in file, flags or environment.
func defaultConfig() *Config {
	return &Config{
		Data:        "/var/lib/blockrepl",
		Admin:       "127.0.0.1:10811",
		Log:         "text",
		LogLevel:    "info",
		PeerTimeout: Duration(2 * time.Second),
		IOTimeout:   Duration(60 * time.Second),
		NBDTLS:      NBDTLSConfig{Mode: "off"},
		NBDSocket:   SocketConfig{Mode: "0660"},
		Limits:      LimitsConfig{Connections: 256, Handshakes: 64},
	}
}

// The defaults of a volume.
const (
	defaultOnDegraded = "suspend"
	defaultKeep       = Size(4 << 30)
)

// complete fills in what depends on other keys: a lone server needs no list,
// a volume without servers is on all.
func (c *Config) complete() {
	if len(c.NBD) == 0 {
		c.NBD = []Addr{"127.0.0.1:10809"}
	}
	if len(c.Servers) == 0 && c.ID != "" {
		addr := c.Peers
		if addr == "" {
			addr = "127.0.0.1:10810"
		}
		c.Servers = []ServerConfig{{ID: c.ID, Addr: addr}}
	}
	if c.Peers == "" {
		if self := c.server(c.ID); self != nil {
			c.Peers = self.Addr
		}
	}
	for i := range c.Volumes {
		v := &c.Volumes[i]
		if len(v.Servers) == 0 {
			for _, s := range c.Servers {
				v.Servers = append(v.Servers, s.ID)
			}
		}
		if v.OnDegraded == "" {
			v.OnDegraded = defaultOnDegraded
		}
		if v.Keep == 0 {
			v.Keep = defaultKeep
		}
	}
	for i := range c.NBDTLS.Clients {
		if c.NBDTLS.Clients[i].Access == "" {
			c.NBDTLS.Clients[i].Access = accessReadWrite
		}
	}
}

func (c *Config) server(id string) *ServerConfig {
	for i := range c.Servers {
		if c.Servers[i].ID == id {
			return &c.Servers[i]
		}
	}
	return nil
}

func (c *Config) volume(name string) *VolumeConfig {
	for i := range c.Volumes {
		if c.Volumes[i].Name == name {
			return &c.Volumes[i]
		}
	}
	return nil
}

// source is where the configuration came from, for messages.
func (c *Config) source() string {
	if c.path == "" {
		return "configuration"
	}
	return c.path
}

// own gives the volumes that this server holds: one file may serve a cluster in
// which not every server holds every volume.
func (c *Config) own() []VolumeConfig {
	var own []VolumeConfig
	for _, v := range c.Volumes {
		if slices.Contains(v.Servers, c.ID) {
			own = append(own, v)
		}
	}
	return own
}
