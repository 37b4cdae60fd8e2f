package blockrepl

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// sparseImage is an image whose blocks are holes, zeroes, or one of a few contents.
func sparseImage(t *testing.T, rnd *rand.Rand, size int64) *image.Image {
	t.Helper()
	im, err := image.Open(image.Options{Path: filepath.Join(t.TempDir(), "image"), Size: size, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	for off := int64(0); off < size; {
		// Runs of blocks, so that pieces and whole windows are of one kind.
		n := min(resyncBlock*(1+rnd.Int64N(1<<rnd.IntN(7))), size-off)
		c := image.Change{Kind: record.KindWrite, Off: off, Len: n}
		switch rnd.IntN(4) {
		case 0:
			off += n
			continue
		case 1:
			c.Data = make([]byte, n)
		case 2:
			c.Data = bytes.Repeat([]byte{byte(1 + rnd.IntN(3))}, int(n))
		case 3:
			c.Data = noise(rand.New(rand.NewPCG(1, rnd.Uint64N(3))), int(n))
		}
		if err := im.Apply([]image.Change{c}); err != nil {
			t.Fatal(err)
		}
		off += n
	}
	return im
}

func content(t *testing.T, im *image.Image) []byte {
	t.Helper()
	p := make([]byte, im.Size())
	if err := im.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// queryOf is a query of the whole image.
func queryOf(t *testing.T, im *image.Image, size int64) *wire.HashQuery {
	t.Helper()
	hashes, err := im.HashBlocks(nil, 0, size, resyncBlock)
	if err != nil {
		t.Fatal(err)
	}
	return &wire.HashQuery{Block: resyncBlock, Length: size, Hashes: hashes}
}

func TestAnswerMakesTheImagesEqual(t *testing.T) {
	rnd := seeded(t)
	for range 30 {
		size := 512 * (1 + rnd.Int64N(resyncWindow/512))
		ours, theirs := sparseImage(t, rnd, size), sparseImage(t, rnd, size)
		if rnd.IntN(3) == 0 { // the master's volume has become smaller
			if err := ours.Resize(512*(1+rnd.Int64N(size/512)), nil); err != nil {
				t.Fatal(err)
			}
		}
		a := &answerer{v: &Volume{img: ours}}
		out := &wire.ExtentData{Length: size}
		if _, err := a.compare(queryOf(t, theirs, size), out); err != nil {
			t.Fatal(err)
		}
		for i := range out.Chunks {
			ch, _, err := changeOf(&out.Chunks[i], 0, size, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !out.Chunks[i].Zero && record.IsZero(ch.Data) || ch.Len > chunkBytes && !out.Chunks[i].Zero {
				t.Errorf("chunk %d of %d bytes at %d is sent as data", i, ch.Len, ch.Off)
			}
			if err := theirs.Apply([]image.Change{ch}); err != nil {
				t.Fatal(err)
			}
		}
		want := append(content(t, ours), make([]byte, size-ours.Size())...)
		if !bytes.Equal(content(t, theirs), want) {
			t.Fatalf("%d bytes differ after the answer", size)
		}
		again := &wire.ExtentData{Length: size}
		if _, err := a.compare(queryOf(t, theirs, size), again); err != nil {
			t.Fatal(err)
		}
		for _, k := range again.Chunks {
			if k.Offset+k.Length <= ours.Size()/resyncBlock*resyncBlock {
				t.Errorf("%d bytes at %d still differ", k.Length, k.Offset)
			}
		}
	}
}

// While clients wrote, the holes of a sparse image cost a resync as much of its budget
// as data: a terabyte of them four and a half hours.
func TestHolesCostAResyncNothing(t *testing.T) {
	im, err := image.Open(image.Options{Path: filepath.Join(t.TempDir(), "image"), Size: resyncWindow, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if err := im.Apply([]image.Change{{Kind: record.KindWrite, Off: chunkBytes, Len: 512, Data: make([]byte, 512)}}); err != nil {
		t.Fatal(err)
	}
	a := &answerer{v: &Volume{img: im}}
	read, err := a.compare(queryOf(t, im, resyncWindow), &wire.ExtentData{})
	if err != nil || read != chunkBytes {
		t.Errorf("%d bytes were read, %v; want %d", read, err, chunkBytes)
	}
}

// While clients write a resync or a verify reads no more of the image than its budget;
// else as much as it can.
func TestClientsWorkGoesBeforeAnswersToAResync(t *testing.T) {
	const answers = 36
	mine := record.Epoch{Counter: 5, Server: mustID("a")}
	im, err := image.Open(image.Options{Path: filepath.Join(t.TempDir(), "image"), Size: resyncWindow, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if err := im.Apply([]image.Change{{Kind: record.KindWrite, Len: resyncWindow, Data: bytes.Repeat([]byte("x"), resyncWindow)}}); err != nil {
		t.Fatal(err)
	}
	q := queryOf(t, im, resyncWindow)
	q.Epoch = mine
	for _, c := range []struct {
		what string
		ago  time.Duration // since a client wrote, at each answer
		want time.Duration
	}{
		{"clients write", 0, (answers*resyncWindow - queryMax) * time.Second / resyncBusy},
		{"clients wrote a second ago", time.Second, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				clock := func() replica.Time { return replica.Time(time.Now().UnixNano()) }
				v := &Volume{s: &Server{opt: Options{ID: mustID("a"), Clock: clock}}, img: im}
				v.epoch.Store(&mine)
				v.stale.Store(true)
				v.app = newApplier(v, 0)
				v.answer.init(v)
				defer v.answer.cancel()
				l := &link{peer: &peerLink{id: mustID("b")}}
				l.out.init(func(why string) { t.Errorf("link closed: %s", why) })
				began := time.Now()
				for range answers {
					v.busyAt.Store(int64(clock().Add(-c.ago)))
					if err := v.answer.answer(l, q); err != nil {
						t.Fatal(err)
					}
				}
				if took := time.Since(began).Round(time.Millisecond); took != c.want || len(l.out.queue) != answers {
					t.Errorf("%d answers in %v, want %d in %v", len(l.out.queue), took, answers, c.want)
				}
			})
		})
	}
}

// A master that was replaced while it answered gave bytes of another past, or of an
// image that was just being replaced, in the name of its own epoch.
func TestAMasterThatIsReplacedMeanwhileGivesNoAnswer(t *testing.T) {
	mine, next := record.Epoch{Counter: 5, Server: mustID("a")}, record.Epoch{Counter: 6, Server: mustID("b")}
	im, err := image.Open(image.Options{Path: filepath.Join(t.TempDir(), "image"), Size: resyncBlock, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	for _, c := range []struct {
		what      string
		meanwhile func(*Volume)
		answers   int
	}{
		{"nothing", func(*Volume) {}, 1},
		{"another epoch", func(v *Volume) { v.epoch.Store(&next) }, 0},
		{"no prefix any more", func(v *Volume) { v.stale.Store(false) }, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := &Volume{s: &Server{opt: Options{ID: mustID("a")}}, img: im}
				v.epoch.Store(&mine)
				v.stale.Store(true)
				v.commit.Store(10)
				v.app = newApplier(v, 9)
				v.answer.init(v)
				defer v.answer.cancel()
				l := &link{peer: &peerLink{id: next.Server}}
				l.out.init(func(why string) { t.Errorf("link closed: %s", why) })
				q := queryOf(t, im, resyncBlock)
				q.Epoch = mine
				ended := make(chan error)
				go func() { ended <- v.answer.answer(l, q) }()
				synctest.Wait() // it waits until the image holds what is committed
				c.meanwhile(v)
				v.app.reset(10)
				v.app.to(11) // wakes it
				if err := <-ended; err != nil || len(l.out.queue) != c.answers {
					t.Errorf("%d answers, %v; want %d", len(l.out.queue), err, c.answers)
				}
			})
		})
	}
}
