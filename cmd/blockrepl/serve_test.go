package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// patience bounds every wait for another process; far more than any needs.
const patience = 60 * time.Second

// child is the program as a process of its own.
type child struct {
	*exec.Cmd
	out, errs bytes.Buffer
}

// startChild runs the command; words before "blockrepl" may wrap it.
func startChild(t *testing.T, env []string, words ...string) *child {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	c := &child{Cmd: exec.CommandContext(ctx, words[0], words[1:]...)}
	c.Env = append(withoutOwnEnv(os.Environ()), env...)
	c.Stdout, c.Stderr = &c.out, &c.errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // a test that failed half way leaves nothing behind
		cancel()
		_ = c.Wait()
	})
	return c
}

// stop sends a signal and gives the exit status.
func (c *child) stop(t *testing.T, s os.Signal) int {
	t.Helper()
	if err := c.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	err := c.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return c.ProcessState.ExitCode()
}

// notifySocket is what systemd gives a service to report to.
func notifySocket(t *testing.T) (path string, next func() string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return path, func() string {
		t.Helper()
		buf := make([]byte, 4096)
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

func TestServeReportsReadinessServesAndStops(t *testing.T) {
	dir := t.TempDir()
	notify, next := notifySocket(t)
	admin, door := "unix:"+filepath.Join(dir, "admin.sock"), filepath.Join(dir, "nbd.sock")
	data := filepath.Join(dir, "data")
	serving := []string{"blockrepl", "serve", "--cluster", "lab", "--id", "a", "--data", data, "--nbd", "unix:" + door,
		"--peers", "127.0.0.1:0", "--admin", admin, "--volume", "vol0 size=64MiB"}
	s := startChild(t, []string{"NOTIFY_SOCKET=" + notify}, serving...)
	if got := next(); got != "READY=1" {
		t.Fatalf("first message %q, want READY=1; log: %s", got, s.errs.String())
	}
	if st, err := os.Stat(filepath.Join(dir, "admin.sock")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("admin socket: mode %v, %v, want 0600", st.Mode(), err)
	}
	writeBlock(t, door, 7)
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"status", "--admin", admin}, 0, "healthy"},
		{[]string{"journal", "list", "--admin", admin}, 0, "vol0"},
		{[]string{"journal", "show", "--admin", admin, "vol0", "--json", "--data"}, 0, `"kind":"write","offset":4096`},
		{[]string{"journal", "verify", "--admin", admin, "vol0"}, 0, "good"},
		{[]string{"journal", "list", data}, 1, "ask it, with --admin"},
		{[]string{"journal", "show", "--admin", admin, "vol0", "9999"}, 1, "no record 9999; it keeps 1 to"},
		{[]string{"journal", "dump", "--admin", admin, "vol0", "--output", filepath.Join(dir, "running")}, 0, ""},
		{[]string{"journal", "drop", "--admin", admin, "vol0", "q"}, 1, "no such quarantine"},
		{[]string{"check", "--cluster", "lab", "--id", "a", "--data", data}, 2, "its server runs"},
		{[]string{"status", "nosuch", "--admin", admin}, 1, "no volume"},
		{[]string{"promote", "nosuch", "--admin", admin}, 1, "its volumes are: vol0"},
		{[]string{"resize", "vol0", "128MiB", "--admin", admin}, 0, "128MiB"},
		{[]string{"set", "vol0", "keep=2GiB", "--admin", admin}, 0, "on_degraded suspend, keep 2GiB"},
	} {
		code, out, errs := runHere(t, tt.args...)
		if code != tt.code || !strings.Contains(out+errs, tt.want) {
			t.Errorf("%v: exit %d, want %d with %q: %s%s", tt.args, code, tt.code, tt.want, out, errs)
		}
	}
	again := append([]string{}, serving...)
	again[9] = "unix:" + door + "2"
	again[13] = admin + "2"
	if code, _, errs := runHere(t, again[1:]...); code != exitError || !strings.Contains(errs, "in use") {
		t.Errorf("a second server with the same data: exit %d: %s", code, errs)
	}
	if code := s.stop(t, syscall.SIGTERM); code != 0 {
		t.Fatalf("SIGTERM: exit %d; log: %s", code, s.errs.String())
	}
	if got := next(); got != "STOPPING=1" {
		t.Errorf("message %q, want STOPPING=1", got)
	}
	// A checkpoint trims what nobody needs; what a kill leaves is more to look at.
	s = startChild(t, []string{"NOTIFY_SOCKET=" + notify}, serving...)
	if got := next(); got != "READY=1" {
		t.Fatalf("second start: message %q; log: %s", got, s.errs.String())
	}
	writeBlock(t, door, 8)
	if code := s.stop(t, syscall.SIGKILL); code != -1 {
		t.Fatalf("SIGKILL: exit %d", code)
	}
	if want := `as_created="volume.vol0.size (has 128MiB)"`; !strings.Contains(s.errs.String(), want) {
		t.Errorf("log lacks %q: %s", want, s.errs.String())
	}
	stoppedJournalIsReadable(t, data)
}

