package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

const envPrefix = "BLOCKREPL_"

func env(name string) []string { return []string{envPrefix + name} }

// configFlag is --config, for every command that may read the file.
func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Aliases: []string{"c"}, EnvVars: env("CONFIG"), Usage: "read `FILE` (TOML)"}
}

// configFlags are the options that say the same as the file, and win over it.
// Several values in an environment variable are parted by semicolons.
func configFlags() []cli.Flag {
	return []cli.Flag{
		configFlag(),
		&cli.StringFlag{Name: "cluster", EnvVars: env("CLUSTER"), Usage: "cluster `NAME`, the same on every server"},
		&cli.StringFlag{Name: "id", EnvVars: env("ID"), Usage: "this server's `ID`, 1 to 8 of a-z 0-9 -"},
		&cli.StringFlag{Name: "data", EnvVars: env("DATA"), Usage: "`DIR` for journal, images and identity (default: /var/lib/blockrepl)"},
		&cli.StringSliceFlag{Name: "nbd", EnvVars: env("NBD"), Usage: "listen for NBD clients at `ADDR` (default: 127.0.0.1:10809; repeat for more)"},
		&cli.StringFlag{Name: "peers", EnvVars: env("PEERS"), Usage: "listen for other servers at `ADDR` (default: this server's addr)"},
		&cli.StringFlag{Name: "admin", EnvVars: env("ADMIN"), Usage: "listen for commands at `ADDR` (default: 127.0.0.1:10811)"},
		&cli.StringFlag{Name: "metrics", EnvVars: env("METRICS"), Usage: "also serve metrics and status, read-only, at `ADDR`"},
		&cli.StringSliceFlag{Name: "server", EnvVars: env("SERVERS"), Usage: "a server as `ID=HOST:PORT` (repeat; this one too)"},
		&cli.StringSliceFlag{Name: "volume", EnvVars: env("VOLUMES"), Usage: "a volume as `'NAME size=1GiB servers=a,b,c keep=4GiB'` (repeat)"},
		&cli.StringFlag{Name: "log", EnvVars: env("LOG"), Usage: "log as `text` or json (default: text)"},
		&cli.StringFlag{Name: "log-level", EnvVars: env("LOG_LEVEL"), Usage: "`debug`, info, warn or error (default: info)"},
		&durationFlag{cli.DurationFlag{Name: "peer-timeout", EnvVars: env("PEER_TIMEOUT"), Usage: "`TIME` after which a silent server counts as down (default: 2s)"}},
		&durationFlag{cli.DurationFlag{Name: "io-timeout", EnvVars: env("IO_TIMEOUT"), Usage: "`TIME` a request waits for a master before its connection is closed (default: 1m)"}},
		&cli.StringFlag{Name: "nbd-tls", EnvVars: env("NBD_TLS"), Usage: "TLS for NBD clients: `off`, allow or require (default: off)"},
		&cli.StringFlag{Name: "nbd-tls-certificates", EnvVars: env("NBD_TLS_CERTIFICATES"), Usage: "`DIR` with ca-cert.pem, server-cert.pem, server-key.pem"},
		&cli.StringFlag{Name: "peer-tls-certificates", EnvVars: env("PEER_TLS_CERTIFICATES"), Usage: "the same `DIR` layout, for TLS between servers"},
		&cli.BoolFlag{Name: "insecure", EnvVars: env("INSECURE"), Usage: "allow peers and commands off loopback without TLS: the network is trusted (default: refused)"},
		&cli.BoolFlag{Name: "pprof", EnvVars: env("PPROF"), Usage: "serve Go profiles at the admin address (default: off)"},
	}
}

