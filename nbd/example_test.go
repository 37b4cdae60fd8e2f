package nbd_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// A server of one disk, used by a client and shut down.
func Example() {
	disk := nbdtest.NewMemDisk(nbd.Info{Size: 1 << 20, MultiConn: true})
	server, err := nbd.NewServer(nbd.Options{Exports: nbdtest.Exports{"vol0": disk}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), ln) }()

	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		panic(err)
	}
	client, err := nbdtest.NewClient(conn, nbdtest.FixedNewstyle)
	if err != nil {
		panic(err)
	}
	if err := client.Go("vol0"); err != nil {
		panic(err)
	}
	fmt.Println("size", client.Export.Size)
	if err := client.Disconnect(); err != nil {
		panic(err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	fmt.Println("shutdown", server.Shutdown(ctx))
	fmt.Println(errors.Is(<-served, nbd.ErrServerClosed))
	// Output:
	// size 1048576
	// shutdown <nil>
	// true
}

// TLS is required, and a client is who its certificate says.
func ExampleNewServer_tls() {
	_, err := nbd.NewServer(nbd.Options{
		Exports: nbdtest.Exports{},
		TLSMode: nbd.TLSRequire,
		TLS: &tls.Config{
			// Certificates: the server's own; ClientCAs: who signs clients.
			ClientAuth: tls.RequireAndVerifyClientCert,
		},
	})
	fmt.Println(err)
	// Output: <nil>
}

// A unix socket that members of a group may use.
func ExampleListenUnix() {
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ln, err := nbd.ListenUnix(nbd.UnixSocket{Path: filepath.Join(dir, "nbd.sock"), Mode: 0o660, UID: -1, GID: -1})
	if err != nil {
		panic(err)
	}
	defer ln.Close()
	fmt.Println(ln.Addr().Network())
	// Output: unix
}

// perClient shows one name to everybody and refuses it to all but one identity.
type perClient struct{ disk *nbdtest.MemDisk }

func (e perClient) List(context.Context, *nbd.Client) ([]string, error) {
	return []string{"vol0"}, nil
}

func (e perClient) Describe(_ context.Context, c *nbd.Client, name string) (nbd.Info, error) {
	if name != "vol0" {
		return nbd.Info{}, fmt.Errorf("export %q: %w", name, nbd.ErrUnknownExport)
	}
	info := e.disk.Info()
	info.ReadOnly = c.TLSName != "db1" // others are offered it read-only
	return info, nil
}

func (e perClient) Open(ctx context.Context, c *nbd.Client, name string) (nbd.Disk, nbd.Info, error) {
	info, err := e.Describe(ctx, c, name)
	return e.disk, info, err
}

// What a client may do is decided by Exports.
func ExampleExports() {
	e := perClient{nbdtest.NewMemDisk(nbd.Info{Size: 1 << 20})}
	for _, name := range []string{"db1", "db2"} {
		info, err := e.Describe(context.Background(), &nbd.Client{TLSName: name}, "vol0")
		fmt.Println(name, info.ReadOnly, err)
	}
	// Output:
	// db1 false <nil>
	// db2 true <nil>
}
