package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel's generic netlink family "nbd" (include/uapi/linux/nbd-netlink.h),
// and the little of generic netlink that it takes. Host byte order throughout.
const (
	nlControl      = 16 // the controller's family
	nlGetFamily    = 3
	nlFamilyID     = 1
	nlFamilyName   = 2
	nlFamilyGroups = 7
	nlGroupID      = 2

	nbdConnect     = 1
	nbdDisconnect  = 2
	nbdReconfigure = 3
	nbdLinkDead    = 4

	nbdAttrIndex       = 1
	nbdAttrSize        = 2
	nbdAttrBlockSize   = 3
	nbdAttrTimeout     = 4
	nbdAttrServerFlags = 5
	nbdAttrSockets     = 7
	nbdAttrDeadTimeout = 8
	nbdAttrBackend     = 10

	// nlBuffer holds the longest message of these families with room to spare.
	nlBuffer = 64 << 10
	// nlWait bounds one receive, so that a reader sees its context end.
	nlWait = 200 * time.Millisecond
	// nlCallWait bounds an exchange with the kernel, which answers at once.
	nlCallWait = 10 * time.Second
	// deadLinkQueue bounds events that nobody took: one more says nothing new.
	deadLinkQueue = 1
)

// nbdKernel speaks with the driver. Calls are for one goroutine at a time.
type nbdKernel struct {
	fd     int
	family uint16
	group  uint32 // where link deaths are announced
	seq    uint32
}

// deviceConfig is what connect tells the kernel.
type deviceConfig struct {
	index                int
	sizeBytes            int64
	flags                uint16 // as the server sent them
	backend              string
	timeout, deadTimeout time.Duration // whole seconds
}

// openNBDKernel finds the family; its absence means that there is no driver.
func openNBDKernel() (*nbdKernel, error) {
	k, err := newNetlink()
	if err != nil {
		return nil, err
	}
	reply, err := k.call(nlControl, nlGetFamily, attribute(nlFamilyName, append([]byte("nbd"), 0)))
	if err != nil {
		k.close()
		f := &failure{code: exitError, err: fmt.Errorf("attach: this kernel has no NBD driver: %w", err), next: "modprobe nbd, or use nbdfuse or QEMU"}
		if errors.Is(err, unix.EPERM) {
			f.err, f.next = fmt.Errorf("attach: ask the kernel: %w", err), "run as root"
		}
		return nil, f
	}
	for _, a := range reply {
		switch {
		case a.kind == nlFamilyID && len(a.data) >= 2:
			k.family = binary.NativeEndian.Uint16(a.data)
		case a.kind == nlFamilyGroups:
			for _, group := range attributes(a.data) {
				for _, field := range attributes(group.data) {
					if field.kind == nlGroupID && len(field.data) >= 4 {
						k.group = binary.NativeEndian.Uint32(field.data)
					}
				}
			}
		}
	}
	if k.family == 0 || k.group == 0 {
		k.close()
		return nil, errors.New("attach: the kernel's NBD driver is too old: it announces no link deaths")
	}
	return k, nil
}

func newNetlink() (*nbdKernel, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("attach: open netlink: %w", err)
	}
	wait := unix.NsecToTimeval(nlWait.Nanoseconds())
	err = errors.Join(unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("attach: open netlink: %w", err)
	}
	return &nbdKernel{fd: fd}, nil
}

func (k *nbdKernel) close() { unix.Close(k.fd) }

func (k *nbdKernel) connect(c deviceConfig, socket *os.File) error {
	_, err := k.call(k.family, nbdConnect,
		attribute32(nbdAttrIndex, uint32(c.index)),
		attribute64(nbdAttrSize, uint64(c.sizeBytes)),
		// 512 always: a file system made on 512-byte sectors must stay mountable.
		attribute64(nbdAttrBlockSize, sector),
		attribute64(nbdAttrServerFlags, uint64(c.flags)),
		attribute64(nbdAttrTimeout, uint64(c.timeout/time.Second)),
		attribute64(nbdAttrDeadTimeout, uint64(c.deadTimeout/time.Second)),
		attribute(nbdAttrBackend, append([]byte(c.backend), 0)),
		socketAttribute(socket))
	return err
}

// reconfigure puts the socket in the place of a dead one. Where none is dead the
// kernel drops the new one and still answers success. Size and block size are
// left out on purpose: changing them freezes the queue, which waits for the
// requests that wait for the socket.
func (k *nbdKernel) reconfigure(index int, backend string, socket *os.File) error {
	_, err := k.call(k.family, nbdReconfigure, attribute32(nbdAttrIndex, uint32(index)),
		attribute(nbdAttrBackend, append([]byte(backend), 0)), socketAttribute(socket))
	return err
}

