package e2e

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
)

// network is a namespace for each server, on one bridge with this host.
type network struct {
	t      *testing.T
	bridge string
	subnet string            // "10.x.y."
	names  map[string]string // id → namespace
	hosts  map[string]string // id → address
}

// networks counts those of this process.
var networks atomic.Int64

// newNetwork makes the namespaces; the end of the test removes them.
func newNetwork(t *testing.T, ids ...string) *network {
	t.Helper()
	leftOut(t, "BLOCKREPL_NO_NETNS", os.Getuid() == 0, "root, for network namespaces")
	need(t, "ip", "iptables")
	// The kernel takes its time to remove a namespace: no name is used twice.
	pid, run := os.Getpid(), networks.Add(1)
	n := &network{t: t, bridge: fmt.Sprintf("bre%d-%d", pid, run), subnet: fmt.Sprintf("10.%d.%d.", 200+pid%50, pid/50%250), names: map[string]string{}, hosts: map[string]string{}}
	tool(t, "ip", "link", "add", n.bridge, "type", "bridge")
	t.Cleanup(func() { tryTool("ip", "link", "del", n.bridge) })
	tool(t, "ip", "addr", "add", n.subnet+"254/24", "dev", n.bridge)
	tool(t, "ip", "link", "set", n.bridge, "up")
	for i, id := range ids {
		name, here, there := fmt.Sprintf("blockrepl-e2e-%d-%d-%s", pid, run, id), fmt.Sprintf("b%d-%d%s", pid, run, id), "eth0"
		n.names[id], n.hosts[id] = name, fmt.Sprintf("%s%d", n.subnet, i+1)
		tool(t, "ip", "netns", "add", name)
		t.Cleanup(func() { tryTool("ip", "netns", "del", name) })
		tool(t, "ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
		t.Cleanup(func() { tryTool("ip", "link", "del", here) })
		tool(t, "ip", "link", "set", here, "master", n.bridge, "up")
		tool(t, "ip", "-n", name, "addr", "add", n.hosts[id]+"/24", "dev", there)
		tool(t, "ip", "-n", name, "link", "set", there, "up")
		tool(t, "ip", "-n", name, "link", "set", "lo", "up")
	}
	return n
}

func (n *network) prefix(id string) []string { return []string{"ip", "netns", "exec", n.names[id]} }

func (n *network) host(id string) string { return n.hosts[id] }

// deafen makes to not hear from any more: one direction of one path.
func (n *network) deafen(to, from string) { n.rule("-A", to, from) }

// heal undoes deafen.
func (n *network) heal(to, from string) { n.rule("-D", to, from) }

func (n *network) rule(what, to, from string) {
	n.t.Helper()
	tool(n.t, "ip", "netns", "exec", n.names[to], "iptables", "-w", what, "INPUT", "-s", n.hosts[from], "-j", "DROP")
}
