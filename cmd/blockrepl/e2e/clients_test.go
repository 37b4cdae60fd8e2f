package e2e

import (
	"context"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// toolWait bounds one run of somebody else's program.
const toolWait = 2 * time.Minute

// tool runs somebody else's program and fails the test when it fails.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := tryTool(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func tryTool(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), toolWait)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// randomFile makes a file of random bytes with a hole in its middle.
func randomFile(t *testing.T, dir, name string, mib int) string {
	t.Helper()
	path := filepath.Join(dir, name)
	tool(t, "dd", "if=/dev/urandom", "of="+path, "bs=1M", "count="+strconv.Itoa(mib/2), "status=none")
	tool(t, "dd", "if=/dev/urandom", "of="+path, "bs=1M", "count="+strconv.Itoa(mib/4), "seek="+strconv.Itoa(mib-mib/4), "conv=notrunc", "status=none")
	return path
}

// TestClientsOfOthers runs the programs that people use with NBD servers at the
// master and at a slave.
func TestClientsOfOthers(t *testing.T) {
	need(t, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "fio", "dd", "cmp")
	c := startCluster(t, setup{size: "64MiB"})
	m := c.master()
	for _, at := range []struct {
		role string
		s    *server
	}{{"master", m}, {"slave", c.others(m)[0]}} {
		uri := at.s.uri("client=tools")
		t.Run(at.role+"/nbdinfo", func(t *testing.T) { nbdinfo(t, at.s, uri) })
		t.Run(at.role+"/nbdcopy", func(t *testing.T) { nbdcopy(t, uri) })
		t.Run(at.role+"/qemu-io", func(t *testing.T) { qemuIO(t, uri) })
		t.Run(at.role+"/qemu-img", func(t *testing.T) { qemuImg(t, uri) })
		t.Run(at.role+"/fio", func(t *testing.T) { fioVerify(t, uri) })
	}
	c.finish()
}

func nbdinfo(t *testing.T, s *server, uri string) {
	if size := strings.TrimSpace(tool(t, "nbdinfo", "--size", uri)); size != "67108864" {
		t.Errorf("size %s, want 67108864", size)
	}
	for _, can := range []string{"flush", "fua", "trim", "zero", "df", "cache", "multi-conn"} {
		tool(t, "nbdinfo", "--can", can, uri)
	}
	if out, err := tryTool("nbdinfo", "--is", "read-only", uri); err == nil {
		t.Errorf("the export is read-only: %s", out)
	}
	if out := tool(t, "nbdinfo", "--json", uri); !strings.Contains(out, `"base:allocation"`) || !strings.Contains(out, `"structured": true`) {
		t.Errorf("nbdinfo --json: want base:allocation and structured replies: %s", out)
	}
	if out := tool(t, "nbdinfo", "--list", "nbd://"+s.nbd); !strings.Contains(out, `export="vol0"`) {
		t.Errorf("nbdinfo --list: want vol0: %s", out)
	}
	if out, err := tryTool("nbdinfo", "nbd://"+s.nbd+"/other"); err == nil {
		t.Errorf("an unknown export was opened: %s", out)
	}
	if size := strings.TrimSpace(tool(t, "nbdinfo", "--size", "nbd://"+s.nbd)); size != "67108864" {
		t.Errorf("size of the empty name %s, want 67108864", size)
	}
}

func nbdcopy(t *testing.T, uri string) {
	dir := t.TempDir()
	in, out := randomFile(t, dir, "in", 64), filepath.Join(dir, "out")
	tool(t, "nbdcopy", "--connections=4", "--requests=16", in, uri)
	tool(t, "nbdcopy", "--connections=4", "--requests=16", uri, out)
	tool(t, "cmp", in, out)
	if m := tool(t, "nbdinfo", "--map", uri); !strings.Contains(m, "hole,zero") || !strings.Contains(m, "data") {
		t.Errorf("nbdinfo --map: want data and the file's hole: %s", m)
	}
}

func qemuIO(t *testing.T, uri string) {
	for name, commands := range map[string][]string{
		"pattern":           {"write -P 0xa5 0 1M", "read -P 0xa5 0 1M"},
		"unaligned":         {"write -P 0x11 0 64k", "write -P 0x22 511 513", "read -P 0x11 0 511", "read -P 0x22 511 513", "read -P 0x11 1024 1024"},
		"fua":               {"write -f -P 0x33 1M 64k", "read -P 0x33 1M 64k"},
		"zeroes, unmap":     {"write -P 0x44 2M 1M", "write -z -u 2M 512k", "read -P 0 2M 512k", "read -P 0x44 2560k 512k"},
		"zeroes, no unmap":  {"write -P 0x55 3M 1M", "write -z 3M 64k", "read -P 0 3M 64k"},
		"discard and flush": {"write -P 0x66 4M 1M", "discard 4M 512k", "flush", "read -P 0x66 4608k 512k"},
		"last sector":       {"write -P 0x77 67108352 512", "read -P 0x77 67108352 512"},
		"vectors":           {"writev -P 0x88 8M 4k 8k 16k", "readv -P 0x88 8M 28k"},
		"at once":           {"aio_write -P 1 16M 1M", "aio_write -P 2 17M 1M", "aio_write -P 3 18M 1M", "aio_flush", "read -P 1 16M 1M", "read -P 3 18M 1M"},
		"32 MiB request":    {"write -P 0x99 32M 32M", "read -P 0x99 32M 32M"},
	} {
		args := []string{"-f", "raw", uri}
		for _, command := range commands {
			args = append(args, "-c", command)
		}
		if out := tool(t, "qemu-io", args...); strings.Contains(out, "failed") || strings.Contains(out, "rror") {
			t.Errorf("%s: %s", name, out)
		}
	}
	if out, err := tryTool("qemu-io", "-f", "raw", uri, "-c", "write 67108864 512"); err == nil && !strings.Contains(out, "rror") {
		t.Errorf("a write past the end was taken: %s", out)
	}
}

func qemuImg(t *testing.T, uri string) {
	dir := t.TempDir()
	in, out := randomFile(t, dir, "in", 64), filepath.Join(dir, "out.qcow2")
	tool(t, "qemu-img", "convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", in, uri)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, uri)
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, out)
	tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", out, in)
	if m := tool(t, "qemu-img", "map", "-f", "raw", "--output=json", uri); !strings.Contains(m, `"zero": true`) || !strings.Contains(m, `"data": true`) {
		t.Errorf("qemu-img map: want data and zeroes: %s", m)
	}
	tool(t, "qemu-img", "bench", "-w", "-c", "2000", "-d", "32", "-s", "4096", "-f", "raw", uri)
	tool(t, "qemu-img", "bench", "-w", "-c", "1000", "-d", "16", "-s", "4096", "--flush-interval=16", "-f", "raw", uri)
}

