package nbd_test

import (
	"crypto/tls"
	"slices"
	"testing"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// served says hello with the configuration and opens the disk.
func served(t *testing.T, s *nbd.Server, conf *tls.Config) (*nbdtest.Client, error) {
	t.Helper()
	c := greeted(t, pipe(t, s, true))
	if err := c.StartTLS(conf); err != nil {
		return nil, err
	}
	return c, c.Go("disk")
}

// with gives from's certificates as they are shown to who trusts to's.
func with(from, to *tls.Config) *tls.Config {
	return &tls.Config{Certificates: from.Certificates, RootCAs: to.RootCAs, ServerName: "localhost"}
}

func TestSetTLSChangesHandshakesThatBeginAndNoConnectionThatIsOpen(t *testing.T) {
	before, after := newAuthority(t), newAuthority(t)
	s, w := serveTLS(t, nbd.TLSRequire, before)
	old, renewed := before.client(t, "db1"), after.client(t, "db2")
	old.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	attached, err := served(t, s, old)
	if err != nil {
		t.Fatal(err)
	}
	<-w.seen
	if _, err := served(t, s, with(renewed, old)); err == nil {
		t.Error("a certificate of the new authority was accepted before it was set")
	}
	if err := s.SetTLS(after.server(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := served(t, s, renewed); err != nil {
		t.Errorf("a client of the new authority: %v", err)
	}
	if got := <-w.seen; got.TLSName != "db2" {
		t.Errorf("its name is %q, want db2", got.TLSName)
	}
	if _, err := served(t, s, with(old, renewed)); err == nil {
		t.Error("a certificate of the old authority is still accepted")
	}
	// This one has the session of the first connection, which must not be resumed.
	if _, err := served(t, s, old); err == nil {
		t.Error("the old configuration still serves")
	}
	write(t, attached, 4096, pattern(512, 3))
	if got := read(t, attached, 4096, 512); !slices.Equal(got, pattern(512, 3)) {
		t.Error("the connection of before reads something else than it wrote")
	}
}

func TestSetTLSDecidesAnewWhetherClientsHaveNames(t *testing.T) {
	a := newAuthority(t)
	s, w := serveTLS(t, nbd.TLSAllow, a)
	open := a.server(t)
	open.ClientAuth, open.ClientCAs = tls.NoClientCert, nil
	for _, step := range []struct {
		conf *tls.Config
		want string
	}{{open, ""}, {a.server(t), "db1"}} {
		if err := s.SetTLS(step.conf); err != nil {
			t.Fatal(err)
		}
		if _, err := served(t, s, a.client(t, "db1")); err != nil {
			t.Fatal(err)
		}
		if got := <-w.seen; got.TLSName != step.want {
			t.Errorf("the client's name is %q, want %q", got.TLSName, step.want)
		}
	}
}

func TestSetTLSThatFailsChangesNothing(t *testing.T) {
	a := newAuthority(t)
	s, _ := serveTLS(t, nbd.TLSRequire, a)
	if err := s.SetTLS(nil); err == nil {
		t.Error("no configuration: want an error")
	}
	if _, err := served(t, s, a.client(t, "db1")); err != nil {
		t.Error(err)
	}
	if err := serveDisk(t, memDisk()).SetTLS(a.server(t)); err != nil {
		t.Errorf("with TLS off there is nothing to set: %v", err)
	}
}
