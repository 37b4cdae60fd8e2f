package main

import (
	"strings"
	"testing"
	"time"
)

const goodConfig = `
cluster = "lab"
id      = "a"
data    = "/var/lib/blockrepl"
nbd     = ["127.0.0.1:10809", "unix:/run/blockrepl/a.sock"]
peers   = "127.0.0.1:10810"
admin   = "127.0.0.1:10811"
[[server]]
id = "a"
addr = "127.0.0.1:10810"
[[server]]
id = "b"
addr = "127.0.0.1:10820"
[[volume]]
name = "vol0"
size = "1GiB"
servers = ["a", "b"]
on_degraded = "suspend"
keep = "4GiB"
shared = false
`

func parsed(t *testing.T, text string) (*Config, error) {
	t.Helper()
	cfg := defaultConfig()
	err := cfg.parse(text)
	if err == nil {
		cfg.complete()
	}
	return cfg, err
}

func TestConfigurationOfTheManualIsGood(t *testing.T) {
	cfg, err := parsed(t, goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	if p := cfg.Check(); len(p) > 0 {
		t.Fatalf("problems: %v", p)
	}
	v := cfg.volume("vol0")
	if v.Size != 1<<30 || v.Keep != 4<<30 || v.OnDegraded != "suspend" || len(v.Servers) != 2 {
		t.Errorf("volume = %+v", v)
	}
	if time.Duration(cfg.PeerTimeout) != 2*time.Second || time.Duration(cfg.IOTimeout) != time.Minute {
		t.Errorf("timeouts %s and %s, want the defaults", cfg.PeerTimeout, cfg.IOTimeout)
	}
}

// Each case changes one thing of the good configuration (old to new; an empty
// old appends) and names what the one message must hold.
func TestConfigurationMistakesAreNamed(t *testing.T) {
	const server, volume = "[[server]]\nid = \"b\"\naddr = \"127.0.0.1:10820\"\n", "[[volume]]\n"
	tests := []struct{ name, from, to, want string }{
		{"unknown key", `admin   =`, `amdin   =`, `:7: unknown key "amdin" (did you mean "admin"?)`},
		{"unknown key in a volume", `keep =`, `kep =`, `:19: unknown key "volume.kep" (did you mean "keep"?)`},
		{"unknown table", "", "[nbdtls]\nmode = \"off\"\n", `:21: unknown key "nbdtls" (did you mean "nbd_tls"?)`},
		{"wrong type", `shared = false`, `shared = "no"`, `line 20 (last key "volume.shared")`},
		{"not TOML", `cluster = "lab"`, `cluster = lab`, `:2: `},
		{"no cluster", `cluster = "lab"`, ``, "cluster is missing"},
		{"no id", `id      = "a"`, ``, "id is missing"},
		{"long id", `id      = "a"`, `id = "a-long-name"`, "must have 1 to 8 characters"},
		{"id not among servers", `id      = "a"`, `id = "c"`, `id "c" is not in the list of servers`},
		{"server twice", server, server + strings.Replace(server, "10820", "10830", 1), `server "b" is listed twice`},
		{"same address twice", `addr = "127.0.0.1:10820"`, `addr = "127.0.0.1:10810"`, "have the same addr"},
		{"address used twice", `admin   = "127.0.0.1:10811"`, `admin   = "127.0.0.1:10809"`, "used for nbd already"},
		{"no port", `peers   = "127.0.0.1:10810"`, `peers   = "127.0.0.1"`, `want "host:port"`},
		{"port too large", `admin   = "127.0.0.1:10811"`, `admin   = "127.0.0.1:108110"`, "is not a number from 1 to 65535"},
		{"relative socket", `unix:/run/blockrepl/a.sock`, `unix:a.sock`, "absolute path"},
		{"long socket", `/run/blockrepl/a.sock`, "/" + strings.Repeat("x", 120), "the kernel allows 107"},
		{"peers over a unix socket", `peers   = "127.0.0.1:10810"`, `peers = "unix:/run/p.sock"`, "servers connect over TCP"},
		{"peers off loopback", `peers   = "127.0.0.1:10810"`, `peers = "10.0.0.1:10810"`, "off loopback without TLS"},
		{"peers on every address", `peers   = "127.0.0.1:10810"`, `peers = ":10810"`, "off loopback without TLS"},
		{"another server off loopback", `addr = "127.0.0.1:10820"`, `addr = "10.0.0.2:10810"`, "off loopback without TLS"},
		{"admin off loopback", `admin   = "127.0.0.1:10811"`, `admin = "10.0.0.1:10811"`, "anyone who reaches it may promote"},
		{"half of peer TLS", "", "[peer_tls]\ncert = \"/c.pem\"\n", "want cert, key and ca together"},
		{"TLS mode", "", "[nbd_tls]\nmode = \"maybe\"\n", `mode "maybe": want off, allow or require`},
		{"TLS without certificate", "", "[nbd_tls]\nmode = \"require\"\n", "wants cert and key"},
		{"permission without TLS", "", "[[nbd_tls.client]]\nname = \"db1\"\n", "nobody has a name"},
		{"permission of no volume", "", "[nbd_tls]\nmode = \"require\"\ncert = \"/c\"\nkey = \"/k\"\nca = \"/a\"\n[[nbd_tls.client]]\nname = \"db1\"\nvolumes = [\"vol9\"]\n", `no volume "vol9"`},
		{"permission of a kind", "", "[nbd_tls]\nmode = \"require\"\ncert = \"/c\"\nkey = \"/k\"\nca = \"/a\"\n[[nbd_tls.client]]\nname = \"db1\"\naccess = \"all\"\n", "want read-write or read-only"},
		{"volume name", `name = "vol0"`, `name = "vol?0"`, `volume "vol?0"`},
		{"volume twice", "", volume + "name = \"vol0\"\nsize = \"1GiB\"\n", `volume "vol0" is listed twice`},
		{"no size", `size = "1GiB"`, ``, "size is missing"},
		{"size no multiple of 512", `size = "1GiB"`, `size = 1048577`, "the next is 1049088"},
		{"size no number", `size = "1GiB"`, `size = "big"`, `size "big": want a whole number`},
		{"size too large", `size = "1GiB"`, `size = "9999999TiB"`, "too large"},
		{"size too small", `size = "1GiB"`, `size = "512B"`, "want 1MiB to 64TiB"},
		{"keep too small", `keep = "4GiB"`, `keep = "1MiB"`, "at least 64MiB"},
		{"volume's server unknown", `servers = ["a", "b"]`, `servers = ["a", "c"]`, `no server "c"`},
		{"volume's server twice", `servers = ["a", "b"]`, `servers = ["a", "a"]`, `server "a" is listed twice`},
		{"on_degraded", `"suspend"`, `"ignore"`, "want suspend or continue"},
		{"relative image", "", "image = \"lv0\"\n", "want an absolute path"},
		{"same image twice", "", "image = \"/d\"\n" + volume + "name = \"vol1\"\nsize = \"1GiB\"\nimage = \"//d\"\n", "have the same image"},
		{"log", "cluster", "log = \"xml\"\ncluster", "want text or json"},
		{"log level", "cluster", "log_level = \"loud\"\ncluster", "want debug, info, warn or error"},
		{"timeout", "cluster", "peer_timeout = \"1ms\"\ncluster", "want 100ms to 10m"},
		{"timeout without unit", "cluster", "peer_timeout = \"2\"\ncluster", `duration "2": want a number with ms, s, m or h, as "2s", "500ms" or "1m"`},
		{"timeout that is a number", "cluster", "io_timeout = 60\ncluster", `key "io_timeout": duration "60": want a number with ms`},
		{"timeout without quotes", "cluster", "peer_timeout = 2s # short\ncluster", `:2: a number with a unit stands in quotes, as "2s"`},
		{"size without quotes", `size = "1GiB"`, `size = 1 GiB`, `:16: a number with a unit stands in quotes, as "2s" or "1GiB"`},
		{"socket mode", "", "[nbd_socket]\nmode = \"rw\"\n", "want an octal number"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(goodConfig, tt.from, tt.to, 1)
			if tt.from == "" {
				text = goodConfig + tt.to
			}
			cfg, err := parsed(t, text)
			var got []string
			if err != nil {
				got = asFailure(err).lines()
			} else {
				for _, p := range cfg.Check() {
					got = append(got, p.Error())
				}
			}
			if len(got) != 1 || !strings.Contains(got[0], tt.want) {
				t.Errorf("got %q, want one line with %q", got, tt.want)
			}
		})
	}
}

