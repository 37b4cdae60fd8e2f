package nbd_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"math/big"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/internal/proto"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// authority signs certificates for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	rsa  bool // issue for RSA keys
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, pool: x509.NewCertPool()}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

// issue gives a certificate for both sides.
func (a *authority) issue(t testing.TB, cn string, dns ...string) tls.Certificate {
	t.Helper()
	var key crypto.Signer
	var err error
	if a.rsa {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: append(dns, "localhost"), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) server(t testing.TB) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.issue(t, "server")}, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert}
}

func (a *authority) client(t testing.TB, cn string, dns ...string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.issue(t, cn, dns...)}, RootCAs: a.pool, ServerName: "localhost"}
}

// whoami notes the client it sees.
type whoami struct {
	nbdtest.Exports
	seen chan nbd.Client
}

func (w whoami) Open(ctx context.Context, c *nbd.Client, name string) (nbd.Disk, nbd.Info, error) {
	w.seen <- nbd.Client{TLS: c.TLS, TLSName: c.TLSName, Addr: c.Addr, Listener: c.Listener}
	return w.Exports.Open(ctx, c, name)
}

func serveTLS(t testing.TB, mode nbd.TLSMode, a *authority) (*nbd.Server, whoami) {
	w := whoami{nbdtest.Exports{"disk": memDisk()}, make(chan nbd.Client, 16)}
	return serve(t, nbd.Options{Exports: w, TLSMode: mode, TLS: a.server(t)}), w
}

