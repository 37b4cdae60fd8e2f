package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// wantExit checks a command's exit status, and that what it says as an error is
// one line that names the program.
func wantExit(t *testing.T, o outcome, code int, says ...string) {
	t.Helper()
	if o.code != code {
		t.Fatalf("want exit status %d: %v", code, o)
	}
	if code != 0 && o.stderr != "" && (strings.Count(o.stderr, "\n") != 1 || !strings.HasPrefix(o.stderr, "blockrepl: ")) {
		t.Errorf("want one line on standard error, beginning with the program's name: %v", o)
	}
	for _, s := range says {
		if !strings.Contains(o.stdout+o.stderr, s) {
			t.Errorf("want %q in the answer: %v", s, o)
		}
	}
}

// alone is a load of one client that goes to the servers in turn.
func alone(t *testing.T, c *cluster) *load {
	t.Helper()
	rng := newRand(t)
	l := startLoad(t, newHistory(rng, killBlocks), rng, loadSetup{clients: 1, depth: 8, reads: 2, only: "db"}, c.servers...)
	l.awaitWrites(c, 50, soon)
	return l
}

// ended stops the load and checks what is left of it, everywhere.
func (c *cluster) ended(l *load) {
	c.t.Helper()
	l.stop()
	c.awaitHealthy()
	for _, s := range c.servers {
		if err := l.h.readAll(s, ""); err != nil {
			c.t.Error(err)
		}
	}
	c.finish()
	for _, s := range c.servers {
		if err := l.h.imageHolds(s); err != nil {
			c.t.Error(err)
		}
	}
}

// TestSwitchoverLosesNothingAndAnswersNoError moves mastership around while a
// client writes. A dry run before each changes nothing.
func TestSwitchoverLosesNothingAndAnswersNoError(t *testing.T) {
	c := startCluster(t, setup{size: "16MiB"})
	l := alone(t, c)
	var gaps []time.Duration
	for i := range short(6, 3) {
		m := c.master()
		next := c.others(m)[i%2]
		wantExit(t, next.command("promote", volumeName, "--dry-run"), 0, "would become master", "nothing is lost")
		if now := c.master(); now != m {
			t.Fatalf("a dry run made %s the master", now.id)
		}
		began := time.Now()
		wantExit(t, next.command("promote", volumeName), 0, next.id+" is master of "+volumeName)
		l.awaitWrites(c, 1, soon)
		gaps = append(gaps, time.Since(began))
		if now := c.master(); now != next {
			t.Fatalf("%s was promoted, the master is %s", next.id, now.id)
		}
		c.awaitHealthy()
	}
	m := c.master()
	wantExit(t, m.command("promote", volumeName), 0, m.id+" is master of "+volumeName+" already")
	t.Logf("promote to the next completed write: %s", spread(gaps))
	c.ended(l)
}

// TestPromotionAfterTheMasterDied: with suspend two of three can know that nothing
// is missing; with continue the operator must say that the old master is dead.
func TestPromotionAfterTheMasterDied(t *testing.T) {
	for _, onDegraded := range []string{"suspend", "continue"} {
		t.Run(onDegraded, func(t *testing.T) {
			c := startCluster(t, setup{size: "16MiB", onDegraded: onDegraded})
			l := alone(t, c)
			m := c.master()
			next := c.slave()
			began := time.Now()
			m.kill()
			wantExit(t, m.command("status"), 6, m.admin)
			var o outcome
			if onDegraded == "continue" {
				c.await(soon, "the dry run names the flag", func() (bool, string) {
					o = next.command("promote", volumeName, "--dry-run")
					return o.code == 3 && strings.Contains(o.stderr, "--old-master-dead"), o.String()
				})
				wantExit(t, next.command("promote", volumeName), 3, "--old-master-dead")
				o = next.command("promote", volumeName, "--old-master-dead")
			} else {
				o = next.command("promote", volumeName)
			}
			wantExit(t, o, 0, next.id+" is master of", "warning: "+m.id+" must not be promoted")
			if onDegraded == "suspend" {
				// Writes wait for the dead one, which is still in the set unless the
				// promotion left it out.
				c.awaitVolume(next, soon, "serves", func(v *blockrepl.VolumeStatus) bool { return v.Role == "master" })
			}
			l.awaitWrites(c, 1, soon)
			t.Logf("kill, command, next completed write: %v", time.Since(began).Round(time.Millisecond))
			l.awaitWrites(c, 100, soon)
			o = next.command("status")
			wantExit(t, o, 4, "degraded", m.id)
			m.start()
			c.ended(l)
		})
	}
}

