package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// Commands of the NBD protocol that the probe sends.
const (
	cmdRead  = 0
	cmdWrite = 1
)

// probe is one NBD connection that asks one thing at a time.
type probe struct{ client *nbdtest.Client }

// openProbe connects and opens an export.
func openProbe(ctx context.Context, addr, export string) (*probe, error) {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if err := conn.SetDeadline(time.Now().Add(clusterWait)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	c, err := nbdtest.NewClient(conn, nbdtest.FixedNewstyle)
	if err == nil {
		err = c.Go(export)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open %s at %s: %w", export, addr, err)
	}
	return &probe{c}, nil
}

func (p *probe) close() { p.client.Conn.Close() }

// do sends one request of 4 KiB and waits for its answer.
func (p *probe) do(cmd uint16, off int64, data []byte) error {
	r := nbdtest.Request{Cmd: cmd, Off: uint64(off), Length: 4096, Data: data}
	reply, err := p.client.Do(r)
	if err != nil {
		return fmt.Errorf("request %d at %d: %w", cmd, off, err)
	}
	if reply.Errno != 0 {
		return fmt.Errorf("request %d at %d: errno %d", cmd, off, reply.Errno)
	}
	return nil
}

// firstAnswer opens new connections until one request is answered, and says how long that took.
func firstAnswer(ctx context.Context, addr, export string, cmd uint16) (time.Duration, error) {
	var data []byte
	if cmd == cmdWrite {
		data = make([]byte, 4096)
	}
	began := time.Now()
	for {
		err := tryOnce(ctx, addr, export, cmd, data)
		if err == nil {
			return time.Since(began), nil
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if time.Since(began) > clusterWait {
			return 0, fmt.Errorf("no answer from %s in %s: %w", addr, clusterWait, err)
		}
		time.Sleep(pollEvery)
	}
}

func tryOnce(ctx context.Context, addr, export string, cmd uint16, data []byte) error {
	p, err := openProbe(ctx, addr, export)
	if err != nil {
		return err
	}
	defer p.close()
	return p.do(cmd, 0, data)
}
