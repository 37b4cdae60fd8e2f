package main

import (
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestLinksThatAreMadeAnewUseTheNewKeys(t *testing.T) {
	old := makePKI(t, "lab", "--server", "a=h", "--server", "b=h")
	renewed := makePKI(t, "lab", "--server", "a=h", "--server", "b=h")
	of := func(pki, id string) *tls.Config { return peerOf(t, pki, roleServer, id, "lab") }
	r := newRotatingTLS(of(old, "a"))
	cfg := r.config()
	for _, tt := range []struct {
		rotate *tls.Config
		good   string
		bad    string
	}{{nil, old, renewed}, {of(renewed, "a"), renewed, old}} {
		if tt.rotate != nil {
			r.set(tt.rotate)
		}
		// Either end, and a clone as the dialling end makes it.
		for name, shake := range map[string]func(peer *tls.Config) (error, error){
			"listens": func(peer *tls.Config) (error, error) { return handshake(t, cfg, peer) },
			"dials":   func(peer *tls.Config) (error, error) { return handshake(t, peer, cfg.Clone()) },
		} {
			if s, c := shake(of(tt.good, "b")); s != nil || c != nil {
				t.Errorf("%s: a peer of the same CA: %v, %v", name, s, c)
			}
			if s, c := shake(of(tt.bad, "b")); s == nil || c == nil {
				t.Errorf("%s: a peer of the other CA: %v, %v, want both to refuse", name, s, c)
			}
		}
	}
}

func TestReloadTakesNoPeerForItsNewClusterBeforeARestart(t *testing.T) {
	pki := makePKI(t, "lab", "--server", "a=h", "--server", "b=h")
	foreign := makePKI(t, "lib", "--server", "a=h", "--server", "b=h")
	config := func(cluster, pki string) (*Config, error) {
		cert, key, ca := serverFiles(filepath.Join(pki, "server-a"))
		cfg := defaultConfig()
		cfg.Cluster, cfg.ID, cfg.Data, cfg.PeerTLS = cluster, "a", t.TempDir(), PeerTLSConfig{Cert: cert, Key: key, CA: ca}
		return cfg, nil
	}
	cfg, _ := config("lab", pki)
	log := slog.New(slog.DiscardHandler)
	r, err := newReloader(cfg, log, new(slog.LevelVar), func() (*Config, error) { return config("lib", pki) }, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if r.nbd, err = newNBDServer(cfg, nil, r, log); err != nil {
		t.Fatal(err)
	}
	r.reload(t.Context())
	if r.cfg.Cluster != "lab" {
		t.Errorf("cluster %s is in force, want that of the start", r.cfg.Cluster)
	}
	if s, c := handshake(t, r.peerTLS(), peerOf(t, pki, roleServer, "b", "lab")); s != nil || c != nil {
		t.Errorf("a server of the cluster of the start: %v, %v", s, c)
	}
	if s, c := handshake(t, r.peerTLS(), peerOf(t, foreign, roleServer, "b", "lib")); s == nil || c == nil {
		t.Errorf("a server of the cluster to come: %v, %v, want both to refuse", s, c)
	}
}

// TestAuthorityIsExchangedStepByStep walks the runbook's order: servers take each
// step one after the other, and at no time do two of them refuse each other.
func TestAuthorityIsExchangedStepByStep(t *testing.T) {
	old := makePKI(t, "lab", "--server", "a=h", "--server", "b=h")
	renewed := makePKI(t, "lab", "--server", "a=h", "--server", "b=h")
	oldCA, newCA := mustRead(t, filepath.Join(old, "ca/ca-cert.pem")), mustRead(t, filepath.Join(renewed, "ca/ca-cert.pem"))
	authorities := filepath.Join(t.TempDir(), "ca-cert.pem")
	rotating := map[string]*rotatingTLS{}
	for n, step := range []struct {
		keys string
		ca   []byte
	}{{old, oldCA}, {old, slices.Concat(oldCA, newCA)}, {renewed, slices.Concat(oldCA, newCA)}, {renewed, newCA}} {
		if err := os.WriteFile(authorities, step.ca, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"a", "b"} {
			cert, key, _ := serverFiles(filepath.Join(step.keys, "server-"+id))
			cfg, err := peerTLS(&PeerTLSConfig{Cert: cert, Key: key, CA: authorities}, "lab")
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				rotating[id] = newRotatingTLS(cfg)
				continue
			}
			rotating[id].set(cfg)
			a, b := rotating["a"].config(), rotating["b"].config()
			for _, ends := range [][2]*tls.Config{{a, b}, {b, a}} {
				if s, c := handshake(t, ends[0], ends[1]); s != nil || c != nil {
					t.Errorf("step %d, after server %s took it: %v, %v", n, id, s, c)
				}
			}
		}
	}
	if s, c := handshake(t, rotating["a"].config(), peerOf(t, old, roleServer, "b", "lab")); s == nil || c == nil {
		t.Errorf("the old authority at the end: %v, %v, want both to refuse", s, c)
	}
}
