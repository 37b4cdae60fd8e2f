package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// peer is one running way to have a disk: processes, and the address of an NBD export or, for the floor, a file.
type peer struct {
	name      string
	uri       string // "" for the floor
	file      string // of the floor
	dir       string
	procs     []*process
	peerPorts []int    // where servers of this peer accept each other
	cluster   *cluster // of blockrepl, else nil

	// settle waits until work that was acknowledged but put off is done; nil when nothing is ever put off.
	settle func(ctx context.Context) error
	stop   func()
}

// peerKind is how one is started.
type peerKind struct {
	name  string
	about string
	start func(b *bench, dir string) (*peer, error)
}

// kinds are the peers in the order of the tables.
var kinds = []peerKind{
	{"floor", "pwrite and pread in a loop, no server at all", startFloor},
	{"nbdkit", "nbdkit's file plugin, 1 copy, durable only after a flush", startNbdkit},
	{"qemu-nbd", "qemu-nbd --cache=writeback, 1 copy, durable only after a flush", startQemuNBD},
	{"quorum", "qemu-storage-daemon, quorum driver over a local file and two qemu-nbd, 3 copies", startQuorum},
	{"blockrepl-1", "blockrepl, 1 server, every write durable when acknowledged", startBlockrepl(1)},
	{"blockrepl-2", "blockrepl, 2 servers, every write durable on both when acknowledged", startBlockrepl(2)},
	{"blockrepl-3", "blockrepl, 3 servers, every write durable on all when acknowledged", startBlockrepl(3)},
}

func peerNames() string {
	names := make([]string, 0, len(kinds))
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return strings.Join(names, " ")
}

// startPeer makes the directory of a peer, starts it and fills its disk.
func (b *bench) startPeer(ctx context.Context, k peerKind) (*peer, error) {
	dir, err := b.place.subdir(k.name)
	if err != nil {
		return nil, err
	}
	p, err := k.start(b, dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", k.name, err), os.RemoveAll(dir))
	}
	p.name, p.dir = k.name, dir
	if err := b.fill(ctx, p); err != nil {
		b.drop(p)
		return nil, fmt.Errorf("fill %s: %w", k.name, err)
	}
	return p, nil
}

// drop stops a peer and removes its data.
func (b *bench) drop(p *peer) {
	p.stop()
	if err := os.RemoveAll(p.dir); err != nil {
		b.res.problem("remove the data of %s: %v", p.name, err)
	}
}

// fill copies the common content into a peer's disk, so that no read finds a hole and every peer reads the same bytes.
func (b *bench) fill(ctx context.Context, p *peer) error {
	if p.uri == "" {
		return command(ctx, "cp", "--sparse=never", b.content, p.file)
	}
	for range b.passes(p) {
		if err := command(ctx, "nbdcopy", "--allocated", b.content, p.uri); err != nil {
			return err
		}
	}
	if p.settle != nil {
		return p.settle(ctx)
	}
	return nil
}

// journalWarmMiB is how much a fresh journal takes before it writes into files that it has used before: until then every
// fsync also has to note that a file has grown, which a server that has run for a minute never does again.
const journalWarmMiB = 384

// passes is how often a peer's disk is filled: blockrepl's until its journal is warm. Half of the content compresses away.
func (b *bench) passes(p *peer) int {
	if p.cluster == nil {
		return 1
	}
	half := max(1, b.o.sizeMiB/2)
	return int((journalWarmMiB + half - 1) / half)
}

// imageFile makes a sparse file of the volume's size.
func (b *bench) imageFile(dir, name string) (string, error) {
	path := filepath.Join(dir, name)
	f, err := os.Create(path)
	if err != nil {
		return "", fmt.Errorf("make image: %w", err)
	}
	if err := errors.Join(f.Truncate(b.o.sizeMiB<<20), f.Close()); err != nil {
		return "", fmt.Errorf("make image: %w", err)
	}
	return path, nil
}

func stopAll(procs []*process) {
	for _, p := range slices.Backward(procs) {
		p.stop()
	}
}

func startFloor(b *bench, dir string) (*peer, error) {
	file, err := b.imageFile(dir, "disk.img")
	return &peer{file: file, stop: func() {}}, err
}

// startOne starts a server that is one process and serves one file at one port.
func (b *bench) startOne(dir, role, image string, args func(port, file string) []string) (*process, int, error) {
	file, err := b.imageFile(dir, image)
	if err != nil {
		return nil, 0, err
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, 0, err
	}
	argv := args(fmt.Sprint(ports[0]), file)
	proc, err := startProcess(role, b.place.tmp, argv[0], argv[1:]...)
	if err != nil {
		return nil, 0, err
	}
	if err := proc.awaitListening(loopback(ports[0])); err != nil {
		proc.stop()
		return nil, 0, err
	}
	return proc, ports[0], nil
}

func single(proc *process, port int, err error) (*peer, error) {
	if err != nil {
		return nil, err
	}
	return &peer{uri: "nbd://" + loopback(port), procs: []*process{proc}, stop: proc.stop}, nil
}

func startNbdkit(b *bench, dir string) (*peer, error) {
	return single(b.startOne(dir, "nbdkit", "disk.img", func(port, file string) []string {
		return []string{"nbdkit", "--foreground", "--exit-with-parent", "-i", "127.0.0.1", "-p", port, "file", file}
	}))
}

func qemuNBD(port, file string) []string {
	// The probing connection of awaitListening must not end it: --persistent. As many clients as like: --shared.
	return []string{"qemu-nbd", "--persistent", "--shared=0", "--format=raw", "--cache=writeback", "--discard=unmap",
		"--bind=127.0.0.1", "--port=" + port, file}
}

func startQemuNBD(b *bench, dir string) (*peer, error) {
	return single(b.startOne(dir, "qemu-nbd", "disk.img", qemuNBD))
}

// startQuorum makes what a home-made RAID-1 over NBD is with QEMU: writes go to all three, reads are compared.
func startQuorum(b *bench, dir string) (p *peer, err error) {
	p = &peer{}
	p.stop = func() { stopAll(p.procs) }
	defer func() {
		if err != nil {
			p.stop()
		}
	}()
	args := []string{"qemu-storage-daemon"}
	for i := 1; i <= 2; i++ {
		child, port, err := b.startOne(dir, fmt.Sprintf("child %d", i), fmt.Sprintf("child%d.img", i), qemuNBD)
		if err != nil {
			return p, err
		}
		p.procs = append(p.procs, child)
		p.peerPorts = append(p.peerPorts, port)
		args = append(args, "--blockdev", fmt.Sprintf("driver=nbd,node-name=n%d,server.type=inet,server.host=127.0.0.1,server.port=%d", i, port))
	}
	daemon, port, err := b.startOne(dir, "daemon", "local.img", func(port, file string) []string {
		return append(args,
			"--blockdev", "driver=file,node-name=n0,filename="+file,
			"--blockdev", "driver=quorum,node-name=q,vote-threshold=2,children.0=n0,children.1=n1,children.2=n2",
			"--nbd-server", "addr.type=inet,addr.host=127.0.0.1,addr.port="+port+",max-connections=0",
			"--export", "type=nbd,id=e,node-name=q,name=vol0,writable=on")
	})
	if err != nil {
		return p, err
	}
	p.procs = append(p.procs, daemon)
	p.uri = "nbd://" + loopback(port) + "/vol0"
	return p, nil
}
