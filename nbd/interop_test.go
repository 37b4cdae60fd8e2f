package nbd_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// Real clients against a file. The programs are Debian's libnbd-bin, python3-libnbd, qemu-utils, nbd-client, fio and fuse3.
// Where they are missing the tests fail, unless BLOCKREPL_NO_CLIENTS=1 says that this is meant.

const interopSize = 160 << 20

// fileServer serves a sparse file on TCP and gives its URI and path.
func fileServer(t *testing.T) (s *nbd.Server, uri, path string) {
	t.Helper()
	if os.Getenv("BLOCKREPL_NO_CLIENTS") == "1" {
		t.Skip("BLOCKREPL_NO_CLIENTS=1")
	}
	path = filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(interopSize), f.Close()); err != nil {
		t.Fatal(err)
	}
	d, err := nbdtest.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Shutdown() })
	s = serveDisk(t, d)
	return s, "nbd://" + listen(t, s) + "/disk", path
}

// runClient runs a program to its end and gives what it printed; it fails the test if the program does.
func runClient(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := tryClient(t, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

func tryClient(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.TempDir()
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%v: install it, or set BLOCKREPL_NO_CLIENTS=1", err)
	}
	if ctx.Err() != nil {
		t.Fatalf("%s %q hangs:\n%s", name, args, out)
	}
	return string(out), err
}

// randomFile writes a file of interopSize whose first n bytes are random, and the last three.
func randomFile(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "random")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	data := make([]byte, n)
	var key [32]byte
	copy(key[:], fmt.Sprint(seed))
	if _, err := rand.NewChaCha8(key).Read(data); err != nil {
		t.Fatal(err)
	}
	_, e1 := f.Write(data)
	_, e2 := f.WriteAt([]byte("END"), interopSize-3)
	if err := errors.Join(e1, e2, f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	x, e1 := os.ReadFile(a)
	y, e2 := os.ReadFile(b)
	if err := errors.Join(e1, e2); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Fatalf("%s (%d bytes) and %s (%d bytes) differ", a, len(x), b, len(y))
	}
}

func TestNbdinfo(t *testing.T) {
	_, uri, path := fileServer(t)
	var info struct {
		Protocol   string
		TLS        bool
		Structured bool
		Exports    []struct {
			Name        string `json:"export-name"`
			Size        int64  `json:"export-size"`
			Min         int    `json:"block_size_minimum"`
			Multi, Trim bool
			ReadOnly    bool `json:"is_read_only"`
		}
	}
	out := runClient(t, "nbdinfo", "--json", uri)
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if len(info.Exports) != 1 || info.Exports[0].Name != "disk" || info.Exports[0].Size != interopSize || info.Exports[0].Min != 1 || info.Exports[0].ReadOnly {
		t.Errorf("nbdinfo sees %s", out)
	}
	for _, can := range []string{"connect", "read", "write", "flush", "fua", "trim", "zero", "multi-conn", "df", "cache", "fast-zero", "structured-reply"} {
		runClient(t, "nbdinfo", "--can", can, uri)
	}
	if out, err := tryClient(t, "nbdinfo", "--is", "read-only", uri); err == nil {
		t.Errorf("read-only: %s", out)
	}
	if out := runClient(t, "nbdinfo", "--list", strings.TrimSuffix(uri, "/disk")); !strings.Contains(out, `export="disk"`) {
		t.Errorf("list: %s", out)
	}
	if out, err := tryClient(t, "nbdinfo", "--size", uri+"x"); err == nil {
		t.Errorf("an unknown export has a size: %s", out)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 1<<20), 8<<20); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if out := runClient(t, "nbdinfo", "--map", uri); len(strings.Split(strings.TrimSpace(out), "\n")) != 3 || !strings.Contains(out, "hole,zero") {
		t.Errorf("map of hole, data, hole:\n%s", out)
	}
}

func TestNbdcopyWithSeveralConnections(t *testing.T) {
	_, uri, path := fileServer(t)
	in := randomFile(t, 40<<20)
	out := filepath.Join(t.TempDir(), "out")
	for _, args := range [][]string{
		{"--connections=4", "--requests=64"}, {"--request-size=33554432"}, {"--allocated", "--connections=2"}, {"--synchronous", "--request-size=65536"},
	} {
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, interopSize); err != nil {
			t.Fatal(err)
		}
		runClient(t, "nbdcopy", append(args, "--flush", in, uri)...)
		sameFiles(t, in, path)
		runClient(t, "nbdcopy", append(args, uri, out)...)
		sameFiles(t, in, out)
	}
}

