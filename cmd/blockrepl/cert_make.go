package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

const (
	roleServer = "server"
	roleClient = "client"
)

// backdate allows for clocks that are behind the host that makes certificates.
const backdate = time.Hour

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	made bool // by this call
}

// identityURI is what a certificate says about its holder. Peers accept only
// servers of their own cluster by it.
func identityURI(cluster, role, name string) *url.URL {
	return &url.URL{Scheme: "blockrepl", Host: cluster, Path: "/" + role + "/" + name}
}

// openOrMakeCA reads the authority in dir, or makes one there.
func openOrMakeCA(dir, cluster string, valid time.Duration) (*authority, error) {
	certPath, keyPath := filepath.Join(dir, "ca-cert.pem"), filepath.Join(dir, "ca-key.pem")
	ca, err := openCA(certPath, keyPath)
	if !errors.Is(err, fs.ErrNotExist) {
		return ca, err
	}
	if _, err := os.Lstat(certPath); err == nil {
		return nil, usagef("cert: %s is there but ca-key.pem beside it is not: bring the key, or name another --dir", certPath)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	template := newTemplate("blockrepl CA "+cluster, valid)
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.MaxPathLenZero = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	if err := writeKey(keyPath, key); err != nil {
		return nil, err
	}
	if err := writePEM(certPath, "CERTIFICATE", der, 0o644); err != nil {
		return nil, err
	}
	return &authority{cert: parsed, key: key, made: true}, nil
}

func openCA(certPath, keyPath string) (*authority, error) {
	certDER, err := readPEM(certPath, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	keyDER, err := readPEM(keyPath, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, fmt.Errorf("CA %s: %w", certPath, err)
	}
	anyKey, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return nil, fmt.Errorf("CA key %s: %w", keyPath, err)
	}
	key, ok := anyKey.(*ecdsa.PrivateKey)
	if !ok || !parsed.IsCA || !key.PublicKey.Equal(parsed.PublicKey) {
		return nil, fmt.Errorf("CA %s: not a CA certificate with the ECDSA key %s", certPath, keyPath)
	}
	return &authority{cert: parsed, key: key}, nil
}

func newTemplate(name string, valid time.Duration) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now.Add(-backdate),
		NotAfter:  now.Add(valid),
	} // the zero serial number lets CreateCertificate draw one
}

// issue makes dir with the certificate, its key and the CA's certificate. The
// directory appears whole or not at all.
func (ca *authority) issue(dir, cluster string, r certRequest, valid time.Duration) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key of %s %s: %w", r.role, r.name, err)
	}
	template := newTemplate(r.name, valid)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.URIs = []*url.URL{identityURI(cluster, r.role, r.name)}
	// A server is a client too, towards its peers.
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if r.role == roleServer {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, h := range r.hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return fmt.Errorf("make certificate of %s %s: %w", r.role, r.name, err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), ".new-")
	if err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	err = errors.Join(
		writePEM(filepath.Join(temp, "ca-cert.pem"), "CERTIFICATE", ca.cert.Raw, 0o644),
		writePEM(filepath.Join(temp, r.role+"-cert.pem"), "CERTIFICATE", der, 0o644),
		writeKey(filepath.Join(temp, r.role+"-key.pem"), key))
	if err == nil {
		err = os.Rename(temp, dir)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", dir, err), os.RemoveAll(temp))
	}
	return nil
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key %s: %w", path, err)
	}
	return writePEM(path, "PRIVATE KEY", der, 0o600)
}

// writePEM writes a file that must not be there yet.
func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	return errors.Join(err, f.Sync(), f.Close())
}

func readPEM(path, kind string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s: no PEM block %q in it", path, kind)
	}
	return block.Bytes, nil
}
