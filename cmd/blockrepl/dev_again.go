package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// startedAgain finds the servers that were started again by hand, as showDev says
// how to: processes that serve one of dev's configurations and are not its children.
func startedAgain(configs []*Config) []*os.Process {
	var found []*os.Process
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is good
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		args := bytes.Split(text, []byte{0})
		if len(args) < 2 || string(args[1]) != "serve" {
			continue
		}
		dir, err := os.Readlink(filepath.Join(filepath.Dir(path), "cwd"))
		if err != nil || !servesOneOf(dir, args, configs) {
			continue // or it is somebody else's
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		if p, err := os.FindProcess(pid); err == nil {
			found = append(found, p)
		}
	}
	return found
}

// servesOneOf looks for a configuration's path among args, as typed in dir.
func servesOneOf(dir string, args [][]byte, configs []*Config) bool {
	return slices.ContainsFunc(configs, func(cfg *Config) bool {
		return slices.ContainsFunc(args, func(arg []byte) bool {
			path := strings.TrimPrefix(strings.TrimPrefix(string(arg), "--config="), "-c=")
			return path == cfg.path || filepath.Join(dir, path) == cfg.path
		})
	})
}

// stopStartedAgain stops them and waits: their data goes away with dev.
func stopStartedAgain(w io.Writer, configs []*Config) {
	for deadline, asked := time.Now().Add(devStopWait), false; ; time.Sleep(devPoll) {
		left := startedAgain(configs)
		if len(left) == 0 {
			return
		}
		late := time.Now().After(deadline)
		for _, p := range left {
			switch { // an error means that it ended already
			case late:
				fmt.Fprintf(w, "the server with pid %d, started again by hand, did not stop in %s and is killed\n", p.Pid, devStopWait)
				_ = p.Kill()
			case !asked:
				_ = p.Signal(syscall.SIGINT)
			}
		}
		if late {
			return
		}
		asked = true
	}
}
