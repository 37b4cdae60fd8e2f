package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestJournalRemoveForgetsARetiredVolume(t *testing.T) {
	data, uuid := twoVolumes(t)
	conf := filepath.Join(t.TempDir(), "blockrepl.toml")
	config := func(volumes ...string) {
		t.Helper()
		text := fmt.Sprintf("cluster = \"lab\"\nid = \"a\"\ndata = %q\n", data)
		for _, v := range volumes {
			text += fmt.Sprintf("[[volume]]\nname = %q\nsize = \"1MiB\"\n", v)
		}
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	try := func(code int, want string, args ...string) {
		t.Helper()
		got, out, errs := runHere(t, append([]string{"journal"}, args...)...)
		if got != code || !strings.Contains(out+errs, want) {
			t.Errorf("%v: exit %d, want %d and %q: %s%s", args, got, code, want, out, errs)
		}
	}
	config("vol0", "vol1")
	try(exitRefused, "take it out of the files", "remove", data, "vol0", "--config", conf)
	config("vol1")
	try(exitOK, "would be removed: records 1 to", "remove", data, "vol0", "--config", conf, "--dry-run")
	try(exitOK, "vol0", "list", data)
	try(exitError, `no volume "vol2"`, "remove", data, "vol2", "--config", conf)
	try(exitUsage, "DATA and VOLUME", "remove", data)
	try(exitOK, "its image is still there: "+filepath.Join(data, "images", "vol0.img"), "remove", data, uuid, "--config", conf)
	try(exitError, `no volume "vol0"`, "remove", data, "vol0", "--config", conf)
	try(exitOK, "vol1: records 1 to", "verify", data)
	if _, out, _ := runHere(t, "journal", "list", data); strings.Contains(out, "vol0") || strings.Contains(out, uuid) {
		t.Errorf("it is still there: %s", out)
	}
}

// What is damaged is retired, too, as long as it is known whose it is.
func TestJournalRemoveOfADamagedVolume(t *testing.T) {
	data, uuid := twoVolumes(t)
	spoilKey(t, data, uuid, 'l', "")
	code, out, errs := runHere(t, "journal", "remove", data, "vol0", "--json")
	if code != exitOK || !strings.Contains(out, `"removed": true`) || !strings.Contains(out, `"damage": "`) {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	data, uuid = twoVolumes(t)
	spoilKey(t, data, uuid, 'm', "hard")
	if code, out, errs := runHere(t, "journal", "remove", data, uuid); code != exitError || !strings.Contains(errs, "whose it is, is damaged") {
		t.Errorf("a volume without a name: exit %d: %s%s", code, out, errs)
	}
}
