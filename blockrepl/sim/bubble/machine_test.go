package bubble

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
)

// machine is one server: a disk that survives, and at times a process.
type machine struct {
	w    *world
	i    int
	id   record.ServerID
	name string

	mu    sync.Mutex
	mem   *vfs.MemFS // the disk of a machine that is off
	proc  *process   // nil: off
	boots uint64
	wall  atomic.Int64 // nanoseconds; what its clock on the wall is wrong by

	read    []byte      // what a client read there last, whole
	damaged atomic.Bool // its disk lost what it had called durable; until it is healthy again
	old     *vfs.MemFS  // a copy of its data directory
	shunned atomic.Bool // its image is rotten: no client goes there until it is repaired
}

// process is one life of a server.
type process struct {
	m    *machine
	disk *disk
	port *port
	srv  *blockrepl.Server

	// Who asks status or gives a command uses the process; it is not closed before
	// they have left.
	ctx    context.Context
	cancel context.CancelFunc
	using  sync.Mutex
	idle   sync.Cond // on using
	users  int

	// closing is taken by who closes the server. Server's own lock for it is a
	// sync.Once, on which a bubble cannot wait.
	closing chan struct{}

	paused atomic.Pointer[pause] // nil: it runs

	once sync.Once
	gone chan struct{} // closed when it is dead, although its goroutines may still run
	left *vfs.MemFS    // what it leaves on disk; set before gone is closed
}

func (m *machine) process() *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.proc
}

// dead reports whether the process has died: nothing it says counts any more.
func (p *process) dead() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// boot starts a process on the machine's disk.
func (m *machine) boot() error { return m.start(func(*process) {}) }

// start is boot, with a disk that prepare may arm.
func (m *machine) start(prepare func(*process)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proc != nil {
		return errRuns
	}
	m.boots++
	p := &process{m: m, gone: make(chan struct{}), closing: make(chan struct{}, 1), port: m.w.net.port(m.name)}
	p.idle.L = &p.using
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.disk = newDisk(m.mem, m.w.seed^uint64(m.i)<<56, m.boots)
	prepare(p)
	srv, err := blockrepl.NewServer(m.options(p))
	if err == nil {
		err = srv.Start(context.Background())
	}
	if err != nil {
		p.cancel()
		p.port.kill(false)
		if p.dead() {
			m.mem = p.left
		}
		m.w.tell("%s does not start: %v", m.name, err)
		return err
	}
	p.srv = srv
	p.disk.slow.Store(int64(m.w.slow))
	m.proc = p
	m.w.tell("%s started", m.name)
	return nil
}

// dying starts a process that dies at a call of its disk, or after a while; then it
// is buried. nil when it did not even start otherwise.
func (m *machine) dying(f *fault, keep int) *process {
	var born *process
	err := m.start(func(p *process) {
		born = p
		f.do = func() { p.die(keep, false) }
		p.disk.arm(f)
	})
	if err == nil {
		time.Sleep(time.Second)
		born.die(keep, false)
		born.bury()
	}
	return born
}

func (m *machine) options(p *process) blockrepl.Options {
	w := m.w
	rng := rand.New(rand.NewPCG(w.seed, 'r'<<40|uint64(m.i)<<32|m.boots))
	var mu sync.Mutex
	begin, offset := time.Now(), replica.Time(rng.Int64N(int64(time.Hour))) // the boot-time clock
	o := blockrepl.Options{
		Cluster: "lab", ID: m.id, DataDir: dataDir, Peers: m.name + ":1", Insecure: true,
		PeerTimeout: peerTimeout, IOTimeout: ioTimeout, RingBytes: w.ring, Version: "bubble",
		Logger: slog.New(logHandler{w: w, name: m.name}),
		Clock:  func() replica.Time { return offset.Add(p.elapsed(begin)) },
		Wall:   func() time.Time { return time.Now().Add(time.Duration(m.wall.Load())) },
		Rand: func() uint64 {
			mu.Lock()
			defer mu.Unlock()
			return rng.Uint64()
		},
		Files: smallFiles{p.disk}, Net: p.port, OpenImage: p.disk.openImage,
		OpenJournal: func(o journal.Options) (*journal.Journal, error) {
			o.FS, o.MemTableBytes, o.ReserveBytes = p.disk.fs, w.memTable, journalReserve
			o.FreeBytes = func() (int64, error) { return p.disk.free.Load(), nil }
			return journal.Open(o)
		},
	}
	for _, x := range w.machines {
		o.Servers = append(o.Servers, blockrepl.ServerAddr{ID: x.id, Addr: x.name + ":1"})
	}
	v := w.volume
	for _, x := range w.machines {
		v.Servers = append(v.Servers, x.id)
	}
	o.Volumes = []blockrepl.VolumeOptions{v}
	if w.change != nil {
		w.change(m, &o)
	}
	return o
}

