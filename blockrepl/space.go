package blockrepl

import (
	"context"
	"math"
	"path/filepath"
	"sync"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the file systems below journal and images. Does: looks now and then
// how many bytes may still be promised. Goes to: each volume's state machine,
// which tells the master: it refuses clients with ENOSPC before any server's disk
// is full (rule 11). The journal and this room keep reserves of their own.

// imageReserve is what is left free on the images' file systems, in bytes, unless the
// images there cannot take as much any more; replica.SpaceReserve comes on top.
const imageReserve = 256 << 20

// keepBelow is the free space below which an image that is fully allocated stays so,
// in bytes: TRIM gives nothing back that others could take before it is written again.
const keepBelow = 2 * imageReserve

// spaceStep is the change that is worth an event, in bytes of a file system.
const spaceStep = 1 << 20

type spaceWatch struct {
	s *Server

	mu sync.Mutex // guards what follows, per volume
	// last is what was told to each volume.
	last map[*Volume]replica.Space
	// rooms is what each image was last known to take still.
	rooms map[*Volume]image.Room
}

func (w *spaceWatch) run(ctx context.Context) {
	t := time.NewTicker(spaceEvery)
	defer t.Stop()
	for {
		w.look() // at once: while they were opened not all were known that share
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// look tells the volumes whose free space changed.
func (w *spaceWatch) look() {
	// All before the first question: what is applied meanwhile may be in the answer or not.
	at := make([]record.Seq, len(w.s.volumes))
	for i, v := range w.s.volumes {
		at[i] = record.Seq(v.app.applied.Load())
	}
	byDir := map[string]int64{}
	for i, v := range w.s.volumes {
		free, room, takers := w.freeOf(v, byDir)
		now := replica.Space{Free: free, Image: wire.Room{Bytes: room, At: at[i]}}
		w.mu.Lock()
		old, told := w.last[v]
		// Each number counts against the room until a look has seen what it took.
		news := !told || now.Image.At != old.Image.At || far(free, old.Free, 1) || far(room, old.Image.Bytes, takers)
		if news {
			w.last[v] = now
		}
		w.mu.Unlock()
		if news {
			v.in.post(now)
		}
	}
}

func far(a, b, takers int64) bool { return a-b >= spaceStep/takers || b-a >= spaceStep/takers }

// share is what one of several images on a file system may take of the room there until
// the next look. A master waits, and refuses nothing, while more than this less
// SpaceReserve would be on its way: what all of them have on their way fits then, but for
// one change of each, of whatever size, which the reserve is for.
func share(room, takers int64) int64 {
	return min(room, replica.SpaceReserve) + max(0, room-replica.SpaceReserve)/takers
}

// dirOf is the directory in which an image lies, not that of a link to it. What does
// not lie on the host is taken by its name.
func dirOf(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return filepath.Dir(path)
}

// free is how many bytes a volume may still promise now.
func (w *spaceWatch) free(v *Volume) int64 {
	free, _, _ := w.freeOf(v, map[string]int64{})
	return free
}

// boundless is the room of an image that asks for none, in bytes.
const boundless = math.MaxInt64 / 4

// freeOf is free, and how much of that the image may take, uncompressed: its share, as one
// of takers. It asks each file system once; byDir holds the answers of this look.
func (w *spaceWatch) freeOf(v *Volume, byDir map[string]int64) (free, room, takers int64) {
	free = w.s.journal.Free()
	if v.img == nil || v.img.Device() {
		return max(1, free), boundless, 1 // all of it is allocated
	}
	dir := v.imageDir
	n, asked := byDir[dir]
	if !asked {
		var err error
		if n, err = w.s.opt.Files.Free(dir); err != nil {
			v.logr.Debug("free space not known", "dir", dir, "err", err)
			n = boundless
		}
		byDir[dir] = n
	}
	still, reserve, takers := w.reserve(v)
	v.img.KeepBlocks(still.Left == 0 && reserve < imageReserve && n < keepBelow)
	room = share(n-reserve, takers)
	if still.Left == 0 && still.Spare == 0 {
		room = boundless // it is only written to
	}
	// One byte is as good as none; zero means unknown in a peer's eyes.
	return max(1, min(free, n-reserve)), max(1, room), takers
}

// reserve is what must stay free below a volume's image, what the image may still take,
// and how many images there take something: no more is needed than they can ask for.
// What is allocated is only written to, and the numbers follow each TRIM that gives blocks
// back: then they must be had again. An image that answers no question just now is taken
// as it was.
func (w *spaceWatch) reserve(v *Volume) (still image.Room, need, takers int64) {
	room, ok := v.img.Room()
	w.mu.Lock()
	defer w.mu.Unlock()
	if ok {
		w.rooms[v] = room
	} else if room, ok = w.rooms[v]; !ok {
		return image.Room{Left: v.img.Size()}, imageReserve, int64(len(w.s.volumes)) + 1
	}
	need = room.Spare
	for _, r := range w.rooms {
		if r.FileSystem != room.FileSystem || r.Left == 0 && r.Spare == 0 {
			continue
		}
		takers++
		if room.Left > 0 { // the others there may be faster
			need += min(r.Left, imageReserve)
		}
	}
	return room, min(need, imageReserve), max(1, takers)
}
