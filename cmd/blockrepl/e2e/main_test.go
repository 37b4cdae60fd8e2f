package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// program is the path of the blockrepl that is tested.
var program string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	if program = os.Getenv("BLOCKREPL_PROGRAM"); program != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "blockrepl-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "blockrepl")
	args, cgo := []string{"build", "-o", program}, "CGO_ENABLED=0"
	if os.Getenv("BLOCKREPL_E2E_RACE") == "1" {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	build := exec.Command("go", append(args, "github.com/blockrepl/blockrepl/cmd/blockrepl")...)
	build.Env = append(os.Environ(), cgo)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: build the program: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// need fails the test when programs are missing: an end-to-end test that is
// silently left out proves nothing.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("%s is missing; `make deps` installs what the tests talk to", p)
		}
	}
}

// leftOut skips a test that the environment turned off, and fails it when it can
// not run but was not turned off.
func leftOut(t *testing.T, variable string, possible bool, what string) {
	t.Helper()
	if os.Getenv(variable) == "1" {
		t.Skipf("left out by %s=1", variable)
	}
	if !possible {
		t.Fatalf("needs %s; set %s=1 to leave it out", what, variable)
	}
}

func exists(paths ...string) bool {
	for _, p := range paths {
		if _, err := os.Stat(p); err != nil {
			return false
		}
	}
	return true
}

// newRand gives the generator of a random test and prints its seed.
func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("BLOCKREPL_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("BLOCKREPL_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("seed %d (BLOCKREPL_SEED=%d repeats it)", seed, seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// portNext counts up from a place of this process's own, so that two runs at once
// seldom meet; a port that is taken is passed over.
var portNext atomic.Int64

// The ports below 32768: the kernel takes those of outgoing connections above.
const (
	portFirst = 12000
	portLast  = 32000
)

func freePort(t *testing.T) int {
	t.Helper()
	portNext.CompareAndSwap(0, int64(portFirst+os.Getpid()*61%(portLast-portFirst)))
	for range portLast - portFirst {
		port := portFirst + int(portNext.Add(1)-portFirst)%(portLast-portFirst)
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		ln.Close()
		return port
	}
	t.Fatal("no free port")
	return 0
}

// short picks the smaller amount with -short.
func short[T any](long, short T) T {
	if testing.Short() {
		return short
	}
	return long
}
