package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/blockrepl/blockrepl/nbd/internal/proto"
)

// TLSMode says what becomes of a client without TLS.
type TLSMode int

// The modes; the specification calls them NOTLS, SELECTIVETLS and FORCEDTLS.
const (
	TLSOff     TLSMode = iota // STARTTLS is refused
	TLSAllow                  // the client chooses; Exports may ask for it with ErrTLSRequired
	TLSRequire                // nothing is told before STARTTLS, not even which exports there are
)

// tlsSetup is what one handshake uses from its beginning to its end.
type tlsSetup struct {
	conf     *tls.Config
	verifies bool // client certificates are verified: their names are identities
}

// serverTLS checks and completes the configuration: TLS 1.3 unless the program itself sets an older minimum. It gives nil
// when TLS is off.
func serverTLS(mode TLSMode, conf *tls.Config) (*tlsSetup, error) {
	switch {
	case mode == TLSOff:
		return nil, nil
	case mode != TLSAllow && mode != TLSRequire:
		return nil, fmt.Errorf("tls mode %d: unknown", mode)
	case conf == nil:
		return nil, fmt.Errorf("tls mode %d: no certificate is configured", mode)
	}
	conf = conf.Clone()
	def(&conf.MinVersion, tls.VersionTLS13)
	setup := &tlsSetup{conf: conf, verifies: conf.ClientAuth >= tls.VerifyClientCertIfGiven}
	verifyQuietly(conf)
	return setup, nil
}

// SetTLS replaces Options.TLS for the handshakes that begin from now on: certificates and authorities are exchanged while
// connections go on. The mode stays; with TLSOff there is nothing to replace. When it fails nothing has changed.
func (s *Server) SetTLS(conf *tls.Config) error {
	setup, err := serverTLS(s.tlsMode, conf)
	if err != nil {
		return fmt.Errorf("nbd: set tls: %w", err)
	}
	s.tls.Store(setup)
	return nil
}

// verifyQuietly checks client certificates exactly as crypto/tls would, but does not tell clients which authorities count.
// Told so, GnuTLS (of libnbd and qemu in Debian 12) compares the key types that TLS 1.3 allows wrongly and shows no
// certificate at all if its key is RSA.
func verifyQuietly(conf *tls.Config) {
	pool := conf.ClientCAs
	switch {
	case pool == nil:
		return
	case conf.ClientAuth == tls.RequireAndVerifyClientCert:
		conf.ClientAuth = tls.RequireAnyClientCert
	case conf.ClientAuth == tls.VerifyClientCertIfGiven:
		conf.ClientAuth = tls.RequestClientCert
	default:
		return
	}
	conf.ClientCAs = nil
	next := conf.VerifyConnection
	conf.VerifyConnection = func(st tls.ConnectionState) error {
		if len(st.PeerCertificates) > 0 {
			if err := verifyClient(st.PeerCertificates, pool, conf.Time); err != nil {
				return err
			}
		}
		if next != nil {
			return next(st)
		}
		return nil
	}
}

func verifyClient(certs []*x509.Certificate, pool *x509.CertPool, now func() time.Time) error {
	o := x509.VerifyOptions{Roots: pool, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if now != nil {
		o.CurrentTime = now()
	}
	for _, c := range certs[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := certs[0].Verify(o); err != nil {
		return fmt.Errorf("verify the certificate of client %q: %w", certs[0].Subject.CommonName, err)
	}
	return nil
}

// optStartTLS switches the connection to TLS.
//
// Nothing of before may have an effect after (the class of CVE-2021-3716, where options injected in plain text were
// executed as if they had come under TLS): a byte behind the option ends the connection, what the client negotiated is
// wiped, and the reader starts with an empty buffer on the TLS stream.
func (c *conn) optStartTLS(data []byte) error {
	setup := c.server.tls.Load()
	switch {
	case len(data) > 0:
		return c.answerOption(proto.OptStartTLS, proto.RepErrInvalid, "the option takes no data")
	case c.client.TLS:
		return c.answerOption(proto.OptStartTLS, proto.RepErrInvalid, "TLS is already in use")
	case setup == nil:
		return c.answerOption(proto.OptStartTLS, proto.RepErrPolicy, "TLS is not configured on this server")
	case c.in.buffered() > 0:
		_ = c.answerOption(proto.OptStartTLS, proto.RepErrInvalid, "there is plain text behind the option")
		return fmt.Errorf("starttls: %d bytes in plain text behind the option: %w", c.in.buffered(), ErrProtocol)
	}
	if err := c.answerOption(proto.OptStartTLS, proto.RepAck, ""); err != nil {
		return err
	}
	t := tls.Server(c.sock, setup.conf)
	if err := t.HandshakeContext(c.ctx); err != nil {
		return fmt.Errorf("starttls: %w", err)
	}
	c.structured, c.metaSet, c.metaExport = false, false, ""
	c.in.conn = t
	c.client.TLS = true
	if setup.verifies {
		c.client.TLSName = certName(t.ConnectionState().PeerCertificates)
	}
	if c.client.TLSName != "" {
		c.log = c.log.With("name", c.client.TLSName)
	}
	return nil
}

// certName is the identity in a verified client certificate: its common name, else its first DNS name.
func certName(certs []*x509.Certificate) string {
	switch {
	case len(certs) == 0:
		return ""
	case certs[0].Subject.CommonName != "":
		return certs[0].Subject.CommonName
	case len(certs[0].DNSNames) > 0:
		return certs[0].DNSNames[0]
	}
	return ""
}
