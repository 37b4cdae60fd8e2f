package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Server is one daemon's part of the cluster: its volumes, and the links to the
// other servers.
//
//	NewServer   checks the options; touches nothing
//	Start       1 lock, identity, marks   2 journal   3 images, volumes
//	            4 volumes run   5 free space is watched   6 links
//	Stop        1 handover, while everything runs   2 clients are sent away
//	            3 images are applied and fsynced    4 links end   5 volumes end
//	            6 marks, journal, lock
//
// A Server is started once. Stop may be called at any time, from any goroutine,
// again and again.
type Server struct {
	opt Options
	id  identity

	lock    io.Closer
	marks   *marks
	journal *journal.Journal
	ring    *ringBudget
	space   *spaceWatch
	events  events
	volumes []*Volume // fixed after Start, in the order of the options
	byName  map[string]*Volume
	byTag   map[uint64]*Volume
	links   *links
	// copyings has one for each volume that is being resynced.
	copyings chan struct{}

	background sync.WaitGroup // marks and space
	quit       context.CancelFunc

	mu      sync.Mutex
	started bool
	ended   bool          // nothing is open any more, or will be
	stopped chan struct{} // closed when Stop has done everything
	stop    sync.Once
	stopErr error
}

// NewServer checks the options. Nothing is opened before Start.
func NewServer(o Options) (*Server, error) {
	o.fill()
	if err := o.Check(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	s := &Server{opt: o, byName: map[string]*Volume{}, byTag: map[uint64]*Volume{}, stopped: make(chan struct{}),
		copyings: make(chan struct{}, resyncTogether)}
	s.ring = newRingBudget(o.RingBytes, len(o.Volumes))
	s.space = &spaceWatch{s: s, last: map[*Volume]replica.Space{}, rooms: map[*Volume]image.Room{}}
	return s, nil
}

// Start opens everything and begins to take part. After an error nothing is left
// open, and the Server cannot be used.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.ended {
		return errors.New("start server: it was started or stopped before")
	}
	s.started = true
	if err := s.start(ctx); err != nil {
		s.closeAll(false)
		s.ended = true
		return fmt.Errorf("start server %s: %w", s.opt.ID, err)
	}
	s.opt.Logger.Info("server started", "server", s.opt.ID.String(), "cluster", s.opt.Cluster,
		"incarnation", s.id.Incarnation.String(), "volumes", len(s.volumes), "version", s.opt.Version)
	return nil
}

func (s *Server) start(ctx context.Context) error {
	if err := s.openData(); err != nil {
		return err
	}
	if err := s.openVolumes(); err != nil {
		return err
	}
	s.links = newLinks(s)
	run, cancel := context.WithCancel(context.Background())
	s.quit = cancel
	s.background.Go(func() { s.marks.run(run) })
	s.background.Go(func() { s.space.run(run) })
	for _, v := range s.volumes {
		v.start()
	}
	return s.links.start(ctx)
}

// openData opens the data directory: nobody else has it, and it is this server's.
func (s *Server) openData() error {
	f, dir := s.opt.Files, s.opt.DataDir
	for _, d := range []string{dir, filepath.Join(dir, "images")} {
		if err := f.MkdirAll(d); err != nil {
			return fmt.Errorf("make data directory: %w", err)
		}
	}
	var err error
	if s.lock, err = f.Lock(LockFile(dir)); err != nil {
		return fmt.Errorf("data directory %s: %w", dir, err)
	}
	if s.id, err = loadIdentity(&s.opt); err != nil {
		return err
	}
	if s.marks, err = openMarks(&s.opt); err != nil {
		return err
	}
	s.journal, err = s.opt.OpenJournal(journal.Options{Dir: JournalDir(dir), Logger: s.opt.Logger})
	if err != nil {
		return fmt.Errorf("open journal: %w", err)
	}
	return nil
}

// JournalDir is where a data directory's journal lies.
func JournalDir(data string) string { return filepath.Join(data, "journal") }

// LockFile is the file that a running server holds locked.
func LockFile(data string) string { return filepath.Join(data, "lock") }

// openVolumes finds each volume's journal by the name that it keeps, and opens the
// images. A volume that cannot be opened leaves the others alone. When none can be,
// the server does not start: it would serve nothing, and whoever started it, as
// systemd, tries again.
func (s *Server) openVolumes() error {
	if err := s.salvage(); err != nil {
		return err
	}
	logs, err := s.findLogs()
	if err != nil {
		return err
	}
	var broken []error
	for _, opt := range s.opt.Volumes {
		v, err := newVolume(s, opt, logs)
		if err != nil {
			broken = append(broken, err)
		}
		s.volumes = append(s.volumes, v)
		s.byName[v.name] = v
		if other := s.byTag[v.tag]; other != nil {
			return fmt.Errorf("volumes %q and %q have names that frames cannot tell apart; rename one", other.name, v.name)
		}
		s.byTag[v.tag] = v
	}
	if len(broken) == len(s.volumes) {
		return errors.Join(broken...)
	}
	return nil
}

// Volume gives a volume by name, nil if this server has none of that name.
func (s *Server) Volume(name string) *Volume { return s.byName[name] }

// Volumes gives all volumes in the order of the configuration.
func (s *Server) Volumes() []*Volume { return slices.Clone(s.volumes) }

// ID is the server's id.
func (s *Server) ID() record.ServerID { return s.opt.ID }

// Stop ends the server in the order of the type's text. With handover a master
// first asks a live in-sync slave to take over. Clients' connections are closed
// without a reply. It returns within ten seconds, unless a disk hangs; ctx can
// only shorten that. Later calls wait for the first.
func (s *Server) Stop(ctx context.Context, handover bool) error {
	s.stop.Do(func() {
		defer close(s.stopped)
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.started || s.ended {
			s.ended = true
			return
		}
		s.opt.Logger.Info("server stops", "server", s.opt.ID.String(), "handover", handover)
		s.drain(ctx, handover)
		s.stopErr = s.closeAll(ctx.Err() == nil)
		s.opt.Logger.Info("server stopped", "server", s.opt.ID.String())
	})
	<-s.stopped
	return s.stopErr
}

// Close stops without handover and without a checkpoint: what a crash leaves,
// but for what the kernel would still have written.
func (s *Server) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return s.Stop(ctx, false)
}

// drain hands over and brings the images to a checkpoint.
func (s *Server) drain(ctx context.Context, handover bool) {
	if ctx.Err() != nil {
		return
	}
	var all sync.WaitGroup
	for _, v := range s.volumes {
		all.Go(func() { v.handOver(ctx, handover) })
	}
	all.Wait()
	for _, v := range s.volumes {
		v.clients.abortAll("the server stops")
	}
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	for _, v := range s.volumes {
		all.Go(func() { v.drain(ctx) })
	}
	all.Wait()
}

// closeAll ends and closes what was started and opened. With words, the other
// servers are told that this one stops in order.
func (s *Server) closeAll(words bool) error {
	var errs []error
	keep := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	if s.links != nil {
		s.links.stop(words)
	}
	for _, v := range s.volumes {
		v.stop(s.quit != nil)
	}
	if s.quit != nil {
		s.quit()
		s.background.Wait()
	}
	if s.journal != nil {
		keep("close journal", s.journal.Close())
	}
	if s.marks != nil {
		keep("close marks", s.marks.close())
	}
	if s.lock != nil {
		keep("release lock", s.lock.Close())
	}
	return errors.Join(errs...)
}

func sortedIDs(ids []record.ServerID) []record.ServerID {
	sorted := slices.Clone(ids)
	slices.SortFunc(sorted, record.ServerID.Compare)
	return sorted
}
