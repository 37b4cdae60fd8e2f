package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// Bounds of waiting. Tests never sleep: they poll a condition until one of these.
const (
	pollEvery  = 20 * time.Millisecond
	stopWithin = 12 * time.Second // a server promises 10 s
	soon       = 30 * time.Second // a state that must come
	statusWait = 2 * time.Second  // one answer of the admin address
)

// server is one server: its files for good, its process when it runs.
type server struct {
	t    *testing.T
	id   string
	dir  string // data
	conf string
	log  string
	// The addresses, host:port.
	nbd, peers, admin string
	prefix            []string // before the program, as `ip netns exec NAME`

	cmd  *exec.Cmd     // nil when it does not run
	done chan struct{} // closed, after exit is set, when the process ended
	exit error
}

// start runs the program; it does not wait for anything.
func (s *server) start() {
	s.t.Helper()
	if s.cmd != nil {
		s.t.Fatalf("server %s runs already", s.id)
	}
	out, err := os.OpenFile(s.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		s.t.Fatal(err)
	}
	defer out.Close() // the child has its own
	args := append(append([]string{}, s.prefix...), program, "serve", "--config", s.conf)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = environment()
	// Ended with the test binary, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("start server %s: %v", s.id, err)
	}
	s.cmd, s.done, s.exit = cmd, make(chan struct{}), nil
	done := s.done
	go func() { // ends with the process; kill and stop wait for it
		s.exit = cmd.Wait()
		close(done)
	}()
}

// environment is this process's without the program's own variables.
func environment() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "BLOCKREPL_") {
			env = append(env, v)
		}
	}
	return env
}

func (s *server) running() bool { return s.cmd != nil }

// signal sends sig to the process, and only to it.
func (s *server) signal(sig syscall.Signal) {
	s.t.Helper()
	if s.cmd == nil {
		s.t.Fatalf("signal %v: server %s does not run", sig, s.id)
	}
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Fatalf("signal %v to server %s: %v", sig, s.id, err)
	}
}

// kill ends the process as kill -9 does, and waits for its end.
func (s *server) kill() {
	s.t.Helper()
	if s.cmd == nil {
		return
	}
	s.signal(syscall.SIGKILL)
	<-s.done
	s.cmd = nil
}

// stop asks the server to stop and checks that it does, in time and with status 0.
// It gives how long that took.
func (s *server) stop(sig syscall.Signal) time.Duration {
	s.t.Helper()
	began := time.Now()
	s.signal(sig)
	s.awaitStopped(began)
	return time.Since(began)
}

func (s *server) awaitStopped(began time.Time) {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(time.Until(began.Add(stopWithin))):
		s.signal(syscall.SIGQUIT) // its goroutines go to the log
		<-s.done
		s.cmd = nil
		s.t.Errorf("server %s had not stopped after %v", s.id, stopWithin)
		return
	}
	if s.exit != nil {
		s.t.Errorf("server %s stopped with %v, want status 0", s.id, s.exit)
	}
	s.cmd = nil
}

// died reports that the process ended by itself.
func (s *server) died() bool {
	if s.cmd == nil {
		return false
	}
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// status asks the admin address.
func (s *server) status() (*blockrepl.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), statusWait)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.admin+"/v1/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status of %s: %s", s.id, resp.Status)
	}
	var st blockrepl.Status
	return &st, json.NewDecoder(resp.Body).Decode(&st)
}

var httpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// volume asks for the status of vol0; an error when it does not answer.
func (s *server) volume() (*blockrepl.VolumeStatus, error) {
	st, err := s.status()
	if err != nil {
		return nil, err
	}
	for i := range st.Volumes {
		if st.Volumes[i].Name == volumeName {
			return &st.Volumes[i], nil
		}
	}
	return nil, fmt.Errorf("status of %s: has no %s", s.id, volumeName)
}

// outcome is what a command did.
type outcome struct {
	code           int
	stdout, stderr string
}

func (o outcome) String() string {
	return fmt.Sprintf("exit status %d\n--- stdout\n%s--- stderr\n%s", o.code, o.stdout, o.stderr)
}

// commandWait bounds one command of the program.
const commandWait = 90 * time.Second

// cli runs the program with args, bounded in time.
func cli(t *testing.T, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = environment()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	exit := new(exec.ExitError)
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("blockrepl %s: %v %v", strings.Join(args, " "), err, ctx.Err())
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// command asks this server, by the program.
func (s *server) command(args ...string) outcome {
	s.t.Helper()
	return cli(s.t, append(args, "--admin", s.admin)...)
}

// image is the path of the volume's bytes.
func (s *server) image() string { return filepath.Join(s.dir, "images", volumeName+".img") }

// uri is the volume at this server; query is what follows "?" in the export name.
func (s *server) uri(query string) string {
	uri := "nbd://" + s.nbd + "/" + volumeName
	if query != "" {
		uri += "%3F" + strings.NewReplacer("=", "%3D", "&", "%26").Replace(query)
	}
	return uri
}

// tail gives the end of the server's log.
func (s *server) tail(lines int) string {
	text, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
