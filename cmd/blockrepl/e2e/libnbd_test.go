package e2e

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The clients that people use, in chaos: libnbd writes and reads beside the load of
// nbdtest's client, which could be wrong in the way that the server is; nbdcopy and
// QEMU read the whole device at the end.

// othersClients reports whether they are installed. Where changes are checked
// (CI=true) they must be.
func othersClients(t *testing.T) bool {
	t.Helper()
	var missing []string
	if libnbdPython() == "" {
		missing = append(missing, "python3-libnbd")
	}
	for program, pkg := range map[string]string{"nbdcopy": "libnbd-bin", "qemu-img": "qemu-utils"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, pkg)
		}
	}
	if missing == nil {
		return true
	}
	text := "no real clients: `apt-get install " + strings.Join(missing, " ") + "` (`make deps`)"
	if os.Getenv("CI") == "true" {
		t.Fatal(text)
	}
	t.Log(text + "; left out")
	return false
}

// libnbdPython is the Python that has libnbd: the system's, which need not be the first
// in the path.
func libnbdPython() string {
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		if _, err := tryTool(python, "-c", "import nbd; nbd.NBD"); err == nil {
			return python
		}
	}
	return ""
}

// libnbdClient has a range of the volume for itself, and does there what a careful
// person does: attach at some server, look at everything, write, flush, read it back;
// when the connection breaks or nothing is answered attach at another server.
type libnbdClient struct {
	t       *testing.T
	h       *history // of its range
	rng     *rand.Rand
	setup   loadSetup
	servers []*server
	tokens  *atomic.Uint64 // shared with the load, for a newer one at each open
	stopped chan struct{}
	wg      sync.WaitGroup

	in  io.WriteCloser
	out *bufio.Reader
	err *output

	writes, flushes, reads, opens, space atomic.Uint64 // what completed; space: refused for lack of it
}

// libnbdBlocks is the size of the client's range, libnbdBase where it begins.
const (
	libnbdBlocks = 256
	libnbdBase   = 8 << 20
)

