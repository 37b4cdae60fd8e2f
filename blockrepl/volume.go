package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
	"github.com/zeebo/xxh3"
)

// Volume is one volume on this server: the state machine and the goroutines that
// do for it what it decides.
//
//	runLoop      owns rep and eff; takes the inbox, Steps, carries out (effects.go)
//	committer    waits for the journal's fsyncs
//	applier      brings committed records to the image
//	checkpointer fsyncs the image
//	sweep        sends clients away whose requests wait too long
//	resync       on demand: copies a whole image (resync.go), answers who does
//
// They end in stop, in the order of its text.
type Volume struct {
	s    *Server
	name string
	tag  uint64
	opt  VolumeOptions
	logr *slog.Logger

	img      *image.Image // nil: it was not opened; then the volume has failed
	imageDir string       // where it lies; fixed once it is open
	seen     sampler      // of img
	ring     ring
	in       *inbox
	app      *applier
	com      *committer
	check    *checkpointer
	log      atomic.Pointer[journal.Log] // nil until the volume's uuid is known

	// The loop's own.
	rep       *replica.Replica
	eff       replica.Effects
	nextTick  replica.Time
	roundAt   replica.Time  // when the last round began
	subs      []*replica.Op // scratch for Submit
	dead      bool          // the journal failed: no Store is carried out any more
	waiting   backlog       // store.go
	isCreated bool          // created is closed

	// What the loop publishes after each round, before it carries out anything:
	// whoever hears of a commit hears of it after these say so.
	commit atomic.Uint64
	floor  atomic.Uint64
	lease  atomic.Int64 // replica.Time; 0: none
	size   atomic.Int64
	stale  atomic.Bool // read-only exports may read the image
	alone  atomic.Bool // nobody else could answer
	epoch  atomic.Pointer[record.Epoch]
	vow    atomic.Pointer[record.Epoch] // for the last words of an orderly stop
	uuid   atomic.Pointer[record.VolumeID]
	// mixed counts the times at which the image stopped being the state after a
	// prefix: a read that was under way then is done again.
	mixed  atomic.Uint64
	full   atomic.Bool  // batches wait for space
	busyAt atomic.Int64 // replica.Time of the last batch with a client's record

	catchUp catchUpLimit // kept records sent while clients write
	clients clients
	results results
	sync    syncer
	answer  answerer
	mender  mender
	sizing  sizing
	finding finding

	// initializing is held while an operator's init prepares the image.
	initializing sync.Mutex
	work         atomic.Pointer[work] // nil: none is under way

	wg       sync.WaitGroup // all goroutines but the loop
	sweepEnd chan struct{}  // closed by stop
	loopDone chan struct{}
	created  chan struct{} // closed by the loop once the volume exists and its size is known
	failOnce [2]sync.Once
	failed   atomic.Pointer[string] // why, once it has failed
	broken   chan struct{}          // closed when it has
	blind    unreadable
	quiet    quiet // of what is written again and again
}

// newVolume opens what a volume has on this server; nothing runs yet. With an error the
// volume is returned too, and has failed: it runs to say so, to clients, operator and
// the other servers, and neither believes nor changes what is there.
func newVolume(s *Server, opt VolumeOptions, logs *foundLogs) (*Volume, error) {
	v := &Volume{
		s: s, name: opt.Name, tag: wire.Tag(opt.Name), opt: opt, in: newInbox(),
		logr: s.opt.Logger.With("volume", opt.Name), loopDone: make(chan struct{}), sweepEnd: make(chan struct{}), created: make(chan struct{}),
		broken: make(chan struct{}),
	}
	v.ring.budget = s.ring
	s.marks.drop(nameID(v.name)) // older servers wrote it, and the file has room for one a volume
	saved, broken := v.open(logs)
	saved.Image.At = saved.Hard.Checkpoint
	saved.Free, saved.Image.Bytes, _ = s.space.freeOf(v, map[string]int64{})
	members := sortedIDs(opt.Servers)
	cfg := replica.Config{
		Self: s.opt.ID, Incarnation: s.id.Incarnation, PeerTimeout: s.opt.PeerTimeout,
		First: opt.Servers[0], OpBase: s.opt.Rand() >> 16,
		Create: wire.State{
			Members: members, Size: opt.Size, OnDegraded: opt.OnDegraded, Shared: opt.Shared,
			Keep: opt.Keep, Name: opt.Name, UUID: record.VolumeID(draw16(s.opt.Rand)),
		},
	}
	v.clients.init(v)
	v.results.init()
	v.rep = replica.New(cfg, saved, s.opt.Clock())
	applied := saved.Hard.Checkpoint
	if saved.Hard.Resync != nil {
		applied = max(applied, saved.Hard.Resync.Base)
	}
	v.app = newApplier(v, applied)
	v.app.missed = saved.Missed
	v.check = newCheckpointer(v)
	v.com = &committer{v: v, queue: make(chan storing, storesMax), at: mark{
		durable: saved.Last, following: saved.Hard.Following, promised: saved.Hard.Promised,
	}}
	v.catchUp = newCatchUpLimit()
	v.sync.init(v)
	v.mender.init(v)
	v.answer.init(v)
	v.publish()
	if broken != nil {
		v.fail(broken.what, broken.err) // the loop's first event
		return v, fmt.Errorf("volume %q: %w", v.name, broken.err)
	}
	return v, nil
}

