package main

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/cockroachdb/pebble/v2"
)

// checkOf runs check on data, a directory of twoVolumes, with what configures vol1 beside
// it.
func checkOf(t *testing.T, data, vol1 string, want ...string) {
	t.Helper()
	code, out, errs := runHere(t, "check", "--cluster", "lab", "--id", "a", "--data", data,
		"--volume", "vol0 size=1MiB servers=a", "--volume", "vol1 servers=a "+vol1)
	wantCode := exitOK
	if len(want) > 0 {
		wantCode = exitUsage
	}
	if code != wantCode {
		t.Errorf("exit %d, want %d: %s%s", code, wantCode, out, errs)
	}
	for _, w := range want {
		if !strings.Contains(errs, w) {
			t.Errorf("lacks %q: %s", w, errs)
		}
	}
	if got := strings.Count(strings.TrimSpace(errs), "\n") + 1; len(want) > 0 && got != 1 {
		t.Errorf("%d lines, want one: %s", got, errs)
	}
}

// An image that is smaller than its volume was good for check, and its volume failed.
func TestCheckSeesAnImageThatIsTooSmall(t *testing.T) {
	data, _ := twoVolumes(t)
	image := filepath.Join(data, "images", "vol1.img")
	checkOf(t, data, "size=2MiB") // it counts at the creation only
	resized := filepath.Join(t.TempDir(), "vol1")
	for _, path := range []string{image, resized} {
		if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	checkOf(t, data, "size=2MiB", `volume "vol1": image `+image, "the file has 4096 bytes, the volume 1048576")
	checkOf(t, data, "size=2MiB image="+resized, `volume "vol1": image `+resized, "the file has 4096 bytes, the volume 1048576")
	// A new volume has the size of the configuration.
	checkOf(t, filepath.Join(t.TempDir(), "new"), "size=2MiB image="+resized, "the file has 4096 bytes, the volume 2097152")
	if err := os.Truncate(image, 0); err != nil {
		t.Fatal(err)
	}
	checkOf(t, data, "size=1MiB") // it is made anew, and resynced
}

// An image that had content is not made anew where it is missing; check said nothing.
func TestCheckSeesAnImageThatIsMissing(t *testing.T) {
	checkpointed := func(s *blockrepl.Server) error { return s.Stop(t.Context(), false) }
	data, _ := twoVolumesTo(t, checkpointed)
	image := filepath.Join(data, "images", "vol1.img")
	checkOf(t, data, "size=1MiB")
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	checkOf(t, data, "size=1MiB", `volume "vol1": image `+image, "mount its disk", "touch "+image)
	checkOf(t, data, "size=1MiB image=/dev/blockrepl/lost", "no device /dev/blockrepl/lost") // of which no file is to be made
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	checkOf(t, data, "size=1MiB") // it is made anew, and resynced
}

// cutTable leaves one byte of a volume's table, which a server writes with its first
// checkpoint.
func cutTable(t *testing.T, data, uuid string) {
	t.Helper()
	id, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil {
		t.Fatal(err)
	}
	db, err := pebble.Open(blockrepl.JournalDir(data), &pebble.Options{FormatMajorVersion: pebble.FormatNewest, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Set(append(append([]byte{'m'}, id...), "table"...), []byte{1}, pebble.Sync); err != nil {
		t.Fatal(err)
	}
}

// Damage that keeps a volume away was good for check, and so for a boot.
func TestCheckSeesDamageOfWhatTheJournalKeeps(t *testing.T) {
	data, uuid := twoVolumes(t)
	spoilKey(t, data, uuid, 'l', "")
	checkOf(t, data, "size=1MiB", `volume "vol0": `, "state is corrupt", "sets aside what is damaged")
	data, uuid = twoVolumes(t)
	cutTable(t, data, uuid)
	checkOf(t, data, "size=1MiB", `volume "vol0": `, `"table" has 1 bytes`, "starts without this volume")
	spoilKey(t, data, uuid, 'm', "hard")
	checkOf(t, data, "size=1MiB", "a volume whose name is damaged, "+uuid, "the sum of \"hard\" does not match", "starts without this volume")
}
