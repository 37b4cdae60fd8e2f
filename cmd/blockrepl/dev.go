package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/urfave/cli/v2"
)

func devCommand() *cli.Command {
	return &cli.Command{
		Name:      "dev",
		Usage:     "three servers on this host, to try it",
		UsageText: "blockrepl dev [--dir DIR] [--size 1GiB]",
		Description: `Starts server processes a, b and c on loopback with one volume, vol0, and prints
how to attach it, look at it, kill a server and take over. Ctrl-C stops them all.

NBD listens at ports 10809, 10819 and 10829, peers one above, commands two above.
When one is taken, all move up by hundreds; the output says where.

Without --dir the data is in a temporary directory and removed at the end. The image
is sparse: it takes what you write, three times.

EXAMPLES:
   blockrepl dev
   blockrepl dev --dir ~/blockrepl-try --size 8GiB

EXIT STATUS:
   0 stopped by Ctrl-C or SIGTERM   1 a server could not start   2 wrong usage`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "dir", Usage: "keep data, configurations and logs in `DIR` (default: a temporary one)"},
			&cli.StringFlag{Name: "size", Value: "1GiB", Usage: "the volume's `SIZE`"},
			&cli.StringFlag{Name: "on-degraded", Value: defaultOnDegraded, Usage: "`suspend` or continue, see the README"},
			&cli.BoolFlag{Name: "logs", Usage: "print the servers' logs too (default: only in files)"},
		},
		Action: dev,
	}
}

// Bounds of dev.
const (
	devStartWait = 20 * time.Second // three servers creating a volume; longer means broken
	devStopWait  = 12 * time.Second // a server promises 10 s
	devPoll      = 100 * time.Millisecond
	devPortMoves = 50 // hundreds above 10809, up to 15709
)

var devIDs = []string{"a", "b", "c"}

// devServer is one child process. done is closed, after err is set, when it ended.
type devServer struct {
	cfg    *Config
	cmd    *exec.Cmd
	admin  *admin
	done   chan struct{}
	err    error
	logged string // path of its log
}

func dev(c *cli.Context) error {
	if err := wantArgs(c, 0, 0, ""); err != nil {
		return err
	}
	size, err := ParseSize(c.String("size"))
	if err != nil {
		return usagef("dev: --size: %w", err)
	}
	dir, cleanup, err := devDir(c.String("dir"), c.App.Writer)
	if err != nil {
		return err
	}
	defer cleanup()
	configs, err := devConfigs(dir, size, c.String("on-degraded"))
	if err != nil {
		return err
	}
	ctx, stop := interruptible(c.Context)
	defer stop()
	// A child is told when the thread that started it ends (Pdeathsig), so this
	// goroutine must keep its thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var servers []*devServer
	defer func() {
		stopAll(c.App.Writer, servers)
		stopStartedAgain(c.App.Writer, configs)
	}()
	for _, cfg := range configs {
		s, err := startDevServer(cfg, dir, logsTo(c))
		if err != nil {
			return err
		}
		servers = append(servers, s)
	}
	if err := awaitHealthy(ctx, servers); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	showDev(c.App.Writer, dir, servers)
	return watchServers(ctx, c.App.Writer, servers, configs)
}

func logsTo(c *cli.Context) io.Writer {
	if c.Bool("logs") {
		return c.App.ErrWriter
	}
	return io.Discard
}

// devDir gives the directory and what removes it when it was temporary.
func devDir(name string, w io.Writer) (dir string, cleanup func(), err error) {
	if name == "" {
		dir, err = os.MkdirTemp("", "blockrepl-dev-")
		return dir, func() {
			if err := os.RemoveAll(dir); err != nil {
				fmt.Fprintf(w, "not all is removed, is something mounted there? %v\n", err)
			}
		}, err
	}
	if dir, err = filepath.Abs(name); err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	return dir, func() {}, err
}

// devConfigs writes a configuration file for each server. Only addresses differ
// from run to run, and those are not kept in the data.
func devConfigs(dir string, size Size, onDegraded string) ([]*Config, error) {
	base, err := devPorts()
	if err != nil {
		return nil, err
	}
	port := func(i, offset int) Addr { return Addr(fmt.Sprintf("127.0.0.1:%d", base+10*i+offset)) }
	var configs []*Config
	for i, id := range devIDs {
		cfg := defaultConfig()
		cfg.Cluster, cfg.ID, cfg.Data = "dev", id, filepath.Join(dir, id)
		cfg.NBD, cfg.Peers, cfg.Admin = []Addr{port(i, 0)}, port(i, 1), port(i, 2)
		for j, other := range devIDs {
			cfg.Servers = append(cfg.Servers, ServerConfig{ID: other, Addr: port(j, 1)})
		}
		cfg.Volumes = []VolumeConfig{{Name: "vol0", Size: size, Servers: devIDs, OnDegraded: onDegraded}}
		cfg.path = filepath.Join(dir, id+".toml")
		cfg.complete()
		if problems := cfg.Check(); len(problems) > 0 {
			return nil, &failure{code: exitUsage, err: cfg.locate(problems)}
		}
		if err := checkDataFree(cfg.Data); err != nil { // its servers would be taken for ours, and stopped
			return nil, fmt.Errorf("dev: %s is in use: its servers run, by another `blockrepl dev` or by hand", dir)
		}
		if err := os.WriteFile(cfg.path, []byte(devTOML(cfg)), 0o644); err != nil {
			return nil, fmt.Errorf("dev: %w", err)
		}
		configs = append(configs, cfg)
	}
	return configs, nil
}