func TestTLSCarriesASessionAndNamesTheClient(t *testing.T) {
	a := newAuthority(t)
	s, w := serveTLS(t, nbd.TLSRequire, a)
	for _, tc := range []struct{ cn, dns, want string }{{"db1", "x.example", "db1"}, {"", "db2.example", "db2.example"}} {
		c := greeted(t, pipe(t, s, true))
		if err := c.StartTLS(a.client(t, tc.cn, tc.dns)); err != nil {
			t.Fatal(err)
		}
		if err := c.StructuredReplies(); err != nil {
			t.Fatal(err)
		}
		if err := c.Go("disk"); err != nil {
			t.Fatal(err)
		}
		if got := <-w.seen; !got.TLS || got.TLSName != tc.want {
			t.Errorf("the exports see %+v, want TLS of %q", got, tc.want)
		}
		for _, n := range []int{512, 100_000, 3 << 20} {
			write(t, c, 4096, pattern(n, 1))
			if got := read(t, c, 4096, n); !slices.Equal(got, pattern(n, 1)) {
				t.Fatalf("%d bytes over TLS differ", n)
			}
		}
		if err := c.Disconnect(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRequiredTLSRevealsNothingBefore(t *testing.T) {
	s, _ := serveTLS(t, nbd.TLSRequire, newAuthority(t))
	c := greeted(t, pipe(t, s, true))
	for _, opt := range []uint32{proto.OptList, proto.OptInfo, proto.OptGo, proto.OptStructuredReply, proto.OptListMetaContext, proto.OptSetMetaContext, 77} {
		for _, data := range [][]byte{nil, nbdtest.GoData("disk"), make([]byte, 20_000)} {
			_, err := c.Option(opt, data)
			wantOption(t, err, proto.RepErrTLSReqd)
		}
	}
	if err := c.SendOption(proto.OptExportName, []byte("disk")); err != nil {
		t.Fatal(err)
	}
	wantClosed(t, c)
}

func TestRequiredTLSLetsClientsAbort(t *testing.T) {
	s, _ := serveTLS(t, nbd.TLSRequire, newAuthority(t))
	if _, err := greeted(t, pipe(t, s, true)).Option(proto.OptAbort, nil); err != nil {
		t.Fatal(err)
	}
}

func TestAllowedTLSIsTheClientsChoice(t *testing.T) {
	a := newAuthority(t)
	s, _ := serveTLS(t, nbd.TLSAllow, a)
	if err := greeted(t, pipe(t, s, true)).Go("disk"); err != nil {
		t.Errorf("without TLS: %v", err)
	}
	c := greeted(t, pipe(t, s, true))
	if err := c.StartTLS(a.client(t, "db1")); err != nil {
		t.Fatal(err)
	}
	if err := c.Go("disk"); err != nil {
		t.Errorf("with TLS: %v", err)
	}
}

func TestTLSOffRefusesStartTLS(t *testing.T) {
	_, err := greeted(t, pipe(t, serveDisk(t, memDisk()), true)).Option(proto.OptStartTLS, nil)
	wantOption(t, err, proto.RepErrPolicy)
}

func TestSecondStartTLSIsInvalid(t *testing.T) {
	a := newAuthority(t)
	s, _ := serveTLS(t, nbd.TLSRequire, a)
	c := greeted(t, pipe(t, s, true))
	if err := c.StartTLS(a.client(t, "db1")); err != nil {
		t.Fatal(err)
	}
	_, err := c.Option(proto.OptStartTLS, nil)
	wantOption(t, err, proto.RepErrInvalid)
	if err := c.Go("disk"); err != nil {
		t.Fatal(err)
	}
}

// With TLS 1.3 a client learns with its first read that its certificate was refused.
func TestWrongClientCertificatesAreRefused(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	s, w := serveTLS(t, nbd.TLSRequire, a)
	for name, conf := range map[string]*tls.Config{
		"another authority": {Certificates: other.client(t, "db1").Certificates, RootCAs: a.pool, ServerName: "localhost"},
		"no certificate":    {RootCAs: a.pool, ServerName: "localhost"},
		"TLS 1.2":           {Certificates: a.client(t, "db1").Certificates, RootCAs: a.pool, ServerName: "localhost", MaxVersion: tls.VersionTLS12},
	} {
		c := greeted(t, pipe(t, s, true))
		err := c.StartTLS(conf)
		if err == nil {
			_, err = c.List()
		}
		if err == nil {
			t.Errorf("%s: was served", name)
		}
	}
	if len(w.seen) > 0 {
		t.Error("a refused client reached the exports")
	}
}

// What was negotiated in plain text must not count under TLS.
func TestStartTLSForgetsWhatWasNegotiated(t *testing.T) {
	a := newAuthority(t)
	s, _ := serveTLS(t, nbd.TLSAllow, a)
	c := greeted(t, pipe(t, s, true))
	if err := c.StructuredReplies(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.MetaContext(proto.OptSetMetaContext, "disk", proto.ContextAllocation); err != nil {
		t.Fatal(err)
	}
	if err := c.StartTLS(a.client(t, "db1")); err != nil {
		t.Fatal(err)
	}
	if err := c.Go("disk"); err != nil {
		t.Fatal(err)
	}
	if c.Export.Has(proto.FlagSendDF) {
		t.Error("structured replies are still negotiated")
	}
	do(t, c, nbdtest.Request{Cmd: proto.CmdBlockStatus, Length: 4096}, proto.EINVAL)
	read(t, c, 0, 512) // the strict client refuses a structured reply
}

// CVE-2021-3716: options that were injected in plain text behind STARTTLS must not run inside TLS.
func TestPlaintextBehindStartTLSIsNotExecuted(t *testing.T) {
	a := newAuthority(t)
	for _, injected := range [][]byte{option(proto.OptList, nil), {0}, option(proto.OptGo, nbdtest.GoData("disk"))} {
		s, w := serveTLS(t, nbd.TLSRequire, a)
		conn := pipe(t, s, true)
		c := greeted(t, conn)
		if _, err := conn.Write(append(option(proto.OptStartTLS, nil), injected...)); err != nil {
			t.Fatal(err)
		}
		if rep, err := c.RecvOption(proto.OptStartTLS); err == nil && rep.Type != proto.RepErrInvalid {
			t.Errorf("injected %d bytes: reply %#x", len(injected), rep.Type)
		}
		wantClosed(t, c)
		if len(w.seen) > 0 {
			t.Error("the injected option was executed")
		}
	}
}

func option(opt uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, proto.MagicOption)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func TestTLSGarbageCostsOnlyItsConnection(t *testing.T) {
	a := newAuthority(t)
	s, _ := serveTLS(t, nbd.TLSRequire, a)
	for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff", "\x16\x03\x03\x00\x05hello", string(make([]byte, 70_000))} {
		conn := pipe(t, s, true)
		c := greeted(t, conn)
		if _, err := c.Option(proto.OptStartTLS, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(garbage)); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Logf("the server has closed already: %v", err)
		}
	}
	c := greeted(t, pipe(t, s, true))
	if err := c.StartTLS(a.client(t, "db1")); err != nil {
		t.Fatal(err)
	}
	if err := c.Go("disk"); err != nil {
		t.Fatal(err)
	}
}

func TestUnusableTLSOptionsAreRefusedAtStart(t *testing.T) {
	for _, o := range []nbd.Options{
		{TLSMode: nbd.TLSRequire}, {TLSMode: nbd.TLSAllow}, {TLSMode: 7, TLS: &tls.Config{}},
	} {
		o.Exports = nbdtest.Exports{}
		if _, err := nbd.NewServer(o); err == nil {
			t.Errorf("mode %d with config %v: accepted", o.TLSMode, o.TLS)
		}
	}
}
