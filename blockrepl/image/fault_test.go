package image

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/journal/record"
)

var errPlug = errors.New("somebody pulled the plug")

// script uses an image in every way; it ends at the first error and tells where.
func script(im *Image, model []byte) (string, error) {
	size := int64(len(model))
	for _, batch := range [][]Change{
		{write(0, fill(1024, 1)), write(1024, fill(1024, 2)), write(8192, fill(512, 3))},
		{zero(512, 2048), trim(8192, 512), write(size-512, fill(512, 4))},
		{write(0, fill(4096, 5)), write(2048, fill(4096, 6))},
	} {
		if err := im.Apply(batch); err != nil {
			return "apply", err
		}
		replay(model, batch)
		p := make([]byte, 8192)
		if err := im.ReadAt(p, 0); err != nil {
			return "read", err
		}
		if !bytes.Equal(p, model[:len(p)]) {
			return "compare", errors.New("wrong bytes")
		}
	}
	if err := im.Sync(); err != nil {
		return "sync", err
	}
	if _, err := im.IsZero(4096, 8192); err != nil {
		return "read", err
	}
	if _, err := im.HashBlocks(nil, 0, size, 4096); err != nil {
		return "read", err
	}
	if err := im.Resize(size/2, nil); err != nil {
		return "resize", err
	}
	if err := im.Resize(size, nil); err != nil {
		return "resize", err
	}
	clear(model[size/2:])
	return "", nil
}

// refuses checks that nothing is done any more, for the reason given.
func refuses(t *testing.T, im *Image, want error) {
	t.Helper()
	p := make([]byte, 512)
	_, nowErr := im.ReadNow(p, 0)
	_, mapErr := im.Extents(0, 512, 1)
	_, hashErr := im.HashBlocks(nil, 0, 512, 512)
	_, zeroErr := im.IsZero(0, 512)
	_, usageErr := im.Usage()
	for op, err := range map[string]error{
		"Apply": im.Apply([]Change{write(0, p)}), "ReadAt": im.ReadAt(p, 0), "ReadNow": nowErr, "Sync": im.Sync(),
		"Resize": im.Resize(1024, nil), "Extents": mapErr, "HashBlocks": hashErr, "IsZero": zeroErr, "Usage": usageErr,
		"ZeroAll": im.ZeroAll(t.Context(), nil),
	} {
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", op, err, want)
		}
	}
}

func TestAFaultAtAnyCallOfTheFileIsToldAndFinalIfItWrote(t *testing.T) {
	const size = 64 << 10
	for n := 1; ; n++ {
		f := &memFile{}
		hit := false
		f.fault = func(call int) error {
			if call == n {
				hit = true
				return errPlug
			}
			return nil
		}
		im, err := Open(Options{Path: "mem", Size: size, OpenFile: func() (File, error) { return f, nil }})
		if err != nil {
			if !errors.Is(err, errPlug) || !f.closed {
				t.Fatalf("open with a fault at call %d: %v, closed %t", n, err, f.closed)
			}
			continue
		}
		op, err := script(im, make([]byte, size))
		if !hit {
			if err != nil {
				t.Fatalf("%s without a fault: %v", op, err)
			}
			if n < 30 {
				t.Fatalf("the script has %d calls only", n)
			}
			return
		}
		if !errors.Is(err, errPlug) {
			t.Fatalf("fault at call %d: %s gives %v", n, op, err)
		}
		if op == "read" {
			if errors.Is(err, ErrFailed) {
				t.Errorf("fault at call %d: a failed read is final: %v", n, err)
			}
			if err := im.ReadAt(make([]byte, 512), 0); err != nil {
				t.Errorf("fault at call %d: next read: %v", n, err)
			}
		} else {
			if !errors.Is(err, ErrFailed) {
				t.Errorf("fault at call %d: %s gives %v, want ErrFailed", n, op, err)
			}
			calls := f.calls
			refuses(t, im, ErrFailed)
			if f.calls != calls {
				t.Errorf("fault at call %d, %s: the file was still used", n, op)
			}
		}
		if err := im.Close(); err != nil || !f.closed {
			t.Errorf("fault at call %d: close: %v, closed %t", n, err, f.closed)
		}
	}
}

