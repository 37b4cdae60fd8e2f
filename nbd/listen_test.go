package nbd_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/blockrepl/blockrepl/nbd"
)

func TestUnixSocketHasItsModeAndOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, tc := range []struct{ mode, want fs.FileMode }{{0, 0o600}, {0o660, 0o660}} {
		ln, err := nbd.ListenUnix(nbd.UnixSocket{Path: path, Mode: tc.mode, UID: os.Getuid(), GID: os.Getgid()})
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != tc.want {
			t.Errorf("mode %v, %v, want %v", st.Mode().Perm(), err, tc.want)
		}
		s := serveDisk(t, memDisk())
		serveOn(t, s, ln)
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		write(t, attach(t, conn, true), 0, pattern(512, 1))
		_ = conn.Close()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnixSocketReplacesOnlyADeadOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	u := nbd.UnixSocket{Path: path, UID: -1, GID: -1}
	first, err := nbd.ListenUnix(u)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nbd.ListenUnix(u); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("beside a living server: %v", err)
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false) // as a killed server leaves it
	_ = first.Close()
	second, err := nbd.ListenUnix(u)
	if err != nil {
		t.Fatalf("after a killed server: %v", err)
	}
	_ = second.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := nbd.ListenUnix(u); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
}

// The test runs itself as systemd would run a server, with a socket as descriptor 3.
func TestActivatedListenersAreTakenOver(t *testing.T) {
	if os.Getenv("NBD_TEST_ACTIVATED") == "1" {
		lns, err := nbd.ActivatedListeners()
		if err != nil || len(lns) != 1 {
			t.Fatalf("%d listeners, %v, want one", len(lns), err)
		}
		again, err := nbd.ActivatedListeners()
		if err != nil || len(again) != 0 {
			t.Fatalf("a second call: %d listeners, %v, want none", len(again), err)
		}
		conn, err := lns[0].Accept()
		if err != nil {
			t.Fatal(err)
		}
		_, err = conn.Write([]byte("activated"))
		if err := errors.Join(err, conn.Close(), lns[0].Close()); err != nil {
			t.Fatal(err)
		}
		return
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// sh sets LISTEN_PID to its own number and becomes the test.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" -test.run '^TestActivatedListenersAreTakenOver$'`, os.Args[0])
	cmd.Env = append(os.Environ(), "NBD_TEST_ACTIVATED=1")
	cmd.ExtraFiles = []*os.File{f}
	out := make(chan string, 1)
	go func() {
		b, err := cmd.CombinedOutput()
		if err != nil {
			b = append(b, err.Error()...)
		}
		out <- string(b)
	}()
	b := make([]byte, 9)
	if n, err := dial(t, ln.Addr().String()).Read(b); err != nil || string(b[:n]) != "activated" {
		t.Errorf("got %q, %v", b[:n], err)
	}
	if o := <-out; !strings.Contains(o, "PASS") {
		t.Errorf("the activated process: %s", o)
	}
}

func TestNoActivationNoListeners(t *testing.T) {
	t.Setenv("LISTEN_PID", "1")
	t.Setenv("LISTEN_FDS", "3")
	if lns, err := nbd.ActivatedListeners(); err != nil || len(lns) != 0 {
		t.Errorf("meant for another process: %d listeners, %v", len(lns), err)
	}
}