func TestKilledClientsHarmNobody(t *testing.T) {
	s, uri, path := fileServer(t)
	in := randomFile(t, 100<<20)
	for i := range uint64(5) {
		before := s.Stats().Accepted
		cmd := exec.Command("nbdcopy", "--requests=64", in, uri)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, "the copy is under way, further each time", func() bool {
			st := s.Stats()
			if len(st.Conns) == 0 {
				return st.Accepted > before // a fast copy is already done
			}
			return st.Conns[0].Writes > 20*i
		})
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		await(t, "its connections are closed", func() bool { return len(s.Stats().Conns) == 0 })
	}
	runClient(t, "nbdcopy", "--flush", in, uri)
	sameFiles(t, in, path)
}

func TestLibnbdUsesEveryCommandAndFlag(t *testing.T) {
	_, uri, _ := fileServer(t)
	script, err := filepath.Abs("testdata/commands.py")
	if err != nil {
		t.Fatal(err)
	}
	runClient(t, "/usr/bin/python3", script, uri)
}

func TestNbdClientLists(t *testing.T) {
	_, uri, _ := fileServer(t)
	host, port, err := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(uri, "nbd://"), "/disk"))
	if err != nil {
		t.Fatal(err)
	}
	if out := runClient(t, "nbd-client", "-l", host, port); !strings.Contains(out, "disk") {
		t.Errorf("nbd-client -l: %s", out)
	}
}

func TestQemuIO(t *testing.T) {
	_, uri, _ := fileServer(t)
	for _, script := range [][]string{
		{"write -P 0xa5 0 1M", "read -P 0xa5 0 1M"},
		{"write -P 0x11 0 64k", "write -P 0x22 511 513", "read -P 0x11 0 511", "read -P 0x22 511 513", "read -P 0x11 1024 1024"},
		{"write -f -P 0x33 1M 64k", "read -P 0x33 1M 64k"},
		{"write -P 0x44 2M 1M", "write -z -u 2M 512k", "read -P 0 2M 512k", "read -P 0x44 2560k 512k"},
		{"write -P 0x55 3M 1M", "write -z -f 3M 64k", "read -P 0 3M 64k"},
		{"write -P 0x66 4M 1M", "discard 4M 512k", "flush", "read -P 0x66 4608k 512k"},
		{"aio_write -P 1 16M 1M", "aio_write -P 2 17M 1M", "aio_write -P 3 18M 1M", "aio_flush", "read -P 1 16M 1M", "read -P 3 18M 1M"},
		{"write -P 0x99 32M 32M", "read -P 0x99 32M 32M"},
	} {
		args := []string{"-f", "raw", uri}
		for _, c := range script {
			args = append(args, "-c", c)
		}
		if out := runClient(t, "qemu-io", args...); strings.Contains(out, "ailed") || strings.Contains(out, "rror") {
			t.Errorf("%q:\n%s", script, out)
		}
	}
	if out, err := tryClient(t, "qemu-io", "-f", "raw", uri, "-c", fmt.Sprintf("write %d 512", interopSize)); err == nil && !strings.Contains(out, "ailed") {
		t.Errorf("a write behind the end: %s", out)
	}
}