func TestNoSpaceAtAnyCallIsHealedByTheSameChanges(t *testing.T) {
	const size = 64 << 10
	batch := []Change{
		write(0, fill(1024, 1)), write(512, fill(1024, 2)), zero(0, 700), write(9000, fill(100, 3)), write(8192, fill(4096, 4)),
	}
	for n := 1; ; n++ {
		f := &memFile{}
		im := mem(t, f, size)
		before := write(0, fill(size, 9))
		if err := im.Apply([]Change{before}); err != nil {
			t.Fatal(err)
		}
		first := f.calls
		f.fault = func(call int) error {
			if call == first+n || call == first+n+1 { // the first repetition fails, too
				return syscall.ENOSPC
			}
			return nil
		}
		err := im.Apply(batch)
		if err == nil {
			if n < 5 {
				t.Fatalf("the batch has %d calls only", n)
			}
			return
		}
		if !errors.Is(err, ErrNoSpace) {
			t.Fatalf("call %d: %v", n, err)
		}
		if err := im.Sync(); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("call %d: sync of a torn image: %v", n, err)
		}
		if h := im.halt.Load(); h.final {
			continue // the second fault met the sync
		}
		f.fault = nil
		if err := im.ReadAt(make([]byte, 1), size-1); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("call %d: read of a torn image: %v", n, err)
		}
		if err := im.Resize(size, nil); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("call %d: resize of a torn image: %v", n, err)
		}
		if err := im.Apply(batch[1:]); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("call %d: the changes without the first: %v", n, err)
		}
		for i := range batch { // one by one: only the last lets reads in
			if err := im.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrNoSpace) {
				t.Fatalf("call %d: read after %d of %d changes: %v", n, i, len(batch), err)
			}
			if err := im.Apply(batch[i : i+1]); err != nil {
				t.Fatal(err)
			}
		}
		model := make([]byte, size)
		replay(model, append([]Change{before}, batch...))
		whole(t, im, model)
	}
}

func TestAFailedSyncWhileTornStaysFinal(t *testing.T) {
	f := &memFile{}
	im := mem(t, f, 4096)
	f.fault = func(int) error { return syscall.ENOSPC }
	batch := []Change{write(0, fill(512, 1))}
	if err := im.Apply(batch); !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	if err := im.Sync(); !errors.Is(err, ErrFailed) {
		t.Fatal(err)
	}
	f.fault = nil
	refuses(t, im, ErrFailed)
}

func TestClosedImageRefuses(t *testing.T) {
	f := &memFile{}
	im := mem(t, f, 4096)
	for range 2 {
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
	}
	refuses(t, im, ErrClosed)
	if calls := f.calls; calls > 20 { // those of Open
		t.Errorf("%d calls", calls)
	}
}

