package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestServerLetsItsTimersBeLate(t *testing.T) {
	dir := t.TempDir()
	notify, next := notifySocket(t)
	s := startChild(t, []string{"NOTIFY_SOCKET=" + notify}, "blockrepl", "serve", "--cluster", "lab", "--id", "a",
		"--data", filepath.Join(dir, "data"), "--nbd", "unix:"+filepath.Join(dir, "nbd.sock"), "--peers", "127.0.0.1:0",
		"--admin", "unix:"+filepath.Join(dir, "admin.sock"), "--volume", "vol0 size=64MiB")
	if got := next(); got != "READY=1" {
		t.Fatalf("first message %q, want READY=1; log: %s", got, s.errs.String())
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", s.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	// All of them, the runtime's monitor too, which is older than main.
	for _, th := range threads {
		slack, err := os.ReadFile(filepath.Join("/proc", th.Name(), "timerslack_ns"))
		if os.IsPermission(err) || os.IsNotExist(err) {
			continue // only root may look; a thread may have ended
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(string(slack)); got != fmt.Sprint(timerSlack) {
			t.Errorf("thread %s: slack %s ns, want %d", th.Name(), got, timerSlack)
		}
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	mine, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if mine < timerSlack && !strings.Contains(string(env), slackTried+"=1") { // a child inherits it
		t.Error("the process did not start again")
	}
	if code := s.stop(t, syscall.SIGTERM); code != 0 {
		t.Errorf("SIGTERM: exit %d; log: %s", code, s.errs.String())
	}
}
