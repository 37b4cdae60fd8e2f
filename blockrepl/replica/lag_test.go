package replica

import (
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// catchUp lets the image take what it should hold.
func (n *node) catchUp() {
	n.still = false
	n.image = n.target
	n.step(Applied{Seq: n.target})
	n.c.run()
}

func TestMasterAnswersBeforeItsImageHoldsTheWriteAndReadsWait(t *testing.T) {
	c := three(t, wire.Suspend)
	a := c.node("a")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "first"))
	a.still = true
	op := a.write(conn, 0, "second")
	a.mustComplete(op)
	if a.r.applied >= op.seq || a.r.Commit() < op.seq {
		t.Fatalf("number %d is answered at commit %d, applied %d", op.seq, a.r.Commit(), a.r.applied)
	}
	a.step(Read{ID: 9})
	c.run()
	if a.reads[9] {
		t.Fatal("a read was granted while the image lacked an answered write")
	}
	a.catchUp()
	if !a.reads[9] {
		t.Error("the read was not granted when the image held the write")
	}
}

func TestSlaveAnswersAForwardOnlyWhenItsImageHoldsIt(t *testing.T) {
	c := three(t, wire.Suspend)
	b := c.node("b")
	conn := b.open("db1", 0)
	b.mustComplete(b.write(conn, 0, "first"))
	b.still = true
	early := b.write(conn, 0, "second")
	op := b.write(conn, 0, "third")
	c.pass(50 * time.Millisecond)
	b.mustWait(early)
	if b.r.Commit() < op.seq || op.seq == 0 {
		t.Fatalf("number %d is not known as committed: %d", op.seq, b.r.Commit())
	}
	b.step(Applied{Seq: early.seq})
	b.mustComplete(early)
	b.mustWait(op)
	b.catchUp()
	b.mustComplete(op)
}

func TestAnswersWaitForAnImageThatIsFarBehind(t *testing.T) {
	c := three(t, wire.Suspend)
	a := c.node("a")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "first"))
	before := a.r.applied
	a.still = true
	var ops []*Op
	for range applyLagRecords + 10 {
		ops = append(ops, a.write(conn, 0, "x"))
	}
	for _, op := range ops {
		_, answered := a.done[op.Rec.Operation]
		if want := op.seq <= before+applyLagRecords; answered != want {
			t.Fatalf("number %d with an image at %d: answered %v, want %v", op.seq, before, answered, want)
		}
	}
	a.catchUp()
	for _, op := range ops {
		a.mustComplete(op)
	}
}

func TestAnswersWaitForALargeWriteToReachTheImage(t *testing.T) {
	var k keptBytes
	k.reset(0)
	r := &Replica{plain: k}
	const size = 1 << 20
	for seq := record.Seq(1); seq <= 64; seq++ {
		r.plain.add(seq, size)
	}
	for seq, want := range map[record.Seq]bool{1: false, applyLagBytes / size: false, applyLagBytes/size + 2: true, 64: true} {
		if got := r.lagging(seq); got != want {
			t.Errorf("number %d with nothing applied: lagging %v, want %v", seq, got, want)
		}
	}
	r.applied = 60
	if r.lagging(64) {
		t.Error("4 MiB behind counts as too far")
	}
}

// What compresses well was counted as it lies in the journal: reads waited for any
// number of bytes on their way to the image.
func TestAnswersWaitForWhatCompressesWellToReachTheImage(t *testing.T) {
	c := three(t, wire.Suspend)
	a := c.node("a")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "first"))
	a.still = true
	same := strings.Repeat("a", 1<<20)
	for range applyLagBytes>>20 - 1 {
		a.mustComplete(a.write(conn, 0, same))
	}
	a.write(conn, 0, same) // perhaps; the count is not exact
	op := a.write(conn, 0, same)
	a.mustWait(op)
	a.catchUp()
	a.mustComplete(op)
}

// An attachment that begins while older writes are under way is not granted early.
func TestAttachmentIsGrantedWhenApplied(t *testing.T) {
	c := three(t, wire.Suspend)
	a := c.node("a")
	first := a.open("db1", 0)
	a.mustComplete(a.write(first, 0, "first"))
	a.still = true
	old := a.write(first, 0, "second")
	a.mustComplete(old)
	second := a.open("db1", 7)
	op := a.write(second, 0, "third")
	a.mustWait(op)
	a.catchUp()
	a.catchUp()
	a.mustComplete(op)
}

// What was numbered was held against an image's room as it lies in the journal: of what
// compresses well far more was numbered than the image could take.
func TestWritesWaitForAnImageThatTheyMightFill(t *testing.T) {
	for _, who := range []string{"a", "b"} {
		c := three(t, wire.Suspend)
		a, n := c.node("a"), c.node(who)
		conn := a.open("db1", 0)
		a.mustComplete(a.write(conn, 0, "first"))
		look := func() {
			n.step(Space{Free: 1 << 40, Image: wire.Room{Bytes: SpaceReserve + 3<<20, At: n.r.applied}})
			c.pass(time.Second)
		}
		look()
		n.still = true
		same := strings.Repeat("a", 1<<20)
		var ops []*Op
		for range 8 {
			ops = append(ops, a.write(conn, 0, same))
		}
		first := a.r.last.Seq
		if got := first - ops[0].seq + 1; got < 3 || got > 5 {
			t.Errorf("%d writes of 1 MiB were numbered into room for 3 on %s", got, who)
		}
		for range 2 {
			n.catchUp()
			n.still = true
			c.pass(time.Second)
		}
		if a.r.last.Seq != first {
			t.Errorf("numbers went on from %d to %d before anybody looked at the room again", first, a.r.last.Seq)
		}
		n.still = false
		for range 8 {
			look()
		}
		for _, op := range ops {
			a.mustComplete(op)
		}
	}
}

// A slave's frame may hold many writes: it is no way around the bound, and none is lost.
func TestForwardIsNumberedAsFarAsTheImagesHaveRoom(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	conn := b.open("db1", 0)
	b.mustComplete(b.write(conn, 0, "first"))
	a.step(Space{Free: 1 << 40, Image: wire.Room{Bytes: SpaceReserve + 1<<20, At: a.r.applied}})
	before := a.r.last.Seq
	same := []byte(strings.Repeat("a", 1<<20))
	var ops []*Op
	for range 8 {
		ops = append(ops, &Op{Conn: conn, Rec: record.NewWrite(0, same)})
	}
	b.step(Submit{ops})
	c.run()
	if n := a.r.last.Seq - before; n < 1 || n > 3 {
		t.Errorf("%d of 8 writes were numbered at once, room was for 1", n)
	}
	for range 8 {
		a.step(Space{Free: 1 << 40, Image: wire.Room{Bytes: SpaceReserve + 1<<20, At: a.r.applied}})
		c.pass(time.Second)
	}
	for i, op := range ops {
		b.mustComplete(op)
		if i > 0 && op.seq != ops[i-1].seq+1 {
			t.Errorf("write %d has number %d, the one before %d", i, op.seq, ops[i-1].seq)
		}
	}
}
