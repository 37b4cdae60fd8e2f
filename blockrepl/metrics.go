package blockrepl

import (
	"context"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics gives a scrape what Status says, as numbers: one look at each volume a
// scrape, nothing counted twice.
type metrics struct{ s *Server }

func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("blockrepl_"+name, help, labels, nil)
}

var (
	descState     = metric("volume_state", "1 for the state that the volume is in on this server.", "volume", "state")
	descMaster    = metric("volume_master", "1 where this server is the volume's master.", "volume")
	descSize      = metric("volume_size_bytes", "The volume's size.", "volume")
	descNumber    = metric("volume_number", "Numbers: last, durable, committed, applied, checkpoint, first_kept.", "volume", "what")
	descInSync    = metric("volume_in_sync_servers", "Servers whose acknowledgement a write waits for.", "volume")
	descMembers   = metric("volume_member_servers", "Servers that hold the volume.", "volume")
	descJournal   = metric("volume_journal_bytes", "Bytes of kept records.", "volume")
	descClients   = metric("volume_clients", "Connected clients.", "volume")
	descCounter   = metric("volume_events_total", "What happened to the volume here, by kind.", "volume", "kind")
	descClientOps = metric("volume_client_requests", "Requests of the present connections.", "volume", "kind")
	descResync    = metric("volume_resync_done_bytes", "Bytes of the image compared by the resync that runs.", "volume")
	descDiffer    = metric("volume_verify_different_bytes", "Bytes that the last verify found to differ here; 0 once they were mended.", "volume")
	descPeerUp    = metric("peer_live", "1 where the peer is live, as this server sees it.", "volume", "peer", "state")
	descPeerLag   = metric("peer_lag_records", "Records that the peer lacks; the master knows.", "volume", "peer")
	descPeerLagB  = metric("peer_lag_bytes", "Their bytes.", "volume", "peer")
	descRing      = metric("ring_bytes", "Memory that holds recent records.")
	descFree      = metric("journal_free_bytes", "Bytes that the journal may still promise.")
	descFlaps     = metric("peer_link_flaps_total", "Links to the peer that broke soon after they were up.", "peer")
	descDisk      = metric("journal_disk_bytes", "Bytes that the journal takes on disk.")
	allDescs      = []*prometheus.Desc{descState, descMaster, descSize, descNumber, descInSync, descMembers, descJournal, descClients,
		descCounter, descClientOps, descResync, descDiffer, descPeerUp, descPeerLag, descPeerLagB, descFlaps, descRing, descFree, descDisk}
	volumeStates = []VolumeState{StateHealthy, StateDegraded, StateCatchingUp, StateResyncing, StateSuspended, StateDiverged, StateSplitBrain, StateFailed}
)

func (s *Server) metricsHandler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(metrics{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}

// Describe implements prometheus.Collector.
func (m metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range allDescs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	st := m.s.Status(context.Background())
	for i := range st.Volumes {
		m.volume(&st.Volumes[i], gauge, ch)
	}
	for id := range m.s.links.peers {
		_, n := m.s.links.status(id)
		ch <- prometheus.MustNewConstMetric(descFlaps, prometheus.CounterValue, float64(n), id.String())
	}
	gauge(descRing, float64(m.s.ring.used.Load()))
	gauge(descFree, float64(m.s.journal.Free()))
	gauge(descDisk, float64(m.s.journal.DiskBytes()))
}

func (m metrics) volume(v *VolumeStatus, gauge func(*prometheus.Desc, float64, ...string), ch chan<- prometheus.Metric) {
	for _, s := range volumeStates {
		gauge(descState, truth(v.State == s), v.Name, string(s))
	}
	gauge(descMaster, truth(v.Role == "master"), v.Name)
	gauge(descSize, float64(v.SizeBytes), v.Name)
	for what, n := range map[string]uint64{"last": v.Last, "durable": v.Durable, "committed": v.Committed,
		"applied": v.Applied, "checkpoint": v.Checkpoint, "first_kept": v.FirstKept} {
		gauge(descNumber, float64(n), v.Name, what)
	}
	gauge(descInSync, float64(len(v.InSync)), v.Name)
	gauge(descMembers, float64(len(v.Members)), v.Name)
	gauge(descJournal, float64(v.JournalBytes), v.Name)
	gauge(descClients, float64(len(v.Clients)), v.Name)
	var reads, writes uint64
	for _, c := range v.Clients {
		reads += c.Reads
		writes += c.Writes
	}
	gauge(descClientOps, float64(reads), v.Name, "read")
	gauge(descClientOps, float64(writes), v.Name, "write")
	for kind, n := range v.Counters {
		ch <- prometheus.MustNewConstMetric(descCounter, prometheus.CounterValue, float64(n), v.Name, kind)
	}
	if v.Resync != nil {
		gauge(descResync, float64(v.Resync.DoneBytes), v.Name)
	}
	var differ int64
	if v.Verify != nil {
		differ = v.Verify.DifferentBytes
	}
	gauge(descDiffer, float64(differ), v.Name)
	for _, p := range v.Peers {
		gauge(descPeerUp, truth(p.State == "live"), v.Name, p.Server, p.State)
		gauge(descPeerLag, float64(p.LagRecords), v.Name, p.Server)
		gauge(descPeerLagB, float64(p.LagBytes), v.Name, p.Server)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
