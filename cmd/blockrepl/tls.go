package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// serverFiles are the names below a directory that `blockrepl cert` made.
func serverFiles(dir string) (cert, key, ca string) {
	return filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"), filepath.Join(dir, "ca-cert.pem")
}

// nbdTLS makes the configuration for NBD clients, nil when TLS is off.
func nbdTLS(c *NBDTLSConfig) (*tls.Config, error) {
	if c.Mode == "off" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("nbd_tls: %w", err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	if c.CA != "" {
		if cfg.ClientCAs, err = loadCA(c.CA); err != nil {
			return nil, fmt.Errorf("nbd_tls: %w", err)
		}
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return cfg, nil
}

// peerTLS makes the configuration for both ends of links between servers, nil
// when there is none. Both ends must show a certificate of the CA that names a
// server of this cluster: hosts may move and clients have certificates of the
// same CA, so neither host names nor the CA alone are asked.
func peerTLS(c *PeerTLSConfig, cluster string) (*tls.Config, error) {
	if c.Cert == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("peer_tls: %w", err)
	}
	roots, err := loadCA(c.CA)
	if err != nil {
		return nil, fmt.Errorf("peer_tls: %w", err)
	}
	cfg := &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS13,
		ClientAuth:   tls.RequireAnyClientCert,
		// Verification is not skipped, it is done below, the same way on both ends.
		InsecureSkipVerify: true,
		RootCAs:            roots,
		Time:               time.Now,
	}
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		_, err := verifyPeer(s.PeerCertificates, roots, cluster, cfg.Time())
		return err
	}
	return cfg, nil
}

// verifyPeer checks the chain, at the given time, and gives the id of the server that it
// names.
func verifyPeer(chain []*x509.Certificate, roots *x509.CertPool, cluster string, now time.Time) (id string, err error) {
	if len(chain) == 0 {
		return "", errors.New("peer shows no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	leaf := chain[0]
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return "", fmt.Errorf("certificate of peer %q: %w", leaf.Subject.CommonName, err)
	}
	prefix := identityURI(cluster, roleServer, "").String()
	for _, u := range leaf.URIs {
		if id, ok := strings.CutPrefix(u.String(), prefix); ok {
			return id, nil
		}
	}
	return "", fmt.Errorf("certificate %q is not one of a server of cluster %s", leaf.Subject.CommonName, cluster)
}

func loadCA(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("ca %s: no certificate in it", path)
	}
	return pool, nil
}
