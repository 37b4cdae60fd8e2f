package nbd

import (
	"math"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// writev writes the pieces of iov.
func writev(fd uintptr, iov []unix.Iovec) (int, syscall.Errno) {
	n, _, e := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	return int(n), e
}

// rawConn gives the socket under conn, or nil if it has none (a pipe).
func rawConn(conn net.Conn) syscall.RawConn {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// peek asks the kernel about one socket. Pooled, because the closure would be an allocation for every write request.
type peek struct {
	fn   func(fd uintptr)
	gone bool
	pfd  [1]unix.PollFd
}

var peeks = sync.Pool{New: func() any {
	p := &peek{}
	p.fn = func(fd uintptr) {
		// RDHUP is set as soon as the peer's FIN is in, even with data before it unread: exactly the case of a server
		// that was stopped and finds requests of a client that has long moved on. A peer that closes only its sending
		// side is taken for gone as well: NBD has no half-open connections.
		p.pfd[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLRDHUP}
		n, err := unix.Poll(p.pfd[:], 0)
		p.gone = err == nil && n > 0
	}
	return p
}}

// peerGone reports whether the peer of raw has closed the connection, or the connection has failed.
func peerGone(raw syscall.RawConn) bool {
	p := peeks.Get().(*peek)
	defer peeks.Put(p)
	p.gone = false
	if err := raw.Control(p.fn); err != nil {
		return true // closed on our side
	}
	return p.gone
}

// peerAddr names the other end without its port: the host, or "unix:uid=N" by the kernel's word, or "".
func peerAddr(conn net.Conn, raw syscall.RawConn) string {
	switch a := conn.RemoteAddr().(type) {
	case *net.TCPAddr:
		ip := a.AddrPort().Addr().Unmap()
		return ip.String()
	case *net.UnixAddr:
		if raw == nil {
			return "unix"
		}
		var cred *unix.Ucred
		var err error
		if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil || err != nil {
			return "unix"
		}
		return "unix:uid=" + strconv.FormatUint(uint64(cred.Uid), 10)
	case nil:
		return ""
	default:
		return a.String()
	}
}

// tune prepares an accepted socket. Errors mean that the connection is already dead, or that it goes a little slower.
func tune(conn net.Conn, keepAlive time.Duration) {
	switch t := conn.(type) {
	case *net.TCPConn:
		_ = t.SetNoDelay(true)
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepAlive / 2, Interval: keepAlive / 2 / keepAliveProbes, Count: keepAliveProbes})
		giveUp(t, keepAlive)
		unpace(t)
	case *net.UnixConn:
		// A unix socket's buffer does not grow by itself as TCP's does; with the usual 208 KiB a large reply is a dozen
		// waits. Beyond net.core.wmem_max it takes a privilege.
		raw, err := t.SyscallConn()
		if err != nil {
			return
		}
		_ = raw.Control(func(fd uintptr) {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, unixSendBytes) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, unixSendBytes)
			}
		})
	}
}

// giveUp bounds how long the peer may owe an acknowledgement, of data or of an offered byte while it takes none: the
// kernel sends no keep-alive meanwhile, and would go on for about a quarter of an hour.
func giveUp(t *net.TCPConn, after time.Duration) {
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(min(after.Milliseconds(), math.MaxInt32)))
	})
}

// unpace takes congestion control that paces, such as BBR, from a connection within this host: there is no bottleneck to
// find, and its timers and losses cost a third of what a large read takes (1 MiB, depth 4: 2.75 GB/s with BBR, 3.9 without).
func unpace(t *net.TCPConn) {
	local, remote := t.LocalAddr().(*net.TCPAddr), t.RemoteAddr().(*net.TCPAddr)
	if !remote.IP.IsLoopback() && !remote.IP.Equal(local.IP) {
		return
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno") // every kernel has it, for every user
	})
}