// stoppedJournalIsReadable uses the journal commands on a stopped server.
func stoppedJournalIsReadable(t *testing.T, data string) {
	t.Helper()
	dump := filepath.Join(t.TempDir(), "records")
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"journal", "list", data}, 0, "vol0"},
		{[]string{"journal", "show", data, "vol0"}, 0, "write"},
		{[]string{"journal", "show", data, "vol0", "9999"}, 1, "no record 9999; it keeps"},
		{[]string{"journal", "show", data}, 2, "wants DATA VOLUME"},
		{[]string{"journal", "show", data, "vol1"}, 1, `did you mean "vol0"`},
		{[]string{"journal", "show", data, "vol0", "--quarantine", "q"}, 1, "there are: none"},
		{[]string{"journal", "verify", data}, 0, "good"},
		{[]string{"journal", "dump", data, "vol0", "--output", dump}, 0, ""},
		{[]string{"journal", "dump", data, "vol0", "--output", dump}, 2, "exists"},
		{[]string{"journal", "list", filepath.Dir(data) + "/none"}, 2, "has no journal"},
	} {
		code, out, errs := runHere(t, tt.args...)
		if code != tt.code || !strings.Contains(out+errs, tt.want) {
			t.Errorf("%v: exit %d, want %d with %q: %s%s", tt.args, code, tt.code, tt.want, out, errs)
		}
	}
	if st, err := os.Stat(dump); err != nil || st.Size() < 128 {
		t.Errorf("dump: %v, %v, want at least one record", st, err)
	}
}

// writeBlock writes 4 KiB at 4096 through the door.
func writeBlock(t *testing.T, door string, b byte) {
	t.Helper()
	writeBlockOf(t, door, "", b)
}

// writeBlockOf is writeBlock to one of several volumes.
func writeBlockOf(t *testing.T, door, volume string, b byte) {
	t.Helper()
	conn, err := net.Dial("unix", door)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c, err := nbdtest.NewClient(conn, nbdtest.FixedNewstyle)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Go(volume + "?client=test"); err != nil {
		t.Fatal(err)
	}
	const cmdWrite = 1
	rep, err := c.Do(nbdtest.Request{Cmd: cmdWrite, Off: 4096, Data: bytes.Repeat([]byte{b}, 4096)})
	if err != nil || rep.Errno != 0 {
		t.Fatalf("write: %+v, %v", rep, err)
	}
}

