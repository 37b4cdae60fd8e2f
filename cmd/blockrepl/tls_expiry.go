package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"time"
)

// expirySoon is how long before its end a certificate is worth a word: time to
// renew it in working hours, also over holidays.
const expirySoon = 30 * 24 * time.Hour

// expiring says which certificates of the configuration end soon, or have ended. A
// file that cannot be read was told by checkHost.
func (c *Config) expiring(now time.Time) []string {
	var out []string
	seen := map[string]bool{"": true}
	for _, path := range []string{c.NBDTLS.Cert, c.NBDTLS.CA, c.PeerTLS.Cert, c.PeerTLS.CA} {
		if seen[path] {
			continue
		}
		seen[path] = true
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err == nil && cert.NotAfter.Before(now.Add(expirySoon)) {
				out = append(out, fmt.Sprintf("certificate %q in %s ends %s: `blockrepl cert` makes a new one", cert.Subject.CommonName, path,
					cert.NotAfter.UTC().Format("2006-01-02 15:04 MST")))
			}
		}
	}
	return out
}
