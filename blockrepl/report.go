package blockrepl

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: each volume's loop, as a View; journal, clients, resync.
// Does: writes them in the words of Status. Goes to: the admin handler.

// statusTimeout bounds how long a volume's loop may take to answer.
const statusTimeout = 2 * time.Second

// Status asks every volume how it is doing.
func (s *Server) Status(ctx context.Context) Status {
	st := Status{Cluster: s.opt.Cluster, Server: s.opt.ID.String(), Version: s.opt.Version,
		Volumes: make([]VolumeStatus, len(s.volumes))}
	var all sync.WaitGroup
	for i, v := range s.volumes {
		all.Go(func() { st.Volumes[i] = v.Status(ctx) })
	}
	all.Wait()
	return st
}

// viewSoon is view for the operator, who must have an answer when the loop gives none.
func (v *Volume) viewSoon(ctx context.Context) (replica.View, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return v.view(ctx)
}

// Status asks the volume how it is doing. A volume whose loop does not answer
// waits for its disk; that is told as failed.
func (v *Volume) Status(ctx context.Context) VolumeStatus {
	st := VolumeStatus{Name: v.name, Role: "failed", State: StateFailed, Authority: "operator", Clients: v.clients.status(),
		InSync: []string{}, Members: []string{}, Peers: []PeerStatus{}, SizeBytes: v.size.Load()}
	st.Work = v.working()
	view, err := v.viewSoon(ctx)
	if err != nil {
		st.Reason = err.Error()
		st.Next = "look at the server's disk and log"
		return st
	}
	fillView(&st, &view)
	for i := range view.Peers {
		st.Peers[i].Link, st.Peers[i].LinkFlaps = v.s.links.status(view.Peers[i].Server)
	}
	if v.full.Load() {
		st.State, st.Reason, st.Next = StateSuspended, diskFull, v.makeRoom()
	}
	if serves := st.State == StateHealthy || st.State == StateDegraded; serves && view.Role == wire.RoleSlave &&
		slices.Contains(st.InSync, v.s.opt.ID.String()) && v.s.space.free(v) < replica.SpaceReserve {
		st.State, st.Reason = StateSuspended, "no space here for more records; clients that write get ENOSPC"
		st.Next = fmt.Sprintf("make room on the file systems of %s and %s", v.s.opt.DataDir, v.opt.Image)
	}
	if log := v.log.Load(); log != nil {
		st.JournalBytes = log.Bytes()
		st.FirstKept = uint64(log.First())
		if qs, err := quarantines(log); err == nil {
			st.Quarantines = qs
		}
	}
	if view.Resync != nil {
		st.Resync = v.sync.status()
	}
	v.blind.tell(&st)
	v.finding.tell(&st, view.Role)
	st.Counters["resync_bytes"] += v.answer.sent.Load()
	st.Counters["records_mended"] += v.mender.count()
	st.Counters["resync_queries_dropped"] += v.answer.dropped.Load()
	return st
}

// diskFull is what the state machine does not hear of.
const diskFull = "the journal's disk is full; what was numbered waits in memory"

func (v *Volume) makeRoom() string { return "make room on the file system of " + v.s.opt.DataDir }

func fillView(st *VolumeStatus, view *replica.View) {
	c := &view.Config
	st.UUID = c.UUID.String()
	st.SizeBytes = view.Size
	st.Role = roleName(view.Role)
	st.State, st.Reason, st.Next = VolumeState(view.State), view.Reason, view.Next
	st.Epoch = view.Epoch.String()
	st.Last, st.Durable = uint64(view.Last), uint64(view.Durable)
	st.Committed, st.Applied = uint64(view.Committed), uint64(view.Applied)
	st.Checkpoint, st.FirstKept = uint64(view.Checkpoint), uint64(view.First)
	for _, m := range c.InSync {
		st.InSync = append(st.InSync, m.ID.String())
	}
	st.Members = append(st.Members, idNames(c.Members)...)
	st.Master = c.Master.String()
	st.OnDegraded, st.KeepBytes = c.OnDegraded.String(), c.Keep
	st.Shared, st.Holder = c.Shared, view.Holder
	st.Counters = view.Counters
	if st.Counters == nil {
		st.Counters = map[string]uint64{}
	}
	for _, p := range view.Peers {
		st.Peers = append(st.Peers, PeerStatus{
			Server: p.Server.String(), State: p.State.String(), Reason: p.Reason,
			SinceMilli: p.For.Milliseconds(), InSync: p.InSync,
			Durable: uint64(p.Durable), Applied: uint64(p.Applied),
			LagRecords: p.LagRecords, LagBytes: p.LagBytes, LagSeconds: lagSeconds(&p),
		})
	}
}

// lagSeconds is how long a peer has been behind: since it was last heard.
func lagSeconds(p *replica.PeerView) float64 {
	if p.LagRecords == 0 {
		return 0
	}
	return p.Heard.Seconds()
}

func idNames(ids []record.ServerID) []string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	return names
}

func roleName(r wire.Role) string {
	switch r {
	case wire.RoleMaster:
		return "master"
	case wire.RoleCandidate:
		return "candidate"
	case wire.RoleFailed:
		return "failed"
	}
	return "slave"
}

func (cs *clients) status() []ClientStatus {
	list := []ClientStatus{}
	for _, c := range cs.list() {
		list = append(list, ClientStatus{
			Addr: c.info.Addr, Identity: c.info.Identity, Since: c.since,
			Reads: c.reads.Load(), Writes: c.writes.Load(), ReadOnly: c.readOnly,
		})
	}
	return list
}

// promoteReport writes what the state machine found in the operator's words.
func (v *Volume) promoteReport(res *replica.Result) *PromoteReport {
	out := &PromoteReport{Volume: v.name, Candidate: v.s.opt.ID.String(), Servers: []PromoteServer{}, InSync: []string{}, Warning: res.Note}
	r := res.Report
	if r == nil {
		return out
	}
	out.Graceful, out.Already, out.Allowed, out.Split, out.Reason = r.Graceful, r.Already, r.Allowed, r.Split, r.Reason
	if r.Needs != "" {
		out.Needs = "--" + r.Needs
	}
	for _, s := range r.Servers {
		line := PromoteServer{Server: s.Server.String(), Answers: s.Answers, Last: uint64(s.Last), Epoch: s.Epoch.String(), InSync: s.InSync}
		if s.Answers {
			line.Role = roleName(s.Role)
		}
		out.Servers = append(out.Servers, line)
	}
	out.MissingFirst, out.MissingLast = uint64(r.MissingFirst), uint64(r.MissingLast)
	if r.MissingFirst != 0 {
		out.MissingSeconds = time.Duration(r.SilentFor).Seconds()
	}
	if !r.Epoch.IsZero() {
		out.Epoch = r.Epoch.String()
	}
	out.InSync = append(out.InSync, idNames(r.InSync)...)
	if r.Already && v.full.Load() {
		out.Already, out.Allowed = false, false
		out.Reason += ", and the volume is suspended: " + diskFull + "; " + v.makeRoom()
	}
	return out
}

func hex64(n uint64) string { return fmt.Sprintf("%016x", n) }
