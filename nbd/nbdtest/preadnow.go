package nbdtest

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// preadNow is preadv2 with RWF_NOWAIT and a single piece; unix.Preadv2 would allocate.
func preadNow(f *os.File, p []byte, off int64) (int, error) {
	iov := unix.Iovec{Base: &p[0]}
	iov.SetLen(len(p))
	n, _, e := unix.Syscall6(unix.SYS_PREADV2, f.Fd(), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, unix.RWF_NOWAIT)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}
