package nbd

import "github.com/blockrepl/blockrepl/nbd/internal/proto"

// answerWhole sends the data of a read in one piece.
func (c *conn) answerWhole(h *header, buf *buffer, cost int64) {
	c.out.headed(func(b []byte) []byte { return c.appendReadHead(b, h) },
		piece{b: buf.b[:h.length], buf: buf, reqs: 1, cost: cost})
}

// answerSparse sends the data of a read with what reads as zeroes as holes, in runs of whole blocks of holeBlock.
//
// The data itself is looked at, not the disk's extents: a block that holds something shows it in its first bytes, so this
// costs nothing where it saves nothing, and needs no second question to the disk about a range that may just be changing.
func (c *conn) answerSparse(h *header, buf *buffer, cost int64) {
	data := buf.b[:h.length]
	n, zero := sparseRun(data, h.off)
	switch {
	case n < len(data):
		c.out.push(c.sparsePieces(h, buf, cost)...)
	case zero:
		buf.put()
		c.out.small(func(b []byte) []byte { return appendHole(b, proto.ChunkFlagDone, h.cookie, h.off, len(data)) }, cost)
	default:
		c.answerWhole(h, buf, cost)
	}
}

// sparseRun gives the length of the first run of blocks of one kind in data, which lies at off, and its kind.
func sparseRun(data []byte, off uint64) (n int, zero bool) {
	for n < len(data) {
		end := min(len(data), n+holeBlock-int((off+uint64(n))%holeBlock))
		z := isZero(data[n:end])
		if n > 0 && z != zero {
			break
		}
		n, zero = end, z
	}
	return n, zero
}

// sparsePieces cuts the data of a read into the chunks of its reply. The heads lie in a buffer of their own; data is sent
// from where it is.
func (c *conn) sparsePieces(h *header, buf *buffer, cost int64) []piece {
	data := buf.b[:h.length]
	const headMax = proto.ChunkLen + 12
	heads := getBuffer((len(data)/holeBlock + 2) * headMax)
	b, from := heads.b[:0], 0
	var ps []piece
	lastData := 0
	for at := 0; at < len(data); {
		n, zero := sparseRun(data[at:], h.off+uint64(at))
		flags := uint16(0)
		if at+n == len(data) {
			flags = proto.ChunkFlagDone
		}
		if zero {
			b = appendHole(b, flags, h.cookie, h.off+uint64(at), n)
		} else {
			b = appendData(b, flags, h.cookie, h.off+uint64(at), n)
			ps = append(ps, piece{b: b[from:]}, piece{b: data[at : at+n]})
			from, lastData = len(b), len(ps)-1
		}
		at += n
	}
	lastHead := lastData - 1
	if from < len(b) { // it ends with a hole
		ps = append(ps, piece{b: b[from:]})
		lastHead = len(ps) - 1
	}
	// Each buffer is given back with the last piece that lies in it, the request with the last of all.
	ps[lastData].buf, ps[lastHead].buf = buf, heads
	ps[len(ps)-1].reqs, ps[len(ps)-1].cost = 1, cost
	return ps
}
