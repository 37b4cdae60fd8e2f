package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// awayJob is the load in which servers die and come back.
const awayJob = "away"

// The target for the start after a crash is about so many bytes of kept records; a run with fewer does not judge it.
const (
	crashTarget      = 4 << 30
	crashStartTarget = "start after a crash with 4 GiB"
)

// runAway measures what happens around a failure, each from a real kill -9:
//
//	c dies, MISSED bytes are written → a and b die, start → first read      start after a crash
//	                                 → c starts → in sync                   catch-up
//	c dies, its disk is lost, c starts → in sync                            resync
//	a dies, b is promoted → first write                                     failover
func (b *bench) runAway(ctx context.Context) error {
	if !b.o.jobs.MatchString(awayJob) || !b.o.peers.MatchString("blockrepl-3") {
		return nil
	}
	b.stopPeers() // their memory is needed, and nobody else shall be on the processors
	if err := b.away(ctx); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.res.problem("%s: %v", awayJob, err)
	}
	return nil
}

func (b *bench) away(ctx context.Context) (err error) {
	dir, err := b.place.subdir(awayJob)
	if err != nil {
		return err
	}
	missedMiB := 4 * b.o.sizeMiB
	c, err := newCluster(b.binary, b.place.tmp, dir, clusterOptions{
		servers: 3, sizeBytes: b.o.sizeMiB << 20, onDegraded: "continue", keepBytes: 3 * missedMiB << 20})
	if err != nil {
		return err
	}
	defer func() {
		c.stop()
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	if err := c.up(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context, *cluster, int64) error{b.missed, b.crashStart, b.catchUp, b.resync, b.failover} {
		if err := step(ctx, c, missedMiB<<20); err != nil {
			return err
		}
	}
	return nil
}

// missed kills server c and writes what it will miss.
func (b *bench) missed(ctx context.Context, c *cluster, bytes int64) error {
	a := c.servers[0]
	if err := c.lose(ctx, c.servers[2]); err != nil {
		return err
	}
	began := time.Now()
	for range bytes / (b.o.sizeMiB << 20) {
		if err := command(ctx, "nbdcopy", "--allocated", b.content, a.uri()); err != nil {
			return err
		}
	}
	b.res.special("write while one is away", float64(bytes)/1e6/time.Since(began).Seconds(), "MB/s", "nbdcopy, two of three servers")
	return nil
}

// lose kills a server and waits until the master goes on without it.
func (c *cluster) lose(ctx context.Context, away *server) error {
	away.proc.kill()
	without := func(v *blockrepl.VolumeStatus) bool { return !slices.Contains(v.InSync, away.id) }
	return c.servers[0].await(ctx, "without "+away.id, without)
}

// crashStart kills what is left and measures the time to the first read. The kept records are all that c misses.
func (b *bench) crashStart(ctx context.Context, c *cluster, bytes int64) error {
	a, other := c.servers[0], c.servers[1]
	a.proc.kill()
	other.proc.kill()
	began := time.Now()
	for _, s := range []*server{a, other} {
		if err := c.start(s); err != nil {
			return err
		}
	}
	if _, err := firstAnswer(ctx, loopback(a.nbd), "vol0", cmdRead); err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	st, err := a.status(ctx)
	if err != nil {
		return err
	}
	kept := st.Volumes[0].JournalBytes
	note := fmt.Sprintf("both servers killed with %d MiB of kept records, %d MiB as the client wrote them; from start to the first read", kept>>20, bytes>>20)
	b.res.special("start after a crash", took, "s", note)
	if kept >= crashTarget {
		b.res.special(crashStartTarget, took, "s", note)
	}
	return c.settle(ctx)
}

// catchUp starts server c again.
func (b *bench) catchUp(ctx context.Context, c *cluster, bytes int64) error {
	return b.comeBack(ctx, c, "catch-up", bytes, fmt.Sprintf("%d MiB of kept records, client bytes a second", bytes>>20))
}

// resync takes server c its disk.
func (b *bench) resync(ctx context.Context, c *cluster, _ int64) error {
	away := c.servers[2]
	if err := c.lose(ctx, away); err != nil {
		return err
	}
	if err := os.RemoveAll(away.dir); err != nil {
		return fmt.Errorf("remove the data of %s: %w", away.id, err)
	}
	return b.comeBack(ctx, c, "resync", b.o.sizeMiB<<20, fmt.Sprintf("onto an empty disk, %d MiB of image", b.o.sizeMiB))
}

// comeBack starts server c and measures the time until it is in sync and has applied everything.
func (b *bench) comeBack(ctx context.Context, c *cluster, what string, bytes int64, note string) error {
	a, away := c.servers[0], c.servers[2]
	// What the steps before have left to the kernel's writeback is not the server's work.
	if err := command(ctx, "sync", "-f", b.place.dir); err != nil {
		return err
	}
	began := time.Now()
	if err := c.start(away); err != nil {
		return err
	}
	back := func(v *blockrepl.VolumeStatus) bool { return slices.Contains(v.InSync, away.id) }
	if err := a.await(ctx, "joined by "+away.id, back); err != nil {
		return errors.Join(err, away.proc.ended())
	}
	if err := away.await(ctx, "idle", idle); err != nil {
		return err
	}
	took := time.Since(began)
	b.res.special(what, float64(bytes)/1e6/took.Seconds(), "MB/s", note+fmt.Sprintf(", %.2f s from the start of the process", took.Seconds()))
	return nil
}

// failover kills the master and promotes a slave, as the operator does who knows that it is dead.
func (b *bench) failover(ctx context.Context, c *cluster, _ int64) error {
	old, err := c.master(ctx)
	if err != nil {
		return err
	}
	next := c.servers[0]
	if next == old {
		next = c.servers[1]
	}
	if err := c.awaitHealthy(ctx); err != nil {
		return err
	}
	old.proc.kill()
	killed := time.Now()
	var report blockrepl.PromoteReport
	if err := next.ask(ctx, http.MethodPost, "/v1/volumes/vol0/promote", blockrepl.PromoteRequest{OldMasterDead: true}, &report); err != nil {
		return err
	}
	if _, err := firstAnswer(ctx, loopback(next.nbd), "vol0", cmdWrite); err != nil {
		return err
	}
	b.res.special("failover", time.Since(killed).Seconds(), "s", "kill -9 of the master, promote at once, to the first answered write")
	return nil
}