func TestExtentsOutsideAreRefusedBeforeAnythingIsDone(t *testing.T) {
	const size = 1 << 20
	kinds(t, size, func(t *testing.T, open func(testing.TB) *Image) {
		im := open(t)
		if err := im.Apply([]Change{write(0, fill(4096, 1))}); err != nil {
			t.Fatal(err)
		}
		for _, x := range [][2]int64{{-1, 1}, {size, 1}, {size - 1, 2}, {0, size + 1}, {1 << 62, 1 << 62}, {0, -1}, {5, -1}} {
			_, mapErr := im.Extents(x[0], x[1], 1)
			_, hashErr := im.HashBlocks(nil, x[0], x[1], 512)
			_, zeroErr := im.IsZero(x[0], x[1])
			errs := map[string]error{
				"Apply":   im.Apply([]Change{write(0, fill(512, 2)), trim(x[0], x[1])}),
				"Extents": mapErr, "HashBlocks": hashErr, "IsZero": zeroErr,
			}
			if x[1] > 0 && x[1] < 1<<21 {
				errs["ReadAt"] = im.ReadAt(make([]byte, x[1]), x[0])
			}
			for op, err := range errs {
				if !errors.Is(err, ErrRange) {
					t.Errorf("%s of %d bytes at %d: %v", op, x[1], x[0], err)
				}
			}
		}
		if ok, err := im.ReadNow(make([]byte, 512), size-511); ok || !errors.Is(err, ErrRange) {
			t.Errorf("ReadNow: %t, %v", ok, err)
		}
		if _, err := im.HashBlocks(nil, 0, 512, 0); !errors.Is(err, ErrRange) {
			t.Errorf("blocks of 0 bytes: %v", err)
		}
		p := make([]byte, 512)
		if err := im.ReadAt(p, 0); err != nil || !bytes.Equal(p, fill(512, 1)) {
			t.Errorf("a refused batch was begun: %x, %v", p[:4], err)
		}
		for _, n := range []int64{0, -512, 513, record.MaxSize + 512} {
			if err := im.Resize(n, nil); !errors.Is(err, ErrRange) {
				t.Errorf("resize to %d: %v", n, err)
			}
		}
	})
}

// Reads waited while a device that grew was zeroed, for minutes of a large one; and a
// power cut could bring back what it had held, under a size that the journal knew.
func TestGrownDeviceIsZeroDurablyWhileReadsGoOn(t *testing.T) {
	const small, size = 1 << 20, 4 << 20
	backing := filepath.Join(t.TempDir(), "backing")
	if err := os.WriteFile(backing, fill(size, 7), 0o600); err != nil {
		t.Fatal(err)
	}
	im := unable(at(t, Options{Path: loopOver(t, backing), Size: small})) // zeroes are in the page cache first
	im.locks.rlock(^stripeSet(0))
	done := make(chan error, 1)
	go func() { done <- im.Resize(size, nil) }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	// A power cut now would leave what the backing file holds.
	for deadline := time.After(20 * time.Second); ; {
		b, err := os.ReadFile(backing)
		if err != nil {
			t.Fatal(err)
		}
		if record.IsZero(b[small:]) {
			break
		}
		select {
		case err := <-done:
			t.Fatalf("resize beside a read: %v, and the new bytes are not durable", err)
		case <-deadline:
			im.locks.runlock(^stripeSet(0))
			t.Fatalf("the new bytes were not zeroed while a read went on; resize: %v", <-done)
		case <-tick.C:
		}
	}
	if im.Size() != small {
		t.Error("the new size is seen while a read goes on")
	}
	im.locks.runlock(^stripeSet(0))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	whole(t, im, append(fill(small, 7), make([]byte, size-small)...))
}

func TestResizeTellsHowFarADeviceIsZeroed(t *testing.T) {
	const small = 1<<20 + 512
	const size = small + 2*zeroStep + 1<<20
	im := at(t, Options{Path: loop(t, size), Size: small})
	var told []int64
	err := im.Resize(size, func(done, total int64) {
		if total != size-small || im.Size() != small {
			t.Errorf("%d bytes are to be zeroed, want %d; the size is %d already", total, int64(size-small), im.Size())
		}
		told = append(told, done)
	})
	if want := []int64{0, zeroStep, 2 * zeroStep}; err != nil || !slices.Equal(told, want) {
		t.Errorf("told %d, %v; want %d", told, err, want)
	}
	never := func(done, total int64) {
		t.Errorf("%d of %d bytes are zeroed where there is nothing to zero", done, total)
	}
	if err := im.Resize(small, never); err != nil {
		t.Error(err)
	}
	if err := sparse(t, small).Resize(size, never); err != nil {
		t.Error(err)
	}
}

