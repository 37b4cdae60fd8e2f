package blockrepl

import (
	"fmt"
	"strings"
	"testing"
)

// The attachment table held up to 4096 identities of 256 bytes, a value of the
// journal 1 MiB, and the table is written as JSON, which makes six bytes of one "<".
// Whoever may write ended the volume with the names that the NBD door takes (up to 128
// printable characters), on all servers and for good: the marks that filled the table were
// redone at each start.
func TestTableOfManyLongIdentitiesFitsTheJournal(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	for i := range 1500 {
		cl := c.connectAs(0, ClientInfo{Identity: fmt.Sprintf("%04d", i) + strings.Repeat("<", 124), Takeover: true})
		if err := cl.change(OpWrite, 0, make([]byte, 512), 0); err != nil {
			t.Logf("identity %d: %v", i, err)
			break
		}
		if err := cl.Close(); err != nil {
			t.Fatal(err)
		}
	}
	checkpoint := func() VolumeStatus {
		c.await(0, "applied", func(s VolumeStatus) bool { return s.Applied == s.Last || s.State == StateFailed })
		if err := c.vol(0).check.sync(); err != nil {
			t.Fatal(err)
		}
		c.await(0, "checkpoint", func(s VolumeStatus) bool { return s.Checkpoint == s.Last || s.State == StateFailed })
		return c.status(0) // the round that stores it has ended
	}
	if st := checkpoint(); st.State != StateHealthy {
		t.Errorf("the volume is %s: %s", st.State, st.Reason)
	}
	c.kill(0)
	c.start(0)
	c.await(0, "an end of the start", func(s VolumeStatus) bool { return s.State == StateHealthy || s.State == StateFailed })
	if st := checkpoint(); st.State != StateHealthy {
		t.Errorf("after a restart the volume is %s: %s", st.State, st.Reason)
	}
}
