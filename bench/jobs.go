package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// job is one load.
type job struct {
	name  string
	about string
	quick bool // in -quick: the target table is about it
	rw    string
	bs    string
	depth int
	conns int
	fsync bool
	// incompressible: random data instead of half-compressible.
	incompressible bool
	floor          bool // the floor has a figure for it
}

// jobs are the loads in the order of the tables.
var jobs = []job{
	{name: "randwrite-4k-qd32", about: "4 KiB random write, depth 32", quick: true, rw: "randwrite", bs: "4k", depth: 32},
	{name: "randwrite-4k-qd1", about: "4 KiB random write, depth 1", quick: true, rw: "randwrite", bs: "4k", depth: 1, floor: true},
	{name: "randread-4k-qd32", about: "4 KiB random read, depth 32", quick: true, rw: "randread", bs: "4k", depth: 32},
	{name: "randread-4k-qd1", about: "4 KiB random read, depth 1", rw: "randread", bs: "4k", depth: 1, floor: true},
	{name: "fsync-4k-qd1", about: "4 KiB random write + fsync, depth 1", quick: true, rw: "randwrite", bs: "4k", depth: 1, fsync: true, floor: true},
	{name: "fsync-4k-qd32", about: "4 KiB random write + fsync, depth 32", rw: "randwrite", bs: "4k", depth: 32, fsync: true},
	{name: "seqwrite-1m-qd4", about: "1 MiB sequential write, depth 4", quick: true, rw: "write", bs: "1m", depth: 4, floor: true},
	{name: "seqread-1m-qd4", about: "1 MiB sequential read, depth 4", quick: true, rw: "read", bs: "1m", depth: 4, floor: true},
	{name: "mixed-4k-qd32", about: "4 KiB random, 70 % read, depth 32", rw: "randrw", bs: "4k", depth: 32},
	{name: "conns4-4k-qd8", about: "4 KiB random write, 4 connections, depth 8 each", rw: "randwrite", bs: "4k", depth: 8, conns: 4},
	{name: "random-4k-qd32", about: "4 KiB random write of incompressible data, depth 32", rw: "randwrite", bs: "4k", depth: 32, incompressible: true},
}

// treeJob is the load of fs.go, which goes through nbdfuse and no fio.
const treeJob = "tree"

func jobNames() string {
	names := make([]string, 0, len(jobs)+3)
	for _, j := range jobs {
		names = append(names, j.name)
	}
	return strings.Join(append(names, treeJob, awayJob, scaleJob), " ")
}

// bench is one run.
type bench struct {
	ctx     context.Context
	o       *options
	place   *place
	binary  string // of blockrepl
	content string // file that every disk is filled with
	res     *Result
	peers   []*peer
}

// runRounds starts the peers and asks them in turn.
func (b *bench) runRounds(ctx context.Context) error {
	b.ctx = ctx
	if err := b.makeContent(); err != nil {
		return err
	}
	if b.o.jobs.MatchString("floor") || b.o.peers.MatchString("floor") {
		if err := errors.Join(b.tcpFloor(ctx), b.syncFloor(ctx)); err != nil {
			return err
		}
	}
	var chosen []job
	for _, j := range jobs {
		if b.o.jobs.MatchString(j.name) && (j.quick || !b.o.quick) {
			chosen = append(chosen, j)
		}
	}
	if len(chosen) == 0 && !b.o.jobs.MatchString(treeJob) {
		return nil
	}
	for _, k := range kinds {
		if !b.o.peers.MatchString(k.name) {
			continue
		}
		p, err := b.startPeer(ctx, k)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			b.res.problem("%v", err)
			continue
		}
		b.peers = append(b.peers, p)
	}
	for round := range b.o.rounds {
		for _, j := range chosen {
			if err := b.runJob(ctx, round, j); err != nil {
				return err
			}
		}
	}
	return nil
}

// runJob asks each peer in turn; each round another one is first, so that none always comes after the same neighbour.
func (b *bench) runJob(ctx context.Context, round int, j job) error {
	fmt.Fprintf(os.Stderr, "round %d/%d  %s\n", round+1, b.o.rounds, j.name)
	for i := range b.peers {
		p := b.peers[(i+round)%len(b.peers)]
		if p.uri == "" && !j.floor {
			continue
		}
		s, err := b.sample(ctx, round, j, p)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			b.res.problem("%s on %s: %v", j.name, p.name, err)
			continue
		}
		b.res.Samples = append(b.res.Samples, *s)
		fmt.Fprintf(os.Stderr, "  %-12s %9.0f IOPS %8.1f MB/s  p50 %7.0f us  p99 %7.0f us  CPU %.2f s\n",
			p.name, s.IOPS, s.BytesPerSec/1e6, s.P50Micros, s.P99Micros, s.cpu())
	}
	return nil
}

// sample runs one load on one peer.
func (b *bench) sample(ctx context.Context, round int, j job, p *peer) (*Sample, error) {
	m, err := startMeter(ctx, b.place, p)
	if err != nil {
		return nil, err
	}
	s := &Sample{Round: round, Job: j.name, Peer: p.name}
	began := time.Now()
	if err := b.profileJob(ctx, j, p, func() error { return b.runFio(ctx, j, p, s) }); err != nil {
		return nil, err
	}
	s.ElapsedSecond = time.Since(began).Seconds()
	return s, m.stop(ctx, s)
}

// stopPeers ends all peers.
func (b *bench) stopPeers() {
	for _, p := range b.peers {
		b.drop(p)
	}
	b.peers = nil
}

// makeContent writes the file that every disk is filled with: as large as the volume, every 4 KiB half random and half
// zero, which is about what compressors make of real data.
func (b *bench) makeContent() error {
	b.content = filepath.Join(b.place.tmp, "content")
	f, err := os.Create(b.content)
	if err != nil {
		return fmt.Errorf("make content: %w", err)
	}
	defer f.Close()
	random := rand.NewChaCha8([32]byte{1}) // the same in every run
	buf := make([]byte, 1<<20)
	for range b.o.sizeMiB {
		fillHalf(random, buf)
		if _, err := f.Write(buf); err != nil {
			return fmt.Errorf("make content: %w", err)
		}
	}
	return nil
}

// fillHalf makes the first half of every 4 KiB random.
func fillHalf(random *rand.ChaCha8, buf []byte) {
	for at := 0; at < len(buf); at += 4096 {
		random.Read(buf[at:min(at+2048, len(buf))])
	}
}
