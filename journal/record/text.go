package record

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// MarshalText gives String.
func (v VolumeID) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText parses the 8-4-4-4-12 form.
func (v *VolumeID) UnmarshalText(b []byte) error {
	return decodeHex(v[:], strings.ReplaceAll(string(b), "-", ""), "volume uuid")
}

// MarshalText gives String.
func (i Incarnation) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText parses 32 hex digits.
func (i *Incarnation) UnmarshalText(b []byte) error {
	return decodeHex(i[:], string(b), "incarnation")
}

func decodeHex(dst []byte, s, what string) error {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(dst) {
		return fmt.Errorf("%s %q: want %d hex digits", what, s, 2*len(dst))
	}
	copy(dst, b)
	return nil
}
