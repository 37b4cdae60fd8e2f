package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// What holds at the end of every run.

// finish waits until all servers have applied the same, stops them, and checks
// that all images are equal, that all journals are equal as far as two servers
// keep the same numbers, and that `journal verify` finds them whole.
func (c *cluster) finish() {
	c.t.Helper()
	began := time.Now()
	last := c.quiesce()
	quiet := time.Now()
	c.stopAll()
	stopped := time.Now()
	c.imagesEqual()
	c.journalsGood(last)
	c.t.Logf("the end, at record %d: quiet after %v, stopped after %v, compared after %v", last, quiet.Sub(began).Round(time.Millisecond),
		stopped.Sub(quiet).Round(time.Millisecond), time.Since(stopped).Round(time.Millisecond))
}

// quiesce waits until nothing is under way on any server and gives the last number.
func (c *cluster) quiesce() uint64 {
	c.t.Helper()
	c.awaitHealthy()
	var last uint64
	c.await(soon, "all servers have applied everything", func() (bool, string) {
		how, same := "", true
		last = 0
		for _, s := range c.servers {
			v, err := s.volume()
			if err != nil {
				return false, err.Error()
			}
			how += s.id + ": " + summary(v) + "\n"
			last = max(last, v.Last)
			same = same && v.Last == last && v.Applied == last
		}
		return same, how
	})
	return last
}

// stopAll stops every running server: the slaves first, so that no mastership is
// handed to one that is about to stop.
func (c *cluster) stopAll() {
	c.t.Helper()
	m := c.master()
	for _, s := range c.others(m) {
		if s.running() {
			s.stop(syscall.SIGTERM)
		}
	}
	m.stop(syscall.SIGTERM)
}

// imagesEqual compares all images with the first server's.
func (c *cluster) imagesEqual() {
	c.t.Helper()
	for _, s := range c.servers[1:] {
		if at, err := differAt(c.servers[0].image(), s.image()); err != nil {
			c.t.Errorf("compare images of %s and %s: %v", c.servers[0].id, s.id, err)
		} else if at >= 0 {
			c.t.Errorf("images of %s and %s differ at byte %d (block %d)", c.servers[0].id, s.id, at, at/blockBytes)
		}
	}
}

// differAt gives the first byte at which two files differ, -1 when they are equal.
func differAt(a, b string) (int64, error) {
	fa, err := os.Open(a)
	if err != nil {
		return 0, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return 0, err
	}
	defer fb.Close()
	pa, pb := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; {
		na, erra := io.ReadFull(fa, pa)
		nb, errb := io.ReadFull(fb, pb)
		if na != nb {
			return 0, fmt.Errorf("sizes differ: one ends in the MiB at %d", off)
		}
		if !bytes.Equal(pa[:na], pb[:nb]) {
			for i := range pa[:na] {
				if pa[i] != pb[i] {
					return off + int64(i), nil
				}
			}
		}
		if erra != nil || errb != nil {
			if erra == io.EOF || erra == io.ErrUnexpectedEOF {
				return -1, nil
			}
			return 0, fmt.Errorf("%v, %v", erra, errb)
		}
		off += int64(na)
	}
}

// comparedMax bounds how many of the last records are compared one by one.
const comparedMax = 20000

// journalsGood verifies every journal and compares the records through last.
// What is above it was numbered while the servers stopped one after the other.
func (c *cluster) journalsGood(last uint64) {
	c.t.Helper()
	var first *server
	known := map[uint64]blockrepl.JournalRecord{}
	for _, s := range c.servers {
		if o := cli(c.t, "journal", "verify", s.dir, volumeName); o.code != 0 || !strings.Contains(o.stdout, "good") {
			c.t.Errorf("journal verify of %s: %v", s.id, o)
			continue
		}
		from := uint64(1)
		if last > comparedMax {
			from = last - comparedMax
		}
		from = max(from, c.firstKept(s))
		if from > last {
			continue // checkpointed and trimmed, all of it
		}
		o := cli(c.t, "journal", "show", s.dir, volumeName, fmt.Sprint(from), fmt.Sprint(last), "--json")
		if o.code != 0 {
			c.t.Errorf("journal show of %s: %v", s.id, o)
			continue
		}
		compared := c.compareRecords(first, s, known, o.stdout)
		if first == nil {
			first = s
		}
		if want := last - from + 1; compared != want {
			c.t.Errorf("journal of %s has %d records of %d..%d, want %d", s.id, compared, from, last, want)
		}
	}
}

func (c *cluster) compareRecords(first, s *server, known map[uint64]blockrepl.JournalRecord, text string) (n uint64) {
	c.t.Helper()
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for ; lines.Scan(); n++ {
		var r blockrepl.JournalRecord
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			c.t.Fatalf("journal show of %s: %q: %v", s.id, lines.Text(), err)
		}
		if other, ok := known[r.Seq]; ok && (other.Sum != r.Sum || other.Prev != r.Prev || other.Epoch != r.Epoch) {
			c.t.Errorf("record %d: %+v on %s, %+v on %s", r.Seq, other, first.id, r, s.id)
			return n
		}
		known[r.Seq] = r
	}
	return n
}

// listed is the volume in the journal of a stopped server.
func (c *cluster) listed(s *server) blockrepl.JournalInfo {
	c.t.Helper()
	o := cli(c.t, "journal", "list", s.dir, "--json")
	var list []blockrepl.JournalInfo
	if err := json.Unmarshal([]byte(o.stdout), &list); o.code != 0 || err != nil {
		c.t.Fatalf("journal list of %s: %v, %v", s.id, err, o)
	}
	for _, v := range list {
		if v.Volume == volumeName {
			return v
		}
	}
	c.t.Fatalf("journal list of %s: no %s in %v", s.id, volumeName, o)
	return blockrepl.JournalInfo{}
}

func (c *cluster) firstKept(s *server) uint64 {
	c.t.Helper()
	return c.listed(s).First
}

// peerOf is a peer's line in a server's status.
func peerOf(v *blockrepl.VolumeStatus, id string) blockrepl.PeerStatus {
	for _, p := range v.Peers {
		if p.Server == id {
			return p
		}
	}
	return blockrepl.PeerStatus{}
}
