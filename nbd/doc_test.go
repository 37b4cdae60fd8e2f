package nbd_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The support table is a promise: a line without a test, or an advertised flag without a line, is none.
func TestSupportTableIsProved(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(b, -1) {
			tests[string(m[1])] = true
		}
	}
	lines := 0
	for _, line := range strings.Split(string(doc), "\n") {
		row, ok := strings.CutPrefix(line, "//	  ")
		if !ok {
			continue
		}
		lines++
		named := regexp.MustCompile(`Test\w+`).FindAllString(row, -1)
		for _, name := range named {
			if !tests[name] {
				t.Errorf("no such test: %s", name)
			}
		}
		if len(named) == 0 && !strings.Contains(row, " no  ") {
			t.Errorf("supported, but no test is named: %s", row)
		}
	}
	if lines < 30 {
		t.Errorf("the support table has %d lines", lines)
	}
	for _, flag := range []string{"READ_ONLY", "SEND_FLUSH", "SEND_FUA", "ROTATIONAL", "SEND_TRIM", "SEND_WRITE_ZEROES", "SEND_DF", "CAN_MULTI_CONN", "SEND_CACHE", "SEND_FAST_ZERO"} {
		if !strings.Contains(string(doc), "NBD_FLAG_"+flag+" ") {
			t.Errorf("NBD_FLAG_%s has no line", flag)
		}
	}
}
