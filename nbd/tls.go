package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

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

// serverTLS checks and completes the configuration: TLS 1.3 unless the program itself sets an older minimum.
func serverTLS(mode TLSMode, conf *tls.Config) (*tls.Config, error) {
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
	return conf, nil
}

// optStartTLS switches the connection to TLS.
//
// Nothing of before may have an effect after (the class of CVE-2021-3716, where options injected in plain text were
// executed as if they had come under TLS): a byte behind the option ends the connection, what the client negotiated is
// wiped, and the reader starts with an empty buffer on the TLS stream.
func (c *conn) optStartTLS(data []byte) error {
	switch {
	case len(data) > 0:
		return c.answerOption(proto.OptStartTLS, proto.RepErrInvalid, "the option takes no data")
	case c.client.TLS:
		return c.answerOption(proto.OptStartTLS, proto.RepErrInvalid, "TLS is already in use")
	case c.server.tls == nil:
		return c.answerOption(proto.OptStartTLS, proto.RepErrPolicy, "TLS is not configured on this server")
	case c.in.buffered() > 0:
		return fmt.Errorf("starttls: %d bytes in plain text behind the option: %w", c.in.buffered(), ErrProtocol)
	}
	if err := c.answerOption(proto.OptStartTLS, proto.RepAck, ""); err != nil {
		return err
	}
	t := tls.Server(c.sock, c.server.tls)
	if err := t.HandshakeContext(c.ctx); err != nil {
		return fmt.Errorf("starttls: %w", err)
	}
	c.structured, c.metaSet, c.metaExport = false, false, ""
	c.in.conn = t
	c.client.TLS, c.client.TLSName = true, certName(t.ConnectionState().VerifiedChains)
	if c.client.TLSName != "" {
		c.log = c.log.With("name", c.client.TLSName)
	}
	return nil
}

// certName is the identity in a verified client certificate: its common name, else its first DNS name.
func certName(chains [][]*x509.Certificate) string {
	if len(chains) == 0 || len(chains[0]) == 0 {
		return ""
	}
	leaf := chains[0][0]
	if leaf.Subject.CommonName != "" {
		return leaf.Subject.CommonName
	}
	if len(leaf.DNSNames) > 0 {
		return leaf.DNSNames[0]
	}
	return ""
}
