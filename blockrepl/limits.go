package blockrepl

import "time"

// Bounds of the shell. Each says what happens when it is reached. The state
// machine, the journal, the image and the frames have their own.
const (
	// volumesMax bounds the volumes of one server: the marks file has room for
	// them. More are refused at the start.
	volumesMax = 1000
	// opsBytesMax bounds the payload of a volume's unanswered operations, in
	// bytes. Beyond it Submit waits: the client's connection is not read further.
	opsBytesMax = 256 << 20
	// opCost is what an operation counts beside its payload, in bytes, so that
	// the same bound holds their number.
	opCost = 1 << 10
	// readsMax bounds the reads of a volume that wait for their turn or read.
	// Beyond it ReadAt waits, at most for the io timeout.
	readsMax = 4096
	// staleAgain is how long a stale=ok read waits before it looks again whether
	// the image is a prefix.
	staleAgain = 50 * time.Millisecond
	// inboxBytesMax bounds what a volume holds of peers' messages, in bytes, that
	// it has not looked at yet. Beyond it the link is not read further; when the
	// volume's loop takes nothing for inboxPatience, records of the stream are
	// dropped instead.
	inboxBytesMax = 64 << 20
	inboxPatience = 500 * time.Millisecond
	// storesMax bounds the journal batches under way. Beyond it the volume's loop
	// waits for the disk.
	storesMax = 512

	// backlogMax bounds the batches of a volume that wait in memory for space on
	// the journal's disk, in bytes. Beyond it the volume fails on this server.
	backlogMax = 256 << 20

	// ringBytes is the default budget of recent records in memory for all volumes
	// together, in bytes; those that are not applied yet may take as many again.
	// Older ones are read from the journal.
	ringBytes = 32 << 20
	// ringShareMin is what a volume may always keep of it, in bytes.
	ringShareMin = 256 << 10

	// applyBytes and applyRecords bound one call of the image, so that Applied
	// comes often and scratch memory stays small: encoded bytes and plain ones. A
	// single larger record goes alone.
	applyBytes   = 4 << 20
	applyRecords = 512
	// checkpointBytes and checkpointEvery: the image is fsynced when either has
	// been reached since the last time. They bound the redo after a crash, and let
	// records be trimmed while half of the journal's memtable is still to be filled:
	// with 64 MiB more of them reached a table (disk bytes a client byte of half-
	// compressible data 1.75 instead of 1.63).
	checkpointBytes = 32 << 20
	checkpointEvery = 5 * time.Second

	// readBytes is how much of the journal one iterator reads, in bytes: it keeps
	// what was trimmed meanwhile on disk.
	readBytes = 8 << 20
	// frameBytes is how many record bytes one Append carries; a single larger
	// record goes alone. Control messages wait behind at most one such frame.
	frameBytes   = 1 << 20
	frameRecords = 1024
	// controlMax and controlBytesMax bound the control messages that wait for a
	// link. Beyond either the link is closed: the peer does not read.
	controlMax      = 1 << 16
	controlBytesMax = 512 << 20
	// writeTimeout bounds one write to a link. The peer or the network hangs.
	writeTimeout = 30 * time.Second

	// dialTimeout and handshakeTimeout bound the opening of a link.
	dialTimeout      = 5 * time.Second
	handshakeTimeout = 5 * time.Second
	// handshakesMax bounds the links that are being accepted; at one more the one
	// that has been at it longest is closed.
	handshakesMax = 32
	// holdBackMin and holdBackMax bound how long a volume that closed the link to a
	// server more than once does not use a new one; it doubles from one to the other,
	// and begins anew after blameForgotten.
	holdBackMin    = time.Second
	holdBackMax    = time.Minute
	blameForgotten = 5 * time.Minute
	// flapLife is how long a link must have lived to count as one that held; flapMany in
	// a row that did not are told as such, then once in flapEvery, in place of their
	// comings and goings. A server that is stopped and started again breaks up to three.
	flapLife  = 30 * time.Second
	flapMany  = 5
	flapEvery = time.Minute
	// quietBurst and quietEvery bound the log lines and events of a volume of one kind:
	// so many pass, then the newest in each quietEvery. quietKeys bounds the kinds that
	// are counted; of more each line passes.
	quietBurst = 12
	quietEvery = time.Minute
	quietKeys  = 256
	// swapQuiet is how long it is not told again that another data directory answers
	// under a server's id.
	swapQuiet = time.Minute
	// clockQuiet is how long it is not told again that a certificate is not valid yet,
	// or no more: anyone may show one.
	clockQuiet = time.Hour
	// lackedMax bounds the volumes of which it is told that another server counts on
	// this one, which lacks them; further ones are told to that server alone.
	lackedMax = 64
	// backoffMin and backoffMax bound the wait before a link is tried again; the
	// wait doubles from one to the other and is drawn between its half and itself.
	backoffMin = 50 * time.Millisecond
	backoffMax = 500 * time.Millisecond
	// backoffCalm is how long a link must have lived for the wait to begin anew
	// at backoffMin; one that is opened and closed again and again backs off too.
	backoffCalm = 10 * time.Second

	// resyncBlock is what one hash covers, resyncWindow what one HashQuery does,
	// in bytes; resyncInFlight is how many of them are under way. A master answers
	// queries of up to queryMax.
	resyncBlock    = 64 << 10
	resyncWindow   = 4 << 20
	resyncInFlight = 6
	queryMax       = 8 << 20
	// resyncTogether is how many volumes of a server are resynced at once; further
	// ones wait. It bounds the memory of both ends, which else would grow with the
	// number of volumes that lost their disk.
	resyncTogether = 8
	// chunkBytes bounds one chunk of an answer, in bytes.
	chunkBytes = 1 << 20
	// resyncSync is how many bytes are copied between two fsyncs of the progress; up
	// to twice as many while one is under way, then the copying waits for it.
	resyncSync = 64 << 20
	// narrowBlock is how exactly an extent is named that cannot be read, in bytes: a
	// page, since less cannot be written without reading the rest.
	narrowBlock = 4096

	// resyncAgain is how long an answer may take before the query is sent again.
	resyncAgain = 20 * time.Second
	// answersMax bounds the HashQueries that wait at the master; further ones are
	// dropped and come again.
	answersMax = 16
	// resyncBusy is what a resync may read of the image in a second while clients
	// write, in bytes.
	resyncBusy = 64 << 20

	// samplesRecent is how many of the blocks that were written last are noted with
	// a checkpoint, sampleBytes how large a block is: each costs a read from the page
	// cache every checkpointEvery, and about 60 bytes of the saved state.
	samplesRecent = 14
	sampleBytes   = 4096

	// verifyExtents bounds the extents that verify names; the bytes are counted all.
	verifyExtents = 64

	// verifyTries is how often verify asks again for one block that was written
	// meanwhile, before it gives up.
	verifyTries = 100
	// verifyAsks is how often verify sends one query that is not answered, resyncAgain
	// apart, before it gives up; verifyLook is how often it looks meanwhile whether the
	// master still is one.
	verifyAsks = 6
	verifyLook = time.Second

	// catchUpBusy is what kept records may be sent of a volume in a second while
	// its clients write, in bytes, beside twice what they write; catchUpMore bounds
	// what of that may be sent at once.
	catchUpBusy = 64 << 20
	catchUpMore = 8 << 20

	// marksEvery is how often the marks file is written at most.
	marksEvery = 200 * time.Millisecond
	// spaceEvery is how often free space is looked at.
	spaceEvery = 250 * time.Millisecond
	// sweepEvery is how often operations older than the io timeout are looked for.
	sweepEvery = time.Second
	// eventsMax bounds the recent state changes that GET /v1/events shows.
	eventsMax = 1024
	// commandTimeout bounds a command of the operator.
	commandTimeout = 60 * time.Second
	// handoverTimeout bounds the handover of one stop, drainTimeout what comes
	// after it for all volumes: applying what is committed, the last fsyncs.
	handoverTimeout = 6 * time.Second
	drainTimeout    = 3 * time.Second
	// mendTries bounds how often all other servers are asked for a damaged record,
	// mendAgain apart; mendWait is how long one may take to answer. Then the volume
	// fails on this server.
	mendTries = 10
	mendAgain = 500 * time.Millisecond
	mendWait  = 2 * time.Second
	// mendRun bounds the damaged records behind one that are mended with it: those of
	// half a megabyte of the smallest. More cannot be mended; the volume fails.
	mendRun = 4096
	// leaveTimeout bounds how long a stopping server's last words may take.
	leaveTimeout = 500 * time.Millisecond
	// aloneEvery is how often a stopping server looks whether anybody is left.
	aloneEvery = 50 * time.Millisecond
	// smallFileMax bounds identity and marks files, in bytes; larger ones are refused.
	smallFileMax = 1 << 20
	// bodyMax bounds the body of a command, in bytes.
	bodyMax = 64 << 10
	// listMax bounds the records of one answer of the journal endpoint.
	listMax = 1000
)

// Defaults of Options.
const (
	DefaultPeerTimeout = 2 * time.Second
	DefaultIOTimeout   = 60 * time.Second
	DefaultKeep        = 4 << 30 // bytes
)
