package blockrepl

import "time"

// PromoteRequest is the body of POST /v1/volumes/{name}/promote, asked of the
// server that shall become master.
type PromoteRequest struct {
	DryRun        bool `json:"dry_run"`
	OldMasterDead bool `json:"old_master_dead"` // the operator asserts it
	AcceptLoss    bool `json:"accept_loss"`
}

// PromoteReport is its answer, what --dry-run prints, and the answer to a ResolveRequest.
type PromoteReport struct {
	Volume    string          `json:"volume"`
	Candidate string          `json:"candidate"`
	Graceful  bool            `json:"graceful"` // the old master answers and steps down itself
	Already   bool            `json:"already"`  // the candidate is the master, as before: nothing changes
	Allowed   bool            `json:"allowed"`
	Split     bool            `json:"split_brain"` // refused until a side of it is chosen
	Needs     string          `json:"needs"`       // the flag without which it is refused, or ""
	Reason    string          `json:"reason"`
	Servers   []PromoteServer `json:"servers"`
	// MissingFirst..MissingLast are the numbers that could be lost, as far as
	// anyone who answers knows; 0 when nothing can be missing.
	MissingFirst   uint64  `json:"missing_first"`
	MissingLast    uint64  `json:"missing_last"`
	MissingSeconds float64 `json:"missing_seconds"`
	Epoch          string  `json:"epoch"` // of the candidate's mastership; "" when it has none, as in a dry run elsewhere
	// InSync are the servers that the epoch began with, or goes on with (Already). Warning
	// names those that must not be promoted now, since they are not among them. Empty
	// where Epoch is.
	InSync  []string `json:"in_sync"`
	Warning string   `json:"warning"`
}

// PromoteServer is one line of the report.
type PromoteServer struct {
	Server  string `json:"server"`
	Answers bool   `json:"answers"`
	Role    string `json:"role"`
	Last    uint64 `json:"last"`
	Epoch   string `json:"epoch"`
	InSync  bool   `json:"in_sync"` // in the newest state that anyone who answers knows
}

// ForgetRequest is the body of POST /v1/volumes/{name}/forget, asked of the master.
type ForgetRequest struct {
	Server string `json:"server"`
	Force  bool   `json:"force"` // although no majority of the members can note it
}

// ForgetReport is its answer: it is done. Warning names the server that must not be
// promoted now. InSync is empty when the server was too slow to tell it.
type ForgetReport struct {
	Volume  string   `json:"volume"`
	InSync  []string `json:"in_sync"`
	Warning string   `json:"warning"`
}

// ResolveRequest is the body of POST /v1/volumes/{name}/resolve, asked of the
// server whose side is kept.
type ResolveRequest struct {
	Keep string `json:"keep"`
}

// ResizeRequest is the body of POST /v1/volumes/{name}/resize, asked of any server.
type ResizeRequest struct {
	SizeBytes int64 `json:"size_bytes"`
	// Force: although a server's file system lacks bytes for all of it, or a server
	// cannot be asked.
	Force bool `json:"force"`
}

// SetRequest is the body of POST /v1/volumes/{name}/set, asked of the master. What
// is empty or 0 stays as it is.
type SetRequest struct {
	OnDegraded string `json:"on_degraded"` // suspend, continue
	KeepBytes  int64  `json:"keep_bytes"`
}

// SetReport is its answer: what is in force now. When the server is too slow to tell,
// what was not to be changed is empty or 0.
type SetReport struct {
	Volume     string `json:"volume"`
	OnDegraded string `json:"on_degraded"`
	KeepBytes  int64  `json:"keep_bytes"`
}

// ResizeReport is its answer. Warning is what Force went past, "" when nothing was.
type ResizeReport struct {
	Volume    string `json:"volume"`
	SizeBytes int64  `json:"size_bytes"`
	Warning   string `json:"warning"`
}

// InitRequest is the body of POST /v1/volumes/{name}/init, asked of the server
// whose image the volume shall come from.
type InitRequest struct {
	Content string `json:"content"` // InitKeep, InitZero or InitCopy
	From    string `json:"from"`    // with InitCopy: a path on the server's host
}

