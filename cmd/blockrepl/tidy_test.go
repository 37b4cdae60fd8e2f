package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

const (
	module       = "github.com/blockrepl/blockrepl"
	repository   = "../.."
	longestFile  = 600 // lines, without tests: two rooms in one beyond it
	longestTests = 1200
)

// layers is the house plan: what of ours each package may import. Tests may
// import their own helpers besides.
var layers = map[string][]string{
	"nbd":               {"nbd/internal/"},
	"nbd/":              {"nbd", "nbd/"},
	"journal/mutant":    {}, // below all that have a rule to break; false, and gone, in a server
	"journal/record":    {"journal/mutant"},
	"journal":           {"journal/mutant", "journal/record"},
	"blockrepl/replica": {"journal/mutant", "journal/record", "blockrepl/wire"}, // wire: the messages, which are plain structs
	"blockrepl/image":   {"journal/mutant", "journal/record"},
	"blockrepl/wire":    {"journal/mutant", "journal/record"},
	"blockrepl":         {"journal", "journal/mutant", "journal/record", "blockrepl/replica", "blockrepl/image", "blockrepl/wire"},
	"blockrepl/sim/":    {"journal", "journal/record", "blockrepl", "blockrepl/"},
	"blockrepl/sim":     {"journal", "journal/record", "blockrepl", "blockrepl/"},
	"cmd/blockrepl":     {"nbd", "journal", "journal/record", "blockrepl", "blockrepl/"},
	"cmd/blockrepl/e2e": {"blockrepl", "journal", "journal/record", "nbd/"},
	"bench":             {"nbd", "nbd/", "journal", "journal/", "blockrepl", "blockrepl/", "cmd/"},
	"deploy":            {},
}

// pebbleUsers are the packages that may know pebble.
var pebbleUsers = map[string]bool{"journal": true, "blockrepl/sim": true, "bench": true}

// impure is what a package of pure decisions must not import.
var impure = map[string]bool{"net": true, "os": true, "sync": true, "sync/atomic": true, "math/rand": true, "math/rand/v2": true,
	"crypto/rand": true, "syscall": true, "golang.org/x/sys/unix": true, "log/slog": true}

type goPackage struct {
	ImportPath, Doc, Dir string
	Imports, GoFiles     []string
}

func TestTidyPackages(t *testing.T) {
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		if p.Doc == "" && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment", name)
		}
		allowed, ok := layerOf(name)
		if !ok {
			t.Errorf("%s has no place in the house plan: add it to layers, with its reason", name)
		}
		for _, imported := range p.Imports {
			ours, isOurs := strings.CutPrefix(imported, module+"/")
			switch {
			case isOurs && !matches(allowed, ours):
				t.Errorf("%s imports %s, which the house plan does not allow", name, ours)
			case strings.HasPrefix(imported, "github.com/cockroachdb/") && !pebbleUsers[name]:
				t.Errorf("%s imports %s: only the journal knows pebble", name, imported)
			case name == "blockrepl/replica" && impure[imported]:
				t.Errorf("%s imports %s: decisions are pure", name, imported)
			}
		}
	}
}

// layerOf finds the entry of a package, or of the nearest directory above that
// has one with a slash at its end.
func layerOf(name string) ([]string, bool) {
	if allowed, ok := layers[name]; ok {
		return allowed, true
	}
	for dir := name; strings.Contains(dir, "/"); {
		dir = dir[:strings.LastIndex(dir, "/")]
		if allowed, ok := layers[dir+"/"]; ok {
			return allowed, true
		}
	}
	return nil, false
}

func matches(allowed []string, name string) bool {
	for _, a := range allowed {
		if a == name || strings.HasSuffix(a, "/") && strings.HasPrefix(name, a) {
			return true
		}
	}
	return false
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Dir,Imports,GoFiles", "./...")
	cmd.Dir = repository
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, errs.String())
	}
	var list []goPackage
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p goPackage
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	if len(list) < 5 {
		t.Fatalf("found %d packages, want all", len(list))
	}
	return list
}

