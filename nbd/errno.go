package nbd

import (
	"context"
	"errors"
	"syscall"

	"github.com/blockrepl/blockrepl/nbd/internal/proto"
)

// OffsetError is an error of a Disk at a known offset of the export; structured replies tell it to the client.
type OffsetError struct {
	Off int64
	Err error
}

// Error is the text of the wrapped error: the offset is for the wire.
func (e *OffsetError) Error() string { return e.Err.Error() }

// Unwrap gives the error that happened there.
func (e *OffsetError) Unwrap() error { return e.Err }

// hangs reports whether an error must not be answered: see ErrHang.
func hangs(err error) bool {
	return errors.Is(err, ErrHang) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// Errno is the one place where errors become numbers on the wire (specification, "Error values"). The rich error is
// logged beside it. ENOTSUP passes only when mayRefuse is set, that is for fast zeroes: elsewhere the specification does
// not allow it. ESHUTDOWN is never sent.
func Errno(err error, mayRefuse bool) uint32 {
	switch {
	case err == nil:
		return 0
	case is(err, syscall.EPERM, syscall.EROFS, syscall.EACCES):
		return proto.EPERM
	case is(err, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG):
		return proto.ENOSPC
	case is(err, syscall.EINVAL, syscall.EOVERFLOW):
		return proto.EINVAL
	case is(err, syscall.ENOMEM):
		return proto.ENOMEM
	case is(err, syscall.ENOTSUP, syscall.EOPNOTSUPP, errors.ErrUnsupported):
		if mayRefuse {
			return proto.ENOTSUP
		}
		return proto.EINVAL
	}
	return proto.EIO
}

// is reports whether err is, or wraps, one of targets.
func is(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

// errnoText names a wire errno for logs and for the message of a structured error.
func errnoText(errno uint32) string {
	switch errno {
	case proto.EPERM:
		return "EPERM"
	case proto.EIO:
		return "EIO"
	case proto.ENOMEM:
		return "ENOMEM"
	case proto.EINVAL:
		return "EINVAL"
	case proto.ENOSPC:
		return "ENOSPC"
	case proto.EOVERFLOW:
		return "EOVERFLOW"
	case proto.ENOTSUP:
		return "ENOTSUP"
	}
	return "unknown"
}
