package sim

import "testing"

// A schedule that panicked ended there and was taken for one that broke no rule.
func TestPanicIsAFailure(t *testing.T) {
	s := New(1, Options{})
	s.nodes = nil
	if f := s.Run(); f == nil || f.Rule != "no panic" {
		t.Errorf("a schedule that panics gives %v", f)
	}
}