// startLibnbd begins the client at the servers of a load.
func startLibnbd(l *load, rng *rand.Rand) *libnbdClient {
	l.t.Helper()
	n := &libnbdClient{t: l.t, h: newHistory(rng, libnbdBlocks), rng: rand.New(rand.NewPCG(rng.Uint64(), 0)), setup: l.workers[0].setup,
		servers: l.servers(), tokens: &l.tokens, stopped: make(chan struct{}), err: new(output)}
	n.h.base = libnbdBase
	cmd := exec.Command(libnbdPython(), filepath.Join("testdata", "libnbd_client.py"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = n.err
	in, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	n.in, n.out = in, bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	n.wg.Go(func() {
		n.run()
		in.Close() // it ends then
		if err := cmd.Wait(); err != nil {
			n.t.Errorf("libnbd's client ended with %v: %s", err, n.err)
		}
	})
	l.t.Cleanup(n.stop)
	return n
}

// stop ends the client, after the batch that is under way. More than one call is fine.
func (n *libnbdClient) stop() {
	if !n.ended() {
		close(n.stopped)
	}
	n.wg.Wait()
}

func (n *libnbdClient) ended() bool {
	select {
	case <-n.stopped:
		return true
	default:
		return false
	}
}

// awaitReads waits until so many more blocks were read back and found right.
func (n *libnbdClient) awaitReads(c *cluster, more uint64) {
	n.t.Helper()
	from := n.reads.Load()
	c.await(soon, fmt.Sprintf("libnbd reads %d more", more), func() (bool, string) {
		return n.reads.Load() >= from+more || n.t.Failed(), n.figures()
	})
}

func (n *libnbdClient) figures() string {
	return fmt.Sprintf("libnbd: %d writes, %d refused for lack of space, %d flushes, %d reads, %d opens", n.writes.Load(), n.space.Load(), n.flushes.Load(), n.reads.Load(), n.opens.Load())
}

func (n *libnbdClient) run() {
	for !n.ended() {
		s := n.servers[n.rng.IntN(len(n.servers))]
		if err := n.session(s); err != nil {
			n.t.Errorf("libnbd at %s: %v", s.id, err)
			return
		}
		n.pause()
	}
}

// pause leaves the servers to the others for a while.
func (n *libnbdClient) pause() {
	select {
	case <-n.stopped:
	case <-time.After(reconnectEvery):
	}
}

// libnbdRequest is one line of a batch, and its answer.
type libnbdRequest struct {
	line          string
	first, blocks int      // of a write or read
	asked         []uint64 // of a write: the version of each block
	floors        []uint64 // of a read: the least that each block may hold

	lost  bool // no answer
	errno int  // 0: done
	text  string
	data  []byte
}

// session is one connection, until it breaks. A broken one is not an error; a wrong
// byte is, and an error reply but for lack of space.
func (n *libnbdClient) session(s *server) error {
	open := &libnbdRequest{line: fmt.Sprintf("open %s %g", s.uri(fmt.Sprintf("client=libnbd&token=%d&takeover", n.tokens.Add(1))), n.setup.wait.Seconds())}
	if err := n.do(open); err != nil || open.lost {
		return err
	}
	n.opens.Add(1)
	const atOnce = 32
	var all []*libnbdRequest
	for first := 0; first < len(n.h.blocks); first += atOnce {
		all = append(all, n.read(first, atOnce))
	}
	if up, err := n.took(all); err != nil || !up {
		return err
	}
	for !n.ended() {
		writes := n.writeSome()
		if up, err := n.took(writes); err != nil || !up {
			return err
		}
		flush := &libnbdRequest{line: "flush"}
		if up, err := n.took([]*libnbdRequest{flush}); err != nil || !up {
			return err
		}
		n.flushes.Add(1)
		var back []*libnbdRequest
		for _, w := range writes {
			back = append(back, n.read(w.first, w.blocks))
		}
		if up, err := n.took(back); err != nil || !up {
			return err
		}
		n.pause()
	}
	return n.do(&libnbdRequest{line: "close"})
}

// writeSome is a few writes that do not overlap, of one to eight blocks each.
func (n *libnbdClient) writeSome() []*libnbdRequest {
	const most, longest = 6, 8
	var list []*libnbdRequest
	for first := n.rng.IntN(longest); len(list) < most && first+longest <= len(n.h.blocks); first += longest + n.rng.IntN(len(n.h.blocks)/most) {
		w := &libnbdRequest{first: first, blocks: 1 + n.rng.IntN(longest)}
		var content []byte
		for b := first; b < first+w.blocks; b++ {
			w.asked = append(w.asked, n.h.ask(b))
			content = append(content, n.h.content(b, w.asked[b-first])...)
		}
		switch what := operation(w.asked[0]); {
		case w.blocks == 1 && what == cmdWriteZeroes:
			w.line = fmt.Sprintf("zero %d %d", n.h.at(first), blockBytes)
		case w.blocks == 1 && what == cmdTrim:
			w.line = fmt.Sprintf("trim %d %d", n.h.at(first), blockBytes)
		default:
			w.line = fmt.Sprintf("write %d %s", n.h.at(first), base64.StdEncoding.EncodeToString(content))
		}
		list = append(list, w)
	}
	return list
}

func (n *libnbdClient) read(first, blocks int) *libnbdRequest {
	r := &libnbdRequest{line: fmt.Sprintf("read %d %d", n.h.at(first), blocks*blockBytes), first: first, blocks: blocks}
	for b := first; b < first+blocks; b++ {
		r.floors = append(r.floors, n.h.floor(b))
	}
	return r
}

// took does a batch and takes what was answered into the history. up is false when the
// connection broke.
func (n *libnbdClient) took(batch []*libnbdRequest) (up bool, err error) {
	if err := n.do(batch...); err != nil {
		return false, err
	}
	up = true
	for _, r := range batch {
		switch {
		case r.lost:
			up = false
		case r.errno == errnoSpace && r.asked != nil && n.setup.full:
			n.space.Add(1)
		case r.errno != 0:
			return false, fmt.Errorf("%.40s: error reply %d %s", r.line, r.errno, r.text)
		case r.asked != nil:
			for i, version := range r.asked {
				n.h.completed(r.first+i, version)
			}
			n.writes.Add(1)
		case r.floors != nil:
			if len(r.data) != r.blocks*blockBytes {
				return false, fmt.Errorf("%s: gave %d bytes", r.line, len(r.data))
			}
			for i, floor := range r.floors {
				if err := n.h.check(r.first+i, floor, r.data[i*blockBytes:(i+1)*blockBytes]); err != nil {
					return false, fmt.Errorf("%s: %w", r.line, err)
				}
			}
			n.reads.Add(1)
		}
	}
	return up, nil
}

// do hands a batch to the client and takes its answers; an error is one of the client.
func (n *libnbdClient) do(batch ...*libnbdRequest) error {
	var lines strings.Builder
	for _, r := range batch {
		lines.WriteString(r.line + "\n")
	}
	if _, err := io.WriteString(n.in, lines.String()+"go\n"); err != nil {
		return fmt.Errorf("libnbd's client takes nothing more: %w", err)
	}
	for _, r := range batch {
		line, err := n.out.ReadString('\n')
		if err != nil {
			return fmt.Errorf("libnbd's client says nothing more: %w", err)
		}
		what, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch what {
		case "ok":
			r.data, err = base64.StdEncoding.DecodeString(rest)
		case "lost":
			r.lost, r.text = true, rest
		case "error":
			number, text, _ := strings.Cut(rest, " ")
			r.text = text
			r.errno, err = strconv.Atoi(number)
		default:
			err = fmt.Errorf("unknown answer")
		}
		if err != nil {
			return fmt.Errorf("libnbd's client says %.80q: %w", line, err)
		}
	}
	return nil
}

// wholeDevice reads all of every server's export by nbdcopy: there must be what the
// histories say, zeroes where nobody wrote, and the same for QEMU through all servers.
func (c *cluster) wholeDevice(histories ...*history) {
	c.t.Helper()
	c.quiesce()
	dir := c.t.TempDir()
	first := filepath.Join(dir, c.servers[0].id)
	for _, s := range c.servers {
		path := filepath.Join(dir, s.id)
		tool(c.t, "nbdcopy", s.uri("readonly"), path)
		for _, h := range histories {
			if err := h.fileHolds(path); err != nil {
				c.t.Errorf("nbdcopy from %s: %v", s.id, err)
			}
		}
		if off, err := writtenAt(path, histories...); err != nil || off >= 0 {
			c.t.Errorf("nbdcopy from %s: byte %d is not zero, though nobody wrote there (%v)", s.id, off, err)
		}
		tool(c.t, "qemu-img", "compare", "-f", "raw", "-F", "raw", first, s.uri("readonly"))
	}
}

// writtenAt is the first byte of a file that is not zero outside of the histories'
// blocks, -1 = none.
func writtenAt(path string, histories ...*history) (int64, error) {
	p, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for _, h := range histories {
		clear(p[h.base:h.at(len(h.blocks))])
	}
	for i, x := range p {
		if x != 0 {
			return int64(i), nil
		}
	}
	return -1, nil
}
