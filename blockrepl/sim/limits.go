package sim

import "time"

// Bounds of the model. Times are virtual.
const (
	sectorBytes = 8
	sectorsMax  = 64 // of a volume, grown included

	// peerTimeout is replica.Config.PeerTimeout, in some schedules half of it to four
	// times as long. Shorter than any real one: the faults come as often as the
	// schedule is long.
	peerTimeout = 200 * time.Millisecond

	// eventsMax bounds a schedule; beyond it the run fails as one that never ends.
	eventsMax = 4_000_000
	// traceMax is how many of the last events are kept for a report, traceShown how
	// many it shows.
	traceMax   = 1 << 9
	traceShown = 60
	// applyMax, frameMax bound one call of the image and one Append, in records.
	applyMax = 12
	frameMax = 6
	// pendingMax bounds the unanswered requests of a client.
	pendingMax = 6

	// heldEvery is after how many rounds of its loop a server's memory is looked at.
	heldEvery = 16
	// heldOpsMax, heldLookupsMax and heldSamplesMax bound what a state machine holds of
	// clients' changes, of questions for old sums (for each server), and of its journal's
	// length: thrice what schedules brought about.
	heldOpsMax, heldLookupsMax, heldSamplesMax = 300, 3, 100

	// calmMax is the stated time of liveness: after the last fault, with every
	// server running and every link possible, and with the operator doing what
	// status asks for, every server is healthy before it has passed. Of more than two
	// servers each may have to be forgotten by itself, one status after another.
	calmMax       = 12 * time.Second
	calmForServer = 4 * time.Second
	// restMost is how long a healthy cluster may still hold something of what was under way.
	restMost = 10 * peerTimeout
	// carelessMax is calmMax where the operator was careless, who has more to repair.
	carelessMax = 30 * time.Second
	// operatorLook is how often the operator looks at status in the calm.
	operatorLook = 3 * peerTimeout
)
