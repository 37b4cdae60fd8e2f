package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"golang.org/x/sys/unix"
)

// Comes from: a configuration that is good. Does: compares what its images may come
// to with what their file systems have. Goes to: check and the start of serve, which
// say it and go on: images are sparse, and file systems grow.

// What is kept free, in bytes: by the journal; by the images of a file system, unless
// they cannot take as much any more. replica.SpaceReserve comes on top.
const (
	journalReserve = 384 << 20
	imageReserve   = 256 << 20
)

// room is what is asked of one file system.
type room struct {
	path    string // the first one there
	free    int64  // bytes
	grow    int64  // bytes that its images may still take
	spare   int64  // bytes that they may take for what they have
	journal int64  // bytes that the journal keeps free, 0: it is elsewhere
}

// keep is how much must be free now; full is how much when the images have all.
func (r *room) keep() int64 {
	return replica.SpaceReserve + max(r.journal, min(r.grow+r.spare, imageReserve))
}
func (r *room) full() int64 { return replica.SpaceReserve + max(r.journal, min(r.spare, imageReserve)) }

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
	at(c.Data).journal = journalReserve
	for _, v := range c.own() {
		if path := v.imagePath(c.Data); !strings.HasPrefix(path, "/dev/") {
			left, r := image.RoomOf(path, int64(v.Size)), at(path)
			r.grow += left.Left
			r.spare = max(r.spare, left.Spare)
		}
	}
	var lines []string
	for _, r := range rooms {
		switch {
		case r.free < r.keep():
			lines = append(lines, fmt.Sprintf("the file system of %s has %s free, less than the %s that are kept in reserve; clients that write get ENOSPC",
				r.path, humanBytes(r.free), humanBytes(r.keep())))
		case r.grow > r.free-r.full():
			lines = append(lines, fmt.Sprintf("the file system of %s has %s free, and the images there may take %s more; when it is full clients that write get ENOSPC",
				r.path, humanBytes(r.free), humanBytes(r.grow)))
		}
	}
	return lines
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