func TestPeersOffLoopbackAreAllowedWithTLSOrWhenInsecure(t *testing.T) {
	off := strings.ReplaceAll(goodConfig, "127.0.0.1:108", "10.0.0.1:108")
	off = strings.Replace(off, `admin   = "10.0.0.1`, `admin = "127.0.0.1`, 1)
	for name, text := range map[string]string{
		"insecure": strings.Replace(off, "cluster", "insecure = true\ncluster", 1),
		"TLS":      off + "[peer_tls]\ncert = \"/c.pem\"\nkey = \"/k.pem\"\nca = \"/ca.pem\"\n",
	} {
		cfg, err := parsed(t, text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if p := cfg.Check(); len(p) > 0 {
			t.Errorf("%s: %v", name, p)
		}
	}
}

func TestServersOfOneClusterMustAgree(t *testing.T) {
	load := func(path, text string) *Config {
		cfg, err := parsed(t, text)
		if err != nil {
			t.Fatal(err)
		}
		cfg.path = path
		return cfg
	}
	a := load("a.toml", goodConfig)
	other := strings.Replace(goodConfig, `id      = "a"`, `id = "b"`, 1)
	if p := compareConfigs([]*Config{a, load("b.toml", other)}); len(p) > 0 {
		t.Fatalf("good ones: %v", p)
	}
	for name, tt := range map[string]struct{ from, to, want string }{
		"same id":         {`id = "b"`, `id = "a"`, "have the same id"},
		"another cluster": {`"lab"`, `"lib"`, `cluster "lib", but a.toml has "lab"`},
		"another size":    {`"1GiB"`, `"2GiB"`, "size 2GiB, but 1GiB in a.toml"},
		"other members":   {`servers = ["a", "b"]`, `servers = ["b", "a"]`, "servers [b a], but [a b]"},
		"no such volume":  {`"vol0"`, `"vol1"`, `volume "vol1" is unknown to a.toml`},
		"one with TLS":    {`[[volume]]`, "[peer_tls]\ncert = \"c\"\nkey = \"k\"\nca = \"a\"\n[[volume]]", "a.toml and b.toml: only one has peer_tls"},
		"another timeout": {"cluster", "peer_timeout = \"5s\"\ncluster", "peer_timeout 5s, but 2s in a.toml"},
	} {
		p := compareConfigs([]*Config{a, load("b.toml", strings.Replace(other, tt.from, tt.to, 1))})
		if len(p) == 0 || !strings.Contains(p[0].Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, p, tt.want)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "512": 512, "512B": 512, "4KiB": 4096, "4K": 4096, "1 GiB": 1 << 30, "2TiB": 2 << 40, "1GB": 1e9, "1kB": 1000,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "1.5GiB", "1GiBB", "8388608TiB", "9223372036854775808", "GiB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", text, got)
		}
	}
	for size, want := range map[Size]string{0: "0B", 1 << 30: "1GiB", 1000: "1000B", 1536 << 10: "1536KiB"} {
		if got := size.String(); got != want {
			t.Errorf("Size(%d) = %q, want %q", int64(size), got, want)
		}
	}
}

func TestVolumeFlag(t *testing.T) {
	v, err := parseVolumeFlag("vol0 size=1GiB servers=a,b keep=1GiB on_degraded=continue shared image=/dev/x")
	if err != nil {
		t.Fatal(err)
	}
	if v.Name != "vol0" || v.Size != 1<<30 || len(v.Servers) != 2 || v.Keep != 1<<30 || v.OnDegraded != "continue" || !v.Shared || v.Image != "/dev/x" {
		t.Errorf("parsed %+v", v)
	}
	for _, s := range []string{"", "size=1GiB", "vol0 siz=1GiB", "vol0 size=big", "vol0 shared=perhaps"} {
		if _, err := parseVolumeFlag(s); err == nil {
			t.Errorf("parseVolumeFlag(%q): want an error", s)
		}
	}
}
