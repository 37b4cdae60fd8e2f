package e2e

import (
	"fmt"
	"net"
	"time"

	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// The NBD commands, flags and errnos that the tests' own client uses (the
// specification's "Request types" and "Error values").
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6

	flagFUA = 1 << 0

	flagReadOnly = 1 << 1 // transmission flag

	errnoPerm  = 1
	errnoIO    = 5
	errnoSpace = 28
)

const (
	dialWait = 2 * time.Second
	openWait = 20 * time.Second // negotiation waits for the volume
)

// client is one connection that speaks NBD, from the strict client of nbdtest.
type client struct {
	*nbdtest.Client
	server *server
}

// dial opens the volume at a server; query is what follows "?" in the export name.
func dial(s *server, query string) (*client, error) { return dialWithin(s, query, openWait) }

func dialWithin(s *server, query string, within time.Duration) (*client, error) {
	conn, err := net.DialTimeout("tcp", s.nbd, dialWait)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(within))
	name := volumeName
	if query != "" {
		name += "?" + query
	}
	c, err := nbdtest.NewClient(conn, nbdtest.FixedNewstyle)
	if err == nil {
		err = c.StructuredReplies()
	}
	if err == nil {
		err = c.Go(name)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open %s at %s: %w", name, s.id, err)
	}
	conn.SetDeadline(time.Time{})
	return &client{c, s}, nil
}

func (c *client) close() { c.Conn.Close() }

// deadline bounds everything that follows on the connection.
func (c *client) deadline(within time.Duration) { c.Conn.SetDeadline(time.Now().Add(within)) }

// readOnly reports whether the export was offered read-only.
func (c *client) readOnly() bool { return c.Export.Has(flagReadOnly) }

// read reads n bytes at off.
func (c *client) read(off int64, n int) ([]byte, error) {
	rep, err := c.Do(nbdtest.Request{Cmd: cmdRead, Off: uint64(off), Length: uint32(n)})
	if err != nil {
		return nil, err
	}
	if rep.Errno != 0 {
		return nil, &errnoError{"read", off, rep.Errno, rep.Message}
	}
	return rep.Data, nil
}

// write writes p at off.
func (c *client) write(off int64, p []byte) error {
	rep, err := c.Do(nbdtest.Request{Cmd: cmdWrite, Off: uint64(off), Data: p})
	if err != nil {
		return err
	}
	if rep.Errno != 0 {
		return &errnoError{"write", off, rep.Errno, rep.Message}
	}
	return nil
}

// errnoError is an error reply.
type errnoError struct {
	what  string
	off   int64
	errno uint32
	text  string
}

func (e *errnoError) Error() string {
	return fmt.Sprintf("%s at %d: error reply %d %s", e.what, e.off, e.errno, e.text)
}

// writeRequest is a write of text at off.
func writeRequest(off int64, text string) nbdtest.Request {
	return nbdtest.Request{Cmd: cmdWrite, Off: uint64(off), Data: []byte(text)}
}
