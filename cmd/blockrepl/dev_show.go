package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// devPorts finds the lowest base, 10809 or hundreds above, at which all ports of
// all servers are free. A port may be taken between this and its use: then that
// server says so.
func devPorts() (base int, err error) {
	for move := range devPortMoves {
		base = 10809 + 100*move
		if allFree(base) {
			return base, nil
		}
	}
	return 0, fmt.Errorf("dev: no free ports at 127.0.0.1 from 10809 to %d; stop something that listens there", base+22)
}

func allFree(base int) bool {
	for i := range devIDs {
		for offset := range 3 {
			ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+10*i+offset))
			if err != nil {
				return false
			}
			ln.Close()
		}
	}
	return true
}

// typedName is what to type to run this program again: its name when the shell
// finds this very program by it, else its path.
func typedName() string {
	const name = "blockrepl"
	self, err := os.Executable()
	if err != nil {
		return name
	}
	if found, err := exec.LookPath(name); err == nil && sameFile(found, self) {
		return name
	}
	if cwd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(cwd, self); err == nil && filepath.IsLocal(rel) && strings.Contains(rel, "/") {
			return rel
		}
	}
	return self
}

func sameFile(a, b string) bool {
	sa, errA := os.Stat(a)
	sb, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(sa, sb)
}

// showDev prints the commands in the order in which people try them.
func showDev(w io.Writer, dir string, servers []*devServer) {
	t := newTable(w)
	t.row("SERVER", "PID", "NBD", "ADMIN", "LOG")
	for _, s := range servers {
		t.row(s.cfg.ID, fmt.Sprint(s.cmd.Process.Pid), "nbd://"+string(s.cfg.NBD[0])+"/vol0", string(s.cfg.Admin), s.logged)
	}
	t.flush()
	a, b := servers[0], servers[1]
	_, portA, _ := net.SplitHostPort(a.cfg.NBD[0].Target()) // made by devConfigs, always right
	program := typedName()
	mount := filepath.Join(dir, "mnt")
	if base := a.cfg.NBD[0]; base != "127.0.0.1:10809" {
		fmt.Fprintln(w, "ports from 10809 were taken: these are others")
	}
	fmt.Fprintf(w, `
attach  with the kernel's driver:   modprobe nbd; %s attach /dev/nbd0 vol0 %s %s
                                    or: nbd-client 127.0.0.1 %s -N vol0 /dev/nbd0
        without it:                 mkdir -p %s; nbdfuse %s/vol0 nbd://%s/vol0 &
        look only:                  nbdinfo nbd://%s/vol0
status                              %s status --admin %s
kill the master                     kill -9 %d
take over                           %s promote vol0 --admin %s
start it again                      %s serve --config %s

Ctrl-C stops all servers. Data, configurations and logs: %s
`, program, a.cfg.NBD[0], b.cfg.NBD[0], portA, mount, mount, a.cfg.NBD[0], a.cfg.NBD[0], program, b.cfg.Admin,
		a.cmd.Process.Pid, program, b.cfg.Admin, program, a.cfg.path, dir)
}
