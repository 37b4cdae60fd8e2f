package blockrepl

import (
	"sync/atomic"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
)

// Comes from: verify and init, which may read or write a whole image, and the zeroes of a
// device that grew. Does: counts how far they are. Goes to: the status.

// work is one of them under way.
type work struct {
	what  string
	total int64 // bytes
	began replica.Time
	done  atomic.Int64
}

// begin shows work in the status until end. Of several at once the last is shown.
func (v *Volume) begin(what string, total int64) *work {
	w := &work{what: what, total: total, began: v.s.opt.Clock()}
	v.work.Store(w)
	return w
}

func (v *Volume) end(w *work) { v.work.CompareAndSwap(w, nil) }

// working is what is under way, nil when nothing is.
func (v *Volume) working() *WorkStatus {
	w := v.work.Load()
	if w == nil {
		return nil
	}
	st := &WorkStatus{What: w.what, DoneBytes: min(w.done.Load(), w.total), TotalBytes: w.total}
	if st.DoneBytes > 0 {
		st.LeftSeconds = v.s.opt.Clock().Sub(w.began).Seconds() / float64(st.DoneBytes) * float64(st.TotalBytes-st.DoneBytes)
	}
	return st
}
