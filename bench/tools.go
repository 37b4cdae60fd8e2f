package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// tools are the programs that bench runs and the Debian packages they are in.
var tools = []struct{ program, pkg string }{
	{"fio", "fio"},
	{"nbdkit", "nbdkit"},
	{"qemu-nbd", "qemu-utils"},
	{"qemu-storage-daemon", "qemu-system-common"},
	{"nbdcopy", "libnbd-bin"},
	{"nbdfuse", "libnbd-bin"},
	{"fusermount3", "fuse3"},
	{"mkfs.ext4", "e2fsprogs"},
	{"losetup", "mount"},
	{"ss", "iproute2"},
	{"tar", "tar"},
}

// installTools installs what is missing when it may, else says what to install.
func installTools(ctx context.Context) error {
	var missing []string
	for _, t := range tools {
		if _, err := exec.LookPath(t.program); err != nil {
			missing = append(missing, t.pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("programs are missing; as root: apt-get install %s", strings.Join(missing, " "))
	}
	fmt.Fprintln(os.Stderr, "bench: installing", strings.Join(missing, " "))
	if err := command(ctx, "apt-get", "update", "-qq"); err != nil {
		return err
	}
	args := append([]string{"install", "-y", "-qq", "--no-install-recommends"}, missing...)
	return command(ctx, "apt-get", args...)
}

// command runs a program to its end; the error holds what it said.
func command(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

// output is command with what it wrote to stdout.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("run %s %s: %w: %s", name, strings.Join(args, " "), err, lastLines(stderr.String(), 3))
	}
	return out, nil
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}

// blockreplBinary builds the program under test as it is released: static, stripped.
func blockreplBinary(ctx context.Context, o *options, pl *place) (string, error) {
	if o.binary != "" {
		return filepath.Abs(o.binary)
	}
	path := filepath.Join(pl.tmp, "blockrepl")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "github.com/blockrepl/blockrepl/cmd/blockrepl")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build blockrepl: %w: %s", err, lastLines(string(out), 5))
	}
	return path, nil
}
