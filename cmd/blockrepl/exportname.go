package main

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// exportName is what an NBD client asked for:
//
//	NAME [ "?" OPTION { "&" OPTION } ]
//
//	client=ID   the client's identity (with TLS the certificate's name wins)
//	token=N     number of this attachment; a higher one supersedes a lower
//	takeover    take the volume from the identity that holds it
//	readonly    never write
//	stale=ok    read-only, answers at once from this server's own prefix
//
// An empty NAME is the only volume. The syntax is that of a URL's query, so
// %-escapes work; everything else is refused, so that a slip never turns into a
// silent default.
type exportName struct {
	Volume   string
	Client   string
	Token    uint64
	Takeover bool
	ReadOnly bool
	Stale    bool
}

// maxIdentityBytes bounds an identity: it is carried in records and in status.
const maxIdentityBytes = 128

func parseExportName(s string) (exportName, error) {
	volume, query, _ := strings.Cut(s, "?")
	n := exportName{Volume: volume}
	if query == "" {
		return n, nil
	}
	seen := map[string]bool{}
	for _, option := range strings.Split(query, "&") {
		key, escaped, hasValue := strings.Cut(option, "=")
		value, err := url.PathUnescape(escaped)
		if err != nil {
			return n, fmt.Errorf("export name %q: option %q: %w", s, option, err)
		}
		if seen[key] {
			return n, fmt.Errorf("export name %q: option %q is there twice", s, key)
		}
		seen[key] = true
		if err := n.set(key, value, hasValue); err != nil {
			return n, fmt.Errorf("export name %q: %w", s, err)
		}
	}
	if n.Stale && n.Takeover {
		return n, fmt.Errorf("export name %q: stale=ok only reads, takeover is for writing", s)
	}
	return n, nil
}

func (n *exportName) set(key, value string, hasValue bool) (err error) {
	switch key {
	case "client":
		if n.Client = value; value == "" || len(value) > maxIdentityBytes || !printable(value) {
			return fmt.Errorf("client %q: want 1 to %d printable characters", value, maxIdentityBytes)
		}
	case "token":
		if n.Token, err = strconv.ParseUint(value, 10, 64); err != nil || n.Token == 0 {
			return fmt.Errorf("token %q: want a number from 1", value)
		}
	case "takeover":
		n.Takeover, err = switchOption(key, value, hasValue)
	case "readonly":
		n.ReadOnly, err = switchOption(key, value, hasValue)
	case "stale":
		if n.Stale = value == "ok"; !n.Stale {
			return fmt.Errorf("stale %q: want stale=ok", value)
		}
	default:
		return fmt.Errorf("unknown option %q%s", key, didYouMean(key, []string{"client", "token", "takeover", "readonly", "stale"}))
	}
	return err
}

// switchOption takes "takeover", "takeover=1" and "takeover=0".
func switchOption(key, value string, hasValue bool) (bool, error) {
	switch {
	case !hasValue || value == "1":
		return true, nil
	case value == "0":
		return false, nil
	}
	return false, fmt.Errorf("%s=%q: want %s alone", key, value, key)
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '�' }) < 0
}

// identity is who the client is: the verified certificate's name, else client=,
// else the address it comes from (design: attachments).
func (n *exportName) identity(tlsName, addr string) string {
	switch {
	case tlsName != "":
		return tlsName
	case n.Client != "":
		return n.Client
	}
	return addr
}
