package nbd

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tuned gives the server's end of a connection within this host, tuned.
func tuned(t *testing.T, keepAlive time.Duration) net.Conn {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	tune(conn, keepAlive)
	return conn
}

// A pacing algorithm costs a third of the speed of large reads within a host.
func TestConnectionWithinTheHostIsNotPaced(t *testing.T) {
	conn := tuned(t, time.Minute)
	var name string
	var err error
	if e := rawConn(conn).Control(func(fd uintptr) {
		name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	if name != "reno" {
		t.Errorf("congestion control is %q, want reno", name)
	}
}

// Keep-alive asks nothing while data waits for an acknowledgement: a client whose host lost its power in the middle of
// a reply kept its connection, and what it held, for the kernel's quarter of an hour.
func TestVanishedPeerThatOwesAnAcknowledgementIsGivenUpToo(t *testing.T) {
	conn := tuned(t, 42*time.Second)
	var got int
	var err error
	if e := rawConn(conn).Control(func(fd uintptr) {
		got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	if want := 42_000; got != want {
		t.Errorf("data may stay unacknowledged for %d ms, want %d", got, want)
	}
}