func TestServeTakesSocketsFromSystemd(t *testing.T) {
	dir := t.TempDir()
	notify, next := notifySocket(t)
	var files []*os.File
	for _, name := range []string{"nbd", "admin"} {
		ln, err := nbd.ListenUnix(nbd.UnixSocket{Path: filepath.Join(dir, name), UID: -1, GID: -1})
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		f, err := ln.(*net.UnixListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// The shell knows its own pid, which the program keeps.
	cmd := exec.CommandContext(ctx, "sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=nbd:admin exec blockrepl serve "$@"`, "sh",
		"--cluster", "lab", "--id", "a", "--data", filepath.Join(dir, "data"), "--nbd", "unix:/nonexistent/nbd", "--admin", "unix:/nonexistent/admin",
		"--peers", "127.0.0.1:0", "--volume", "vol0 size=1MiB")
	cmd.Env = append(withoutOwnEnv(os.Environ()), "NOTIFY_SOCKET="+notify)
	cmd.ExtraFiles = files
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cancel()
	if got := next(); got != "READY=1" {
		t.Fatalf("message %q; log: %s", got, log.String())
	}
	writeBlock(t, filepath.Join(dir, "nbd"), 1)
	if code, out, errs := runHere(t, "status", "--admin", "unix:"+filepath.Join(dir, "admin")); code != 0 {
		t.Errorf("status: exit %d: %s%s", code, out, errs)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("SIGINT: %v; log: %s", err, log.String())
	}
}

func TestServeSaysWhatIsWrongBeforeItTouchesAnything(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	for _, args := range [][]string{
		{"--cluster", "lab", "--id", "a", "--volume", "vol0 size=1000"},
		{"--cluster", "lab", "--id", "a", "--peers", "10.0.0.1:10810"},
		{"--id", "a"},
		{"--cluster", "lab", "--id", "a", "--nbd-tls", "require", "--nbd-tls-certificates", "/nonexistent"},
	} {
		code, _, errs := runHere(t, append([]string{"serve", "--data", data}, args...)...)
		if code != exitUsage || !strings.HasPrefix(errs, "blockrepl: ") {
			t.Errorf("%v: exit %d, want %d: %s", args, code, exitUsage, errs)
		}
		if _, err := os.Stat(data); err == nil {
			t.Fatalf("%v: the data directory was made", args)
		}
	}
}

func TestDevRunsThreeServersAndStopsThem(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dev")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "blockrepl", "dev", "--dir", dir, "--size", "64MiB")
	cmd.Env = withoutOwnEnv(os.Environ())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	var admins []string
	var pids []int
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "Ctrl-C") {
		words := strings.Fields(lines.Text())
		if len(words) == 5 && len(words[0]) == 1 {
			pid, err := strconv.Atoi(words[1])
			if err != nil {
				t.Fatalf("line %q: %v", lines.Text(), err)
			}
			admins, pids = append(admins, words[3]), append(pids, pid)
		}
	}
	if len(admins) != 3 {
		t.Fatalf("found servers at %v, want three; stderr: %s", admins, errs.String())
	}
	// Bug: a second one in the same directory stopped the first one's servers.
	if said, err := exec.CommandContext(ctx, "blockrepl", "dev", "--dir", dir).CombinedOutput(); err == nil || !strings.Contains(string(said), dir+" is in use") {
		t.Errorf("a second dev: %v, %s", err, said)
	}
	for _, addr := range admins {
		if code, out, errs := runHere(t, "status", "vol0", "--admin", addr); code != 0 || !strings.Contains(out, "healthy") {
			t.Errorf("status of %s: exit %d: %s%s", addr, code, out, errs)
		}
	}
	// A switchover: nothing is lost, the other answers.
	if code, out, errs := runHere(t, "promote", "vol0", "--admin", admins[1]); code != 0 || !strings.Contains(out, "b is master of vol0") {
		t.Errorf("promote: exit %d: %s%s", code, out, errs)
	}
	if err := syscall.Kill(pids[2], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !lines.Scan() || !strings.Contains(lines.Text(), "server c (pid "+strconv.Itoa(pids[2])+") ended: signal: killed") {
		t.Errorf("after the kill of c dev says %q", lines.Text())
	}
	// Bug: one that was started again by hand outlived dev and its data.
	notify, next := notifySocket(t)
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	typed, err := filepath.Rel(here, filepath.Join(dir, "c.toml")) // Bug: only an absolute path was found
	if err != nil {
		t.Fatal(err)
	}
	again := startChild(t, []string{"NOTIFY_SOCKET=" + notify}, "blockrepl", "serve", "--config="+typed)
	if got := next(); got != "READY=1" {
		t.Fatalf("started again: message %q", got)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := again.Wait(); err != nil {
		t.Errorf("the server that was started again: %v", err)
	}
	for lines.Scan() { // to its end, so that Wait loses nothing
		t.Logf("dev: %s", lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("Ctrl-C: %v: %s", err, errs.String())
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("server process %d is left behind: %v", pid, err)
		}
	}
}

// One volume's image that could not be opened kept all volumes of the server away.
func TestServeStartsBesideAnImageThatCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	notify, next := notifySocket(t)
	admin, door := "unix:"+filepath.Join(dir, "admin.sock"), filepath.Join(dir, "nbd.sock")
	serving := []string{"blockrepl", "serve", "--cluster", "lab", "--id", "a", "--data", filepath.Join(dir, "data"), "--nbd", "unix:" + door,
		"--peers", "127.0.0.1:0", "--admin", admin, "--volume", "vol1 size=64MiB image=" + dir}
	if code, _, errs := runHere(t, serving[1:]...); code != exitUsage || !strings.Contains(errs, "neither a file nor a block device") {
		t.Errorf("the only volume: exit %d: %s", code, errs)
	}
	serving = append(serving, "--volume", "vol0 size=64MiB")
	if code, _, errs := runHere(t, "check", "--cluster", "lab", "--id", "a", "--data", filepath.Join(dir, "data"), "--volume", "vol1 size=64MiB image="+dir, "--volume", "vol0 size=64MiB"); code != exitUsage || !strings.Contains(errs, `volume "vol1"`) {
		t.Errorf("check: exit %d: %s", code, errs)
	}
	s := startChild(t, []string{"NOTIFY_SOCKET=" + notify}, serving...)
	if got := next(); got != "READY=1" {
		t.Fatalf("first message %q, want READY=1; log: %s", got, s.errs.String())
	}
	writeBlockOf(t, door, "vol0", 7)
	code, out, errs := runHere(t, "status", "--admin", admin)
	for _, want := range []string{"vol0", "healthy", "vol1", "failed", "image"} {
		if code != exitUnhealthy || !strings.Contains(out, want) {
			t.Errorf("status: exit %d, want %d and %q: %s%s", code, exitUnhealthy, want, out, errs)
		}
	}
	if code := s.stop(t, syscall.SIGTERM); code != 0 {
		t.Errorf("SIGTERM: exit %d", code)
	}
	if log := s.errs.String(); !strings.Contains(log, "the others start") || !strings.Contains(log, "volume failed") {
		t.Errorf("the log does not say what is wrong: %s", log)
	}
}

// The unit ran "check" first, which refuses an image that cannot be opened: systemd did
// not start the server, although "serve" would have started it with its other volumes.
func TestUnitStartsTheServerBesideAnImageThatCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "blockrepl.toml")
	text := fmt.Sprintf("cluster = \"lab\"\nid = \"a\"\ndata = %q\n[[volume]]\nname = \"vol0\"\nsize = \"1MiB\"\n"+
		"[[volume]]\nname = \"vol1\"\nsize = \"1MiB\"\nimage = %q\n", filepath.Join(dir, "data"), dir)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	starts := 0
	for line := range strings.Lines(readDoc(t, "deploy/systemd/blockrepl.service")) {
		key, command, _ := strings.Cut(strings.TrimSpace(line), "=")
		words := strings.Fields(strings.ReplaceAll(command, "/etc/blockrepl/blockrepl.toml", conf))
		switch {
		case key == "ExecStart" && slices.Equal(words, []string{"/usr/local/bin/blockrepl", "serve", "--config", conf}):
			starts++
		case key == "ExecStartPre", key == "ExecCondition", key == "ExecReload" && filepath.Base(words[0]) == "blockrepl":
			if code, _, errs := runHere(t, words[1:]...); code != exitOK {
				t.Errorf("%s: exit %d: %s", strings.TrimSpace(line), code, errs)
			}
		}
	}
	if starts != 1 {
		t.Errorf("found %d lines that start the server, want 1", starts)
	}
}
