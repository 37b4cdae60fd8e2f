package replica

import (
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// While a volume was suspended its master numbered all that clients sent, and
// sent again after each time-out, until the journals were full.
func TestSuspendedVolumeNumbersOnlySoMuch(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	for _, n := range c.nodes {
		n.cfg.Create.Size = 1 << 30
	}
	c.start("a", "b")
	c.pass(time.Second)
	a := c.node("a")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.kill("b")
	var ops []*Op
	for i := range 100 {
		data := record.Alloc(1 << 20)
		for j := range data {
			data[j] = byte(j*j>>7 + i*j)
		}
		op := &Op{Conn: conn, Rec: record.NewWrite(int64(i)<<20, data)}
		ops = append(ops, op)
		a.step(Submit{[]*Op{op}})
		c.run()
	}
	if held := len(a.r.f.held); held == 0 || a.r.kept.above(a.r.commit) > tailMax+4<<20 {
		t.Fatalf("%d bytes are numbered and not committed, %d changes wait", a.r.kept.above(a.r.commit), held)
	}
	c.start("b")
	c.pass(2 * time.Second)
	for _, op := range ops {
		a.mustComplete(op)
	}
}
