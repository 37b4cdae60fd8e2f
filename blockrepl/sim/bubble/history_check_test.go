package bubble

import "testing"

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
