package e2e

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
)

const blockBytes = 4096

// history knows what a read of each block may return. A block has one writer,
// which numbers its writes; what is written names block and version, so every
// read says which write it saw.
//
// The rule, from the promises: a read returns no version below the newest that
// completed, or that another read returned, before it began; none that was not
// asked for before it ended; and never a mixture of two.
type history struct {
	salt   uint64
	base   int64 // where block 0 begins in the volume, in bytes
	blocks []blockHistory
}

type blockHistory struct {
	mu sync.Mutex
	// floor is the newest version that completed or was seen; next is one above the
	// newest asked for. Invariant: floor < next.
	floor, next uint64
}

func newHistory(rng *rand.Rand, blocks int) *history {
	h := &history{salt: rng.Uint64(), blocks: make([]blockHistory, blocks)}
	for i := range h.blocks {
		h.blocks[i].next = 1 // version 0: never written, zeroes
	}
	return h
}

// at is where a block begins in the volume, in bytes.
func (h *history) at(block int) int64 { return h.base + int64(block)*blockBytes }

// ask gives the next version of a block.
func (h *history) ask(block int) uint64 {
	b := &h.blocks[block]
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next++
	return b.next - 1
}

// completed notes that a version's write was answered.
func (h *history) completed(block int, version uint64) {
	b := &h.blocks[block]
	b.mu.Lock()
	defer b.mu.Unlock()
	b.floor = max(b.floor, version)
}

// floor is the least version that a read which begins now may return.
func (h *history) floor(block int) uint64 {
	b := &h.blocks[block]
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.floor
}

// operation is how a version was written: mostly with bytes, now and then as
// zeroes or by a trim. Both read back as zeroes.
func operation(version uint64) uint16 {
	switch {
	case version%32 == 7:
		return cmdWriteZeroes
	case version%32 == 23:
		return cmdTrim
	}
	return cmdWrite
}

const blockMagic = 0x626c6f636b74657a

// content is what a version of a block has. Each sector names block and version,
// so a mixture is seen; half of it compresses.
func (h *history) content(block int, version uint64) []byte {
	p := make([]byte, blockBytes)
	if version == 0 || operation(version) != cmdWrite {
		return p
	}
	rng := rand.New(rand.NewPCG(h.salt^uint64(block), version))
	for s := 0; s < blockBytes; s += 512 {
		binary.LittleEndian.PutUint64(p[s:], blockMagic)
		binary.LittleEndian.PutUint64(p[s+8:], uint64(block))
		binary.LittleEndian.PutUint64(p[s+16:], version)
		for i := 24; i < 256; i += 8 {
			binary.LittleEndian.PutUint64(p[s+i:], rng.Uint64())
		}
	}
	return p
}

// check says what is wrong with bytes that a read of the block returned; floor is
// what h.floor said before it began.
func (h *history) check(block int, floor uint64, p []byte) error {
	b := &h.blocks[block]
	b.mu.Lock()
	defer b.mu.Unlock()
	if binary.LittleEndian.Uint64(p) != blockMagic {
		return h.checkZeroes(b, block, floor, p)
	}
	if owner := binary.LittleEndian.Uint64(p[8:]); owner != uint64(block) {
		return fmt.Errorf("block %d holds bytes of block %d", block, owner)
	}
	version := binary.LittleEndian.Uint64(p[16:])
	switch {
	case version < floor:
		return fmt.Errorf("block %d: read version %d after version %d had completed or been read", block, version, floor)
	case version >= b.next:
		return fmt.Errorf("block %d: read version %d, the newest written is %d", block, version, b.next-1)
	case string(p) != string(h.content(block, version)):
		return fmt.Errorf("block %d: version %d is mixed with something else", block, version)
	}
	b.floor = max(b.floor, version)
	return nil
}

// checkZeroes looks for the oldest version that could have left zeroes.
func (h *history) checkZeroes(b *blockHistory, block int, floor uint64, p []byte) error {
	for _, x := range p {
		if x != 0 {
			return fmt.Errorf("block %d: neither zeroes nor a version: % x", block, p[:32])
		}
	}
	for v := floor; v < b.next; v++ {
		if v == 0 || operation(v) != cmdWrite {
			b.floor = max(b.floor, v)
			return nil
		}
	}
	return fmt.Errorf("block %d: zeroes, but versions %d..%d have bytes", block, floor, b.next-1)
}

// readAll reads every block through a server and checks it.
func (h *history) readAll(s *server, query string) error {
	c, err := dial(s, query)
	if err != nil {
		return err
	}
	defer c.close()
	c.deadline(soon)
	const atOnce = 64
	floors := make([]uint64, atOnce)
	for first := 0; first < len(h.blocks); first += atOnce {
		n := min(atOnce, len(h.blocks)-first)
		for i := range n {
			floors[i] = h.floor(first + i)
		}
		p, err := c.read(h.at(first), n*blockBytes)
		if err != nil {
			return fmt.Errorf("through %s: %w", s.id, err)
		}
		for i := range n {
			if err := h.check(first+i, floors[i], p[i*blockBytes:(i+1)*blockBytes]); err != nil {
				return fmt.Errorf("through %s: %w", s.id, err)
			}
		}
	}
	return nil
}

// imageHolds checks every block in a stopped server's image.
func (h *history) imageHolds(s *server) error {
	if err := h.fileHolds(s.image()); err != nil {
		return fmt.Errorf("image of %s: %w", s.id, err)
	}
	return nil
}

// fileHolds checks every block in a copy of the volume.
func (h *history) fileHolds(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	p := make([]byte, blockBytes)
	for i := range h.blocks {
		if _, err := f.ReadAt(p, h.at(i)); err != nil {
			return err
		}
		if err := h.check(i, h.floor(i), p); err != nil {
			return err
		}
	}
	return nil
}
