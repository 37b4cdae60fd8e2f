package nbd_test

import (
	"sync"
	"testing"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/internal/proto"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// A volume whose writes wait for another server is common. Its clients' requests, a few with 64 MiB each, held all buffers
// of the server, and every request of more than 512 KiB to any other volume waited with them.
func TestExportThatHangsLeavesBuffersToTheOthers(t *testing.T) {
	const size = 64 << 20
	d, well := nbdtest.NewMemDisk(nbd.Info{Size: size}), nbdtest.NewMemDisk(nbd.Info{Size: size})
	release := make(chan struct{})
	fault, arrived := nbdtest.Hold("read", release)
	d.SetFault(fault)
	s := serve(t, nbd.Options{Exports: nbdtest.Exports{"disk": d, "well": well}, Limits: nbd.Limits{MaxBytes: size}})
	other := greeted(t, pipe(t, s, true))
	if err := other.Go("well"); err != nil {
		t.Fatal(err)
	}
	const large = 8 << 20
	hung := make([]*nbdtest.Client, 4)
	for i := range hung {
		hung[i] = attach(t, pipe(t, s, true), true)
		for range 4 {
			send(t, hung[i], nbdtest.Request{Cmd: proto.CmdRead, Flags: proto.CmdFlagDF, Length: large})
		}
	}
	for range size / 2 / large {
		<-arrived // what is left to it is used
	}
	read(t, other, 0, large)
	close(release)
	var wg sync.WaitGroup
	for _, c := range hung { // at once: what one does not read keeps the others waiting
		wg.Go(func() {
			for range 4 {
				if rep, err := c.Recv(); err != nil || rep.Errno != 0 {
					t.Errorf("reply %+v, %v", rep, err)
					return
				}
			}
		})
	}
	wg.Wait()
	await(t, "the budget is whole again", func() bool { return s.Stats().BudgetBytes == size })
}
