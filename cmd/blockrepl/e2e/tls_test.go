package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// startTLSCluster makes certificates with the program, for servers and clients,
// and starts servers that speak TLS to both.
func startTLSCluster(t *testing.T) (c *cluster, pki string) {
	t.Helper()
	pki = filepath.Join(t.TempDir(), "pki")
	wantExit(t, cli(t, "cert", "--dir", pki, "--cluster", "e2e", "--server", "a=127.0.0.1", "--server", "b=127.0.0.1", "--server", "c=127.0.0.1",
		"--client", "db1", "--client", "db2", "--client", "reader"), 0, "client-db1")
	c = newCluster(t, setup{size: "16MiB", tables: func(s *server) string {
		dir := filepath.Join(pki, "server-"+s.id)
		files := fmt.Sprintf("cert = %q\nkey = %q\nca = %q\n", dir+"/server-cert.pem", dir+"/server-key.pem", dir+"/ca-cert.pem")
		return "\n[nbd_tls]\nmode = \"require\"\n" + files + "[[nbd_tls.client]]\nname = \"db1\"\n[[nbd_tls.client]]\nname = \"db2\"\n" +
			"[[nbd_tls.client]]\nname = \"reader\"\naccess = \"read-only\"\n\n[peer_tls]\n" + files
	}})
	for _, s := range c.servers {
		s.start()
	}
	c.awaitHealthy()
	return c, pki
}

// secure is the volume's URI for libnbd with a certificate directory.
func (s *server) secure(dir string) string {
	return "nbds://" + s.nbd + "/" + volumeName + "?tls-certificates=" + dir
}

// qemuSecure are the arguments with which QEMU's tools open the volume.
func (s *server) qemuSecure(dir, export string) []string {
	host, port, _ := strings.Cut(s.nbd, ":")
	return []string{"--object", "tls-creds-x509,id=t,endpoint=client,dir=" + dir, "--image-opts",
		fmt.Sprintf("driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=%s,file.server.port=%s,file.export=%s,file.tls-creds=t", host, port, export)}
}

// dialTLS opens the volume with a client's certificate.
func dialTLS(t *testing.T, s *server, dir, query string) *client {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "client-cert.pem"), filepath.Join(dir, "client-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	conn, err := net.DialTimeout("tcp", s.nbd, dialWait)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(soon))
	c, err := nbdtest.NewClient(conn, nbdtest.FixedNewstyle)
	if err == nil {
		err = c.StartTLS(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13})
	}
	if err == nil {
		err = c.Go(volumeName + "?" + query)
	}
	if err != nil {
		t.Fatalf("open at %s over TLS: %v", s.id, err)
	}
	return &client{c, s}
}

