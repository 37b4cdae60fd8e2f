package bubble

import "testing"

// What was answered before all was settled may lie above a write that was not yet; what
// was done since may not be lost again.
func TestWhatIsLostIsJudgedNoMoreAndWhatFollowsIs(t *testing.T) {
	h := &history{}
	write := func(client int) *operation {
		o := &operation{client: client, n: 1}
		h.begin(o)
		o.val = o.id
		return o
	}
	read := func(val uint64) {
		o := &operation{client: 8, read: true, n: 1, got: []uint64{val}}
		h.begin(o)
		h.end(o, "a")
	}
	first := write(0)
	h.end(first, "a")
	h.lose()
	late, over := write(1), write(2)
	h.end(over, "a")
	h.settle()
	h.end(late, "a")
	read(over.val)
	if err := h.check(); err != nil {
		t.Error(err)
	}
	last := write(0)
	h.end(last, "a")
	read(over.val)
	if err := h.check(); err == nil {
		t.Error("a write behind the end of the losses was lost: found nothing wrong")
	}
}

// Of three copies sent at once the checker counted two, and called a history broken in
// which all were done, one after each other write.
func TestEachCopyMayBeDoneAtATimeOfItsOwn(t *testing.T) {
	h := &history{}
	write := func(client int) *operation {
		o := &operation{client: client, n: 1}
		h.begin(o)
		o.val = o.id
		return o
	}
	read := func(val uint64) {
		o := &operation{client: 8, read: true, n: 1, got: []uint64{val}}
		h.begin(o)
		h.end(o, "a")
	}
	sent := write(1)
	h.again(sent)
	h.again(sent)
	read(sent.val)
	for range 2 {
		other := write(0)
		h.end(other, "a")
		read(other.val)
		read(sent.val)
	}
	if err := h.check(); err != nil {
		t.Error(err)
	}
	other := write(0)
	h.end(other, "a")
	read(sent.val)
	h.end(sent, "b")
	if err := h.check(); err == nil {
		t.Error("a write that was sent three times was done four times: found nothing wrong")
	}
}
