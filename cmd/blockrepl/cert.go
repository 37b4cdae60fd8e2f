package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/blockrepl/blockrepl/journal/record"
	"github.com/urfave/cli/v2"
)

func certCommand() *cli.Command {
	return &cli.Command{
		Name:      "cert",
		Usage:     "make a CA and certificates for servers and clients",
		UsageText: "blockrepl cert --dir DIR --cluster NAME --server ID=HOST,… --client NAME …\n   blockrepl cert --dir DIR --config FILE --client NAME …",
		Description: `Makes, below DIR, a certificate authority and a directory for each server and each
client with the file names that blockrepl, QEMU, libnbd and nbdkit expect:

   ca/ca-cert.pem, ca/ca-key.pem          the authority; keep the key off the servers
   server-a/ca-cert.pem, server-cert.pem, server-key.pem
   client-db1/ca-cert.pem, client-cert.pem, client-key.pem

Keys are ECDSA P-256, files 0600. A server's certificate serves NBD clients and
peers; it names cluster and id, and no client's certificate passes as a server's.
A client's name is its identity: permissions and the holder of a volume go by it.

nbdinfo and nbdcopy take a client's directory in the URI. nbdfuse and fio do not: they
look into /etc/pki/libnbd as root, else into ~/.pki/libnbd.

Nothing is overwritten. A CA that is there already is used, so more clients can be
added later. To renew, move the old directory away.

EXAMPLES:
   blockrepl cert --dir pki --cluster lab --server a=10.0.0.1,host-a --client db1
   blockrepl cert --dir pki --config blockrepl.toml --client db1 --client backup
   blockrepl cert --dir pki --cluster lab --client db2              (the CA is there already)
   nbdinfo 'nbds://host-a/vol0?tls-certificates=pki/client-db1'

EXIT STATUS:
   0 done   1 an error   2 wrong usage, or something would be overwritten`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "dir", Value: "pki", Usage: "write below `DIR`"},
			&cli.StringFlag{Name: "cluster", EnvVars: env("CLUSTER"), Usage: "cluster `NAME`, as in the configuration"},
			configFlag(),
			&cli.StringSliceFlag{Name: "server", Usage: "a server as `ID=HOST,HOST`: names and addresses that clients use (repeat)"},
			&cli.StringSliceFlag{Name: "client", Usage: "a client's `NAME` (repeat)"},
			&durationFlag{cli.DurationFlag{Name: "valid", Value: 5 * 365 * 24 * time.Hour, Usage: "certificates are valid for `TIME`, five years by default; the CA twice as long"}},
			jsonFlag(),
		},
		Action: cert,
	}
}

// A certRequest is one leaf certificate that shall be made.
type certRequest struct {
	dir   string // below --dir
	role  string // "server" or "client", also the prefix of its files
	name  string // server id or client name: the certificate's common name
	hosts []string
}

func cert(c *cli.Context) error {
	if err := wantArgs(c, 0, 0, ""); err != nil {
		return err
	}
	cluster, requests, err := certRequests(c)
	if err != nil {
		return err
	}
	dir := c.String("dir")
	for _, r := range requests { // all before any: nothing is half done
		path := filepath.Join(dir, r.dir)
		if _, err := os.Lstat(path); err == nil {
			return usagef("cert: %s exists; nothing is overwritten: move it away to renew", path)
		}
	}
	valid := c.Duration("valid")
	if valid < time.Hour {
		return usagef("cert: --valid %s: want at least 1h", valid)
	}
	ca, err := openOrMakeCA(filepath.Join(dir, "ca"), cluster, 2*valid)
	if err != nil {
		return err
	}
	var made []string
	for _, r := range requests {
		path := filepath.Join(dir, r.dir)
		if err := ca.issue(path, cluster, r, valid); err != nil {
			return err
		}
		made = append(made, path)
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, map[string]any{"ca": filepath.Join(dir, "ca", "ca-cert.pem"), "ca_made": ca.made, "made": made})
	}
	showCerts(c.App.Writer, dir, ca, requests)
	return nil
}

// certRequests reads what to make from --server, --client and --config.
func certRequests(c *cli.Context) (cluster string, requests []certRequest, err error) {
	cluster = c.String("cluster")
	servers := c.StringSlice("server")
	if path := c.String("config"); path != "" {
		cfg := defaultConfig()
		if err := cfg.readFile(path); err != nil {
			return "", nil, err
		}
		if cluster == "" {
			cluster = cfg.Cluster
		}
		for _, s := range cfg.Servers {
			host, _, err := net.SplitHostPort(string(s.Addr))
			if err != nil {
				return "", nil, usagef("cert: %s: server %q: addr %q: want \"host:port\"", path, s.ID, s.Addr)
			}
			servers = append(servers, s.ID+"="+host)
		}
	}
	if !namePattern.MatchString(cluster) {
		return "", nil, usagef("cert: --cluster %q: want the cluster's name, as in the configuration", cluster)
	}
	for _, s := range servers {
		id, hosts, _ := strings.Cut(s, "=")
		if _, err := record.ParseServerID(id); err != nil {
			return "", nil, usagef("cert: --server %q: %w", s, err)
		}
		r := certRequest{dir: "server-" + id, role: roleServer, name: id, hosts: []string{id, "localhost", "127.0.0.1", "::1"}} // peers look for the id
		for _, h := range strings.Split(hosts, ",") {
			if h != "" {
				r.hosts = append(r.hosts, h)
			}
		}
		requests = append(requests, r)
	}
	for _, name := range c.StringSlice("client") {
		if !namePattern.MatchString(name) {
			return "", nil, usagef("cert: --client %q: 1 to 64 letters, digits, dots, dashes and underscores are allowed", name)
		}
		requests = append(requests, certRequest{dir: "client-" + name, role: roleClient, name: name})
	}
	if len(requests) == 0 {
		return "", nil, usagef("cert: nothing to make: name --server ID=HOST or --client NAME")
	}
	seen := map[string]bool{}
	for _, r := range requests {
		if seen[r.dir] {
			return "", nil, usagef("cert: %s %q is named twice", r.role, r.name)
		}
		seen[r.dir] = true
	}
	return cluster, requests, nil
}

func showCerts(w io.Writer, dir string, ca *authority, requests []certRequest) {
	caPath := filepath.Join(dir, "ca", "ca-cert.pem")
	if ca.made {
		fmt.Fprintf(w, "made the CA %s; keep ca-key.pem beside it off the servers\n", caPath)
	} else {
		fmt.Fprintf(w, "used the CA %s\n", caPath)
	}
	for _, r := range requests {
		path := filepath.Join(dir, r.dir)
		if r.role == roleServer {
			fmt.Fprintf(w, "made %s; on server %s:\n   blockrepl serve --nbd-tls require --nbd-tls-certificates DIR --peer-tls-certificates DIR\n", path, r.name)
			continue
		}
		fmt.Fprintf(w, "made %s; on the client:\n   nbdinfo 'nbds://HOST/VOLUME?tls-certificates=%s'\n", path, path)
	}
}
