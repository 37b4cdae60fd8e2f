package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What no server can have on the machine of a run, whatever it does.
//
// nbdkit answers a write that is nowhere but in the page cache; a server of ours answers when the logs of all copies are
// durable. What that costs, whoever does it, is measured here, and bounds the ratios to nbdkit. Reads are bounded by the client.

const (
	boundTime  = time.Second
	boundLog   = 64 << 20  // bytes of a log, written before: only its first pass would grow a file
	boundImage = 128 << 20 // bytes of an image
	boundSync  = 64 << 20  // bytes to an image between its fdatasyncs
)

// names of the special figures of the bound
func syncsFigure(copies int) string {
	return fmt.Sprintf("floor: 4 KiB and fdatasync, %d at once", copies)
}
func copiesFigure(copies int) string { return fmt.Sprintf("floor: 1 MiB durable, %d at once", copies) }

// syncFloor measures what 1 and 3 copies cost that are nothing but writes and fdatasyncs.
func (b *bench) syncFloor(ctx context.Context) error {
	for _, n := range []int{1, 3} {
		if err := b.syncFloorOf(ctx, n); err != nil {
			return fmt.Errorf("measure the syncs of %d copies: %w", n, err)
		}
	}
	return nil
}

func (b *bench) syncFloorOf(ctx context.Context, n int) (err error) {
	var copies []*bareCopy
	defer func() {
		for _, c := range copies {
			err = errors.Join(err, c.remove())
		}
	}()
	for i := range n {
		c, err := newBareCopy(filepath.Join(b.place.dir, fmt.Sprintf("bare%d", i)))
		if err != nil {
			return err
		}
		copies = append(copies, c)
	}
	rate, err := bestOf(func() (float64, error) { return perSecond(inTurns(ctx, copies)) })
	if err != nil {
		return err
	}
	b.res.special(syncsFigure(n), rate, "IOPS", "a block to each log, and the next when all are durable; the best of three times")
	rate, err = bestOf(func() (float64, error) { return perSecond(freely(ctx, copies)) })
	if err != nil {
		return err
	}
	b.res.special(copiesFigure(n), rate*bareLoad/float64(n)/1e6, "MB/s",
		"half of it to a log, fdatasync, then to the image; each copy by itself; the best of three times")
	return nil
}

func perSecond(turns int64, took time.Duration, err error) (float64, error) {
	return float64(turns) / took.Seconds(), err
}

// bareLoad is what one turn of a free copy writes to its image; half as much goes to the log.
const bareLoad = 1 << 20

// bareCopy is a copy of a disk without a server.
type bareCopy struct {
	log, image *os.File
	data       []byte
}

func newBareCopy(path string) (*bareCopy, error) {
	c := &bareCopy{data: make([]byte, bareLoad)}
	for i := range c.data {
		c.data[i] = byte(i * 7)
	}
	for _, f := range []struct {
		to   **os.File
		name string
		size int64
	}{{&c.log, ".log", boundLog}, {&c.image, ".img", boundImage}} {
		file, err := os.Create(path + f.name)
		if err != nil {
			return nil, errors.Join(err, c.remove())
		}
		*f.to = file
		for off := int64(0); off < f.size && err == nil; off += bareLoad {
			_, err = file.WriteAt(c.data, off)
		}
		if err = errors.Join(err, file.Sync()); err != nil {
			return nil, errors.Join(err, c.remove())
		}
	}
	return c, nil
}

func (c *bareCopy) remove() error {
	var err error
	for _, f := range []*os.File{c.log, c.image} {
		if f != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}
	return err
}

// append writes n bytes to the log as its turn k and makes them durable.
func (c *bareCopy) append(k, n int64) error {
	if _, err := c.log.WriteAt(c.data[:n], k%(boundLog/n)*n); err != nil {
		return err
	}
	return unix.Fdatasync(int(c.log.Fd()))
}

// inTurns appends 4 KiB to all logs at once, again and again, and counts the times.
func inTurns(ctx context.Context, copies []*bareCopy) (turns int64, took time.Duration, err error) {
	began := time.Now()
	done := make(chan error)
	next := make([]chan int64, len(copies))
	for i, c := range copies {
		next[i] = make(chan int64)
		go func() { // ends when next is closed
			for k := range next[i] {
				done <- c.append(k, 4096)
			}
		}()
		defer close(next[i])
	}
	for ; time.Since(began) < boundTime && err == nil; turns++ {
		for _, ch := range next {
			ch <- turns
		}
		for range next {
			err = errors.Join(err, <-done)
		}
		err = errors.Join(err, ctx.Err())
	}
	return turns, time.Since(began), err
}

// freely writes loads to all copies, none waiting for another, and counts them all.
func freely(ctx context.Context, copies []*bareCopy) (turns int64, took time.Duration, err error) {
	began := time.Now()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, c := range copies {
		wg.Go(func() {
			k, failed := int64(0), error(nil)
			for ; time.Since(began) < boundTime && failed == nil; k++ {
				failed = errors.Join(c.load(k), ctx.Err())
			}
			mu.Lock()
			defer mu.Unlock()
			turns += k
			err = errors.Join(err, failed)
		})
	}
	wg.Wait()
	return turns, time.Since(began), err
}

// load takes one load as a server does: durable in the log, then to the image.
func (c *bareCopy) load(k int64) error {
	if err := c.append(k, bareLoad/2); err != nil {
		return err
	}
	if _, err := c.image.WriteAt(c.data, k%(boundImage/bareLoad)*bareLoad); err != nil {
		return err
	}
	if k%(boundSync/bareLoad) == boundSync/bareLoad-1 {
		return unix.Fdatasync(int(c.image.Fd()))
	}
	return nil
}

// withSyncs is the most that nbdkit itself would reach, in parts of its figure in a job, if it waited for what the named
// floor counts before each answer and did all else for nothing. scale brings the floor to the unit of f.
func withSyncs(job string, f func(*Sample) float64, floor string, scale float64) func(*Result) float64 {
	return func(r *Result) float64 {
		rate, ok := r.specialValue(floor)
		if !ok {
			return math.NaN()
		}
		rate *= scale
		return rate / (rate + r.of(job, reference, f).median)
	}
}

// withClientOnly is the most that any server would reach, in parts of the better of theirs: what the client reaches by
// itself, one thread that never waits for an answer. Of the servers measured, that counts which let it do a request for the
// least CPU.
func withClientOnly(job string, f func(*Sample) float64, theirs ...string) func(*Result) float64 {
	return func(r *Result) float64 {
		alone, best := math.NaN(), math.NaN()
		for _, p := range r.measuredPeers() {
			alone = fmax(alone, r.of(job, p, func(s *Sample) float64 { return f(s) / clientBusy(s) }).median)
		}
		for _, p := range theirs {
			best = fmax(best, r.of(job, p, f).median)
		}
		return alone / best
	}
}

// clientBusy is the part of its time that the client, one thread, was running.
func clientBusy(s *Sample) float64 {
	if s.ClientCPU == 0 || s.Requests == 0 {
		return math.NaN()
	}
	return s.ClientCPU * s.IOPS / float64(s.Requests)
}

// fmax is the greater of what was measured.
func fmax(a, b float64) float64 {
	if math.IsNaN(a) || b > a {
		return b
	}
	return a
}
