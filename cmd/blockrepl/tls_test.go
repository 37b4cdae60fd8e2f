package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// makePKI makes certificates by the command itself and gives their directory.
func makePKI(t *testing.T, cluster string, more ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	args := append([]string{"cert", "--dir", dir, "--cluster", cluster}, more...)
	if code, _, errs := runHere(t, args...); code != 0 {
		t.Fatalf("cert: exit %d: %s", code, errs)
	}
	return dir
}

func peerOf(t *testing.T, dir, role, name, cluster string) *tls.Config {
	t.Helper()
	at := filepath.Join(dir, role+"-"+name)
	cfg, err := peerTLS(&PeerTLSConfig{
		Cert: filepath.Join(at, role+"-cert.pem"), Key: filepath.Join(at, role+"-key.pem"), CA: filepath.Join(at, "ca-cert.pem"),
	}, cluster)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// handshake gives what each end says; a byte is exchanged, because a TLS 1.3
// client learns of a refusal only then.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			defer conn.Close()
			s := tls.Server(conn, server)
			if err = s.Handshake(); err == nil {
				_, err = s.Write([]byte{1})
			}
		}
		done <- err
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := tls.Client(conn, client)
	if clientErr = c.Handshake(); clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	conn.Close()
	return <-done, clientErr
}

func TestPeersAcceptOnlyServersOfTheirCluster(t *testing.T) {
	lab := makePKI(t, "lab", "--server", "a=h", "--server", "b=h", "--client", "db1")
	foreign := makePKI(t, "lab", "--server", "b=h")
	other := makePKI(t, "other", "--server", "b=h")
	a := peerOf(t, lab, roleServer, "a", "lab")
	if s, c := handshake(t, a, peerOf(t, lab, roleServer, "b", "lab")); s != nil || c != nil {
		t.Fatalf("server of the cluster: %v, %v", s, c)
	}
	for name, peer := range map[string]*tls.Config{
		"a client of the same CA":             peerOf(t, lab, roleClient, "db1", "lab"),
		"a server of another CA":              peerOf(t, foreign, roleServer, "b", "lab"),
		"a server of another cluster and CA":  peerOf(t, other, roleServer, "b", "other"),
		"a peer without a certificate":        {InsecureSkipVerify: true},
		"a peer that speaks TLS 1.2 at most ": {InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12},
	} {
		if s, c := handshake(t, a, peer); s == nil || c == nil {
			t.Errorf("%s dials: server says %v, client says %v, want both to refuse", name, s, c)
		}
		if name == "a client of the same CA" {
			if s, c := handshake(t, peer, a); s == nil && c == nil {
				t.Errorf("%s listens: accepted", name)
			}
		}
	}
}

// Wall time decides nothing, but whether a certificate is valid.
func TestClockThatIsWrongRefusesPeersCertificates(t *testing.T) {
	const year = 365 * 24 * time.Hour
	pki := makePKI(t, "lab", "--server", "a=h", "--server", "b=h")
	for _, c := range []struct {
		wrong time.Duration
		want  string // "": accepted
	}{
		{-year, "before"}, {-30 * time.Minute, ""}, {year, ""}, {6 * year, "after"},
	} {
		a, b := peerOf(t, pki, roleServer, "a", "lab"), peerOf(t, pki, roleServer, "b", "lab")
		b.Time = func() time.Time { return time.Now().Add(c.wrong) }
		s, _ := handshake(t, b, a)
		_, d := handshake(t, a, b)
		for _, err := range []error{s, d} {
			var invalid x509.CertificateInvalidError
			if c.want == "" && err != nil ||
				c.want != "" && (!errors.As(err, &invalid) || invalid.Reason != x509.Expired || !strings.Contains(err.Error(), "current time") || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("a clock that is wrong by %v: %v, want %q", c.wrong, err, c.want)
			}
		}
	}
}

