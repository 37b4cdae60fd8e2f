package blockrepl

import "time"

// Status is what GET /v1/status answers and `blockrepl status --json` prints.
// The shape is stable: fields are added, never renamed.
type Status struct {
	Cluster string         `json:"cluster"`
	Server  string         `json:"server"`
	Version string         `json:"version"`
	Volumes []VolumeStatus `json:"volumes"`
}

// VolumeState is the one word on how a volume is doing, as this server sees it.
type VolumeState string

// The volume states, from best to worst.
const (
	StateHealthy    VolumeState = "healthy"     // every member is in sync
	StateDegraded   VolumeState = "degraded"    // serving, a member is missing, or verify found that the image here differs
	StateCatchingUp VolumeState = "catching-up" // this server lacks records
	StateResyncing  VolumeState = "resyncing"   // this server's image is being copied
	StateSuspended  VolumeState = "suspended"   // writes wait; Reason and Next say for what
	StateDiverged   VolumeState = "diverged"    // this server's past is not what the others remember
	StateSplitBrain VolumeState = "split-brain" // two masterships both went on; needs resolve
	StateFailed     VolumeState = "failed"      // disk or journal failed here
)

// VolumeStatus is one volume as one server sees it.
type VolumeStatus struct {
	Name         string      `json:"name"`
	UUID         string      `json:"uuid"`
	SizeBytes    int64       `json:"size_bytes"`
	Role         string      `json:"role"` // master, slave, candidate, failed
	State        VolumeState `json:"state"`
	Reason       string      `json:"reason"`
	Next         string      `json:"next"` // the command that gets on, "" when none is needed
	Epoch        string      `json:"epoch"`
	Last         uint64      `json:"last"`
	Durable      uint64      `json:"durable"`
	Committed    uint64      `json:"committed"`
	Applied      uint64      `json:"applied"`
	Checkpoint   uint64      `json:"checkpoint"`
	FirstKept    uint64      `json:"first_kept"`
	InSync       []string    `json:"in_sync"`
	Members      []string    `json:"members"`
	Master       string      `json:"master"`
	Authority    string      `json:"authority"` // operator
	OnDegraded   string      `json:"on_degraded"`
	KeepBytes    int64       `json:"keep_bytes"` // records are kept for servers that are away up to this
	Shared       bool        `json:"shared"`
	Holder       string      `json:"holder"`
	JournalBytes int64       `json:"journal_bytes"`
	// Resync is nil unless State is resyncing.
	Resync *ResyncStatus `json:"resync,omitempty"`
	// Work is nil unless a verify, an init, or the zeroing of what a device grew by is
	// under way here.
	Work *WorkStatus `json:"work,omitempty"`
	// Verify is nil unless a verify found that the image here differs, and neither a
	// later one nor a resync has mended it. It outlives a restart.
	Verify      *VerifyFinding     `json:"verify,omitempty"`
	Quarantines []QuarantineStatus `json:"quarantines,omitempty"`
	Counters    map[string]uint64  `json:"counters"` // requests_sent, requests_served, records_early, records_duplicate, forwards, resync_bytes, …
	Clients     []ClientStatus     `json:"clients"`
	Peers       []PeerStatus       `json:"peers"`
}

// ClientStatus is one NBD connection.
type ClientStatus struct {
	Addr     string    `json:"addr"`
	Identity string    `json:"identity"`
	Since    time.Time `json:"since"`
	Reads    uint64    `json:"reads"`
	Writes   uint64    `json:"writes"`
	ReadOnly bool      `json:"read_only"`
}

// PeerStatus is another server as this one sees it. Durable, Applied and the
// lags are known to the master only.
type PeerStatus struct {
	Server     string  `json:"server"`
	State      string  `json:"state"` // down, probe, catch-up, live, resync
	Reason     string  `json:"reason"`
	Link       string  `json:"link"`     // why there is no link, as this server found, or none that holds; "" when there is one
	SinceMilli int64   `json:"since_ms"` // how long it has been in this state
	InSync     bool    `json:"in_sync"`
	Durable    uint64  `json:"durable"`
	Applied    uint64  `json:"applied"`
	LagRecords uint64  `json:"lag_records"`
	LagBytes   int64   `json:"lag_bytes"`
	LagSeconds float64 `json:"lag_seconds"`
	LinkFlaps  uint64  `json:"link_flaps"` // links to it that broke soon after they were up, since this server's start
}

// ResyncStatus is how far the copying of the image is.
type ResyncStatus struct {
	Source      string  `json:"source"`
	DoneBytes   int64   `json:"done_bytes"`
	TotalBytes  int64   `json:"total_bytes"`
	SentBytes   int64   `json:"sent_bytes"` // what differed and travelled
	LeftSeconds float64 `json:"left_seconds"`
}

// WorkStatus is how far a command is that reads or writes a large part of an image.
type WorkStatus struct {
	What        string  `json:"what"` // verify, init, resize
	DoneBytes   int64   `json:"done_bytes"`
	TotalBytes  int64   `json:"total_bytes"`
	LeftSeconds float64 `json:"left_seconds"`
}

// VerifyFinding is what a verify found in this server's image.
type VerifyFinding struct {
	Source         string            `json:"source"` // the master then
	Number         uint64            `json:"number"` // of the last record applied when it ended
	Time           time.Time         `json:"time"`
	DifferentBytes int64             `json:"different_bytes"`
	Different      []DifferentExtent `json:"different"` // as in VerifyReport
}

// QuarantineStatus is a diverged tail that was set aside.
type QuarantineStatus struct {
	ID    string `json:"id"`
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	Epoch string `json:"epoch"`
}
