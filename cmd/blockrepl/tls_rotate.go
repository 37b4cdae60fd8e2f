package main

import (
	"bytes"
	"crypto/tls"
	"slices"
	"sync/atomic"
)

// rotatingTLS lends one tls.Config for good, behind which certificate and
// authorities can be exchanged: each handshake takes those of its moment, and what
// is established does not notice.
type rotatingTLS struct {
	cur atomic.Pointer[tls.Config] // of peerTLS
}

func newRotatingTLS(cfg *tls.Config) *rotatingTLS {
	r := new(rotatingTLS)
	r.cur.Store(cfg)
	return r
}

func (r *rotatingTLS) set(cfg *tls.Config) { r.cur.Store(cfg) }

// config is for both ends of a link; clones of it rotate too.
func (r *rotatingTLS) config() *tls.Config {
	cfg := r.cur.Load().Clone()
	cfg.Certificates = nil
	cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return &r.cur.Load().Certificates[0], nil
	}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &r.cur.Load().Certificates[0], nil
	}
	cfg.VerifyConnection = func(s tls.ConnectionState) error { return r.cur.Load().VerifyConnection(s) }
	return cfg
}

// sameCertificate and sameAuthorities compare what two configurations of nbdTLS,
// or two of peerTLS, hold: files are written anew under their old names.
func sameCertificate(a, b *tls.Config) bool {
	return slices.EqualFunc(a.Certificates[0].Certificate, b.Certificates[0].Certificate, bytes.Equal)
}

func sameAuthorities(a, b *tls.Config) bool {
	return a.ClientAuth == b.ClientAuth && a.ClientCAs.Equal(b.ClientCAs) && a.RootCAs.Equal(b.RootCAs)
}