// TestForgetLetsWritesGoOnAndBarsTheForgotten: with suspend writes wait for a
// slave that is away, until the operator gives it up; it can then not be
// promoted before it is in sync again.
func TestForgetLetsWritesGoOnAndBarsTheForgotten(t *testing.T) {
	c := startCluster(t, setup{size: "16MiB"})
	l := alone(t, c)
	m := c.master()
	away := c.others(m)[1]
	witness := c.others(m)[0]
	away.kill()
	c.awaitVolume(m, soon, "suspended", func(v *blockrepl.VolumeStatus) bool {
		return v.State == blockrepl.StateSuspended && strings.Contains(v.Next, "forget "+volumeName+" "+away.id)
	})
	wantExit(t, m.command("status"), 4, "suspended", "forget "+volumeName+" "+away.id)
	o := m.command("forget", volumeName, away.id)
	wantExit(t, o, 0, "goes on without "+away.id, "warning")
	l.awaitWrites(c, 100, soon)
	// The master dies; the witness knows that the forgotten one lacks writes.
	m.kill()
	away.start()
	c.await(soon, "promotion of the forgotten server is refused", func() (bool, string) {
		o = away.command("promote", volumeName)
		return o.code == 3 && strings.Contains(o.stderr, "--accept-loss"), o.String()
	})
	wantExit(t, o, 3, "--accept-loss", witness.id)
	c.promote(witness)
	l.awaitWrites(c, 50, soon)
	m.start()
	c.ended(l)
}

// TestTailOfTheOldMasterIsSetAside: what only the old master had was completed to
// nobody; it is quarantined there, listed, and in nobody's image.
func TestTailOfTheOldMasterIsSetAside(t *testing.T) {
	c := startCluster(t, setup{size: "16MiB"})
	m := c.master()
	next, third := c.others(m)[0], c.others(m)[1]
	client, err := dial(m, "client=db")
	if err != nil {
		t.Fatal(err)
	}
	defer client.close()
	client.deadline(soon)
	if err := client.write(0, []byte(strings.Repeat("kept", 128))); err != nil {
		t.Fatal(err)
	}
	next.kill()
	third.kill()
	// Not answered, but in the master's journal.
	if _, err := client.Send(writeRequest(512, strings.Repeat("lost", 128))); err != nil {
		t.Fatal(err)
	}
	c.awaitVolume(m, soon, "a record that is durable here alone", func(v *blockrepl.VolumeStatus) bool { return v.Durable > v.Committed })
	m.kill()
	next.start()
	third.start()
	c.promote(next)
	again, err := dial(next, "client=db&takeover")
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	again.deadline(soon)
	if err := again.write(512, []byte(strings.Repeat("newy", 128))); err != nil {
		t.Fatal(err)
	}
	m.start()
	c.awaitHealthy()
	v := c.awaitVolume(m, soon, "a quarantine", func(v *blockrepl.VolumeStatus) bool { return len(v.Quarantines) == 1 })
	q := v.Quarantines[0]
	wantExit(t, m.command("status"), 0, "quarantine "+q.ID)
	got, err := again.read(0, 1024)
	if want := strings.Repeat("kept", 128) + strings.Repeat("newy", 128); err != nil || string(got) != want {
		t.Errorf("read %.8q…%.8q, %v", got, got[512:], err)
	}
	c.finish()
	wantExit(t, cli(t, "journal", "list", m.dir), 0, "quarantine "+q.ID)
	o := cli(t, "journal", "show", m.dir, volumeName, "--quarantine", q.ID, "--data")
	wantExit(t, o, 0, "lostlost")
}

// TestSplitBrainIsNamedAndResolved makes the one mistake that continue allows: the
// master went on alone, and another is promoted without its writes.
func TestSplitBrainIsNamedAndResolved(t *testing.T) {
	c := startCluster(t, setup{size: "16MiB", onDegraded: "continue"})
	m := c.master()
	next, third := c.others(m)[0], c.others(m)[1]
	put := func(s *server, text string) {
		t.Helper()
		client, err := dial(s, "client=db&takeover")
		if err != nil {
			t.Fatal(err)
		}
		defer client.close()
		client.deadline(soon)
		if err := client.write(0, []byte(strings.Repeat(text, 128))); err != nil {
			t.Fatal(err)
		}
	}
	put(m, "both")
	next.kill()
	third.kill()
	c.awaitDropped(m, next.id)
	c.awaitDropped(m, third.id)
	put(m, "left") // completed: the operator chose continue
	m.kill()
	next.start()
	third.start()
	c.await(soon, "promote "+next.id, func() (bool, string) {
		o := next.command("promote", volumeName, "--old-master-dead")
		return o.code == 0, o.String()
	})
	put(next, "rght")
	m.start()
	for _, s := range []*server{m, next} {
		c.awaitVolume(s, soon, "split brain", func(v *blockrepl.VolumeStatus) bool {
			return v.State == blockrepl.StateSplitBrain && strings.Contains(v.Next, "resolve")
		})
		wantExit(t, s.command("status"), 5, "split-brain", "resolve "+volumeName)
		wantExit(t, s.command("promote", volumeName), 5, "resolve "+volumeName)
	}
	wantExit(t, next.command("resolve", volumeName), 2, "--keep")
	wantExit(t, next.command("resolve", volumeName, "--keep", next.id), 0, "the side of "+next.id+" is kept", "in sync: "+next.id+"\n", "warning: ")
	c.awaitHealthy()
	for _, s := range c.servers {
		client, err := dial(s, "")
		if err != nil {
			t.Fatal(err)
		}
		client.deadline(soon)
		if got, err := client.read(0, 512); err != nil || string(got[:4]) != "rght" {
			t.Errorf("read through %s: %.8q, %v", s.id, got, err)
		}
		client.close()
	}
	c.finish()
	q := c.listed(m).Quarantines
	if len(q) == 0 {
		t.Fatalf("nothing is quarantined on %s, whose side was not kept", m.id)
	}
	found := false
	for i := range q {
		o := cli(t, "journal", "show", m.dir, volumeName, "--quarantine", q[i].ID, "--data")
		found = found || strings.Contains(o.stdout, "leftleft")
	}
	if !found {
		t.Errorf("the write that was not kept is in none of the quarantines %+v", q)
	}
	// It can be kept elsewhere and dropped, from the running server.
	m.start()
	c.await(soon, m.id+" answers", func() (bool, string) {
		o := m.command("journal", "list")
		return o.code == 0, o.String()
	})
	for i := range q {
		dump := filepath.Join(t.TempDir(), "records")
		wantExit(t, m.command("journal", "dump", volumeName, "--quarantine", q[i].ID, "--output", dump), 0, "")
		if st, err := os.Stat(dump); err != nil || st.Size() < 128 {
			t.Errorf("dump of quarantine %s: %v, %v, want records", q[i].ID, st, err)
		}
		wantExit(t, m.command("journal", "drop", volumeName, q[i].ID), 0, "is dropped")
		wantExit(t, m.command("journal", "drop", volumeName, q[i].ID), 1, "no such quarantine")
	}
	m.kill()
	if q := c.listed(m).Quarantines; len(q) != 0 {
		t.Errorf("quarantines that were dropped are still there: %+v", q)
	}
}

