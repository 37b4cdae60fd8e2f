// Package wire is how blockrepl's servers speak with each other: the handshake,
// the frames, and the messages in them. It promises that any bytes give a message
// or an error, that nothing is allocated from a length that was not checked
// against limits.go, that a flipped bit anywhere is found, and that records
// travel as the very bytes that the journals hold. It does not order, time,
// resend or encrypt: that is the link's and the state machine's.
//
// It has no goroutines, no clock and no sockets. A [Writer] and a [Reader] belong
// to one goroutine each; everything else is pure.
//
// # Handshake
//
// All numbers of this package are little-endian. The side that opened the link
// sends its Hello and waits; the other answers with its own; then each judges the
// other's ([Check]) and sends a Verdict, in the same order. A side that refuses
// says so and closes. Frames follow, in both directions. See [Dial] and [Accept].
//
//	Hello                              Verdict
//	 0  [8] "blockrep"                  0  [8] "brverdic"
//	 8  u32 length n, at most 4096      8  u32 length n, at most 4096
//	12  u16 lowest version spoken      12  u8  cause, 0 = accepted
//	14  u16 highest version spoken     13  u16 version chosen
//	16  [8] server id, NUL padded      15  text reason
//	24  [16] incarnation
//	40  [16] nonce of this start
//	56  text cluster
//	    text software
//	12+n u32 CRC-32C of all before     12+n u32 CRC-32C of all before
//
// This layout is for all versions: later ones may add fields between the last and
// the sum, which a reader that does not know them ignores.
//
// # Frame
//
//	 0  u32  magic "BRF" and the version of this layout, 1
//	 4  u8   type             which message, see [Type]
//	 5  u8   flags            none defined; must be zero
//	 6  u16  zero
//	 8  u64  tag              XXH3-64 of the volume's name
//	16  u32  length n         bytes of body, at most MaxBody
//	20  u32  head h           bytes of body that the body's sum covers
//	24  u32  body sum         CRC-32C of the body's first h bytes
//	28  u32  header sum       CRC-32C of bytes 0..27
//	32  [n]  body
//
// The header has a sum of its own so that a wrong length is found before anyone
// waits for it. h is n except for Append and Forward, whose records follow the
// head one behind the other up to the end of the body: they carry their own sums
// (package record), and a second pass over the payload would buy nothing.
//
// # Body
//
// The fields of the message one behind the other, without padding. These are the
// building blocks:
//
//	u8 u16 u32 u64 i64
//	flag     u8, 0 or 1
//	enum     u8, 0 = unset; a value above the last known one is refused
//	size     i64, 0..2^60: a number of bytes or an offset
//	server   [8], an id of 1 to 8 bytes [a-z0-9-], NUL padded, or zero
//	uuid     [16]
//	epoch    u64 counter, server                                    (16 bytes)
//	pos      u64 number, u64 header sum                             (16 bytes)
//	text     u16 count of bytes, UTF-8
//	blob     u32 count of bytes, bytes
//	list(x)  u32 count, that many x
//	state    u64 number, epoch, server master, list(server, uuid incarnation) in-sync,
//	         list(server) members, size, enum on-degraded, flag shared, size keep,
//	         uuid volume, text name, flag forced, epoch overruled
//	start    epoch, pos first, u64 base number, flag loss,
//	         list(server, uuid incarnation) set                     (45 bytes or more)
//	memory   server, uuid incarnation, epoch, pos durable           (56 bytes)
//
// And these the messages:
//
//	 1 Greeting       text name, uuid volume, uuid incarnation, state, epoch promised,
//	                  list(epoch) rivals, epoch following, list(start) history,
//	                  pos last, u64 first, u64 checkpoint, u64 applied, u64 committed,
//	                  enum role, flag resyncing, flag forgot, flag split-brain, size,
//	                  list(memory), i64 free, list(server) servers
//	 2 Prepare        epoch, state, flag resolve, flag loss
//	 3 Promise        epoch, flag ok, text reason, Greeting
//	 4 Join           epoch, state, list(start) history, pos match, flag resync,
//	                  u64 last, u64 commit, blob table
//	 5 Joined         epoch, flag ok, text reason, pos last, flag resync
//	 6 Append         epoch, u64 commit, u64 floor, u32 count; records
//	 7 Ack            epoch, uuid incarnation, pos durable, u64 applied, i64 free,
//	                  i64 image-room, u64 image-at, flag resyncing
//	 8 Request        epoch, u64 from, u64 to
//	 9 Heartbeat      epoch, i64 sent-at, u64 last, u64 commit, u64 floor
//	10 HeartbeatAck   Ack, i64 sent-at, flag ok, i64 lease
//	11 ReadIndex      epoch, u64 id
//	12 ReadIndexOK    epoch, u64 id, u64 commit
//	13 Forward        epoch, u64 index, u32 count; records (drafts: number and epoch 0)
//	14 Refuse         epoch, u64 attachment, u64 operation, enum code, text reason
//	15 StateUpdate    state
//	16 StateAck       epoch, u64 number
//	17 Handover       epoch
//	18 HandoverReady  epoch, flag ok, text reason, pos last, state
//	19 TakeOver       epoch
//	20 Query          u64 id
//	21 HashQuery      epoch, u64 id, size offset, size block, size length, list(u64) hashes
//	22 ExtentData     epoch, u64 id, size offset, size length, u64 applied,
//	                  list(size offset, size length, flag zero, enum codec, blob data) chunks
//	23 Leaving        text reason, flag failed, flag restart, epoch vow
//	24 Fetch          u64 seq
//	25 Fetched        u64 seq, u32 count; records
//	26 SizeQuery      u64 id, size size
//	27 SizeAnswer     u64 id, flag ok, flag force, text reason
//
// Annotated examples of every frame are in testdata. A state that is kept (in a
// record's payload, in metadata) has a version byte before it: [AppendState].
package wire
