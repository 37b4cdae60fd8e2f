package nbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

// UnixSocket says how a unix socket is made.
type UnixSocket struct {
	Path string
	Mode fs.FileMode // permissions; 0 = 0600
	UID  int         // owner; -1 = this process's
	GID  int         // group; -1 = this process's
}

// ListenUnix makes a unix socket with its mode and owner. A socket left over from a server that died is replaced, one that
// a server answers on is not: two servers must not share an address without knowing.
func ListenUnix(u UnixSocket) (net.Listener, error) {
	if err := clearStale(u.Path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", u.Path, err)
	}
	// Made for the owner alone, then opened as wanted: nobody gets in between. On Linux the mode of an unbound socket is
	// that of the file which bind makes; a umask would hold for the whole process meanwhile.
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		return errors.Join(raw.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }), err)
	}}
	ln, err := lc.Listen(context.Background(), "unix", u.Path)
	if err != nil {
		return nil, fmt.Errorf("listen on unix socket: %w", err)
	}
	if u.UID != -1 || u.GID != -1 {
		err = os.Chown(u.Path, u.UID, u.GID)
	}
	if err == nil {
		def(&u.Mode, 0o600)
		err = os.Chmod(u.Path, u.Mode)
	}
	if err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("listen on unix socket: %w", err)
	}
	return ln, nil
}

// clearStale removes a socket on which nobody listens.
func clearStale(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("exists and is not a socket; remove it if it is not needed: %w", fs.ErrExist)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("another server answers there: %w", syscall.EADDRINUSE)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// firstActivated is the first file descriptor that systemd passes on.
const firstActivated = 3

// ActivatedListeners gives the sockets that systemd passed to this process (socket activation, sd_listen_fds(3)); none if
// it was started otherwise. Only the first call finds them: the environment is cleared so that children do not.
func ActivatedListeners() ([]net.Listener, error) {
	pid, fds := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // fails for malformed names only
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > maxActivated {
		return nil, fmt.Errorf("socket activation: LISTEN_FDS is %q", fds)
	}
	var lns []net.Listener
	for fd := firstActivated; fd < firstActivated+n; fd++ {
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "activated-"+strconv.Itoa(fd))
		ln, err := net.FileListener(f)
		_ = f.Close() // the listener has its own
		if err != nil {
			for _, ln := range lns {
				_ = ln.Close()
			}
			return nil, fmt.Errorf("socket activation: descriptor %d: %w", fd, err)
		}
		if u, ok := ln.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false) // the path is systemd's
		}
		lns = append(lns, ln)
	}
	return lns, nil
}
