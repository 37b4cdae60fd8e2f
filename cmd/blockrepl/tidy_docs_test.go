package main

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func readDoc(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// names holds what the sources call things: files by their path, declared
// functions, methods, types, constants and variables.
type names struct {
	files    []string
	declared map[string]bool
	in       map[string]map[string]bool // by file
}

// declaration finds those at the top, and in groups and structs.
var declaration = regexp.MustCompile(`(?m)^(?:(?:func (?:\([^)]*\) )?|type |var |const )(\w+)|\t(\w+) +(?:=|[\w.*\[\]]+(?:[ \t]|$)))`)

func sourceNames(t *testing.T) names {
	t.Helper()
	n := names{declared: map[string]bool{}, in: map[string]map[string]bool{}}
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && d.Name() == ".git" {
			return errorOrSkip(err)
		}
		rel, err := filepath.Rel(repository, path)
		if err != nil {
			return err
		}
		n.files = append(n.files, filepath.ToSlash(rel))
		if filepath.Ext(path) != ".go" {
			return nil
		}
		text, err := os.ReadFile(path)
		here := map[string]bool{}
		for _, m := range declaration.FindAllSubmatch(text, -1) {
			name := string(m[1]) + string(m[2]) // one of them is empty
			n.declared[name], here[name] = true, true
		}
		n.in[filepath.ToSlash(rel)] = here
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func errorOrSkip(err error) error {
	if err == nil {
		err = fs.SkipDir
	}
	return err
}

// hasFile reports whether a path ends in name, as documents write it.
func (n *names) hasFile(name string) bool {
	for _, f := range n.files {
		if f == name || strings.HasSuffix(f, "/"+name) {
			return true
		}
	}
	return false
}

// has reports whether a file whose path ends in file declares name.
func (n *names) has(file, name string) bool {
	for path, here := range n.in {
		if here[name] && (path == file || strings.HasSuffix(path, "/"+file)) {
			return true
		}
	}
	return false
}

// hasDir reports whether word is a package.
func (n *names) hasDir(word string) bool {
	return slices.ContainsFunc(n.files, func(f string) bool { return strings.Contains("/"+f, "/"+word+"/") })
}

var (
	quoted     = regexp.MustCompile("`([^`\n]+)`")
	identifier = regexp.MustCompile(`^(?:\w+\.)?([A-Za-z]\w*)$`)
	// listed are the lines of tables and numbered lists, which name the sources' words.
	listed = regexp.MustCompile(`^(?:\||\d+\. |   )`)
)

// placed is a file and the names that follow it, which it is said to hold.
var placed = regexp.MustCompile("`([\\w/]+\\.go)`((?:,? `[a-z]\\w*`)+)")

// checkPlaces looks for what the line's tables say that a file holds in that file.
func (n *names) checkPlaces(t *testing.T, line string) {
	t.Helper()
	if !strings.HasPrefix(line, "|") {
		return
	}
	for _, m := range placed.FindAllStringSubmatch(line, -1) {
		for _, name := range quoted.FindAllStringSubmatch(m[2], -1) {
			if !n.has(m[1], name[1]) {
				t.Errorf("%s holds no %s: %q", m[1], name[1], line)
			}
		}
	}
}

// Files, tests and functions that ARCHITECTURE.md names exist: it is read by
// people who look for them.
func TestTidyArchitectureNamesWhatExists(t *testing.T) {
	n := sourceNames(t)
	for _, key := range append(knownKeys(reflect.TypeFor[Config](), nil), "suspend", "continue") {
		n.declared[key] = true // words of the configuration are no names of the source's
	}
	found := 0
	for _, line := range strings.Split(readDoc(t, "ARCHITECTURE.md"), "\n") {
		n.checkPlaces(t, line)
		for _, m := range quoted.FindAllStringSubmatch(line, -1) {
			word := m[1]
			switch {
			case strings.HasSuffix(word, ".go"), strings.HasSuffix(word, ".md"):
				if found++; !n.hasFile(word) {
					t.Errorf("no file %s: %q", word, line)
				}
			case strings.HasPrefix(word, "Test"), listed.MatchString(line) && identifier.MatchString(word):
				if found++; !n.declared[identifier.ReplaceAllString(word, "$1")] && !n.hasDir(word) {
					t.Errorf("nothing is called %s: %q", word, line)
				}
			}
		}
	}
	if found < 100 {
		t.Errorf("found %d names, want more: does the test still read it?", found)
	}
}

// The example that lists all keys lists all, with the defaults.
func TestTidyExampleOfAllKeysIsWhole(t *testing.T) {
	const doc = "deploy/examples/all-keys.toml"
	text := readDoc(t, doc)
	cfg, err := parsed(t, text)
	if err != nil {
		t.Fatal(err)
	}
	want, err := parsed(t, "cluster = \"lab\"\nid = \"a\"\n[[volume]]\nname = \"vol0\"\nsize = \"100GiB\"\n")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("%s gives %+v, want the defaults %+v", doc, cfg, want)
	}
	for _, path := range [][]string{nil, {"nbd_tls"}, {"nbd_tls", "client"}, {"peer_tls"}, {"nbd_socket"}, {"limits"}, {"server"}, {"volume"}} {
		keys := knownKeys(reflect.TypeFor[Config](), path)
		if len(keys) == 0 {
			t.Errorf("no keys in %v", path)
		}
		for _, key := range keys {
			table := regexp.QuoteMeta(strings.Join(append(path, key), "."))
			if !regexp.MustCompile(`(?m)^(# )?(` + key + ` *=|\[\[?` + table + `\]\]?)`).MatchString(text) {
				t.Errorf("%s lacks %s", doc, strings.Join(append(path, key), "."))
			}
		}
	}
}

var (
	metricName  = regexp.MustCompile(`\b(?:blockrepl|process)_[a-z_]+`)
	metricLabel = regexp.MustCompile(`\b(state|what)=~?\\?"([a-z|_-]+)\\?"`)
)

// Each metric, and each value of a label, that the dashboard and the alerts use is
// one that a server gives; and the runbook has those that a server gives, and no others.
func TestTidyDashboardAndAlertsUseMetricsThatExist(t *testing.T) {
	dir := t.TempDir()
	notify, next := notifySocket(t)
	addr := "unix:" + filepath.Join(dir, "admin.sock")
	s := startChild(t, []string{"NOTIFY_SOCKET=" + notify}, "blockrepl", "serve", "--cluster", "lab", "--id", "a", "--data", filepath.Join(dir, "data"),
		"--nbd", "unix:"+filepath.Join(dir, "nbd.sock"), "--admin", addr, "--volume", "vol0 size=1MiB",
		"--peers", "127.0.0.1:0", "--server", "a=127.0.0.1:1", "--server", "b=127.0.0.1:2") // a peer that is away has metrics, too
	if got := next(); got != "READY=1" {
		t.Fatalf("message %q", got)
	}
	body, err := adminAt(Addr(addr)).open(t.Context(), http.MethodGet, "/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil {
		t.Fatal(err)
	}
	given := string(text) + "\nblockrepl_volume_resync_done_bytes{" // while a resync runs
	for _, doc := range []string{"deploy/grafana/blockrepl.json", "deploy/grafana/alerts.yaml"} {
		uses := readDoc(t, doc)
		names := metricName.FindAllString(uses, -1)
		for _, name := range names {
			if !strings.Contains(given, "\n"+name+"{") && !strings.Contains(given, "\n"+name+" ") {
				t.Errorf("%s: no metric %s", doc, name)
			}
		}
		for _, m := range metricLabel.FindAllStringSubmatch(uses, -1) {
			for value := range strings.SplitSeq(m[2], "|") {
				if !strings.Contains(given, m[1]+`="`+value+`"`) {
					t.Errorf("%s: no metric has %s=%q", doc, m[1], value)
				}
			}
		}
		if len(names) < 4 {
			t.Errorf("%s: found %d metrics, want more: does the test still read it?", doc, len(names))
		}
	}
	runbook := readDoc(t, "deploy/RUNBOOK.md")
	ours := regexp.MustCompile(`(?m)^blockrepl_[a-z_]+`).FindAllString(given, -1)
	slices.Sort(ours)
	for _, name := range slices.Compact(ours) {
		if !strings.Contains(runbook, "`"+name+"`") {
			t.Errorf("deploy/RUNBOOK.md does not say what %s is", name)
		}
	}
	for _, m := range regexp.MustCompile("`(blockrepl_[a-z_]+)`").FindAllStringSubmatch(runbook, -1) {
		if !slices.Contains(ours, m[1]) {
			t.Errorf("deploy/RUNBOOK.md: no metric %s", m[1])
		}
	}
	if len(ours) < 10 {
		t.Errorf("a server gives %d metrics, want more: does the test still read them?", len(ours))
	}
	if code := s.stop(t, syscall.SIGTERM); code != 0 {
		t.Errorf("SIGTERM: exit %d", code)
	}
}
