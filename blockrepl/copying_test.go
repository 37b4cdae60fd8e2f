package blockrepl

import (
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
)

// Of many volumes that need a resync only resyncTogether are copied at once; each end
// lets the next one begin, also when it was called off before its turn came.
func TestFewVolumesAreCopiedAtOnce(t *testing.T) {
	images := make([]*image.Image, resyncTogether+3)
	for i := range images {
		images[i] = sparseImage(t, seeded(t), 512)
	}
	synctest.Test(t, func(t *testing.T) {
		o := Options{}
		o.fill()
		s := &Server{opt: o, copyings: make(chan struct{}, resyncTogether)}
		s.links = newLinks(s) // no peers: no query is answered, and no copying ends by itself
		defer s.links.cancel()
		var volumes []*Volume
		for _, img := range images {
			v := &Volume{s: s, in: newInbox(), img: img, logr: slog.New(slog.DiscardHandler)}
			v.sync.init(v)
			defer v.sync.stop()
			volumes = append(volumes, v)
			v.order(&replica.ResyncOrder{ID: 1, Size: 512})
			synctest.Wait() // so that they queue in order
		}
		copies := func() (which []int) {
			synctest.Wait()
			for i, v := range volumes {
				if c := v.sync.cur; c.room != nil && c.ctx.Err() == nil {
					which = append(which, i)
				}
			}
			return which
		}
		if got := copies(); len(got) != resyncTogether || len(s.copyings) != resyncTogether {
			t.Fatalf("volumes %v are copied, want %d", got, resyncTogether)
		}
		volumes[resyncTogether].order(&replica.ResyncOrder{Stop: true}) // it still waits
		volumes[3].order(&replica.ResyncOrder{Stop: true})
		volumes[0].sync.stop()
		got := copies()
		if len(got) != resyncTogether || got[0] != 1 || got[len(got)-1] != resyncTogether+2 {
			t.Errorf("volumes %v are copied, want all but 0, 3 and %d", got, resyncTogether)
		}
	})
}
