package main

import (
	"context"
	"sync"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/nbd"
)

// disk is a volume's connection in the words of package nbd: the one place where
// the two front doors meet. FUA asks for nothing more than every write has: it
// completes when it is durable on every in-sync server.
type disk struct {
	conn      *blockrepl.Conn
	admission *admission
}

var (
	_ nbd.Disk      = (*disk)(nil)
	_ nbd.NowReader = (*disk)(nil)
)

// ReadAt implements nbd.Disk.
func (d *disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	return clientError(d.conn.ReadAt(ctx, p, off))
}

// ReadNow implements nbd.NowReader.
func (d *disk) ReadNow(p []byte, off int64) (bool, error) {
	done, err := d.conn.ReadNow(p, off)
	return done, clientError(err)
}

// Alloc implements nbd.Disk.
func (d *disk) Alloc(n int) []byte { return d.conn.Alloc(n) }

// Free implements nbd.Disk.
func (d *disk) Free(p []byte) { d.conn.Free(p) }

// write carries one change from one door to the other. Pooled: nothing is
// allocated for a request in steady state.
type write struct {
	blockrepl.Write
	done func(error) // of the NBD request
}

var writes sync.Pool

func newWrite() *write {
	if w, ok := writes.Get().(*write); ok {
		return w
	}
	w := new(write)
	w.Write.Done = w.finish // bound once, it lives as long as w
	return w
}

// finish answers the request. Nobody touches w afterwards, so it may be reused.
func (w *write) finish(err error) {
	done := w.done
	w.done, w.Data = nil, nil
	writes.Put(w)
	done(clientError(err))
}

// Submit implements nbd.Disk.
func (d *disk) Submit(ctx context.Context, r *nbd.Write) {
	w := newWrite()
	w.Kind, w.Off, w.Len, w.Data, w.done = opKind(r), r.Off, r.Len, r.Data, r.Done
	d.conn.Submit(ctx, &w.Write)
}

// holeMin is the length, in bytes, from which zeroes become a hole where the client
// allows it. Shorter ones are cheaper to write, and a file of many holes slow to read.
const holeMin = 64 << 10

// opKind is what becomes of a request. Zeroes that need not keep their space become a
// hole, as a trim does: an allocated extent of zeroes counts as data once it was read.
func opKind(r *nbd.Write) blockrepl.OpKind {
	switch {
	case r.Op == nbd.OpTrim, r.Op == nbd.OpZero && !r.NoHole && r.Len >= holeMin:
		return blockrepl.OpTrim
	case r.Op == nbd.OpZero:
		return blockrepl.OpZero
	}
	return blockrepl.OpWrite
}

// Flush implements nbd.Disk.
func (d *disk) Flush(ctx context.Context) error { return clientError(d.conn.Flush(ctx)) }

// Cache implements nbd.Disk.
func (d *disk) Cache(ctx context.Context, off, n int64) error {
	return clientError(d.conn.Cache(ctx, off, n))
}

// Extents implements nbd.Disk.
func (d *disk) Extents(ctx context.Context, off, n int64, limit int) ([]nbd.Extent, error) {
	segments, err := d.conn.Extents(ctx, off, n, limit)
	if err != nil {
		return nil, clientError(err)
	}
	extents := make([]nbd.Extent, len(segments))
	for i, s := range segments {
		extents[i] = nbd.Extent{Len: s.Len(), Hole: s.Hole, Zero: s.Zero}
	}
	return extents, nil
}

// Close implements nbd.Disk.
func (d *disk) Close() error {
	d.admission.leave(d)
	return d.conn.Close()
}
