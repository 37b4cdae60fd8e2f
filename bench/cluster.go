package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// clusterWait bounds every wait for a cluster to reach a state.
const clusterWait = 90 * time.Second

// cluster is blockrepl with some servers on this host, as an operator would run it, only with all addresses on loopback.
type cluster struct {
	binary  string
	logDir  string
	servers []*server
}

// server is one blockrepl process, or the place for one.
type server struct {
	id               string
	dir, config      string
	nbd, peer, admin int // ports
	proc             *process
}

// clusterOptions say what differs from the defaults.
type clusterOptions struct {
	servers     int
	sizeBytes   int64
	volumes     int    // vol0, vol1, …
	onDegraded  string // "suspend" or "continue"
	keepBytes   int64
	connections int
}

// newCluster writes the configurations and starts nothing.
func newCluster(binary, logDir, dir string, o clusterOptions) (*cluster, error) {
	c := &cluster{binary: binary, logDir: logDir}
	ports, err := freePorts(3 * o.servers)
	if err != nil {
		return nil, err
	}
	for i := range o.servers {
		id := string(rune('a' + i))
		c.servers = append(c.servers, &server{
			id: id, dir: filepath.Join(dir, id), config: filepath.Join(dir, id+".toml"),
			nbd: ports[3*i], peer: ports[3*i+1], admin: ports[3*i+2],
		})
	}
	for _, s := range c.servers {
		if err := os.WriteFile(s.config, []byte(c.toml(s, o)), 0o644); err != nil {
			return nil, fmt.Errorf("write configuration of %s: %w", s.id, err)
		}
	}
	return c, nil
}

// toml is the configuration of one server.
func (c *cluster) toml(s *server, o clusterOptions) string {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster = \"bench\"\nid = %q\ndata = %q\nnbd = [%q]\npeers = %q\nadmin = %q\npprof = true\n",
		s.id, s.dir, loopback(s.nbd), loopback(s.peer), loopback(s.admin))
	if o.connections > 0 {
		fmt.Fprintf(&b, "\n[limits]\nconnections = %d\nhandshakes = %d\n", o.connections, o.connections)
	}
	var ids []string
	for _, m := range c.servers {
		fmt.Fprintf(&b, "\n[[server]]\nid = %q\naddr = %q\n", m.id, loopback(m.peer))
		ids = append(ids, fmt.Sprintf("%q", m.id))
	}
	for i := range max(1, o.volumes) {
		fmt.Fprintf(&b, "\n[[volume]]\nname = \"vol%d\"\nsize = \"%d\"\nservers = [%s]\non_degraded = %q\nkeep = \"%d\"\n",
			i, o.sizeBytes, strings.Join(ids, ", "), o.onDegraded, o.keepBytes)
	}
	return b.String()
}

// start starts one server. It does not wait: the servers of a new volume wait for each other.
func (c *cluster) start(s *server) (err error) {
	s.proc, err = startProcess(s.id, c.logDir, c.binary, "serve", "--config", s.config)
	return err
}

func (c *cluster) startAll() error {
	for _, s := range c.servers {
		if err := c.start(s); err != nil {
			return err
		}
	}
	return nil
}

// up starts all and waits until they are healthy.
func (c *cluster) up(ctx context.Context) error {
	if err := c.startAll(); err != nil {
		return err
	}
	return c.awaitHealthy(ctx)
}

// stop stops all that run, at once: one after the other, each would hand its volumes to the next.
func (c *cluster) stop() {
	var ending []*process
	for _, s := range c.servers {
		if s.proc != nil && s.proc.ended() == nil {
			_ = s.proc.cmd.Process.Signal(os.Interrupt) // an error means that it has ended; SIGINT: no handover
			ending = append(ending, s.proc)
		}
	}
	stopAll(ending)
}

func (s *server) uri() string { return "nbd://" + loopback(s.nbd) + "/vol0" }

// adminClient never waits long: who asks, asks again.
var adminClient = &http.Client{Timeout: 30 * time.Second}

// status asks one server.
func (s *server) status(ctx context.Context) (*blockrepl.Status, error) {
	var st blockrepl.Status
	return &st, s.ask(ctx, http.MethodGet, "/v1/status", nil, &st)
}

