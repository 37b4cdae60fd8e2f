package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/urfave/cli/v2"
)

// tokenRig is a server, and clients of the name db1 that attach to it.
type tokenRig struct {
	t    *testing.T
	door Addr
}

func newTokenRig(t *testing.T) *tokenRig {
	dir := t.TempDir()
	notify, next := notifySocket(t)
	r := &tokenRig{t, Addr("unix:" + filepath.Join(dir, "nbd.sock"))}
	s := startChild(t, []string{"NOTIFY_SOCKET=" + notify}, "blockrepl", "serve", "--cluster", "lab", "--id", "a", "--data", filepath.Join(dir, "data"),
		"--nbd", string(r.door), "--peers", "127.0.0.1:0", "--admin", "unix:"+filepath.Join(dir, "admin.sock"), "--volume", "vol0 size=1MiB")
	if got := next(); got != "READY=1" {
		t.Fatalf("message %q", got)
	}
	t.Cleanup(func() { s.stop(t, syscall.SIGTERM) })
	return r
}

// program is a freshly started attach; what it says goes to out.
func (r *tokenRig) program(out io.Writer) *attachment {
	return &attachment{device: "/dev/nbd0", volume: "vol0", servers: []Addr{r.door}, client: "db1", out: out,
		flags: cli.NewContext(nil, flag.NewFlagSet("attach", flag.ContinueOnError), nil)}
}

// write sends a write over a connection and waits for its answer, or for the end of
// the connection.
func (r *tokenRig) write(conn *nbdConn) error {
	be := binary.BigEndian
	b := be.AppendUint32(nil, 0x25609513) // request magic
	b = be.AppendUint32(b, 1)             // no flags, WRITE
	b = be.AppendUint64(b, 7)             // handle
	b = be.AppendUint64(b, 0)
	b = be.AppendUint32(b, 512)
	if _, err := conn.socket.Write(append(b, make([]byte, 512)...)); err != nil {
		return err
	}
	var answer [16]byte
	if _, err := io.ReadFull(conn.socket, answer[:]); err != nil {
		return err
	}
	if errno := be.Uint32(answer[4:]); errno != 0 {
		return fmt.Errorf("write: NBD error %d", errno)
	}
	return nil
}

// ahead writes over a connection of a clock that is so far ahead.
func (r *tokenRig) ahead(d time.Duration) {
	r.t.Helper()
	a := r.program(io.Discard)
	a.token = uint64(time.Now().Add(d).UnixNano())
	conn, err := a.dialAny(r.t.Context(), true)
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.socket.Close()
	if err := r.write(conn); err != nil {
		r.t.Fatal(err)
	}
}

// Its connections were let in, and closed at the first write, for a year.
func TestAttachGoesOnAfterItsClockWasAYearAhead(t *testing.T) {
	r := newTokenRig(t)
	r.ahead(365 * 24 * time.Hour)
	for range 2 { // again and again
		var out bytes.Buffer
		a := r.program(&out)
		for range 2 { // and when it reconnects
			conn, err := a.dialAny(t.Context(), true)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.write(conn); err != nil {
				t.Errorf("write after the clock was set back: %v", err)
			}
			conn.socket.Close()
		}
		if !strings.Contains(out.String(), "ahead of this host's clock") {
			t.Errorf("the program says %q, want that a clock was ahead", out.String())
		}
	}
}

// A program that was replaced while its server hung must not pass the one that
// replaced it, and says so instead of hanging.
func TestAttachThatReconnectsStaysBelowANewerOne(t *testing.T) {
	r := newTokenRig(t)
	out := &lineWaiter{lines: make(chan string, 64)}
	a := r.program(out)
	conn, err := a.dialAny(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.write(conn); err != nil {
		t.Fatal(err)
	}
	r.ahead(time.Hour)
	conn.socket.Close()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	done := make(chan error, 1)
	go func() {
		_, err := a.dialAny(ctx, false)
		done <- err
	}()
	want := []string{"is older than", "requests to /dev/nbd0 wait"}
	for len(want) > 0 {
		select {
		case line := <-out.lines:
			if strings.Contains(line, want[0]) {
				want = want[1:]
			}
		case err := <-done:
			t.Fatalf("the older program does not say %q: %v", want[0], err)
		}
	}
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the older program is let in again: %v", err)
	}
	if _, err := a.dialAny(t.Context(), true); asFailure(err).code != exitRefused || !strings.Contains(err.Error(), "another --client and --takeover") {
		t.Errorf("refused with %v, want exit %d and the way out", err, exitRefused)
	}
}

// lineWaiter gives what is printed, a line at a time.
type lineWaiter struct{ lines chan string }

func (w *lineWaiter) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		w.lines <- line
	}
	return len(b), nil
}

func TestTokensThatNoClockGivesAreNotRaised(t *testing.T) {
	for _, tt := range []struct {
		text string
		want uint64 // at least; 0: not raised
	}{
		{oldTokenRefusal(&blockrepl.OldTokenError{Identity: "token 7 is older than 8", Token: 5, Newest: 900}).Error(), 900},
		{oldTokenRefusal(&blockrepl.OldTokenError{Identity: "db1", Token: 5, Newest: math.MaxInt64}).Error(), math.MaxInt64},
		{oldTokenRefusal(&blockrepl.OldTokenError{Identity: "db1", Token: 5, Newest: math.MaxInt64 + 1}).Error(), 0},
		{"not permitted: token 5 is older than 900, with", 900},
		{"token 5 is older than 4", 0},
		{"token 5 is older than 99999999999999999999", 0},
		{"token 5 is older than", 0},
		{"not permitted: unknown option \"token 5\"", 0},
		{"", 0},
	} {
		a := &attachment{token: 5, out: io.Discard}
		var err error
		if old := readOldToken(tt.text); old != nil {
			err = old
		}
		if raised := a.raiseToken(err); raised != (tt.want > 0) || a.token <= tt.want {
			t.Errorf("%q: raised %v to %d, want above %d", tt.text, raised, a.token, tt.want)
		}
	}
}
