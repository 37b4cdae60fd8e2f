package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the operator's resize. Does: refuses what an image cannot take, here
// or on another server. Goes to: the state machine, which numbers the new size.
//
// Once it is numbered every server must take it, at each start again, and there is no
// way back: a size that no image can have, a slip of the keyboard, would fail them all
// for good. What happens between the answers and the number is not guarded against.

func handleResize(ctx context.Context, v *Volume, body io.Reader) (any, error) {
	var q ResizeRequest
	if err := readBody(body, &q); err != nil {
		return nil, err
	}
	if q.SizeBytes <= 0 || q.SizeBytes%512 != 0 || q.SizeBytes > record.MaxSize {
		return nil, fmt.Errorf("%w: size %d must be a multiple of 512 bytes", errBadRequest, q.SizeBytes)
	}
	warning, err := v.mayResize(ctx, q.SizeBytes, q.Force)
	if err != nil {
		return nil, err
	}
	_, err = v.command(ctx, func(id uint64) replica.Event { return replica.Resize{ID: id, Size: q.SizeBytes} })
	if err != nil {
		return nil, err
	}
	return ResizeReport{Volume: v.name, SizeBytes: q.SizeBytes, Warning: warning}, nil
}

// sizing are the questions under way.
type sizing struct {
	busy atomic.Bool // the image is examined for another server

	mu    sync.Mutex
	next  uint64
	waits map[uint64]chan *wire.SizeAnswer // by id; capacity 1 each
}

// mayResize refuses a size that a server cannot take, or, unless forced, may not be able
// to take. Forced, it gives what was gone past.
func (v *Volume) mayResize(ctx context.Context, size int64, force bool) (warning string, err error) {
	if size <= v.size.Load() {
		return "", nil // smaller or late: the state machine says it
	}
	answers, err := v.askSize(ctx, size)
	if err != nil {
		return "", err
	}
	var never, perhaps []string
	for _, a := range answers {
		switch text := fmt.Sprintf("server %v: %s", a.server, a.Reason); {
		case a.OK:
		case a.Force:
			perhaps = append(perhaps, text)
		default:
			never = append(never, text)
		}
	}
	doubts := strings.Join(perhaps, "; ")
	switch {
	case len(never) > 0:
		return "", fmt.Errorf("%w: not every server can have %d bytes, or be asked: %s", replica.ErrRefused, size, strings.Join(append(never, perhaps...), "; "))
	case len(perhaps) > 0 && !force:
		return "", fmt.Errorf("%w: %s; a server that cannot follow fails, and no volume gets smaller again; add --force if all of them will have room for %d bytes",
			replica.ErrRefused, doubts, size)
	}
	return doubts, nil
}

// sized is what is known of one server.
type sized struct {
	wire.SizeAnswer
	server record.ServerID
}

// askSize asks this server, then all other members at once; who does not answer within
// peer_timeout is in doubt.
func (v *Volume) askSize(ctx context.Context, size int64) ([]sized, error) {
	answers := []sized{{v.holds(size), v.s.opt.ID}}
	view, err := v.viewSoon(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, v.s.opt.PeerTimeout)
	defer cancel()
	var asked []func() sized
	for _, id := range view.Config.Members {
		if id != v.s.opt.ID {
			asked = append(asked, v.askSizeOf(ctx, &view, id, size))
		}
	}
	for _, answer := range asked {
		answers = append(answers, answer())
	}
	return answers, nil
}

// askSizeOf sends the question, and gives what waits for the answer. A slave without a
// link sends the operator to the master, even with force: that one may have it.
func (v *Volume) askSizeOf(ctx context.Context, view *replica.View, id record.ServerID, size int64) func() sized {
	unknown := func(why string) sized { return sized{wire.SizeAnswer{Force: true, Reason: why}, id} }
	var l *link
	if p := v.s.links.peers[id]; p != nil {
		l = p.cur.Load()
	}
	switch {
	case l == nil && view.Role != wire.RoleMaster:
		return func() sized {
			return sized{wire.SizeAnswer{Reason: fmt.Sprintf("there is no link to it from here, ask the master %v", view.Config.Master)}, id}
		}
	case l == nil:
		return func() sized { return unknown("there is no link to it, bring it back") }
	}
	n, answer := v.sizing.expect()
	l.out.control(v.tag, &wire.SizeQuery{ID: n, Size: size})
	return func() sized {
		defer v.sizing.unexpect(n)
		select {
		case m := <-answer:
			return sized{*m, id}
		case <-l.done:
			return unknown("the link to it was closed, try again")
		case <-ctx.Done():
			return unknown(fmt.Sprintf("it did not answer within %v, look at its status", v.s.opt.PeerTimeout))
		}
	}
}

// expect gives an id for a question, and where its answer will come.
func (z *sizing) expect() (uint64, <-chan *wire.SizeAnswer) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.waits == nil {
		z.waits = map[uint64]chan *wire.SizeAnswer{}
	}
	z.next++
	answer := make(chan *wire.SizeAnswer, 1)
	z.waits[z.next] = answer
	return z.next, answer
}

func (z *sizing) unexpect(id uint64) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.waits, id)
}

// deliver takes an answer; one that nobody waits for is dropped.
func (z *sizing) deliver(m *wire.SizeAnswer) {
	z.mu.Lock()
	answer := z.waits[m.ID]
	delete(z.waits, m.ID)
	z.mu.Unlock()
	if answer != nil {
		answer <- m
	}
}

// examine answers another server. The image waits for its disk, the link must not; one
// question at a time is enough for an operator.
func (v *Volume) examine(l *link, m *wire.SizeQuery) {
	if !v.sizing.busy.CompareAndSwap(false, true) {
		l.out.control(v.tag, &wire.SizeAnswer{ID: m.ID, Force: true, Reason: "its image is examined for another resize, try again"})
		return
	}
	v.wg.Go(func() {
		a := v.holds(m.Size)
		a.ID = m.ID
		v.sizing.busy.Store(false)
		l.out.control(v.tag, &a)
	})
}

// holds says whether this server's image can take a size.
func (v *Volume) holds(size int64) wire.SizeAnswer {
	if size <= v.size.Load() {
		return wire.SizeAnswer{OK: true}
	}
	if v.img == nil {
		return wire.SizeAnswer{Force: true, Reason: v.closed().Error()}
	}
	missing, err := v.img.Holds(size)
	switch {
	case err != nil:
		return wire.SizeAnswer{Force: !errors.Is(err, image.ErrSize), Reason: err.Error()}
	case missing > 0:
		return wire.SizeAnswer{Force: true, Reason: fmt.Sprintf("the file system of image %s lacks %d MiB to take all of it", v.img.Path(), missing>>20+1)}
	}
	return wire.SizeAnswer{OK: true}
}

// resizeImage gives the image another size, and shows how far it is: zeroing what a
// device grew by may take minutes, in which nothing else is applied, since records behind
// may write there. It cannot be done before the size is numbered, when the volume has no
// claim on these bytes.
func (v *Volume) resizeImage(size int64) error {
	progress, end := v.growing()
	defer end()
	return v.img.Resize(size, progress)
}

// growing shows zeroing as work, once there is some.
func (v *Volume) growing() (progress func(done, total int64), end func()) {
	var w *work
	progress = func(done, total int64) {
		if w == nil {
			w = v.begin("resize", total)
		}
		w.done.Store(done)
	}
	return progress, func() {
		if w != nil {
			v.end(w)
		}
	}
}
