// Command nbdfile serves one plain file, for measuring this server beside nbdkit and qemu-nbd.
//
//	nbdfile -listen 127.0.0.1:10809|/run/x.sock [-export disk] [-certs DIR] FILE
//
// With -certs it requires TLS and client certificates; DIR holds ca-cert.pem, server-cert.pem and server-key.pem.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:10809", "address, or path of a unix socket")
	export := flag.String("export", "disk", "export name")
	certs := flag.String("certs", "", "directory of certificates; requires TLS")
	flag.Parse()
	if err := run(*listen, *export, *certs, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "nbdfile:", err)
		os.Exit(1)
	}
}

func run(listen, export, certs, path string) error {
	d, err := nbdtest.OpenFile(path)
	if err != nil {
		return err
	}
	defer d.Shutdown()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	o := nbd.Options{Exports: nbdtest.Exports{export: d}, Logger: log}
	if certs != "" {
		if o.TLS, err = tlsConfig(certs); err != nil {
			return err
		}
		o.TLSMode = nbd.TLSRequire
	}
	s, err := nbd.NewServer(o)
	if err != nil {
		return err
	}
	network := "tcp"
	if strings.Contains(listen, "/") {
		network = "unix"
	}
	ln, err := net.Listen(network, listen)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), ln) }()
	select {
	case <-ctx.Done():
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		err = s.Shutdown(ctx)
		<-served
	case err = <-served:
	}
	if errors.Is(err, nbd.ErrServerClosed) {
		err = nil
	}
	return err
}

func tlsConfig(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"))
	if err != nil {
		return nil, fmt.Errorf("load server certificate: %w", err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("load authority: no certificate in %s", dir)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}, nil
}