// die ends the process at this very moment, as seen from outside: nothing it does
// from now on has an effect. Of what was not synced keep percent are left; 100 is
// a killed process, less is a power cut. It may be called from any goroutine, also
// from within a call of the disk.
func (p *process) die(keep int, silent bool) {
	p.once.Do(func() {
		p.port.kill(silent)
		m := p.m
		rng := rand.New(rand.NewPCG(m.w.seed, 'c'<<40|uint64(m.i)<<32|m.boots))
		p.left = p.disk.cut(keep, rng)
		close(p.gone)
		p.resume()
		m.w.tell("%s dies; %d%% of what was not synced is kept", m.name, keep)
	})
}

// use lets f work with the process, unless it is dead or being closed. A paused one
// neither hears nor answers before it goes on.
func (p *process) use(f func(ctx context.Context)) bool {
	if p == nil {
		return false
	}
	p.awake()
	p.using.Lock()
	if p.dead() || p.ctx.Err() != nil {
		p.using.Unlock()
		return false
	}
	p.users++
	p.using.Unlock()
	f(p.ctx)
	p.awake()
	p.using.Lock()
	defer p.using.Unlock()
	p.users--
	p.idle.Broadcast()
	return !p.dead()
}

// evict sends the users away.
func (p *process) evict() {
	p.using.Lock()
	defer p.using.Unlock()
	p.cancel()
	for p.users > 0 {
		p.idle.Wait()
	}
}

// bury waits for the goroutines of a dead process.
func (p *process) bury() {
	p.closing <- struct{}{}
	defer func() { <-p.closing }()
	p.evict()
	p.disk.slow.Store(0)
	_ = p.srv.Close() // whatever it says comes from a dead process
	m := p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proc == p {
		m.mem, m.proc = p.left, nil
	}
}

// crash kills the machine's process and waits until it is gone.
func (m *machine) crash(keep int) {
	if p := m.process(); p != nil {
		p.die(keep, keep < 100)
		p.bury()
	}
}

// stop ends the process in order.
func (m *machine) stop(handover bool) error {
	p := m.process()
	if p == nil {
		return nil
	}
	p.closing <- struct{}{}
	defer func() { <-p.closing }()
	m.w.tell("%s stops, handover %v", m.name, handover)
	p.awake()
	p.evict()
	err := p.srv.Stop(context.Background(), handover)
	p.disk.slow.Store(0)
	if !p.dead() {
		p.once.Do(func() {
			p.port.kill(false)
			p.left = p.disk.mem
			close(p.gone)
			p.resume()
		})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proc == p {
		m.mem, m.proc = p.left, nil
	}
	return err
}

// status is the volume's, false while the server is off or paused.
func (m *machine) status() (st blockrepl.VolumeStatus, ok bool) {
	answered := false
	p := m.process()
	if p == nil || p.paused.Load() != nil {
		return st, false
	}
	ok = p.use(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		st = p.srv.Volume(volumeName).Status(ctx)
		answered = ctx.Err() == nil
	})
	return st, ok && answered
}

var errRuns = errors.New("the server runs already")

var errOff = errors.New("the server is off")

// commandError is an answer that is not 2xx.
type commandError struct{ blockrepl.CommandError }

func (e commandError) Error() string { return e.CommandError.Error + " (" + e.Code + ")" }

// command asks the machine's admin door; answer may be nil.
func (m *machine) command(what string, body, answer any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	method, rest := http.MethodPost, "/"+what
	if body == nil {
		method = http.MethodGet
	}
	rec := httptest.NewRecorder()
	p := m.process()
	if !p.use(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, commandTimeout)
		defer cancel()
		r := httptest.NewRequestWithContext(ctx, method, "/v1/volumes/"+volumeName+rest, strings.NewReader(string(b)))
		p.srv.AdminHandler().ServeHTTP(rec, r)
	}) {
		return errOff
	}
	if rec.Code/100 != 2 {
		var e commandError
		if err := json.Unmarshal(rec.Body.Bytes(), &e.CommandError); err != nil {
			return fmt.Errorf("answer %d %q: %w", rec.Code, rec.Body, err)
		}
		return e
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(rec.Body.Bytes(), answer)
}

// hard is what the machine's disk says of the volume, as an operator would find
// it out who carries the disk to another machine. A running one is looked at, too.
func (m *machine) hard() (h replica.Hard, ok bool, err error) {
	m.mu.Lock()
	mem := m.mem
	if m.proc != nil {
		mem = m.proc.disk.mem
		if m.proc.dead() {
			mem = m.proc.left
		}
	}
	m.mu.Unlock()
	return hardOf(mem)
}

// hardOf is what a disk says of the volume.
func hardOf(mem *vfs.MemFS) (h replica.Hard, ok bool, err error) {
	clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	j, err := journal.Open(journal.Options{Dir: blockrepl.JournalDir(dataDir), FS: clone, ReserveBytes: -1})
	if err != nil {
		return h, false, err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	logs, err := blockrepl.LogsByName(j)
	if err != nil || logs[volumeName] == nil {
		return h, false, err
	}
	return blockrepl.LoadHard(logs[volumeName])
}
