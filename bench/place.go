package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// place is where the servers keep their data: an ext4 on a loop device whose file is in memory (root), so that the
// software is measured and not the disk; or BENCH_DIR, so that the disk is; or a plain directory.
type place struct {
	dir  string // of the data
	tmp  string // of everything else: program, logs, sockets
	kind string // for the report

	stat string         // of the block device below, "" when there is none
	undo []func() error // in the order to be run backwards
}

// givenPlace begins the kind of a place that was given, and so may be a disk.
const givenPlace = "the file system of "

// newPlace makes the file system. close removes all of it.
func newPlace(ctx context.Context, o *options) (pl *place, err error) {
	tmp, err := os.MkdirTemp("", "blockrepl-bench-")
	if err != nil {
		return nil, fmt.Errorf("make temporary directory: %w", err)
	}
	pl = &place{tmp: tmp}
	pl.onClose(func() error { return os.RemoveAll(tmp) })
	defer func() {
		if err != nil {
			err = errors.Join(err, pl.close())
		}
	}()
	if given := os.Getenv("BENCH_DIR"); given != "" {
		return pl, pl.useDirectory(given, givenPlace+given)
	}
	if os.Geteuid() != 0 {
		return pl, pl.useDirectory(tmp, "a plain directory (root gets a RAM-backed ext4)")
	}
	if err := pl.mountRAM(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench: no RAM-backed ext4, using a plain directory:", err)
		return pl, pl.useDirectory(tmp, "a plain directory")
	}
	return pl, nil
}

func (pl *place) onClose(f func() error) { pl.undo = append(pl.undo, f) }

// close undoes everything, last first. It goes on after an error: a mount left behind holds memory.
func (pl *place) close() error {
	var errs []error
	for i := len(pl.undo) - 1; i >= 0; i-- {
		errs = append(errs, pl.undo[i]())
	}
	pl.undo = nil
	return errors.Join(errs...)
}

func (pl *place) useDirectory(parent, kind string) error {
	dir, err := os.MkdirTemp(parent, "data-")
	if err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	pl.onClose(func() error { return os.RemoveAll(dir) })
	pl.dir, pl.kind = dir, kind
	pl.findDevice()
	return nil
}

// mountRAM builds tmpfs → file → loop device → ext4. ext4 straight from tmpfs does not exist, and tmpfs itself is no
// judge: it has no journal, no fsync and no block layer.
func (pl *place) mountRAM(ctx context.Context, o *options) error {
	ram, dir := filepath.Join(pl.tmp, "ram"), filepath.Join(pl.tmp, "data")
	for _, d := range []string{ram, dir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
	}
	// Twelve copies of the volume, journals, and the cluster of away.go; the file is sparse, so unused room costs nothing.
	sizeMiB := 24*o.sizeMiB + 12<<10
	if err := command(ctx, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", sizeMiB), "blockrepl-bench", ram); err != nil {
		return err
	}
	pl.onClose(func() error { return cleanup("umount", "-l", ram) })
	file := filepath.Join(ram, "disk")
	if err := command(ctx, "truncate", "-s", fmt.Sprintf("%dM", sizeMiB), file); err != nil {
		return err
	}
	out, err := output(ctx, "losetup", "--find", "--show", file)
	if err != nil {
		return err
	}
	loop := strings.TrimSpace(string(out))
	pl.onClose(func() error { return cleanup("losetup", "-d", loop) })
	if err := command(ctx, "mkfs.ext4", "-q", "-E", "nodiscard", loop); err != nil {
		return err
	}
	if err := command(ctx, "mount", "-o", "noatime,discard", loop, dir); err != nil {
		return err
	}
	pl.onClose(func() error { return cleanup("umount", "-l", dir) })
	pl.dir, pl.kind = dir, "ext4 on a loop device in memory"
	pl.findDevice()
	return nil
}

// findDevice finds the statistics of the block device; overlays and network file systems have none.
func (pl *place) findDevice() {
	var st unix.Stat_t
	if err := unix.Stat(pl.dir, &st); err != nil {
		return
	}
	path := fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev))
	if _, err := os.Stat(path); err == nil {
		pl.stat = path
	}
}

// written flushes the file system and gives what its device has ever written, in bytes; 0 when that cannot be known.
func (pl *place) written(ctx context.Context) (int64, error) {
	if err := command(ctx, "sync", "-f", pl.dir); err != nil || pl.stat == "" {
		return 0, err
	}
	return deviceWritten(pl.stat)
}

// cleanup runs a command although the run may have been cancelled.
func cleanup(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("clean up: %s %s: %w: %s", name, strings.Join(args, " "), err, lastLines(string(out), 1))
	}
	return nil
}

// subdir makes a fresh directory for one peer's data.
func (pl *place) subdir(name string) (string, error) {
	dir, err := os.MkdirTemp(pl.dir, name+"-")
	if err != nil {
		return "", fmt.Errorf("make directory for %s: %w", name, err)
	}
	return dir, nil
}