// What a new volume holds.
const (
	InitKeep = "keep" // what the image holds now
	InitZero = "zero" // nothing
	InitCopy = "copy" // what a file or device holds
)

// InitReport is its answer.
type InitReport struct {
	Volume    string `json:"volume"`
	Content   string `json:"content"`
	SizeBytes int64  `json:"size_bytes"`
}

// VerifyRequest is the body of POST /v1/volumes/{name}/verify: compares this
// server's image with the master's at a fixed number.
type VerifyRequest struct {
	Repair bool `json:"repair"`
}

// DropRequest is the body of POST /v1/volumes/{name}/drop: removes a quarantine
// of the asked server for ever.
type DropRequest struct {
	Quarantine string `json:"quarantine"`
}

// DropReport is its answer.
type DropReport struct {
	Volume     string `json:"volume"`
	Quarantine string `json:"quarantine"`
}

// CommandError is the JSON body of every answer that is not 2xx.
type CommandError struct {
	Error string `json:"error"` // one line
	Next  string `json:"next"`  // what the operator can do, or ""
	Code  string `json:"code"`  // refused, not-found, timeout, split-brain, bad-request
}

// VerifyReport is the answer to a VerifyRequest.
type VerifyReport struct {
	Volume         string `json:"volume"`
	Source         string `json:"source"` // the master
	ComparedBytes  int64  `json:"compared_bytes"`
	DifferentBytes int64  `json:"different_bytes"`
	Repaired       bool   `json:"repaired"` // what differed was copied from the master
	// Different is where, in blocks of 64 KiB, ascending; the first 64 extents.
	Different []DifferentExtent `json:"different"`
}

// DifferentExtent is a range of bytes of the volume.
type DifferentExtent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// JournalRecord is one line of GET /v1/volumes/{name}/journal?from=&to=&limit=
// &data=&quarantine=, which answers with one JSON object a line, ascending.
// Without from it begins with the first record kept; data=1 adds the payload,
// uncompressed; quarantine=NAME reads a tail that was set aside. With raw=1 the
// answer is the records as they are stored, without a limit.
type JournalRecord struct {
	Seq         uint64    `json:"seq"`
	Epoch       string    `json:"epoch"`
	Kind        string    `json:"kind"`
	Offset      int64     `json:"offset"`
	Length      int64     `json:"length"` // bytes, uncompressed
	Codec       string    `json:"codec"`
	StoredBytes uint32    `json:"stored_bytes"`
	Time        time.Time `json:"time"`
	Origin      string    `json:"origin"`
	Attachment  uint64    `json:"attachment,omitempty"`
	Operation   uint64    `json:"operation,omitempty"`
	PayloadSum  string    `json:"payload_sum"` // CRC-32C, hex
	Prev        string    `json:"prev"`        // header sum of the record before, hex
	Sum         string    `json:"sum"`         // header sum, hex
	Data        []byte    `json:"data,omitempty"`
}

// JournalInfo is GET /v1/volumes/{name}/journal/info.
type JournalInfo struct {
	Volume      string             `json:"volume"`
	UUID        string             `json:"uuid"`
	First       uint64             `json:"first"`
	Last        uint64             `json:"last"`
	Sum         string             `json:"sum"` // of the last record, hex
	Bytes       int64              `json:"bytes"`
	Quarantines []QuarantineStatus `json:"quarantines"`
	Damage      string             `json:"damage,omitempty"` // then no records are known
}

// JournalVerify is GET /v1/volumes/{name}/journal/verify: every kept record is
// read and its sums are checked, while the server goes on.
type JournalVerify struct {
	Volume      string   `json:"volume"`
	First       uint64   `json:"first"`
	Last        uint64   `json:"last"`
	Records     int64    `json:"records"`
	Bytes       int64    `json:"bytes"`
	Damaged     int64    `json:"damaged"`
	Quarantined int64    `json:"quarantined"`
	Damage      []string `json:"damage,omitempty"`
}
