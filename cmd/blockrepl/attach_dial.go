package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The few words of NBD that a client needs to reach the transmission phase;
// from there on the kernel speaks. Numbers as in the NBD specification.
const (
	nbdInitMagic   = "NBDMAGICIHAVEOPT"
	nbdOptGo       = 7
	nbdRepAck      = 1
	nbdRepInfo     = 3
	nbdRepErrorBit = 1 << 31
	// nbdRepPolicy, nbdRepTLSRequired and nbdRepUnknown are the errors that an operator meets.
	nbdRepPolicy      = nbdRepErrorBit + 2
	nbdRepTLSRequired = nbdRepErrorBit + 5
	nbdRepUnknown     = nbdRepErrorBit + 6
	nbdInfoExport     = 0
	nbdFlagRO         = 1 << 1
	// nbdReplyMagic begins each answer to an option.
	nbdReplyMagic = 0x3e889045565a9
	// maxNBDReply bounds one answer: the specification's longest string and some.
	maxNBDReply = 16 << 10
	// maxNBDReplies bounds the answers to one option: one an information and the last.
	maxNBDReplies = 64
)

// nbdInfo is what a server said about the export.
type nbdInfo struct {
	size  int64 // bytes
	flags uint16
}

func (i nbdInfo) readOnly() bool { return i.flags&nbdFlagRO != 0 }

// nbdConn is a negotiated connection, ready for the kernel.
type nbdConn struct {
	server Addr
	info   nbdInfo
	socket *os.File
}

// queryEscape escapes a value of an export name's option.
func queryEscape(s string) string { return url.PathEscape(s) }

// dialNBD connects and negotiates up to the transmission phase. Structured
// replies are not asked for: the kernel knows simple ones only.
func dialNBD(ctx context.Context, server Addr, export string, silence time.Duration) (_ *nbdConn, err error) {
	c, err := (&net.Dialer{}).DialContext(ctx, server.Network(), server.Target())
	if err != nil {
		return nil, err
	}
	defer c.Close() // the kernel gets its own descriptor
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	info, err := negotiateNBD(c, export)
	if err != nil {
		return nil, err
	}
	socket, err := kernelSocket(c, silence)
	if err != nil {
		return nil, err
	}
	return &nbdConn{server: server, info: info, socket: socket}, nil
}

func negotiateNBD(c io.ReadWriter, export string) (info nbdInfo, err error) {
	var hello [18]byte
	if _, err := io.ReadFull(c, hello[:]); err != nil {
		return info, fmt.Errorf("read greeting: %w", err)
	}
	if string(hello[:16]) != nbdInitMagic {
		return info, errors.New("not an NBD server (newstyle)")
	}
	be := binary.BigEndian
	msg := be.AppendUint32(nil, uint32(be.Uint16(hello[16:])&3)) // fixed newstyle, no zeroes: as offered
	msg = append(msg, nbdInitMagic[8:]...)
	msg = be.AppendUint32(msg, nbdOptGo)
	msg = be.AppendUint32(msg, uint32(4+len(export)+2))
	msg = be.AppendUint32(msg, uint32(len(export)))
	msg = append(msg, export...)
	msg = be.AppendUint16(msg, 0) // no information asked for beyond the export's
	if _, err := c.Write(msg); err != nil {
		return info, fmt.Errorf("ask for the export: %w", err)
	}
	for range maxNBDReplies {
		kind, data, err := readNBDReply(c)
		switch {
		case err != nil:
			return info, err
		case kind == nbdRepAck && info.size > 0:
			return info, nil
		case kind == nbdRepAck:
			return info, errors.New("server did not say the export's size")
		case kind == nbdRepInfo && len(data) >= 12 && be.Uint16(data) == nbdInfoExport:
			size := be.Uint64(data[2:])
			if size == 0 || size > uint64(maxSize) {
				return info, fmt.Errorf("export has %d bytes", size)
			}
			info = nbdInfo{size: int64(size), flags: be.Uint16(data[10:])}
		case kind == nbdRepTLSRequired:
			return info, errors.New("the server wants TLS, which the kernel's driver does not speak: use a tunnel, nbdfuse or QEMU")
		case kind == nbdRepUnknown:
			return info, errors.New("the server has no such volume")
		case kind == nbdRepPolicy && readOldToken(string(data)) != nil:
			return info, readOldToken(string(data))
		case kind&nbdRepErrorBit != 0:
			return info, fmt.Errorf("refused (NBD error %d): %q", kind&^nbdRepErrorBit, data)
		}
	}
	return info, errors.New("server answers without end")
}

func readNBDReply(r io.Reader) (kind uint32, data []byte, err error) {
	var h [20]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, fmt.Errorf("read answer: %w", err)
	}
	if binary.BigEndian.Uint64(h[:]) != nbdReplyMagic {
		return 0, nil, errors.New("answer without its magic number")
	}
	n := binary.BigEndian.Uint32(h[16:])
	if n > maxNBDReply {
		return 0, nil, fmt.Errorf("answer of %d bytes, at most %d are read", n, maxNBDReply)
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return 0, nil, fmt.Errorf("read answer: %w", err)
	}
	return binary.BigEndian.Uint32(h[12:]), data, nil
}

// kernelSocket gives a descriptor of its own for the kernel, blocking, with
// timers that make a silent host an error instead of an endless wait.
func kernelSocket(c net.Conn, silence time.Duration) (*os.File, error) {
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	filer, ok := c.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("connection of type %T has no descriptor", c)
	}
	f, err := filer.File()
	if err != nil {
		return nil, err
	}
	if _, ok := c.(*net.TCPConn); !ok {
		return f, nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	var setErr error
	err = raw.Control(func(fd uintptr) {
		setErr = errors.Join(
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT, max(1, int(silence/time.Second))),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence/time.Millisecond)),
			syscall.SetNonblock(int(fd), false))
	})
	if err = errors.Join(err, setErr); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
