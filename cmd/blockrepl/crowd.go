package main

import (
	"net"
	"slices"
	"sync"
)

// Comes from: an address that anybody may reach. Does: keeps the number of its
// connections bounded. Goes to: the HTTP server behind it.

// crowd is a listener with at most max connections. At one more the oldest is closed:
// a scrape takes milliseconds, and who says nothing must not keep others out. Without
// a bound they could take all file descriptors, and a journal that cannot create its
// next file has failed.
type crowd struct {
	net.Listener
	max int

	mu     sync.Mutex
	inside []*guest // the oldest first
}

// guest is one of its connections.
type guest struct {
	net.Conn
	of *crowd
}

// Accept is part of net.Listener.
func (c *crowd) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g := &guest{conn, c}
	var oldest *guest
	c.mu.Lock()
	if len(c.inside) == c.max {
		oldest = c.inside[0]
	}
	c.inside = append(c.inside, g)
	c.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close() // it may have left by itself
	}
	return g, nil
}

// Close is part of net.Conn.
func (g *guest) Close() error {
	g.of.mu.Lock()
	g.of.inside = slices.DeleteFunc(g.of.inside, func(o *guest) bool { return o == g })
	g.of.mu.Unlock()
	return g.Conn.Close()
}
