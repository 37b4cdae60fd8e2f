package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"
)

// tcpFloor measures the two things that every copy to another server needs: loopback TCP and the file system.
func (b *bench) tcpFloor(ctx context.Context) error {
	const total = 1 << 30
	rate, err := bestOf(func() (float64, error) { return copyTCP(ctx, total) })
	if err != nil {
		return fmt.Errorf("measure loopback TCP: %w", err)
	}
	b.res.special("floor: loopback TCP", rate/1e6, "MB/s", "1 MiB writes, one connection, 1 GiB, the best of three times")
	rate, err = bestOf(func() (float64, error) { return writeFile(filepath.Join(b.place.dir, "floor"), b.content) })
	if err != nil {
		return fmt.Errorf("measure the file system: %w", err)
	}
	b.res.special("floor: disk", rate/1e6, "MB/s", "1 MiB writes of the content to a new file, then fdatasync, the best of three times")
	return nil
}

// bestOf measures three times: one disturbed floor would make everything that is held
// against it look good.
func bestOf(measure func() (float64, error)) (best float64, err error) {
	for range 3 {
		rate, err := measure()
		if err != nil {
			return 0, err
		}
		best = max(best, rate)
	}
	return best, nil
}

// copyTCP sends total bytes to itself and gives bytes a second.
func copyTCP(ctx context.Context, total int64) (float64, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	received := make(chan error, 1)
	go func() { // ends when the sender closes, or when ln is closed before it has dialled
		received <- receive(ln, total)
	}()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	buf := make([]byte, 1<<20)
	began := time.Now()
	for left := total; left > 0; left -= int64(len(buf)) {
		if _, err := conn.Write(buf); err != nil {
			return 0, err
		}
	}
	if err := errors.Join(conn.Close(), <-received); err != nil {
		return 0, err
	}
	return float64(total) / time.Since(began).Seconds(), nil
}

func receive(ln net.Listener, total int64) error {
	conn, err := ln.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	buf := make([]byte, 1<<20)
	for got := int64(0); got < total; {
		n, err := conn.Read(buf)
		got += int64(n)
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", got, total, err)
		}
	}
	return nil
}

// writeFile copies a file to a new one, which it removes, and gives bytes a second.
func writeFile(path, from string) (rate float64, err error) {
	src, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	dst, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dst.Close(), os.Remove(path)) }()
	began := time.Now()
	// Without the wrapper io.Copy would let the kernel copy, which no server can.
	n, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 1<<20))
	if err == nil {
		err = dst.Sync()
	}
	return float64(n) / time.Since(began).Seconds(), err
}
