package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// vmWait bounds the whole life of the virtual machine; emulation is slow.
const vmWait = 8 * time.Minute

// TestKernelClientOutlivesItsMaster attaches the volume with the kernel's own NBD
// driver in a virtual machine: by nbd-client, and by `blockrepl attach`, which
// keeps a mounted file system going. The master is killed under each.
func TestKernelClientOutlivesItsMaster(t *testing.T) {
	if os.Getenv("BLOCKREPL_VM") != "1" {
		t.Skip("takes minutes and downloads a kernel; BLOCKREPL_VM=1 runs it")
	}
	need(t, "qemu-system-x86_64", "apt-get", "cpio", "nbd-client", "mke2fs", "e2fsck")
	out := os.Getenv("BLOCKREPL_VM_DIR") // keeps what was downloaded
	if out == "" {
		out = t.TempDir()
	}
	t.Log(tool(t, "sh", "testdata/vm/build.sh", out, program))
	c := startCluster(t, setup{size: "256MiB", onDegraded: "continue"})
	var ports []string
	for _, s := range c.servers {
		ports = append(ports, s.nbd[strings.LastIndex(s.nbd, ":")+1:])
	}
	var dead *server
	vm := bootVM(t, out, "ports="+strings.Join(ports, ","))
	code := vm.converse(func(what string) string {
		switch what {
		case "kill":
			dead = c.master()
			began := time.Now()
			dead.kill()
			next := c.others(dead)[0]
			c.promote(next)
			t.Logf("%s killed, %s promoted after %v", dead.id, next.id, time.Since(began).Round(time.Millisecond))
			return next.nbd[strings.LastIndex(next.nbd, ":")+1:]
		case "mend":
			dead.start()
			c.awaitHealthy()
		}
		return "ok"
	})
	if code != "0" {
		t.Fatalf("the virtual machine ended with %q", code)
	}
	dead.start()
	c.awaitHealthy()
	c.finish()
}

// machine is a running virtual machine, spoken with over its serial console.
type machine struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	cancel context.CancelFunc
}

func bootVM(t *testing.T, dir, arguments string) *machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), vmWait)
	m := &machine{t: t, cancel: cancel}
	// hpet: on a busy host the guest measures its TSC wrongly and its clock runs away.
	m.cmd = exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-M", "q35,usb=off,sata=off",
		"-m", "768", "-smp", "2", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", filepath.Join(dir, "vmlinuz"), "-initrd", filepath.Join(dir, "initrd"),
		"-netdev", "user,id=n0,ipv6=off", "-device", "virtio-net-pci,netdev=n0,romfile=",
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1 nokaslr mitigations=off clocksource=hpet tsc=unstable no_timer_check net.ifnames=0 "+arguments)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	in, err := m.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	m.in, m.out = in, bufio.NewScanner(out)
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		m.cmd.Wait()
	})
	return m
}

// converse answers what the machine asks until it ends, and gives how it did.
func (m *machine) converse(answer func(what string) string) (code string) {
	m.t.Helper()
	var last []string
	for m.out.Scan() {
		line := strings.TrimRight(m.out.Text(), "\r")
		last = append(last, line)
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "VM-SAY":
			m.t.Log(rest)
		case "VM-ASK":
			fmt.Fprintln(m.in, answer(rest))
		case "VM-EXIT":
			code = rest
		}
	}
	if code != "0" {
		m.t.Logf("the end of the console:\n%s", strings.Join(last[max(0, len(last)-60):], "\n"))
	}
	return code
}