func TestQemuImg(t *testing.T) {
	_, uri, _ := fileServer(t)
	in := randomFile(t, 32<<20)
	q := filepath.Join(t.TempDir(), "out.qcow2")
	runClient(t, "qemu-img", "convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", in, uri)
	runClient(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, uri)
	runClient(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, q)
	runClient(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", q, in)
	var extents []struct {
		Data, Zero bool
	}
	if err := json.Unmarshal([]byte(runClient(t, "qemu-img", "map", "-f", "raw", "--output=json", uri)), &extents); err != nil {
		t.Fatal(err)
	}
	if len(extents) != 3 || !extents[0].Data || !extents[1].Zero {
		t.Errorf("map of data, hole, data: %+v", extents)
	}
	runClient(t, "qemu-img", "bench", "-w", "-c", "2000", "-d", "16", "-s", "4096", "--flush-interval=16", "-f", "raw", uri)
}

func TestFioVerifies(t *testing.T) {
	_, uri, _ := fileServer(t)
	for _, args := range []string{
		"--rw=randwrite --bs=4k --iodepth=32 --size=16M --verify=crc32c",
		"--rw=randwrite --bsrange=512-128k --blockalign=512 --iodepth=16 --size=24M --verify=md5 --serialize_overlap=1",
		"--rw=randrw --rwmixread=30 --bs=4k --iodepth=8 --size=16M --fsync=32 --verify=crc32c",
		"--rw=randtrimwrite --bs=4k --iodepth=8 --size=8M",
		"--rw=randwrite --bs=4k --numjobs=2 --offset_increment=64M --iodepth=16 --size=16M --verify=crc32c",
	} {
		all := append([]string{"--ioengine=nbd", "--uri=" + uri, "--thread=1", "--name=x", "--minimal", "--verify_fatal=1"}, strings.Fields(args)...)
		runClient(t, "fio", all...)
	}
}

func TestNbdfuseMountsTheExport(t *testing.T) {
	_, uri, path := fileServer(t)
	mnt := t.TempDir()
	cmd := exec.Command("nbdfuse", mnt+"/disk", uri)
	if err := os.WriteFile(mnt+"/disk", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: install it, or set BLOCKREPL_NO_CLIENTS=1", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	unmount := func() {
		_ = exec.Command("fusermount3", "-u", mnt+"/disk").Run() // twice the second time
	}
	t.Cleanup(unmount)
	await(t, "the export is mounted", func() bool {
		select {
		case err := <-exited:
			t.Fatalf("nbdfuse: %v\n%s", err, out.String())
		default:
		}
		st, err := os.Stat(mnt + "/disk")
		return err == nil && st.Size() == interopSize
	})
	f, err := os.OpenFile(mnt+"/disk", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	data := pattern(3<<20, 4)
	_, e1 := f.WriteAt(data, 12345)
	e2 := f.Sync()
	got := make([]byte, len(data))
	_, e3 := f.ReadAt(got, 12345)
	if err := errors.Join(e1, e2, e3, f.Close()); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("through the mount: %v, equal %v", err, bytes.Equal(got, data))
	}
	unmount()
	if err := <-exited; err != nil {
		t.Fatalf("nbdfuse: %v\n%s", err, out.String())
	}
	image, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(image[12345:12345+len(data)], data) {
		t.Fatalf("the image does not hold what was written: %v", err)
	}
}

func TestTLSClientsOfGnuTLS(t *testing.T) {
	if os.Getenv("BLOCKREPL_NO_CLIENTS") == "1" {
		t.Skip("BLOCKREPL_NO_CLIENTS=1")
	}
	for _, withRSA := range []bool{false, true} {
		t.Run(fmt.Sprintf("rsa=%v", withRSA), func(t *testing.T) {
			a, other := newAuthority(t), newAuthority(t)
			a.rsa, other.rsa = withRSA, withRSA
			gnuTLSClients(t, a, other)
		})
	}
}

func gnuTLSClients(t *testing.T, a, other *authority) {
	s, w := serveTLS(t, nbd.TLSRequire, a)
	addr := listen(t, s)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	uri := func(a *authority, withCert bool) string {
		return "nbds://localhost:" + port + "/disk?tls-certificates=" + a.dir(t, withCert)
	}
	if out := runClient(t, "nbdinfo", uri(a, true)); !strings.Contains(out, "with TLS") {
		t.Errorf("nbdinfo: %s", out)
	}
	if got := (<-w.seen).TLSName; got != "db1" {
		t.Errorf("the client is %q, want \"db1\"", got)
	}
	for what, u := range map[string]string{
		"plain": "nbd://localhost:" + port + "/disk", "another authority": uri(other, true), "no certificate": uri(a, false),
	} {
		if out, err := tryClient(t, "nbdinfo", "--size", u); err == nil {
			t.Errorf("%s: served: %s", what, out)
		}
	}
	opts := "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=localhost,file.server.port=" + port + ",file.export=disk,file.tls-creds=t"
	creds := "tls-creds-x509,id=t,endpoint=client,dir=" + a.dir(t, true)
	if out := runClient(t, "qemu-io", "--object", creds, "--image-opts", opts, "-c", "write -P 5 0 1M", "-c", "read -P 5 0 1M"); strings.Contains(out, "ailed") {
		t.Errorf("qemu-io: %s", out)
	}
	runClient(t, "qemu-img", "info", "--object", creds, "--image-opts", opts)
}

// dir writes the certificates of a client under the names that GnuTLS programs look for.
func (a *authority) dir(t *testing.T, withCert bool) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("ca-cert.pem", "CERTIFICATE", a.cert.Raw)
	if withCert {
		c := a.issue(t, "db1")
		key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		put("client-cert.pem", "CERTIFICATE", c.Certificate[0])
		put("client-key.pem", "PRIVATE KEY", key)
	}
	return dir
}