func devTOML(c *Config) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# written by `blockrepl dev`\ncluster = %q\nid = %q\ndata = %q\nnbd = [%q]\npeers = %q\nadmin = %q\n",
		c.Cluster, c.ID, c.Data, c.NBD[0], c.Peers, c.Admin)
	for _, s := range c.Servers {
		fmt.Fprintf(&b, "\n[[server]]\nid = %q\naddr = %q\n", s.ID, s.Addr)
	}
	for _, v := range c.Volumes {
		fmt.Fprintf(&b, "\n[[volume]]\nname = %q\nsize = %q\nservers = [\"%s\"]\non_degraded = %q\n",
			v.Name, v.Size, strings.Join(v.Servers, `", "`), v.OnDegraded)
	}
	return b.String()
}

// startDevServer runs this program again as a server. It gets its own process
// group, so that Ctrl-C reaches dev alone, which then stops all in order.
func startDevServer(cfg *Config, dir string, logs io.Writer) (*devServer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("dev: find this program: %w", err)
	}
	s := &devServer{cfg: cfg, done: make(chan struct{}), logged: filepath.Join(dir, cfg.ID+".log")}
	file, err := os.OpenFile(s.logged, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("dev: %w", err)
	}
	s.cmd = exec.Command(self, "serve", "--config", cfg.path)
	s.cmd.Stdout, s.cmd.Stderr = file, file
	if logs != io.Discard {
		out := io.MultiWriter(file, logs)
		s.cmd.Stdout, s.cmd.Stderr = out, out
	}
	s.cmd.Env = withoutOwnEnv(os.Environ())
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("dev: start server %s: %w", cfg.ID, err), file.Close())
	}
	go func() { // ends when the child has; stopAll waits for it
		s.err = s.cmd.Wait()
		file.Close()
		close(s.done)
	}()
	s.admin = adminAt(cfg.Admin)
	return s, nil
}

// withoutOwnEnv drops BLOCKREPL_ variables: a child's file says it all.
func withoutOwnEnv(environ []string) []string {
	var out []string
	for _, e := range environ {
		if !strings.HasPrefix(e, envPrefix) {
			out = append(out, e)
		}
	}
	return out
}

// awaitHealthy waits until every server reports its volume healthy.
func awaitHealthy(ctx context.Context, servers []*devServer) error {
	deadline := time.NewTimer(devStartWait)
	defer deadline.Stop()
	tick := time.NewTicker(devPoll)
	defer tick.Stop()
	for _, s := range servers {
		for !s.healthy(ctx) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-s.done:
				return fmt.Errorf("dev: server %s ended: %s", s.cfg.ID, lastLine(s.logged))
			case <-deadline.C:
				return fmt.Errorf("dev: server %s is not healthy after %s: %s", s.cfg.ID, devStartWait, lastLine(s.logged))
			case <-tick.C:
			}
		}
	}
	return nil
}

func (s *devServer) healthy(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var st blockrepl.Status
	if err := s.admin.get(ctx, "/v1/status", &st); err != nil {
		return false
	}
	return len(st.Volumes) == 1 && st.Volumes[0].State == blockrepl.StateHealthy
}

func lastLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// watchServers says when a server ends, which is what dev is for, and returns
// when interrupted or when none is left.
func watchServers(ctx context.Context, w io.Writer, servers []*devServer, configs []*Config) error {
	ended := make(chan *devServer, len(servers))
	for _, s := range servers {
		go func() { // ends with its server, which stopAll ends
			<-s.done
			ended <- s
		}()
	}
	for left := len(servers); left > 0; left-- {
		select {
		case <-ctx.Done():
			return nil
		case s := <-ended:
			if ctx.Err() != nil {
				return nil
			}
			fmt.Fprintf(w, "server %s (pid %d) ended: %v\n   start it again:  %s serve --config %s\n",
				s.cfg.ID, s.cmd.Process.Pid, s.cmd.ProcessState, typedName(), s.cfg.path)
		}
	}
	if len(startedAgain(configs)) > 0 {
		<-ctx.Done()
		return nil
	}
	return errors.New("dev: no server is left")
}

// stopAll stops the servers at once and waits. SIGINT lets the master keep its
// mastership: a handover would only chase the others, which stop as well.
func stopAll(w io.Writer, servers []*devServer) {
	for _, s := range servers {
		// An error means that it ended already.
		_ = s.cmd.Process.Signal(os.Interrupt)
	}
	deadline := time.NewTimer(devStopWait)
	defer deadline.Stop()
	for _, s := range servers {
		select {
		case <-s.done:
			continue
		case <-deadline.C:
		}
		fmt.Fprintf(w, "server %s (pid %d) did not stop in %s and is killed\n", s.cfg.ID, s.cmd.Process.Pid, devStopWait)
		_ = s.cmd.Process.Kill() // as above
		<-s.done
		deadline.Reset(time.Second)
	}
}
