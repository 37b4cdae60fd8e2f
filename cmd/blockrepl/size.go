package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written "1GiB" in the configuration.
type Size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3},
	{"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}, {"B", 1},
}

// ParseSize reads a whole number with an optional unit: B, KiB, MiB, GiB, TiB
// (also K, M, G, T) or kB, MB, GB, TB.
func ParseSize(s string) (Size, error) {
	number, unit := strings.TrimSpace(s), int64(1)
	for _, u := range sizeUnits {
		if strings.HasSuffix(number, u.name) {
			number, unit = strings.TrimSpace(strings.TrimSuffix(number, u.name)), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("size %q: want a whole number with B, KiB, MiB, GiB or TiB, as \"1GiB\"", s)
	}
	if n > math.MaxInt64/unit {
		return 0, fmt.Errorf("size %q: too large, at most %d bytes", s, int64(math.MaxInt64))
	}
	return Size(n * unit), nil
}

// UnmarshalTOML takes "1GiB" or a number of bytes.
func (s *Size) UnmarshalTOML(v any) error {
	var err error
	switch v := v.(type) {
	case string:
		*s, err = ParseSize(v)
	case int64:
		*s, err = ParseSize(strconv.FormatInt(v, 10))
	default:
		err = fmt.Errorf("size %v: want a text as \"1GiB\" or a number of bytes", v)
	}
	return err
}

// String gives the shortest exact form: "1GiB", "1000B".
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// humanBytes gives a rounded form for people: "1.5 MiB".
func humanBytes(n int64) string {
	for _, u := range sizeUnits[:4] {
		if n >= u.bytes {
			text := strconv.FormatFloat(float64(n)/float64(u.bytes), 'f', 1, 64)
			return strings.TrimSuffix(text, ".0") + " " + u.name
		}
	}
	return strconv.FormatInt(n, 10) + " B"
}

// count gives "1 record", "2 records".
func count(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.FormatUint(n, 10) + " " + what + "s"
}

// humanDuration gives a rounded form for people: "1.5s", "3m20s", "2h10m".
func humanDuration(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}