func (k *nbdKernel) disconnect(index int) error {
	_, err := k.call(k.family, nbdDisconnect, attribute32(nbdAttrIndex, uint32(index)))
	return err
}

// backend reads the mark of a connected device, "" when there is none.
func (k *nbdKernel) backend(index int) string {
	text, err := os.ReadFile(fmt.Sprintf("/sys/block/nbd%d/backend", index))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// deadLinks gives a value whenever a connection of the device dies. Its goroutine
// and socket end with ctx; the channel is closed then or when the kernel fails.
func (k *nbdKernel) deadLinks(ctx context.Context, index int) (<-chan struct{}, error) {
	events, err := newNetlink()
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(events.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(k.group)); err != nil {
		events.close()
		return nil, fmt.Errorf("attach: listen for link deaths: %w", err)
	}
	dead := make(chan struct{}, deadLinkQueue)
	go func() {
		defer close(dead)
		defer events.close()
		for ctx.Err() == nil {
			messages, err := events.receive()
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			// Lost messages (ENOBUFS) may have been a death: a needless
			// reconnect is dropped by the kernel.
			if err == nil && !announcesDeath(messages, k.family, index) {
				continue
			}
			select {
			case dead <- struct{}{}:
			default:
			}
		}
	}()
	return dead, nil
}

func announcesDeath(messages []message, family uint16, index int) bool {
	for _, m := range messages {
		if m.kind != family || len(m.data) < 4 || m.data[0] != nbdLinkDead {
			continue
		}
		for _, a := range attributes(m.data[4:]) {
			if a.kind == nbdAttrIndex && len(a.data) >= 4 && int(binary.NativeEndian.Uint32(a.data)) == index {
				return true
			}
		}
	}
	return false
}

// call sends one command and gives the attributes of the answer.
func (k *nbdKernel) call(family uint16, command byte, attrs ...[]byte) ([]attr, error) {
	k.seq++
	body := []byte{command, 1, 0, 0} // command, version, reserved
	for _, a := range attrs {
		body = append(body, a...)
	}
	ne := binary.NativeEndian
	msg := ne.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	msg = ne.AppendUint16(msg, family)
	msg = ne.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	msg = ne.AppendUint32(msg, k.seq)
	msg = ne.AppendUint32(msg, 0)
	if err := unix.Sendto(k.fd, append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("ask the kernel: %w", err)
	}
	var reply []attr
	for deadline := time.Now().Add(nlCallWait); time.Now().Before(deadline); {
		messages, err := k.receive()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the kernel's answer: %w", err)
		}
		for _, m := range messages {
			switch {
			case m.seq != k.seq:
			case m.kind == unix.NLMSG_ERROR && len(m.data) >= 4:
				if code := int32(ne.Uint32(m.data)); code != 0 {
					return nil, unix.Errno(-code)
				}
				return reply, nil
			case len(m.data) >= 4:
				reply = attributes(m.data[4:])
			}
		}
	}
	return nil, fmt.Errorf("the kernel does not answer within %s", nlCallWait)
}

// message is one netlink message without its header's length and flags.
type message struct {
	kind uint16
	seq  uint32
	data []byte
}

func (k *nbdKernel) receive() ([]message, error) {
	buf := make([]byte, nlBuffer)
	n, _, err := unix.Recvfrom(k.fd, buf, 0)
	if err != nil {
		return nil, err
	}
	return messages(buf[:n]), nil
}

// messages splits what was received; it stops at the first that does not fit.
func messages(b []byte) []message {
	var out []message
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			break
		}
		out = append(out, message{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.SizeofNlMsghdr:n]})
		b = b[min(align4(n), len(b)):]
	}
	return out
}

// attr is one attribute: length, kind, data, padded to four bytes.
type attr struct {
	kind uint16
	data []byte
}

func attributes(b []byte) []attr {
	const flags = unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER
	var out []attr
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			break
		}
		out = append(out, attr{binary.NativeEndian.Uint16(b[2:]) &^ flags, b[4:n]})
		b = b[min(align4(n), len(b)):]
	}
	return out
}

func attribute(kind uint16, data []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), data...)
	return append(b, make([]byte, align4(len(b))-len(b))...)
}

func attribute32(kind uint16, v uint32) []byte {
	return attribute(kind, binary.NativeEndian.AppendUint32(nil, v))
}

func attribute64(kind uint16, v uint64) []byte {
	return attribute(kind, binary.NativeEndian.AppendUint64(nil, v))
}

// socketAttribute is a list of one item of one field, the descriptor.
func socketAttribute(socket *os.File) []byte {
	const nested = unix.NLA_F_NESTED
	return attribute(nbdAttrSockets|nested, attribute(1|nested, attribute32(1, uint32(socket.Fd()))))
}

func align4(n int) int { return (n + 3) &^ 3 }