func TestServerCertificateNamesItsIdForPeersAndItsHostsForClients(t *testing.T) {
	dir := makePKI(t, "lab", "--server", "a=host-a,10.0.0.1")
	cfg := peerOf(t, dir, roleServer, "a", "lab")
	leaf := cfg.Certificates[0].Leaf
	for _, host := range []string{"a", "host-a", "10.0.0.1", "localhost", "127.0.0.1", "::1"} {
		if err := leaf.VerifyHostname(host); err != nil {
			t.Errorf("host %s: %v", host, err)
		}
	}
	if err := leaf.VerifyHostname("b"); err == nil {
		t.Error("host b: want a refusal")
	}
}

func TestNBDClientsNeedACertificateOfTheCA(t *testing.T) {
	dir := makePKI(t, "lab", "--server", "a=localhost", "--client", "db1")
	foreign := makePKI(t, "lab", "--client", "db1")
	cert, key, ca := serverFiles(filepath.Join(dir, "server-a"))
	server, err := nbdTLS(&NBDTLSConfig{Mode: "require", Cert: cert, Key: key, CA: ca})
	if err != nil {
		t.Fatal(err)
	}
	client := func(pki string) *tls.Config {
		at := filepath.Join(pki, "client-db1")
		pair, err := tls.LoadX509KeyPair(filepath.Join(at, "client-cert.pem"), filepath.Join(at, "client-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		roots, err := loadCA(filepath.Join(dir, "client-db1", "ca-cert.pem"))
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{pair}}
	}
	if s, c := handshake(t, server, client(dir)); s != nil || c != nil {
		t.Errorf("client of the CA: server %v, client %v", s, c)
	}
	if s, _ := handshake(t, server, client(foreign)); s == nil {
		t.Error("client of another CA was accepted")
	}
	none := client(dir)
	none.Certificates = nil
	if s, _ := handshake(t, server, none); s == nil {
		t.Error("client without a certificate was accepted")
	}
}

func TestCertificatesThatEndSoonAreNamed(t *testing.T) {
	dir := makePKI(t, "lab", "--server", "a=h", "--valid", "480h") // and the CA twice as long
	cert, key, ca := serverFiles(filepath.Join(dir, "server-a"))
	cfg := Config{NBDTLS: NBDTLSConfig{Mode: "require", Cert: cert, Key: key, CA: ca}, PeerTLS: PeerTLSConfig{Cert: cert, Key: key, CA: ca}}
	now := time.Now()
	if got := cfg.expiring(now); len(got) != 1 || !strings.Contains(got[0], cert+" ends ") {
		t.Errorf("20 days before the end: %q, want %s once", got, cert)
	}
	if got := cfg.expiring(now.Add(15 * 24 * time.Hour)); len(got) != 2 || !strings.Contains(got[1], ca) {
		t.Errorf("5 days before the end: %q, want the CA too", got)
	}
	if got := cfg.expiring(now.Add(-15 * 24 * time.Hour)); len(got) != 0 {
		t.Errorf("35 days before the end: %q, want nothing", got)
	}
	if code, out, errs := runHere(t, "check", "--cluster", "lab", "--id", "a", "--data", t.TempDir(), "--peer-tls-certificates", filepath.Join(dir, "server-a")); code != 0 || !strings.Contains(out, "soon: certificate") {
		t.Errorf("check: exit %d, %q, %q", code, out, errs)
	}
}

func TestTLSFilesThatAreWrongAreNamed(t *testing.T) {
	dir := makePKI(t, "lab", "--server", "a=h")
	cert, key, ca := serverFiles(filepath.Join(dir, "server-a"))
	for name, cfg := range map[string]PeerTLSConfig{
		"missing.pem":          {Cert: "/missing.pem", Key: key, CA: ca},
		"no certificate in it": {Cert: cert, Key: key, CA: key},
	} {
		if _, err := peerTLS(&cfg, "lab"); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want an error with %q", err, name)
		}
	}
	if _, err := verifyPeer(nil, nil, "lab", time.Now()); err == nil {
		t.Error("no certificate: want an error")
	}
	if got := asFailure(errors.New("x")).code; got != exitError {
		t.Errorf("plain error: exit %d, want %d", got, exitError)
	}
}
