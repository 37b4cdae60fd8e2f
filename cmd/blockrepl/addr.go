package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// Addr is where to listen or connect: "host:port" or "unix:/path".
type Addr string

const unixPrefix = "unix:"

// Network and Target are what net.Listen and net.Dial want.
func (a Addr) Network() string {
	if strings.HasPrefix(string(a), unixPrefix) {
		return "unix"
	}
	return "tcp"
}

// Target is the address without its network.
func (a Addr) Target() string { return strings.TrimPrefix(string(a), unixPrefix) }

// maxUnixPath is the size of sockaddr_un.sun_path without its final NUL.
const maxUnixPath = 107

// Check says what is wrong with the address, nil when nothing is.
func (a Addr) Check() error {
	if a.Network() == "unix" {
		path := a.Target()
		switch {
		case !strings.HasPrefix(path, "/"):
			return fmt.Errorf("address %q: a unix socket wants an absolute path, as \"unix:/run/blockrepl/nbd.sock\"", a)
		case len(path) > maxUnixPath:
			return fmt.Errorf("address %q: the path has %d bytes, the kernel allows %d", a, len(path), maxUnixPath)
		}
		return nil
	}
	host, port, err := net.SplitHostPort(string(a))
	if err != nil {
		return fmt.Errorf("address %q: want \"host:port\" or \"unix:/path\"", a)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("address %q: port %q is not a number from 1 to 65535", a, port)
	}
	if strings.ContainsAny(host, " /?#@") {
		return fmt.Errorf("address %q: %q is not a host name", a, host)
	}
	return nil
}

// Local reports whether nobody outside this host can reach the address.
func (a Addr) Local() bool {
	if a.Network() == "unix" {
		return true
	}
	host, _, err := net.SplitHostPort(string(a))
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// reachable reports whether the address can be connected to: one to listen at may
// leave host or port open.
func (a Addr) reachable() bool {
	host, port, err := net.SplitHostPort(string(a))
	if err != nil || host == "" || port == "0" {
		return false
	}
	ip := net.ParseIP(host)
	return ip == nil || !ip.IsUnspecified()
}
