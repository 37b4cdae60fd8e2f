package main

import (
	"strings"
	"testing"
)

// A device that is not there was taken for a file that can be made.
func TestCheckRefusesADeviceThatIsNotThere(t *testing.T) {
	code, out, errs := runHere(t, "check", "--cluster", "lab", "--id", "a", "--data", t.TempDir(),
		"--volume", "vol0 size=64MiB servers=a image=/dev/blockrepl-no-such-device")
	if code != exitUsage || !strings.Contains(errs, "attach or activate the device") {
		t.Errorf("exit %d, want %d: %s%s", code, exitUsage, out, errs)
	}
}