func TestResizeNeverShowsOldBytes(t *testing.T) {
	const size = 1 << 20
	kinds(t, size, func(t *testing.T, open func(testing.TB) *Image) {
		im := open(t)
		if err := im.Apply([]Change{write(0, fill(size, 1))}); err != nil {
			t.Fatal(err)
		}
		for _, n := range []int64{size / 2, size, 512, size} {
			if err := im.Resize(n, nil); err != nil {
				t.Fatal(err)
			}
			if im.Size() != n {
				t.Errorf("size is %d, want %d", im.Size(), n)
			}
			if err := im.ReadAt(make([]byte, 512), n); !errors.Is(err, ErrRange) {
				t.Errorf("read behind %d: %v", n, err)
			}
		}
		model := make([]byte, size)
		copy(model, fill(512, 1))
		whole(t, im, model)
	})
}

func TestADeviceDoesNotGrow(t *testing.T) {
	dev := loop(t, 4<<20)
	im := at(t, Options{Path: dev})
	if im.Size() != 4<<20 || im.Blank() || im.Created() || !im.Device() {
		t.Errorf("size %d, blank %t, created %t, device %t", im.Size(), im.Blank(), im.Created(), im.Device())
	}
	if _, err := im.Holds(5 << 20); !errors.Is(err, ErrSize) {
		t.Errorf("holds: %v", err)
	}
	if err := im.Resize(5<<20, nil); !errors.Is(err, ErrSize) || errors.Is(err, ErrFailed) {
		t.Errorf("resize: %v", err)
	}
	if err := im.Apply([]Change{write(4<<20-512, fill(512, 1))}); err != nil {
		t.Errorf("apply after it: %v", err)
	}
}

func TestHoldsChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	im := at(t, Options{Path: path, Size: 1 << 20, Create: true})
	for _, n := range []int64{1 << 20, 2 << 20} {
		if missing, err := im.Holds(n); missing != 0 || err != nil {
			t.Errorf("%d bytes: %d missing, %v", n, missing, err)
		}
	}
	// More than any file system of a test has: some know no such files.
	if missing, err := im.Holds(record.MaxSize); missing == 0 && !errors.Is(err, ErrSize) {
		t.Errorf("%d bytes: %d missing, %v", int64(record.MaxSize), missing, err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 1<<20 || im.Size() != 1<<20 {
		t.Errorf("the file is %v, %v, the image %d bytes", st, err, im.Size())
	}
	if err := im.Apply([]Change{write(0, fill(512, 1))}); err != nil {
		t.Errorf("apply after it: %v", err)
	}
}

// lazyFile reads and writes less than it should without saying why.
type lazyFile struct{ memFile }

func (f *lazyFile) WriteAt(p []byte, off int64) (int, error) {
	return f.memFile.WriteAt(p[:len(p)/2], off)
}

func TestShortCallsWithoutAnErrorAreErrors(t *testing.T) {
	f := &lazyFile{}
	im := at(t, Options{Path: "lazy", Size: 4096, OpenFile: func() (File, error) { return f, nil }})
	if err := im.Apply([]Change{write(0, fill(512, 1))}); !errors.Is(err, io.ErrShortWrite) || !errors.Is(err, ErrFailed) {
		t.Errorf("apply: %v", err)
	}
}

// racing is a file whose space ends while its fsync fails.
type racing struct {
	memFile
	im   *Image
	full bool
}

func (f *racing) WriteAt(p []byte, off int64) (int, error) {
	if f.full {
		f.full = false
		_ = f.im.Sync()
		return 0, syscall.ENOSPC
	}
	return f.memFile.WriteAt(p, off)
}

// A failed fsync beside changes that found no space was forgotten once they fitted,
// and the next fsync was believed.
func TestAFailedSyncWhileTheSpaceEndsStaysFinal(t *testing.T) {
	f := &racing{}
	im := at(t, Options{Path: "racing", Size: 4096, OpenFile: func() (File, error) { return f, nil }})
	f.im, f.full = im, true
	f.fault = func(int) error { return errPlug }
	batch := []Change{write(0, fill(512, 1))}
	if err := im.Apply(batch); err == nil {
		t.Fatal("changes without space were made")
	}
	f.fault = nil
	refuses(t, im, ErrFailed)
}