// TestTLSForClientsAndPeers uses the certificates of `blockrepl cert` both ways.
func TestTLSForClientsAndPeers(t *testing.T) {
	need(t, "nbdinfo", "nbdcopy", "qemu-io", "cmp")
	c, pki := startTLSCluster(t)
	m, s := c.master(), c.slave()
	db1, reader := filepath.Join(pki, "client-db1"), filepath.Join(pki, "client-reader")
	if out := tool(t, "nbdinfo", m.secure(db1)); !strings.Contains(out, "with TLS") {
		t.Errorf("nbdinfo does not say that it uses TLS: %s", out)
	}
	in, out := randomFile(t, t.TempDir(), "in", 16), filepath.Join(t.TempDir(), "out")
	tool(t, "nbdcopy", in, s.secure(db1))
	tool(t, "nbdcopy", m.secure(db1), out)
	tool(t, "cmp", in, out)
	tool(t, "qemu-io", append(m.qemuSecure(db1, volumeName), "-c", "write -P 5 0 1M", "-c", "read -P 5 0 1M")...)
	// The certificate's name is the identity, whatever the export name says.
	holder := dialTLS(t, m, db1, "client=somebody")
	if err := holder.write(0, []byte(strings.Repeat("tls.", 128))); err != nil {
		t.Fatal(err)
	}
	c.awaitVolume(s, soon, "db1 holds it", func(v *blockrepl.VolumeStatus) bool { return v.Holder == "db1" })
	if second := dialTLS(t, s, filepath.Join(pki, "client-db2"), "client=db1"); !second.readOnly() {
		t.Error("another certificate was offered the volume writable")
	}
	holder.close()
	c.awaitVolume(s, soon, "nobody holds it", func(v *blockrepl.VolumeStatus) bool { return v.Holder == "" })

	// Refused: plain text, no certificate, one of another authority, writing with
	// one that may only read.
	other := filepath.Join(t.TempDir(), "pki")
	wantExit(t, cli(t, "cert", "--dir", other, "--cluster", "e2e", "--client", "db1"), 0)
	none := t.TempDir()
	ca, err := os.ReadFile(filepath.Join(db1, "ca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(none, "ca-cert.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, uri := range map[string]string{"plain text": m.uri(""), "no certificate": m.secure(none), "another authority": m.secure(filepath.Join(other, "client-db1"))} {
		if out, err := tryTool("nbdinfo", "--size", uri); err == nil {
			t.Errorf("%s: was let in: %s", what, out)
		}
	}
	if out, err := tryTool("nbdinfo", "--is", "read-only", m.secure(reader)); err != nil {
		t.Errorf("the reader's export is not read-only: %v %s", err, out)
	}
	if out, err := tryTool("qemu-io", append(m.qemuSecure(reader, volumeName), "-c", "write -P 6 0 1M")...); err == nil && !strings.Contains(out, "rror") && !strings.Contains(out, "ermi") {
		t.Errorf("the reader could write: %s", out)
	}

	// Mastership moves over the same links.
	wantExit(t, s.command("promote", volumeName), 0, "is master of")
	tool(t, "nbdcopy", s.secure(db1), out)
	c.finish()
}

// TestServerOfAnotherAuthorityIsNoPeer gives one server certificates that the
// others do not trust: the volume does not come into being.
func TestServerOfAnotherAuthorityIsNoPeer(t *testing.T) {
	pki, other := filepath.Join(t.TempDir(), "pki"), filepath.Join(t.TempDir(), "pki")
	for _, dir := range []string{pki, other} {
		wantExit(t, cli(t, "cert", "--dir", dir, "--cluster", "e2e", "--server", "a=127.0.0.1", "--server", "b=127.0.0.1", "--server", "c=127.0.0.1"), 0)
	}
	c := newCluster(t, setup{size: "16MiB", tables: func(s *server) string {
		dir := filepath.Join(pki, "server-"+s.id)
		if s.id == "c" {
			dir = filepath.Join(other, "server-"+s.id)
		}
		return fmt.Sprintf("\n[peer_tls]\ncert = %q\nkey = %q\nca = %q\n", dir+"/server-cert.pem", dir+"/server-key.pem", dir+"/ca-cert.pem")
	}})
	for _, s := range c.servers {
		s.start()
	}
	a := c.server("a")
	c.awaitVolume(a, soon, "b is linked, c is missing", func(v *blockrepl.VolumeStatus) bool {
		return v.State == blockrepl.StateSuspended && strings.Contains(v.Reason, "missing: c") && peerOf(v, "b").State == "live"
	})
	c.await(soon, "the log names the reason", func() (bool, string) {
		log := a.tail(50) + c.server("c").tail(50)
		return strings.Contains(log, "certificate"), log
	})
}

// TestOneIdentityWrites: the volume has one holder; another is offered it
// read-only, or takes it over when it asks to, and then the first is cut off
// without an error reply.
func TestOneIdentityWrites(t *testing.T) {
	c := startCluster(t, setup{size: "16MiB"})
	m, s := c.master(), c.slave()
	block := func(text string) []byte { return []byte(strings.Repeat(text, 128)) }
	open := func(at *server, query string) *client {
		t.Helper()
		cl, err := dial(at, query)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cl.close)
		cl.deadline(soon)
		return cl
	}
	first := open(m, "client=db1&token=1")
	if err := first.write(0, block("one.")); err != nil {
		t.Fatal(err)
	}
	for _, at := range c.servers {
		c.awaitVolume(at, soon, "db1 holds it", func(v *blockrepl.VolumeStatus) bool { return v.Holder == "db1" })
		if second := open(at, "client=db2"); !second.readOnly() {
			t.Errorf("another identity was offered the volume writable at %s", at.id)
		}
	}
	if log := s.tail(50); !strings.Contains(log, "db1") {
		t.Errorf("the log does not name the holder: %s", log)
	}
	// The same identity elsewhere: a newer generation, the older connection closes.
	moved := open(s, "client=db1&token=2")
	if moved.readOnly() {
		t.Fatal("the same identity was offered its volume read-only")
	}
	if err := moved.write(0, block("two.")); err != nil {
		t.Fatal(err)
	}
	wantCut(t, first, block("late"))
	// Another takes over.
	taker := open(m, "client=db2&takeover")
	if taker.readOnly() {
		t.Fatal("taking over was offered read-only")
	}
	if err := taker.write(0, block("tres")); err != nil {
		t.Fatal(err)
	}
	wantCut(t, moved, block("late"))
	for _, at := range c.servers {
		got, err := open(at, "").read(0, 512)
		if err != nil || string(got) != string(block("tres")) {
			t.Errorf("read through %s: %.8q, %v", at.id, got, err)
		}
	}
	c.finish()
}

// wantCut writes on a connection of an older generation: it must be closed
// without a reply.
func wantCut(t *testing.T, c *client, p []byte) {
	t.Helper()
	err := c.write(0, p)
	if err == nil {
		t.Error("a write of an older generation was completed")
	}
	if _, refused := err.(*errnoError); refused {
		t.Errorf("a write of an older generation was answered with an error, which aborts a mounted file system: %v", err)
	}
}
