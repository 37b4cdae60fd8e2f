package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Comes from: a configuration that is good. Does: compares what its images may come
// to with what their file systems have. Goes to: check and the start of serve, which
// say it and go on: images are sparse, and file systems grow.

// roomMin is the least free space that a server can work with, in bytes: the journal
// and the images keep reserves of 384 and 256 MiB, which may be the same, and a master 16 MiB more.
const roomMin = 400 << 20

// room is what is asked of one file system.
type room struct {
	path string // the first one there
	free int64  // bytes
	grow int64  // bytes that its images may still take
}

// cramped gives a line for each file system that may come to ENOSPC.
func (c *Config) cramped() []string {
	var rooms []*room
	byID := map[uint64]*room{}
	at := func(path string) *room {
		id, free, err := fileSystemOf(path)
		if err != nil {
			return &room{} // checkHost says what is wrong with the path
		}
		if byID[id] == nil {
			byID[id] = &room{path: path, free: free}
			rooms = append(rooms, byID[id])
		}
		return byID[id]
	}
	at(c.Data) // the journal's
	for _, v := range c.own() {
		if path := v.imagePath(c.Data); !strings.HasPrefix(path, "/dev/") {
			at(path).grow += leftToTake(path, int64(v.Size))
		}
	}
	var lines []string
	for _, r := range rooms {
		switch {
		case r.free < roomMin:
			lines = append(lines, fmt.Sprintf("the file system of %s has %s free, less than the %s that are kept in reserve; clients that write get ENOSPC",
				r.path, humanBytes(r.free), humanBytes(roomMin)))
		case r.grow > r.free-roomMin:
			lines = append(lines, fmt.Sprintf("the file system of %s has %s free, and the images there may take %s more; when it is full clients that write get ENOSPC",
				r.path, humanBytes(r.free), humanBytes(r.grow)))
		}
	}
	return lines
}

// leftToTake is how much an image of size bytes does not take yet.
func leftToTake(path string, size int64) int64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return size // to be made
	}
	return max(0, max(size, st.Size)-st.Blocks*512)
}

// fileSystemOf asks the nearest directory above path that exists.
func fileSystemOf(path string) (id uint64, free int64, err error) {
	var st unix.Stat_t
	for err = unix.Stat(path, &st); errors.Is(err, unix.ENOENT) && path != filepath.Dir(path); err = unix.Stat(path, &st) {
		path = filepath.Dir(path)
	}
	var on unix.Statfs_t
	if err == nil {
		err = unix.Statfs(path, &on)
	}
	return st.Dev, int64(on.Bavail) * int64(on.Bsize), err
}
