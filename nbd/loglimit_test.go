package nbd_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// Clients that come and go cost a line each second; now it is one each ten seconds.
func TestThousandReconnectsAMinuteAreAFewLogLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logLines
		s := serve(t, nbd.Options{Exports: nbdtest.Exports{"disk": memDisk()}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		connect := func() *nbdtest.Client {
			ours, theirs := net.Pipe()
			go func() { _ = s.ServeConn(context.Background(), theirs) }()
			return attach(t, ours, false)
		}
		for range 5 * 1000 { // five minutes
			if err := connect().Conn.Close(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(60 * time.Millisecond)
		}
		synctest.Wait()
		if n := strings.Count(log.String(), "\n"); n < 20 || n > 2*(20+5*6+1) { // who leaves without a word is a warning
			t.Errorf("%d lines for 5,000 clients in five minutes, want 20 and 6 a minute of each level", n)
		}
		if !regexp.MustCompile(`unlogged=[1-9]`).MatchString(log.String()) {
			t.Errorf("the log does not say how many were left out:\n%s", log.String())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A probe of the port, which is not written at this level, took the room of real clients.
func TestProbesTakeNoRoomInTheLogFromClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logLines
		s := serve(t, nbd.Options{Exports: nbdtest.Exports{"disk": memDisk()}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		for range 105 { // one each second, and a line each ten
			ours, theirs := net.Pipe()
			go func() { _ = s.ServeConn(context.Background(), theirs) }()
			if _, err := io.ReadFull(ours, make([]byte, 18)); err != nil { // the greeting
				t.Fatal(err)
			}
			if err := ours.Close(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		ours, theirs := net.Pipe()
		go func() { _ = s.ServeConn(context.Background(), theirs) }()
		c := attach(t, ours, false)
		synctest.Wait()
		if !strings.Contains(log.String(), "nbd client attached") {
			t.Errorf("no line tells of the client:\n%s", log.String())
		}
		if err := c.Conn.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