// TestStopHandsMastershipOver stops the master by SIGTERM under load: it ends in
// time with status 0 and another serves. By SIGINT it keeps mastership.
func TestStopHandsMastershipOver(t *testing.T) {
	c := startCluster(t, setup{size: "16MiB", onDegraded: "continue"})
	l := alone(t, c)
	m := c.master()
	began := time.Now()
	m.signal(syscall.SIGTERM)
	var next *server
	c.await(soon, "another master", func() (bool, string) {
		how := ""
		for _, s := range c.others(m) {
			v, err := s.volume()
			if err != nil {
				return false, err.Error()
			}
			how += s.id + ": " + summary(v) + "\n"
			if v.Role == "master" {
				next = s
			}
		}
		return next != nil, how
	})
	handed := time.Since(began)
	m.awaitStopped(began)
	stopped := time.Since(began)
	l.awaitWrites(c, 100, soon)
	t.Logf("SIGTERM to another master %v, to the end of the process %v", handed.Round(time.Millisecond), stopped.Round(time.Millisecond))
	m.start()
	c.awaitHealthy()

	m = c.master()
	m.stop(syscall.SIGINT)
	for _, s := range c.others(m) {
		c.awaitVolume(s, soon, "waits for "+m.id, func(v *blockrepl.VolumeStatus) bool {
			return v.Role == "slave" && v.Master == m.id && v.State == blockrepl.StateSuspended
		})
	}
	m.start()
	l.awaitWrites(c, 100, soon)
	if now := c.master(); now != m {
		t.Errorf("%s kept mastership by SIGINT, the master is %s", m.id, now.id)
	}
	c.ended(l)
}

// TestAllServersStoppedAtOnceEndInTime: there is nobody to hand over to.
func TestAllServersStoppedAtOnceEndInTime(t *testing.T) {
	c := startCluster(t, setup{size: "16MiB"})
	l := alone(t, c)
	began := time.Now()
	for _, s := range c.servers {
		s.signal(syscall.SIGTERM)
	}
	for _, s := range c.servers {
		s.awaitStopped(began)
	}
	t.Logf("all stopped after %v", time.Since(began).Round(time.Millisecond))
	for _, s := range c.servers {
		s.start()
	}
	l.awaitWrites(c, 50, soon)
	c.ended(l)
}

// TestCommandsSayWhatIsWrong: exit status and one line for what an operator can
// get wrong.
func TestCommandsSayWhatIsWrong(t *testing.T) {
	c := startCluster(t, setup{size: "16MiB"})
	m, s := c.master(), c.slave()
	wantExit(t, m.command("status"), 0, "healthy")
	wantExit(t, m.command("status", "other"), 1, "other")
	wantExit(t, m.command("promote", "other"), 1, "other")
	wantExit(t, m.command("promote"), 2, "VOLUME")
	wantExit(t, m.command("forget", volumeName, "zz"), 3, "zz")
	wantExit(t, m.command("forget", volumeName, m.id), 3, m.id)
	wantExit(t, s.command("forget", volumeName, m.id), 3, m.id)
	wantExit(t, s.command("resolve", volumeName, "--keep", s.id), 3, "no split brain")
	wantExit(t, cli(t, "status", "--admin", fmt.Sprintf("127.0.0.1:%d", freePort(t))), 6, "--admin")
	wantExit(t, cli(t, "journal", "list", m.dir), 1, "--admin")
	wantExit(t, cli(t, "serve", "--config", m.conf), 1)
	c.finish()
}
