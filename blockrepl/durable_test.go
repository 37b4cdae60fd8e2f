package blockrepl

import (
	"bytes"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/record"
)

// afterCut is what a power cut leaves: nothing that was not synced.
func afterCut(mem *vfs.MemFS) memFiles { return memFiles{mem.CrashClone(vfs.CrashCloneCfg{})} }

func TestSmallFileOutlivesAPowerCutOnceItIsWritten(t *testing.T) {
	mem := vfs.NewCrashableMem()
	files := memFiles{mem}
	if err := files.MkdirAll("/data"); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"new", "in its place"} {
		if err := writeFile(files, "/data/identity", []byte(text)); err != nil {
			t.Fatal(err)
		}
		if b, err := readFile(afterCut(mem), "/data/identity"); err != nil || string(b) != text {
			t.Errorf("a power cut leaves %q, %v; written was %q", b, err, text)
		}
	}
}

func TestMarksOutliveAPowerCutOnceTheyAreWritten(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := Options{Files: memFiles{mem}, DataDir: "/data", Logger: slog.New(slog.DiscardHandler)}
	if err := o.Files.MkdirAll(o.DataDir); err != nil {
		t.Fatal(err)
	}
	m, err := openMarks(&o)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	if _, err := readFile(afterCut(mem), filepath.Join(o.DataDir, "marks")); err != nil {
		t.Errorf("a power cut takes the file: %v", err)
	}
	vol := record.VolumeID{1}
	for seq := record.Seq(1); seq < 4; seq++ {
		m.set(vol, mark{durable: record.Pos{Seq: seq, Sum: 7}}, false)
		if err := m.write(); err != nil {
			t.Fatal(err)
		}
		left := o
		left.Files = afterCut(mem)
		again, err := openMarks(&left)
		if err != nil {
			t.Fatal(err)
		}
		if k := again.get(vol); k.durable.Seq != seq {
			t.Errorf("a power cut leaves the mark of number %d, written was %d", k.durable.Seq, seq)
		}
		if err := again.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Each bit of what the journal keeps beside the records counts: most flips leave JSON
// that can be read, and says something else.
func TestFlippedBitInTheSmallStateIsFound(t *testing.T) {
	b := encodeMeta(&replica.Hard{Promised: record.Epoch{Counter: 1234}, Checkpoint: 5678})
	for i := range 8 * len(b) {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		if err := decodeMeta(keyHard, bad, &replica.Hard{}); !errors.Is(err, ErrMeta) {
			t.Fatalf("bit %d flipped: %v, want ErrMeta", i, err)
		}
	}
}

func TestFlippedBitInTheMarksIsFound(t *testing.T) {
	b := encodeMarks(3, map[record.VolumeID]mark{{1}: {durable: record.Pos{Seq: 1234, Sum: 5678}}})
	for i := range 8 * len(b) {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		if gen, byVol, ok := decodeMarks(bad); ok {
			t.Fatalf("bit %d flipped: generation %d, %v", i, gen, byVol)
		}
	}
}

// A damaged identity that still reads as one made the server another incarnation, or
// gave it another's.
func TestFlippedBitInTheIdentityIsFound(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := Options{Files: memFiles{mem}, DataDir: "/data", Cluster: "lab", ID: record.MustServerID("a"),
		Rand: func() uint64 { return 0x1111111111111111 }, Wall: time.Now}
	if err := o.Files.MkdirAll(o.DataDir); err != nil {
		t.Fatal(err)
	}
	if _, err := loadIdentity(&o); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(o.DataDir, "identity")
	b, err := readFile(o.Files, path)
	if err != nil {
		t.Fatal(err)
	}
	bad := strings.Replace(string(b), "1111", "1121", 1)
	if err := writeFile(o.Files, path, []byte(bad)); err != nil || bad == string(b) {
		t.Fatalf("%s: %v", b, err)
	}
	if id, err := loadIdentity(&o); !errors.Is(err, ErrIdentity) {
		t.Errorf("incarnation %s: %v, want ErrIdentity", id.Incarnation, err)
	}
}
