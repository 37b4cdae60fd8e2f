package journal

import (
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

// A power cut while a server started left a marker without its manifest: the journal
// could not be opened any more.
func TestMarkersAndTheirManifestsOutliveAnyPowerCut(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := options(t, mem)
	recs := chain(vol1, record.Pos{}, 3, 100)
	j := mustOpen(t, o)
	mustWrite(t, mustLog(t, j, vol1), Batch{Records: recs})
	mustClose(t, j)

	// The worst of cuts, one at each change of the second opening's directory: of
	// the names that are not synced either all or none are there.
	var cuts []*vfs.MemFS
	o.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpCreate || op.Kind == errorfs.OpRemove || op.Kind == errorfs.OpFileSync {
			cuts = append(cuts, mem.CrashClone(vfs.CrashCloneCfg{}))
		}
		if op.Kind == errorfs.OpCreate && strings.Contains(op.Path, "marker.manifest") {
			// Here only the marker's own name may be lost or kept.
			names, err := cuts[len(cuts)-1].List(o.Dir)
			_, manifest, _ := strings.Cut(op.Path, "MANIFEST")
			if err != nil || !strings.Contains(strings.Join(names, " ")+" ", "MANIFEST"+manifest+" ") {
				t.Errorf("%s is created, and a power cut leaves %q, %v", op.Path, names, err)
			}
		}
		if op.Kind == errorfs.OpRemove && strings.Contains(op.Path, "marker.manifest") {
			names, err := cuts[len(cuts)-1].List(o.Dir)
			if err != nil || strings.Count(strings.Join(names, " "), "marker.manifest") != 2 {
				t.Errorf("%s is removed, and a power cut leaves %q, %v", op.Path, names, err)
			}
		}
		return nil
	}))
	mustClose(t, mustOpen(t, o))
	if len(cuts) < 5 {
		t.Fatalf("%d cuts", len(cuts))
	}
	for _, fs := range cuts {
		o.FS = fs
		j := mustOpen(t, o)
		checkHolds(t, mustLog(t, j, vol1), record.Pos{}, recs)
		mustClose(t, j)
	}
}
