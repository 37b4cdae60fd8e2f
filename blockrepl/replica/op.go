package replica

import "github.com/blockrepl/blockrepl/journal/record"

// Op is one change that a client of this server asked for, from Submit to
// Completion. The shell allocates it and may embed it in its own request; the
// fields below the line belong to the state machine.
type Op struct {
	Conn uint64         // the client's connection; 0: the server's own
	Rec  *record.Record // unsealed: kind, extent, payload, codec, payload sum

	att    *attachment // nil for the server's own operations
	key    opKey
	seq    record.Seq // 0: not numbered as far as this server knows
	stage  opStage
	link   uint64 // over which it was forwarded
	result uint64 // the command to answer, when the operator asked for it
}

// opKey names an operation in the log. Origin is this server throughout.
type opKey struct {
	attachment uint64
	operation  uint64
}

type opStage uint8

const (
	opHeld      opStage = iota // waits for an attachment, a master or a turn
	opForwarded                // sent to the master over the present or a lost link
	opNumbered                 // found in the log at seq
	opDone                     // completed, refused or dropped
)
