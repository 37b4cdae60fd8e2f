//go:build mutants

package bubble

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/journal/mutant"
)

// With the tag mutants -mutant breaks one rule, by the name it has where it is kept: the
// schedules must fail. TestMutants then plays that one only.
func init() { flag.StringVar(&mutant.Name, "mutant", mutant.Name, "the rule that is broken") }

const (
	repository = "../../.." // from here
	module     = "github.com/blockrepl/blockrepl/"
	// mutantSchedules is how many schedules a broken rule may survive, and mutantTime how
	// long one of them, or a test, may take.
	mutantSchedules = 60
	mutantTime      = time.Minute
	// mutantTries is how often a test is tried: a race is not lost each time.
	mutantTries = 6
)

// mutation is a broken rule, and what must find it: a test, or random schedules.
type mutation struct {
	rule string
	in   string // package of the test; "": this one
	test string // "": TestSchedules
	seed uint64 // tried first; 0: none is known
}

// mutations are all rules that are broken outside of package replica, and those of it
// that only one of its own tests meets: package sim plays the others.
var mutations = []mutation{
	// Durability: promises 1 and 7.
	{rule: "call a batch durable before its fsync", seed: 6},
	{rule: "hand a batch to pebble without a sync"},
	{rule: "answer a write that is not committed"},
	{rule: "checkpoint without an fsync of the image", seed: 22},
	{rule: "forget the directory of a new image", seed: 22},
	{rule: "call a failed fsync of the image done", test: "TestSlaveWithAFailedDiskLeavesAndSaysWhy/image_fsync_fails_once"},
	{rule: "note extents as copied without an fsync", test: "TestCopiedExtentsOutliveAPowerCut"},
	{rule: "call a failed sync of the journal done", in: "journal", test: "TestFailedSyncIsFinalForAllThatFollow"},
	{rule: "cut the journal in memory only", in: "journal", test: "TestCutTailIsSetAsideAndTheLogGoesOn"},
	{rule: "forget the directory of a new journal", in: "journal", test: "TestNewJournalOutlivesAPowerCut"},
	{rule: "forget the end of a journal's creation", in: "journal", test: "TestNewJournalOutlivesAPowerCut"},
	{rule: "forget the directory of a new identity", in: "blockrepl", test: "TestSmallFileOutlivesAPowerCutOnceItIsWritten"},
	{rule: "rename a new identity before it is fsynced", in: "blockrepl", test: "TestSmallFileOutlivesAPowerCutOnceItIsWritten"},
	{rule: "forget the directory of new marks", in: "blockrepl", test: "TestMarksOutliveAPowerCutOnceTheyAreWritten"},
	{rule: "write the marks without an fsync", in: "blockrepl", test: "TestMarksOutliveAPowerCutOnceTheyAreWritten"},
	{rule: "write the marks over those that count", in: "blockrepl", test: "TestFailedWriteOfMarksLeavesTheOtherSlot"},

	// One order, equal images: promises 2 to 4.
	{rule: "apply no trim on one server"},
	{rule: "apply no zeroes"},
	{rule: "zero more than was asked"},
	{rule: "zero less than was asked"},
	{rule: "write zeroes in whole pieces only", in: "blockrepl/image", test: "TestResizeNeverShowsOldBytes"},
	{rule: "sort changes that overlap"},
	{rule: "change the image beside its readers", in: "blockrepl/image", test: "TestReadsSeeSomePrefixWhileChangesAreApplied"},
	{rule: "hash half of a block", in: "blockrepl/image", test: "TestEveryWayOfReadingSeesWhatWasApplied"},
	{rule: "apply on over a reset", test: "TestServerWithoutItsPastIsResynced"},
	{rule: "store the small state without its records"},

	// A stale write never wins: promise 5.
	{rule: "number what a closed connection had sent", in: "blockrepl", test: "TestWritesOfAGoneClientAreDiscarded"},

	// Bad bytes are refused: promise 8. A damaged record mostly meets a second sum, so
	// the schedules find these late or never.
	{rule: "ignore the sum of a record's header", in: "journal/record", test: "TestEveryFlippedBitIsFound"},
	{rule: "ignore the sum of a payload", in: "journal/record", test: "TestEveryFlippedBitIsFound"},
	{rule: "ignore the sum of a frame's header", in: "blockrepl/wire", test: "TestAFlippedBitInAnyByteIsFound"},
	{rule: "ignore the sum of a frame", in: "blockrepl/wire", test: "TestAFlippedBitInAnyByteIsFound"},
	{rule: "ignore the sum of the marks", in: "blockrepl", test: "TestFlippedBitInTheMarksIsFound"},
	{rule: "ignore the sum of the small state", in: "blockrepl", test: "TestFlippedBitInTheSmallStateIsFound"},
	{rule: "ignore the sum of the identity", in: "blockrepl", test: "TestFlippedBitInTheIdentityIsFound"},
	{rule: "append a record of another past", in: "journal", test: "TestWhatDoesNotFollowIsRefusedAndLeavesNothing"},
	{rule: "read records that do not follow each other", in: "journal", test: "TestRecordOfAnotherPastIsNotReadInTheMiddle"},
	{rule: "replace a record by any other", in: "journal", test: "TestDamagedRecordIsRefusedAndReplaced"},
	{rule: "lend another record than the one asked for", in: "blockrepl", test: "TestDamagedJournalRecordIsFetchedFromAPeer"},

	// Of package replica, found by no schedule of the simulator.
	{rule: "accept records after a newer promise", in: "blockrepl/replica", test: "TestNothingOfAnOlderEpochIsTakenAfterAPromise"},
	{rule: "hand over without the old master's promise", in: "blockrepl/replica", test: "TestPromoteOfTheMasterIsDoneAlready"},
	{rule: "break the vow of an orderly stop", in: "blockrepl/replica", test: "TestReadsGoOnAfterAnOrderlyStop"},
	{rule: "take a side of others' split brain", in: "blockrepl/replica", test: "TestScripts/loss_others_split"},
	{rule: "forget an earlier promise", in: "blockrepl/replica", test: "TestPromiseToAnotherCandidateIsNamed"},
	{rule: "forget a silent slave's resync", in: "blockrepl/replica", test: "TestSlaveThatIsSilentWhenItsResyncBeginsIsNotInSync"},
	{rule: "forget the leases of an earlier run", in: "blockrepl/replica", test: "TestRestartWaitsForTheLeasesOfTheRunBefore"},
}

