// Command nbdfile serves one plain file, for measuring this server beside nbdkit and qemu-nbd.
//
//	nbdfile -listen 127.0.0.1:10809|/run/x.sock [-export disk] FILE
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:10809", "address, or path of a unix socket")
	export := flag.String("export", "disk", "export name")
	flag.Parse()
	if err := run(*listen, *export, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "nbdfile:", err)
		os.Exit(1)
	}
}

func run(listen, export, path string) error {
	d, err := nbdtest.OpenFile(path)
	if err != nil {
		return err
	}
	defer d.Shutdown()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s, err := nbd.NewServer(nbd.Options{Exports: nbdtest.Exports{export: d}, Logger: log})
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