// override lays the flags that are set over the file's values.
func (c *Config) override(ctx *cli.Context) error {
	for name, field := range map[string]*string{
		"cluster": &c.Cluster, "id": &c.ID, "data": &c.Data, "log": &c.Log, "log-level": &c.LogLevel,
		"peers": (*string)(&c.Peers), "admin": (*string)(&c.Admin), "metrics": (*string)(&c.Metrics),
		"nbd-tls": &c.NBDTLS.Mode,
	} {
		if s := ctx.String(name); s != "" {
			*field = s
		}
	}
	for name, field := range map[string]*Duration{"peer-timeout": &c.PeerTimeout, "io-timeout": &c.IOTimeout} {
		if ctx.IsSet(name) {
			*field = Duration(ctx.Duration(name))
		}
	}
	for name, field := range map[string]*bool{"insecure": &c.Insecure, "pprof": &c.Pprof} {
		if ctx.IsSet(name) {
			*field = ctx.Bool(name)
		}
	}
	if dir := ctx.String("nbd-tls-certificates"); dir != "" {
		c.NBDTLS.Cert, c.NBDTLS.Key, c.NBDTLS.CA = serverFiles(dir)
	}
	if dir := ctx.String("peer-tls-certificates"); dir != "" {
		c.PeerTLS.Cert, c.PeerTLS.Key, c.PeerTLS.CA = serverFiles(dir)
	}
	return c.overrideLists(ctx)
}

func (c *Config) overrideLists(ctx *cli.Context) error {
	if list := values(ctx, "nbd"); len(list) > 0 {
		c.NBD = nil
		for _, s := range list {
			c.NBD = append(c.NBD, Addr(s))
		}
	}
	if list := values(ctx, "server"); len(list) > 0 {
		c.Servers = nil
		for _, s := range list {
			id, addr, ok := strings.Cut(s, "=")
			if !ok {
				return usagef("--server %q: want ID=HOST:PORT, as a=10.0.0.1:10810", s)
			}
			c.Servers = append(c.Servers, ServerConfig{ID: id, Addr: Addr(addr)})
		}
	}
	if list := values(ctx, "volume"); len(list) > 0 {
		c.Volumes = nil
		for _, s := range list {
			v, err := parseVolumeFlag(s)
			if err != nil {
				return err
			}
			c.Volumes = append(c.Volumes, v)
		}
	}
	return nil
}

// values gives what an option was set to, without what is empty: an environment
// variable that is set to nothing is as one that is not set.
func values(ctx *cli.Context, name string) []string {
	var list []string
	for _, s := range ctx.StringSlice(name) {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, s)
		}
	}
	return list
}

var volumeFlagKeys = []string{"size", "servers", "on_degraded", "keep", "shared", "image"}

// parseVolumeFlag reads "vol0 size=1GiB servers=a,b,c".
func parseVolumeFlag(s string) (VolumeConfig, error) {
	words := strings.Fields(s)
	if len(words) == 0 || strings.Contains(words[0], "=") {
		return VolumeConfig{}, usagef("--volume %q: want 'NAME size=1GiB servers=a,b,c'", s)
	}
	v := VolumeConfig{Name: words[0]}
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		var err error
		switch key {
		case "size":
			v.Size, err = ParseSize(value)
		case "keep":
			v.Keep, err = ParseSize(value)
		case "servers":
			v.Servers = strings.Split(value, ",")
		case "on_degraded":
			v.OnDegraded = value
		case "image":
			v.Image = value
		case "shared":
			v.Shared = true
			if value != "" {
				v.Shared, err = strconv.ParseBool(value)
			}
		default:
			return v, usagef("--volume %q: unknown key %q%s", s, key, didYouMean(key, volumeFlagKeys))
		}
		if err != nil {
			return v, usagef("--volume %q: %w", s, err)
		}
	}
	return v, nil
}

// Bounds of the timeouts. Below the lower one heartbeats, four to a timeout,
// drown in scheduling noise; above the upper one a dead server is not noticed
// while people watch.
const (
	minPeerTimeout = 100 * time.Millisecond
	maxPeerTimeout = 10 * time.Minute
	maxIOTimeout   = 24 * time.Hour
)