// ask sends a request to the admin address and decodes the answer, or gives it as it is when out is a *[]byte.
func (s *server) ask(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request for %s: %w", path, err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+loopback(s.admin)+path, body)
	if err != nil {
		return fmt.Errorf("make request for %s: %w", path, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := adminClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask server %s: %w", s.id, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("read answer of server %s for %s: %w", s.id, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("server %s answers %s to %s: %s", s.id, resp.Status, path, strings.TrimSpace(string(text)))
	}
	switch to := out.(type) {
	case nil:
		return nil
	case *[]byte:
		*to = text
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("decode answer of server %s for %s: %w", s.id, path, err)
	}
	return nil
}

// await asks a server until all its volumes satisfy ok.
func (s *server) await(ctx context.Context, what string, ok func(*blockrepl.VolumeStatus) bool) error {
	deadline := time.Now().Add(clusterWait)
	for {
		st, err := s.status(ctx)
		if err == nil && len(st.Volumes) > 0 && all(st.Volumes, ok) {
			return nil
		}
		if err := s.proc.ended(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("server %s: not %s after %s: %w", s.id, what, clusterWait, errors.Join(err, describe(st)))
		}
		time.Sleep(pollEvery)
	}
}

func all(volumes []blockrepl.VolumeStatus, ok func(*blockrepl.VolumeStatus) bool) bool {
	for i := range volumes {
		if !ok(&volumes[i]) {
			return false
		}
	}
	return true
}

// describe says how the first volume is doing, as an error.
func describe(st *blockrepl.Status) error {
	if st == nil || len(st.Volumes) == 0 {
		return nil
	}
	v := &st.Volumes[0]
	return fmt.Errorf("%s is %s as %s, %s; in sync %v; last %d, committed %d, applied %d",
		v.Name, v.State, v.Role, v.Reason, v.InSync, v.Last, v.Committed, v.Applied)
}

func healthy(v *blockrepl.VolumeStatus) bool { return v.State == blockrepl.StateHealthy }

func idle(v *blockrepl.VolumeStatus) bool { return v.Applied == v.Last }

// awaitHealthy waits for every server.
func (c *cluster) awaitHealthy(ctx context.Context) error {
	for _, s := range c.servers {
		if err := s.await(ctx, "healthy", healthy); err != nil {
			return err
		}
	}
	return nil
}

// settle waits until every server that runs has applied what it has.
func (c *cluster) settle(ctx context.Context) error {
	for _, s := range c.servers {
		if s.proc == nil || s.proc.ended() != nil {
			continue
		}
		if err := s.await(ctx, "idle", idle); err != nil {
			return err
		}
	}
	return nil
}

// master gives the server that is master of vol0.
func (c *cluster) master(ctx context.Context) (*server, error) {
	for _, s := range c.servers {
		st, err := s.status(ctx)
		if err == nil && len(st.Volumes) > 0 && st.Volumes[0].Role == "master" {
			return s, nil
		}
	}
	return nil, errors.New("no server is master of vol0")
}

func (c *cluster) procs() []*process {
	var procs []*process
	for _, s := range c.servers {
		procs = append(procs, s.proc)
	}
	return procs
}

func (c *cluster) peerPorts() []int {
	var ports []int
	for _, s := range c.servers {
		ports = append(ports, s.peer)
	}
	return ports
}

// benchKeep is how much the servers keep for one that is away: none is, so this bounds memory only.
const benchKeep = 1 << 30

// startBlockrepl gives the peer with n servers, attached at the master.
func startBlockrepl(n int) func(b *bench, dir string) (*peer, error) {
	return func(b *bench, dir string) (*peer, error) {
		c, err := newCluster(b.binary, b.place.tmp, dir, clusterOptions{
			servers: n, sizeBytes: b.o.sizeMiB << 20, onDegraded: "suspend", keepBytes: benchKeep})
		if err != nil {
			return nil, err
		}
		if err := c.up(b.ctx); err != nil {
			c.stop()
			return nil, err
		}
		return &peer{uri: c.servers[0].uri(), procs: c.procs(), peerPorts: c.peerPorts(), cluster: c,
			settle: c.settle, stop: c.stop}, nil
	}
}