// nameID is what the little is kept under that a server must remember of a volume
// before it has a uuid: the promise to the server that creates it.
func nameID(name string) record.VolumeID {
	h := xxh3.HashString128("blockrepl volume " + name)
	return record.VolumeID(h.Bytes())
}

// start lets the goroutines run.
func (v *Volume) start() {
	for _, run := range []func(){v.com.run, v.app.run, v.check.run, v.runSweep} {
		v.wg.Go(run)
	}
	go func() {
		defer close(v.loopDone)
		v.runLoop()
	}()
}

// runLoop is the volume's one order of events.
func (v *Volume) runLoop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-v.in.wake:
		case <-timer.C:
		}
		v.round()
		if v.in.drained() {
			return
		}
		timer.Reset(max(0, v.nextTick.Sub(v.s.opt.Clock())))
	}
}

// round takes all that happened and does what follows from it.
func (v *Volume) round() {
	t := v.in.take()
	now := v.s.opt.Clock()
	v.rep.SetWall(v.s.opt.Wall().UnixNano())
	// What the disks did comes first: it speaks of the numbers that were known
	// before any event of this round changed them.
	if t.stored > 0 {
		v.step(now, replica.Stored{ID: t.stored})
	}
	if t.applied > 0 {
		v.step(now, replica.Applied{Seq: t.applied, Missed: t.missed})
	}
	if t.synced > 0 {
		v.step(now, replica.ImageSynced{Seq: t.synced, Image: t.image})
	}
	if v.roundAt != 0 && now.Sub(v.roundAt) > v.s.opt.PeerTimeout/2 {
		v.departed(now)
	}
	v.roundAt = now
	for _, ev := range t.events {
		v.step(now, ev)
	}
	if subs := v.clients.admit(v.subs[:0], t.ops); len(subs) > 0 {
		v.step(now, replica.Submit{Ops: subs})
		clear(subs)
		v.subs = subs
	}
	if id := v.clients.round(t.reads); id != 0 {
		v.step(now, replica.Read{ID: id})
	}
	if now >= v.nextTick {
		v.nextTick = now.Add(v.s.opt.PeerTimeout / 8)
		v.step(now, replica.Tick{})
	}
	for _, f := range t.calls {
		f()
	}
	v.retry()
	v.finish()
}

// departed lets go of the connections whose clients have closed them, before anything
// else is done by a loop that slept: the process was stopped, or the disk hung. What
// those clients had sent may have been sent again elsewhere, and newer writes after
// it, so whatever still waits here for a master must not go its way.
func (v *Volume) departed(now replica.Time) {
	for _, c := range v.clients.list() {
		if !c.readOnly && c.info.Gone() {
			v.step(now, replica.Gone{Conn: c.id})
			c.abandon(ErrAborted)
		}
	}
}

// step lets the state machine take in one event. Effects of several steps are
// carried out together, but what drops or cuts the journal is at once, and what came
// before it before: numbers mean other records after it.
func (v *Volume) step(now replica.Time, ev replica.Event) {
	if m, ok := ev.(replica.Received); ok {
		if _, join := m.Msg.(*wire.Join); join {
			v.finish()
		}
	}
	v.rep.Step(now, ev, &v.eff)
	if n := len(v.eff.Stores); n > 0 && (v.eff.Stores[n-1].Cut != nil || v.eff.Stores[n-1].Reset != nil) || v.eff.Resync != nil {
		v.finish()
	}
}

// finish publishes and carries out.
func (v *Volume) finish() {
	v.publish()
	if v.eff.Wake != 0 {
		v.nextTick = min(v.nextTick, v.eff.Wake)
	}
	v.carryOut(&v.eff)
	v.eff.Reset()
}

