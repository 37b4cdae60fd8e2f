package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"time"
)

// scaleJob is what grows: the volume, their number, the connections.
const scaleJob = "scale"

// Sizes of the scale runs. ext4 ends just below 16 TiB, so a file there cannot be larger than this.
const (
	smallVolume = 1 << 30
	largeVolume = 15 << 40
	memoryVol   = 1 << 40
	manyVolumes = 200
	manyConns   = 500
)

// runScale measures that cost grows with the work and not with the volume.
func (b *bench) runScale(ctx context.Context) error {
	if b.o.quick || !b.o.jobs.MatchString(scaleJob) || !b.o.peers.MatchString("blockrepl-1") {
		return nil
	}
	b.stopPeers()
	for _, step := range []func(context.Context) error{
		func(ctx context.Context) error { return b.lifeOf(ctx, "1 GiB volume", smallVolume) },
		func(ctx context.Context) error { return b.lifeOf(ctx, "15 TiB volume", largeVolume) },
		b.memoryUnderLoad, b.volumes, b.connections,
	} {
		if err := step(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			b.res.problem("%s: %v", scaleJob, err)
		}
	}
	return nil
}

// oneServer runs f with a fresh server that is up.
func (b *bench) oneServer(ctx context.Context, o clusterOptions, f func(*cluster, *server) error) (err error) {
	dir, err := b.place.subdir(scaleJob)
	if err != nil {
		return err
	}
	o.servers, o.onDegraded = 1, "suspend"
	if o.keepBytes == 0 {
		o.keepBytes = benchKeep
	}
	c, err := newCluster(b.binary, b.place.tmp, dir, o)
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
	return f(c, c.servers[0])
}

// lifeOf measures stop, start and a short load of a volume that was written all over.
func (b *bench) lifeOf(ctx context.Context, name string, size int64) error {
	return b.oneServer(ctx, clusterOptions{sizeBytes: size}, func(c *cluster, s *server) error {
		if err := b.scatter(ctx, s, size); err != nil {
			return err
		}
		began := time.Now()
		s.proc.stop()
		b.res.special(name+": stop", time.Since(began).Seconds(), "s", "SIGTERM to the end, after writes all over it")
		began = time.Now()
		if err := c.start(s); err != nil {
			return err
		}
		if _, err := firstAnswer(ctx, loopback(s.nbd), "vol0", cmdRead); err != nil {
			return err
		}
		b.res.special(name+": start", time.Since(began).Seconds(), "s", "to the first read")
		var sample Sample
		p := &peer{uri: s.uri()}
		if err := b.runFio(ctx, jobs[0], p, &sample); err != nil {
			return err
		}
		b.res.special(name+": random write", sample.IOPS, "IOPS", jobs[0].about)
		return b.peak(name+": peak memory", s)
	})
}

// scatter writes 4096 blocks all over the volume, one after the other.
func (b *bench) scatter(ctx context.Context, s *server, size int64) error {
	p, err := openProbe(ctx, loopback(s.nbd), "vol0")
	if err != nil {
		return err
	}
	defer p.close()
	random, data := rand.New(rand.NewPCG(1, uint64(size))), make([]byte, 4096)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	for range 4096 {
		if err := p.do(cmdWrite, random.Int64N(size/4096)*4096, data); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) peak(name string, s *server) error {
	bytes, err := peakMemory(s.proc.pid())
	if err == nil {
		b.res.special(name, float64(bytes)/(1<<20), "MiB", "most resident memory since its start")
	}
	return err
}

// memoryUnderLoad is a large sparse volume with four connections of 32 requests each.
func (b *bench) memoryUnderLoad(ctx context.Context) error {
	return b.oneServer(ctx, clusterOptions{sizeBytes: memoryVol}, func(c *cluster, s *server) error {
		var sample Sample
		p := &peer{uri: s.uri()}
		for _, j := range []job{
			{name: "load", rw: "randwrite", bs: "4k", depth: 32, conns: 4},
			{name: "load", rw: "randwrite", bs: "1m", depth: 8, conns: 2},
			{name: "load", rw: "randread", bs: "1m", depth: 32, conns: 2},
		} {
			if err := b.runFio(ctx, j, p, &sample); err != nil {
				return err
			}
		}
		return b.peak("1 TiB volume: peak memory", s)
	})
}

// volumes starts, writes and stops many volumes on one server.
func (b *bench) volumes(ctx context.Context) error {
	o := clusterOptions{sizeBytes: smallVolume, volumes: manyVolumes, keepBytes: 64 << 20}
	return b.oneServer(ctx, o, func(c *cluster, s *server) error {
		for i := range manyVolumes {
			if err := tryOnce(ctx, loopback(s.nbd), fmt.Sprintf("vol%d", i), cmdWrite, make([]byte, 4096)); err != nil {
				return fmt.Errorf("volume %d: %w", i, err)
			}
		}
		s.proc.kill()
		began := time.Now()
		if err := c.start(s); err != nil {
			return err
		}
		if err := c.awaitHealthy(ctx); err != nil {
			return err
		}
		b.res.special(fmt.Sprintf("%d volumes: start", manyVolumes), time.Since(began).Seconds(), "s", "after kill -9, until all are healthy")
		if err := b.idleCPU(fmt.Sprintf("%d volumes: idle", manyVolumes), s); err != nil {
			return err
		}
		return b.peak(fmt.Sprintf("%d volumes: peak memory", manyVolumes), s)
	})
}

// idleCPU is what a server uses while nobody asks anything.
func (b *bench) idleCPU(name string, s *server) error {
	const idle = 3 * time.Second
	before, err := readUsage(s.proc.pid())
	if err != nil {
		return err
	}
	time.Sleep(idle)
	after, err := readUsage(s.proc.pid())
	if err == nil {
		b.res.special(name, (after.cpu-before.cpu).Seconds()/idle.Seconds()*100, "% CPU", "of one core, nobody asks")
	}
	return err
}

// connections opens many at once and uses each.
func (b *bench) connections(ctx context.Context) error {
	if err := raiseFileLimit(); err != nil {
		return err
	}
	o := clusterOptions{sizeBytes: smallVolume, connections: manyConns + 10}
	return b.oneServer(ctx, o, func(c *cluster, s *server) error {
		began := time.Now()
		probes := make([]*probe, 0, manyConns)
		defer func() {
			for _, p := range probes {
				p.close()
			}
		}()
		for range manyConns {
			p, err := openProbe(ctx, loopback(s.nbd), "vol0")
			if err != nil {
				return fmt.Errorf("connection %d: %w", len(probes), err)
			}
			probes = append(probes, p)
		}
		for round := range 4 {
			for i, p := range probes {
				if err := p.do(cmdWrite, int64(round*manyConns+i)*4096, make([]byte, 4096)); err != nil {
					return fmt.Errorf("connection %d: %w", i, err)
				}
			}
		}
		b.res.special(fmt.Sprintf("%d connections", manyConns), time.Since(began).Seconds(), "s", "to open them one by one and write 4 blocks through each")
		return b.peak(fmt.Sprintf("%d connections: peak memory", manyConns), s)
	})
}

// raiseFileLimit lets this process, and the servers it starts, hold that many connections.
func raiseFileLimit() error {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	if r.Max < 4*manyConns {
		return fmt.Errorf("only %d open files are allowed, %d connections need %d: raise ulimit -n", r.Max, manyConns, 4*manyConns)
	}
	r.Cur = r.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return fmt.Errorf("raise the limit of open files to %d: %w", r.Max, err)
	}
	return nil
}