// forbidden is what has no place in the project, in pieces so that this file
// does not hold it itself.
var forbidden = []*regexp.Regexp{
	regexp.MustCompile(`(?m)/wor` + `k/(main|shared|\.)`),
	regexp.MustCompile(`FIX` + `ME|TO` + `DO[^A-Za-z(]`),
	regexp.MustCompile(`not impl` + `emented`),
}

// matchedText is an error matched as text. Tests may look at messages: they are
// for people and must say what they promise to say.
var matchedText = regexp.MustCompile(`strings\.(Contains|HasPrefix|HasSuffix)\(err\.Er` + `ror\(\)`)

func TestTidyFiles(t *testing.T) {
	looked := 0
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == ".git" || name == "bin" || name == "testdata" {
				return fs.SkipDir
			}
			return nil
		}
		switch filepath.Ext(path) {
		case ".go", ".md", ".toml", ".yaml", ".service", ".socket":
		default:
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		looked++
		limit := longestFile
		if strings.HasSuffix(path, "_test.go") || filepath.Ext(path) != ".go" {
			limit = longestTests
		}
		if n := bytes.Count(text, []byte("\n")); n > limit {
			t.Errorf("%s has %d lines, at most %d: does it hold two rooms?", path, n, limit)
		}
		if m := matchedText.Find(text); m != nil && !strings.HasSuffix(path, "_test.go") {
			t.Errorf("%s holds %q", path, m)
		}
		for _, f := range forbidden {
			if m := f.Find(text); m != nil {
				t.Errorf("%s holds %q", path, m)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if looked < 20 {
		t.Errorf("looked at %d files, want all", looked)
	}
}

func TestTidyDocumentsNameCommandsAndOptionsThatExist(t *testing.T) {
	app := newApp(&bytes.Buffer{}, &bytes.Buffer{})
	for _, doc := range []string{"README.md", "deploy/RUNBOOK.md"} {
		text, err := os.ReadFile(filepath.Join(repository, doc))
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, line := range codeLines(string(text)) {
			words := strings.Fields(line)
			for i, w := range words {
				if strings.Trim(w, "`(") != "blockrepl" || i+1 == len(words) || i > 0 && words[i-1] != "&&" && words[i-1] != "|" {
					continue
				}
				found++
				c := findCommand(app.Commands, strings.Trim(words[i+1], "`).,"))
				if c == nil {
					t.Errorf("%s: no command in %q", doc, line)
					continue
				}
				flags := c.Flags
				if sub := findCommand(c.Subcommands, strings.Trim(words[min(i+2, len(words)-1)], "`")); sub != nil {
					flags = sub.Flags
				}
				for _, option := range words[i+2:] {
					if option == "#" || option == "&&" {
						break
					}
					name, isOption := strings.CutPrefix(strings.Trim(option, "`)."), "--")
					if name, _, _ = strings.Cut(name, "="); isOption && name != "" && !hasFlag(flags, name) {
						t.Errorf("%s: %s has no option --%s: %q", doc, c.Name, name, line)
					}
				}
			}
		}
		if found < 5 {
			t.Errorf("%s: found %d commands, want more: does the test still read it?", doc, found)
		}
	}
}

// codeLines gives the indented lines and what stands in back quotes.
func codeLines(text string) []string {
	var lines []string
	for _, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, "    ") {
			lines = append(lines, line)
			continue
		}
		for i, part := range strings.Split(line, "`") {
			if i%2 == 1 && strings.HasPrefix(part, "blockrepl ") {
				lines = append(lines, part)
			}
		}
	}
	return lines
}

func TestTidyExamplesAreGood(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(repository, "deploy/examples/*.toml"))
	if err != nil || len(paths) < 4 {
		t.Fatalf("found %d examples, %v", len(paths), err)
	}
	for _, path := range paths {
		if code, _, errs := runHere(t, "check", "--offline", "--config", path); code != 0 {
			t.Errorf("%s: exit %d: %s", path, code, errs)
		}
	}
	three := filepath.Join(repository, "deploy/examples/three-")
	if code, _, errs := runHere(t, "check", three+"a.toml", three+"b.toml", three+"c.toml"); code != 0 {
		t.Errorf("the three together: exit %d: %s", code, errs)
	}
}

func hasFlag(flags []cli.Flag, name string) bool {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return true
		}
	}
	return name == "help"
}
