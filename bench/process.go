package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Bounds of waiting for a process.
const (
	startWait = 20 * time.Second // for a server to listen; longer means broken
	stopWait  = 12 * time.Second // blockrepl promises 10 s; then it is killed
	pollEvery = 5 * time.Millisecond
)

// process is one child. done is closed, after err is set, when it has ended.
type process struct {
	role string // in tables: "a", "nbdkit", "child 1"
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error
}

// startProcess runs a program with its output in a log file. A child gets its own process group: Ctrl-C reaches bench
// alone, which then stops all in order.
func startProcess(role, logDir, name string, args ...string) (*process, error) {
	file, err := os.CreateTemp(logDir, filepath.Base(name)+"-"+role+"-*.log")
	if err != nil {
		return nil, fmt.Errorf("make log of %s: %w", role, err)
	}
	defer file.Close()
	p := &process{role: role, cmd: exec.Command(name, args...), log: file.Name(), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = file, file
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() { // ends with the child; stop waits for it
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the child by SIGTERM, or by SIGKILL when that takes too long.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // an error means that it has ended
	select {
	case <-p.done:
	case <-time.After(stopWait):
		fmt.Fprintf(os.Stderr, "bench: %s (pid %d) did not stop in %s and is killed\n", p.role, p.pid(), stopWait)
		p.kill()
	}
}

// kill is the power cut for one process.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // as in stop
	<-p.done
}

// ended is the error of a child that should still run, with its last words.
func (p *process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s (pid %d) ended: %v: %s", p.role, p.pid(), p.cmd.ProcessState, p.lastWords())
	default:
		return nil
	}
}

func (p *process) lastWords() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return lastLines(string(text), 3)
}

// awaitListening waits until somebody accepts at the address.
func (p *process) awaitListening(addr string) error {
	deadline := time.Now().Add(startWait)
	for {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			return conn.Close()
		}
		if err := p.ended(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not listen at %s after %s: %w: %s", p.role, addr, startWait, err, p.lastWords())
		}
		time.Sleep(pollEvery)
	}
}

// freePorts gives n loopback ports that nobody listens at now.
func freePorts(n int) ([]int, error) {
	ports := make([]int, 0, n)
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer ln.Close() // held until all are found, so that they differ
		ports = append(ports, ln.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