func fioVerify(t *testing.T, uri string) {
	dir := t.TempDir() // fio leaves state files where it runs
	for name, args := range map[string]string{
		"sequential":     "--rw=write --bs=64k --iodepth=16 --size=32M --verify=crc32c",
		"random":         "--rw=randwrite --bs=4k --iodepth=32 --size=16M --verify=sha1",
		"mixed sizes":    "--rw=randwrite --bsrange=512-128k --blockalign=512 --iodepth=16 --size=24M --verify=md5 --serialize_overlap=1",
		"read back soon": "--rw=randwrite --bs=4k --iodepth=16 --size=8M --io_size=16M --norandommap=0 --verify=crc32c --verify_backlog=256",
		"with fsync":     "--rw=randrw --rwmixread=30 --bs=4k --iodepth=8 --size=8M --fsync=32 --verify=crc32c",
		"trim and write": "--rw=randtrimwrite --bs=4k --iodepth=8 --size=8M",
		"two jobs":       "--numjobs=2 --offset_increment=32M --size=32M --rw=randwrite --bs=4k --iodepth=16 --verify=crc32c --io_size=8M",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), toolWait)
		cmd := exec.CommandContext(ctx, "fio", append([]string{"--ioengine=nbd", "--uri=" + uri, "--thread=1", "--name=v",
			"--verify_fatal=1", "--eta=never", "--minimal"}, strings.Fields(args)...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("fio, %s: %v\n%s", name, err, out)
		}
		cancel()
	}
}
