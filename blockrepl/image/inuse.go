package image

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// lockFile takes every lock by which others say that they have a file open: an
// open-file-description lock on all of it, which QEMU's tools and other servers
// of ours take, also within this process; flock, which scripts take; and it looks
// whether a loop device sits on it, which takes none.
func lockFile(f *os.File, path string) error {
	fd := int(f.Fd())
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &whole) })
	if err == nil {
		_, err = ignoringEINTR(func() (int, error) { return 0, unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	}
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w by %s", ErrInUse, fileHolder(f))
	}
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	if loop := loopOn(path); loop != "" {
		return fmt.Errorf("%w by loop device %s; detach it with losetup -d", ErrInUse, loop)
	}
	return nil
}

// loopOn gives the loop device that sits on the file, if any.
func loopOn(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == path {
			return "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(f)))
		}
	}
	return ""
}

// fileHolder words who has the same file open, as far as /proc shows it to us.
func fileHolder(f *os.File) string {
	st, err := f.Stat()
	if err != nil {
		return "another process"
	}
	want := st.Sys().(*syscall.Stat_t)
	return processWith(func(st *syscall.Stat_t) bool { return st.Dev == want.Dev && st.Ino == want.Ino }, int(f.Fd()))
}

// deviceHolder words who has claimed the device: a mount, a device on top, a process.
func deviceHolder(path string) string {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return "another process"
	}
	number := fmt.Sprintf("%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
	if at := mountedAt(number); at != "" {
		return "the file system mounted at " + at
	}
	if on, _ := filepath.Glob("/sys/dev/block/" + number + "/holders/*"); len(on) > 0 {
		return "device " + filepath.Base(on[0])
	}
	return processWith(func(o *syscall.Stat_t) bool {
		return o.Mode&syscall.S_IFMT == syscall.S_IFBLK && o.Rdev == st.Rdev
	}, -1)
}

func mountedAt(number string) string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) > 4 && w[2] == number {
			return w[4]
		}
	}
	return ""
}

// processWith finds a process with a descriptor that matches; own is ours, which
// does not count.
func processWith(match func(*syscall.Stat_t) bool, own int) string {
	pids, _ := filepath.Glob("/proc/[0-9]*")
	self := fmt.Sprint(os.Getpid())
	for i, dir := range pids {
		if i == holdersMax {
			break
		}
		fds, _ := os.ReadDir(dir + "/fd")
		pid := filepath.Base(dir)
		for _, fd := range fds {
			var st syscall.Stat_t
			if syscall.Stat(dir+"/fd/"+fd.Name(), &st) != nil || !match(&st) {
				continue
			}
			if pid == self && fd.Name() == fmt.Sprint(own) {
				continue
			}
			if pid == self {
				return "this process"
			}
			name, _ := os.ReadFile(dir + "/comm")
			return fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(name)))
		}
	}
	return "another process"
}