// publish lets readers and senders see where the volume is.
func (v *Volume) publish() {
	// The epoch first: a sender that still sees the old one has read the old commit
	// number before it, never one that speaks of another past's records.
	if e := v.rep.Epoch(); v.epoch.Load() == nil || *v.epoch.Load() != e {
		v.epoch.Store(&e)
	}
	// Then the commit number: a reader that still sees the old lease and the new
	// number merely waits.
	v.commit.Store(uint64(v.rep.Commit()))
	v.lease.Store(int64(v.rep.Lease()))
	v.floor.Store(uint64(v.rep.Floor()))
	if v.vow.Load() == nil || *v.vow.Load() != v.rep.Vow() {
		e := v.rep.Vow()
		v.vow.Store(&e)
	}
	v.stale.Store(v.rep.StaleReadable())
	v.alone.Store(v.rep.Alone())
	v.size.Store(v.rep.Size())
	if !v.isCreated && v.uuid.Load() != nil && v.rep.Commit() > 0 && v.known() {
		v.isCreated = true
		close(v.created)
	}
}

// known reports whether the volume's size is: not between a restart and the end
// of the redo, which may hold a change of it.
func (v *Volume) known() bool {
	return v.rep.StaleReadable() || v.rep.View(v.s.opt.Clock()).Resync != nil
}

// fail tells the state machine, once, that the journal or the image failed, and sends
// all clients away: also those that only read, of whom it does not know.
func (v *Volume) fail(what string, err error) {
	i := 0
	if what == "image" {
		i = 1
	}
	v.failOnce[i].Do(func() {
		why := fmt.Sprintf("%s: %v", what, err)
		if v.failed.CompareAndSwap(nil, &why) {
			close(v.broken)
		}
		v.logr.Error("volume failed", "what", what, "err", err)
		v.in.post(replica.Failed{What: what, Err: err})
		v.clients.abortAll("the volume failed on this server")
	})
}

// view asks the loop for a snapshot.
func (v *Volume) view(ctx context.Context) (replica.View, error) {
	return askLoop(ctx, v, func() replica.View { return v.rep.View(v.s.opt.Clock()) })
}

// askLoop has f called by the volume's loop, and waits for what it gives.
func askLoop[T any](ctx context.Context, v *Volume, f func() T) (answer T, err error) {
	got := make(chan T, 1)
	if !v.in.call(func() { got <- f() }) {
		return answer, ErrStopped
	}
	select {
	case answer = <-got:
		return answer, nil
	case <-ctx.Done():
		return answer, fmt.Errorf("volume %q: ask for its state: %w", v.name, ctx.Err())
	case <-v.loopDone:
		return answer, ErrStopped
	}
}

// ErrStopped says that the server is stopping or has stopped.
var ErrStopped = errors.New("server has stopped")

// Name is the volume's name.
func (v *Volume) Name() string { return v.name }

// Size is its present size in bytes.
func (v *Volume) Size() int64 { return v.size.Load() }

// handOver asks the state machine to stop and waits for its answer, then until
// everything committed is in the image and fsynced, each for a bounded time.
func (v *Volume) handOver(ctx context.Context, handover bool) {
	wait, cancel := context.WithTimeout(ctx, handoverTimeout)
	var watch sync.WaitGroup
	watch.Go(func() { v.s.links.whenAlone(wait, cancel) })
	defer watch.Wait()
	defer cancel()
	res, err := v.command(wait, func(id uint64) replica.Event { return replica.Stop{ID: id, Handover: handover} })
	if err == nil && res.Note != "" {
		v.logr.Info("stopping", "note", res.Note)
	}
	if err != nil && !errors.Is(err, ErrStopped) {
		v.logr.Warn("stopping without handover", "err", err)
	}
}

// drain waits until everything that may be applied is, fsyncs the image, and has
// the checkpoint stored, so that the next start has nothing to redo.
func (v *Volume) drain(ctx context.Context) {
	if !v.app.wait(ctx) || v.failed.Load() != nil {
		return
	}
	if err := v.check.sync(); err != nil {
		v.fail("image", err)
		return
	}
	// Two rounds: the first takes ImageSynced and orders the Store, whose end the
	// committer waits for when its queue is closed.
	for range 2 {
		if _, err := v.view(ctx); err != nil {
			return
		}
	}
}

// stop ends the goroutines: clients, resync, loop, committer, applier,
// checkpointer; then it closes the image. The links are closed before. running
// says whether they were started.
func (v *Volume) stop(running bool) {
	v.clients.abortAll("the server stops")
	v.sync.stop()
	v.answer.stop()
	v.mender.stop()
	v.in.close()
	if running {
		<-v.loopDone
		close(v.com.queue)
		v.app.close()
		close(v.check.quit)
		close(v.sweepEnd)
		v.wg.Wait()
	}
	callAll(v.quiet.due(v.s.opt.Clock(), true))
	v.results.close()
	v.ring.clear()
	if v.img == nil {
		return
	}
	if err := v.img.Close(); err != nil {
		v.logr.Warn("image not closed", "err", err)
	}
}
