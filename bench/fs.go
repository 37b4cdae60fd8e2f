package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// maxTreeMiB bounds the tree, so that it fits the disk with room to spare.
const maxTreeMiB = 100

// runTrees puts a file system on every peer through nbdfuse and a loop device, as a host without an NBD driver does,
// unpacks a real tree of files and flushes it. The tree is the Go sources: they are wherever bench can be built.
func (b *bench) runTrees(ctx context.Context) error {
	if !b.o.jobs.MatchString(treeJob) || len(b.peers) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		b.res.problem("%s: needs root for the loop device", treeJob)
		return nil
	}
	archive, err := b.packTree(ctx)
	if err != nil {
		return err
	}
	for round := range b.o.rounds {
		fmt.Fprintf(os.Stderr, "round %d/%d  %s\n", round+1, b.o.rounds, treeJob)
		for i := range b.peers {
			p := b.peers[(i+round)%len(b.peers)]
			s, err := b.sampleTree(ctx, round, archive, p)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				b.res.problem("%s on %s: %v", treeJob, p.name, err)
				continue
			}
			b.res.Samples = append(b.res.Samples, *s)
			fmt.Fprintf(os.Stderr, "  %-12s %6.2f s  CPU %.2f s  peer bytes a client byte %.2f\n", p.name, s.ElapsedSecond, s.cpu(), peerPerByte(s))
		}
	}
	return nil
}

// packTree makes the archive once, so that all peers unpack the same and none waits for the source.
func (b *bench) packTree(ctx context.Context) (string, error) {
	out, err := output(ctx, "go", "env", "GOROOT")
	if err != nil {
		return "", err
	}
	root := filepath.Join(strings.TrimSpace(string(out)), "src")
	archive := filepath.Join(b.place.tmp, "tree.tar")
	// cmd is the largest part; without it the tree is about half, which is enough for a quick run.
	args := []string{"-cf", archive, "-C", root}
	if b.o.quick {
		args = append(args, "--exclude=./cmd")
	}
	if err := command(ctx, "tar", append(args, ".")...); err != nil {
		return "", err
	}
	st, err := os.Stat(archive)
	if err != nil {
		return "", fmt.Errorf("pack tree: %w", err)
	}
	if limit := min(maxTreeMiB, b.o.sizeMiB*2/3) << 20; st.Size() > limit {
		// A cut archive unpacks up to the cut: tar complains, and unpack ignores that one complaint.
		return archive, os.Truncate(archive, limit)
	}
	return archive, nil
}

// sampleTree measures mkfs, mount, unpack and flush.
func (b *bench) sampleTree(ctx context.Context, round int, archive string, p *peer) (s *Sample, err error) {
	var undo []func() error
	defer func() {
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	file := p.file
	if p.uri != "" {
		var detach func() error
		if file, detach, err = b.fuse(p); err != nil {
			return nil, err
		}
		undo = append(undo, detach)
	}
	loopText, err := output(ctx, "losetup", "--find", "--show", file)
	if err != nil {
		return nil, err
	}
	loop := strings.TrimSpace(string(loopText))
	undo = append(undo, func() error { return cleanup("losetup", "-d", loop) })
	mnt, err := os.MkdirTemp(b.place.tmp, "mnt-")
	if err != nil {
		return nil, fmt.Errorf("make mount point: %w", err)
	}

	m, err := startMeter(ctx, b.place, p)
	if err != nil {
		return nil, err
	}
	stat := "/sys/block/" + filepath.Base(loop) + "/stat"
	before, err := deviceWritten(stat)
	if err != nil {
		return nil, err
	}
	s = &Sample{Round: round, Job: treeJob, Peer: p.name}
	began := time.Now()
	if err := command(ctx, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", loop); err != nil {
		return nil, err
	}
	if err := command(ctx, "mount", "-o", "noatime", loop, mnt); err != nil {
		return nil, err
	}
	undo = append(undo, func() error { return cleanup("umount", mnt) })
	if err := unpack(ctx, archive, mnt); err != nil {
		return nil, err
	}
	if err := command(ctx, "sync", "-f", mnt); err != nil {
		return nil, err
	}
	s.ElapsedSecond = time.Since(began).Seconds()
	after, err := deviceWritten(stat)
	if err != nil {
		return nil, err
	}
	s.ClientBytes = after - before
	s.BytesPerSec = float64(s.ClientBytes) / s.ElapsedSecond
	return s, m.stop(ctx, s)
}

// fuse makes the peer's disk a file by nbdfuse.
func (b *bench) fuse(p *peer) (file string, detach func() error, err error) {
	dir, err := os.MkdirTemp(b.place.tmp, "fuse-")
	if err != nil {
		return "", nil, fmt.Errorf("make mount point: %w", err)
	}
	proc, err := startProcess("nbdfuse", b.place.tmp, "nbdfuse", dir+"/nbd", p.uri)
	if err != nil {
		return "", nil, err
	}
	detach = func() error {
		err := cleanup("fusermount3", "-u", dir)
		proc.stop()
		return err
	}
	file = filepath.Join(dir, "nbd")
	for deadline := time.Now().Add(startWait); ; {
		if _, err := os.Stat(file); err == nil {
			return file, detach, nil
		}
		if err := proc.ended(); err != nil {
			return "", nil, err
		}
		if time.Now().After(deadline) {
			proc.stop()
			return "", nil, fmt.Errorf("nbdfuse shows no file after %s: %s", startWait, proc.lastWords())
		}
		time.Sleep(pollEvery)
	}
}

// unpack runs tar, which exits with 2 at the end of a cut archive.
func unpack(ctx context.Context, archive, dir string) error {
	err := command(ctx, "tar", "-xf", archive, "-C", dir)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 {
		return nil
	}
	return err
}
