package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/blockrepl/image"
	"golang.org/x/sys/unix"
)

// Comes from: config_check.go. Does: what can be said only by looking at this
// host, without changing it. Goes to: check, and serve before it opens anything.

// checkHost gives everything on this host that would stop a server with c, or one of
// its volumes.
func (c *Config) checkHost() []error {
	stops, images := c.checkStart()
	problems := append(stops, images...)
	if checkDataFree(c.Data) == nil { // else its server has the journal open
		problems = append(problems, c.checkSaved()...)
	}
	return problems
}

// checkStart is checkHost with what is wrong with images apart: each keeps its own
// volume from taking part, and the server only when no volume is left.
func (c *Config) checkStart() (stops, images []error) {
	var p, q problems
	p.add(checkWritableDir("data", c.Data))
	inUse := checkDataFree(c.Data)
	p.add(inUse)
	for _, v := range c.own() {
		if v.Image != "" && inUse == nil { // whoever has the data has the images too
			q.add(checkImage(v))
		}
	}
	c.checkFiles(&p)
	return p, q
}

// checkReload is checkHost for a server that runs already: what it holds itself, its
// data and the images that holds names, is in use by nobody else, and was judged before.
func (c *Config) checkReload(holds func(image string) bool) []error {
	var p problems
	p.add(checkWritableDir("data", c.Data))
	for _, v := range c.own() {
		if v.Image != "" && !holds(v.Image) {
			p.add(checkImage(v))
		}
	}
	c.checkFiles(&p)
	return p
}

func (c *Config) checkFiles(p *problems) {
	if _, err := nbdTLS(&c.NBDTLS); err != nil {
		p.add(err)
	}
	if _, err := peerTLS(&c.PeerTLS, c.Cluster); err != nil {
		p.add(err)
	}
	if _, _, err := c.NBDSocket.ids(); err != nil {
		p.add(err)
	}
}

// checkWritableDir asks for the nearest directory above path that exists: the
// rest is made at the first start.
func checkWritableDir(what, path string) error {
	for dir := path; ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir):
			continue
		case err != nil:
			return fmt.Errorf("%s %s: %w", what, path, err)
		case !st.IsDir():
			return fmt.Errorf("%s %s: %s is not a directory", what, path, dir)
		}
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			return fmt.Errorf("%s %s: %s is not writable for this user: %w", what, path, dir, err)
		}
		return nil
	}
}

// checkDataFree asks whether a server runs on the data directory, by the lock that
// it holds.
func checkDataFree(data string) error {
	f, err := os.Open(blockrepl.LockFile(data))
	if err != nil {
		return nil // not made yet; checkWritableDir has said what else is wrong
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("data %s is %w: its server runs (`blockrepl check --reload` says what it would make of a reload)", data, blockrepl.ErrInUse)
	}
	return nil
}

// checkImage looks at a volume's own image file or device. One that is not
// there is made, when it is to be a file.
func checkImage(v VolumeConfig) error {
	st, err := os.Stat(v.Image)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := image.MayCreate(v.Image); err != nil {
			return fmt.Errorf("volume %q: image: %w", v.Name, err)
		}
		return checkWritableDir(fmt.Sprintf("volume %q: image", v.Name), filepath.Dir(v.Image))
	case err != nil:
		return fmt.Errorf("volume %q: image: %w", v.Name, err)
	case st.Mode().IsRegular() || st.Mode().Type() == fs.ModeDevice:
		return checkImageFree(v, st)
	}
	return fmt.Errorf("volume %q: image %s is neither a file nor a block device", v.Name, v.Image)
}

// checkImageFree asks whether another process holds the image, the way the
// server will: a lock on a file, an exclusive open of a device.
func checkImageFree(v VolumeConfig, st fs.FileInfo) error {
	flags := os.O_RDONLY
	if !st.Mode().IsRegular() {
		flags |= unix.O_EXCL // on a block device without O_CREAT: fails when mounted or held
	}
	f, err := os.OpenFile(v.Image, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("volume %q: image %s is in use, mounted or held by another process: %w", v.Name, v.Image, err)
	}
	if err != nil {
		return fmt.Errorf("volume %q: image: %w", v.Name, err)
	}
	defer f.Close()
	if !st.Mode().IsRegular() {
		return nil
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err == nil && lock.Type != unix.F_UNLCK {
		return fmt.Errorf("volume %q: image %s is locked by another process", v.Name, v.Image)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("volume %q: image %s is locked by another process", v.Name, v.Image)
	}
	return nil
}

// ids looks up "user", "user:group" or ":group"; -1 = leave as it is.
func (s *SocketConfig) ids() (uid, gid int, err error) {
	uid, gid = -1, -1
	name, group, _ := strings.Cut(s.Owner, ":")
	if name != "" {
		u, err := user.Lookup(name)
		if err != nil {
			return -1, -1, fmt.Errorf("nbd_socket: owner: %w", err)
		}
		if uid, err = strconv.Atoi(u.Uid); err != nil {
			return -1, -1, fmt.Errorf("nbd_socket: owner %q: %w", name, err)
		}
	}
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			return -1, -1, fmt.Errorf("nbd_socket: owner: %w", err)
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return -1, -1, fmt.Errorf("nbd_socket: group %q: %w", group, err)
		}
	}
	return uid, gid, nil
}