// TestMutants proves that each broken rule is found. Each is broken in a process of its
// own: what it breaks may end in a panic, or hang.
func TestMutants(t *testing.T) {
	played, only := mutations, mutant.Name
	if only != "" {
		played = slices.DeleteFunc(slices.Clone(mutations), func(m mutation) bool { return m.rule != only })
	}
	programs := buildTests(t, played)
	turns := make(chan struct{}, 2) // two cores are what a small machine has
	var wg sync.WaitGroup
	for _, m := range played {
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			began := time.Now()
			by, err := m.play(programs[m.in])
			if err != nil {
				t.Errorf("%q: %v", m.rule, err)
				return
			}
			t.Logf("%-45s found by %s, after %v", m.rule, by, time.Since(began).Round(time.Millisecond))
		})
	}
	wg.Wait()
}

// program is a built test and the directory that it runs in.
type program struct{ path, dir string }

// buildTests builds the tests of the packages that are needed, once each.
func buildTests(t *testing.T, played []mutation) map[string]program {
	here, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	programs, temp := map[string]program{"": {here, "."}}, t.TempDir()
	for _, m := range played {
		if _, ok := programs[m.in]; ok {
			continue
		}
		p := program{filepath.Join(temp, strings.ReplaceAll(m.in, "/", ".")), filepath.Join(repository, m.in)}
		out, err := exec.Command("go", "test", "-c", "-tags", "mutants", "-o", p.path, module+m.in).CombinedOutput()
		if err != nil {
			t.Fatalf("build the tests of %s: %v\n%s", m.in, err, out)
		}
		programs[m.in] = p
	}
	return programs
}

// play breaks the rule and says what found it.
func (m mutation) play(p program) (by string, err error) {
	if m.test != "" {
		for try := range mutantTries {
			said, err := p.run(m.rule, "-test.run", exactly(m.test), "-test.v")
			if said != "" || err != nil {
				return fmt.Sprintf("%s, try %d", m.test, try+1), err
			}
		}
		return "", fmt.Errorf("%s passes", m.test)
	}
	seeds := make([]uint64, 0, mutantSchedules+1)
	if m.seed != 0 {
		seeds = append(seeds, m.seed)
	}
	for s := range uint64(mutantSchedules) {
		seeds = append(seeds, s+1)
	}
	for i, seed := range seeds {
		said, err := p.run(m.rule, "-test.run", exactly("TestSchedules"), "-seed", fmt.Sprint(seed))
		if err != nil {
			return "", fmt.Errorf("seed %d: %w", seed, err)
		}
		if said != "" {
			return fmt.Sprintf("seed %d, schedule %d: %s", seed, i+1, said), nil
		}
	}
	return "", fmt.Errorf("survives %d schedules", len(seeds))
}

// exactly is the pattern that matches one test, or one part of a test.
func exactly(test string) string {
	parts := strings.Split(test, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

// failure is what a test said first when it failed.
var failure = regexp.MustCompile(`(?m)^\s*\S+_test\.go:\d+: (?:seed \d+:\n)?(.*)`)

// run runs a test with a rule broken. It gives what the test said when it failed, and
// "" when it passed. A test that does not run, or does not end, finds nothing.
func (p program) run(rule string, args ...string) (said string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), mutantTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.path, args...)
	cmd.Dir, cmd.Env = p.dir, append(os.Environ(), "BLOCKREPL_MUTANT="+rule, "GOGC=400")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("does not end within %v", mutantTime)
	case bytes.Contains(out, []byte("no tests to run")):
		return "", fmt.Errorf("there is no such test: %q", args)
	case err == nil:
		return "", nil
	case !errors.As(err, &exit):
		return "", err
	case bytes.Contains(out, []byte("--- FAIL: ")):
		if s := failure.FindSubmatch(out); s != nil {
			return strings.TrimSpace(string(s[1])), nil
		}
		return "it fails", nil
	case bytes.Contains(out, []byte("panic: ")):
		return "it panics", nil
	}
	return "", fmt.Errorf("%w: %s", err, out)
}

// TestEachMutantIsPlayed: a rule that is broken nowhere in the code proves nothing, nor
// one that nobody plays.
func TestEachMutantIsPlayed(t *testing.T) {
	list := map[string]bool{}
	for _, m := range mutations {
		if list[m.rule] {
			t.Errorf("%q is listed twice", m.rule)
		}
		list[m.rule] = true
	}
	asked := regexp.MustCompile(`\b(mutant\.Is|mutated)\("([^"]+)"\)`)
	found := map[string]bool{}
	for _, dir := range []string{"journal", "blockrepl"} {
		err := filepath.WalkDir(filepath.Join(repository, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range asked.FindAllSubmatch(text, -1) {
				rule := string(m[2])
				found[rule] = true
				if string(m[1]) == "mutant.Is" && !list[rule] {
					t.Errorf("%s breaks %q, which nobody plays", path, rule)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for rule := range list {
		if !found[rule] {
			t.Errorf("%q is broken nowhere", rule)
		}
	}
}
