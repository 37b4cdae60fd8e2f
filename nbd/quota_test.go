package nbd

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

func TestQuotaAndBudgetAreWholeAfterAnyUse(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	l, err := Limits{MaxRequests: 4, MaxConnBytes: MaxPayloadDefault, MaxBytes: MaxPayloadDefault}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	b := &budget{free: l.MaxBytes}
	var wg sync.WaitGroup
	quotas := make([]quota, 6)
	exports := []string{"a", "b", "c"}
	for i := range quotas {
		q := &quotas[i]
		*q = newQuota(l, b)
		q.share = b.open(exports[i%len(exports)])
		wg.Go(func() { // the reader of one connection
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			var releases sync.WaitGroup
			defer releases.Wait()
			for range 2000 {
				n := int64(rnd.IntN(MaxPayloadDefault))
				if rnd.IntN(3) > 0 {
					n %= connReserve
				}
				if !q.tryAcquire(n) {
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rnd.IntN(300))*time.Microsecond)
					err := q.acquire(ctx, n)
					cancel()
					if err != nil {
						continue
					}
				}
				if got := q.reqs.Load(); got > q.maxReqs {
					t.Errorf("%d requests in flight, the limit is %d", got, q.maxReqs)
				}
				releases.Go(func() { q.release(1, n) })
			}
		})
	}
	wg.Wait()
	for i := range quotas {
		if r, n := quotas[i].reqs.Load(), quotas[i].bytes.Load(); r != 0 || n != 0 {
			t.Errorf("connection %d still holds %d requests of %d bytes", i, r, n)
		}
	}
	for name, s := range b.shares {
		if s.used != 0 {
			t.Errorf("export %s still holds %d bytes", name, s.used)
		}
	}
	for i := range quotas {
		b.close(exports[i%len(exports)])
	}
	if len(b.shares) != 0 {
		t.Errorf("%d exports are still open", len(b.shares))
	}
	if b.free != l.MaxBytes || len(b.waiters) != 0 {
		t.Errorf("the budget has %d of %d bytes and %d waiters", b.free, l.MaxBytes, len(b.waiters))
	}
}

func TestBudgetIsGivenInOrder(t *testing.T) {
	b, s := &budget{free: 10}, &share{}
	if !b.tryTake(s, 8) {
		t.Fatal("8 of 10 are not free")
	}
	large := make(chan error, 1)
	go func() { large <- b.take(context.Background(), s, 9) }()
	for waiting := 0; waiting == 0; {
		b.mu.Lock()
		waiting = len(b.waiters)
		b.mu.Unlock()
	}
	if b.tryTake(s, 1) {
		t.Error("a small request overtook a large one")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.take(ctx, s, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("take with a finished context: %v", err)
	}
	b.give(s, 8)
	if err := <-large; err != nil || b.free != 1 {
		t.Errorf("the large request: %v, %d left, want 1", err, b.free)
	}
}

// awaitWaiters waits until so many wait for the budget.
func (b *budget) awaitWaiters(n int) {
	for waiting := -1; waiting != n; {
		b.mu.Lock()
		waiting = len(b.waiters)
		b.mu.Unlock()
	}
}

func TestExportHoldsNoMoreOfTheBudgetThanItLeaves(t *testing.T) {
	b := &budget{free: 100}
	hog := b.open("hog")
	for i := range 60 {
		if !b.tryTake(hog, 1) {
			t.Fatalf("the only export is refused at %d of 100", i)
		}
	}
	well := b.open("well")
	if b.tryTake(hog, 1) {
		t.Error("an export with 60 takes one more of 40")
	}
	waits := make(chan error)
	for range 2 {
		go func() { waits <- b.take(context.Background(), hog, 30) }()
	}
	b.awaitWaiters(2)
	if !b.tryTake(well, 20) {
		t.Error("20 of 40 are not for the other export, because one waits that has more than its share")
	}
	if b.tryTake(well, 1) {
		t.Error("an export with 20 takes one more of 20")
	}
	b.give(hog, 60) // one fits: its 30 leave 50
	if err := <-waits; err != nil || hog.used != 30 || b.free != 50 {
		t.Errorf("%v: %d are used, %d free, want 30 and 50", err, hog.used, b.free)
	}
	b.awaitWaiters(1)
	b.give(well, 20)
	b.close("well") // alone again
	if err := <-waits; err != nil || hog.used != 60 || b.free != 40 {
		t.Errorf("%v: %d are used, %d free, want 60 and 40", err, hog.used, b.free)
	}
}

func TestLimitsThatCannotWorkAreRefused(t *testing.T) {
	for _, l := range []Limits{{MaxBytes: 1}, {MaxConnBytes: 1}, {MaxClients: -1}, {StallTimeout: -1}} {
		if _, err := l.withDefaults(); err == nil {
			t.Errorf("%+v: accepted", l)
		}
	}
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{1, 7, 4095, 4096, 4097, 65536, 65537} {
		p := make([]byte, n)
		if !isZero(p) {
			t.Errorf("%d zeroes are not zero", n)
		}
		for _, i := range []int{0, n / 2, n - 1} {
			p[i] = 1
			if isZero(p) {
				t.Errorf("%d bytes with a one at %d are zero", n, i)
			}
			p[i] = 0
		}
	}
}

func TestBufferClasses(t *testing.T) {
	for n, want := range map[int]int64{1: 4096, 4096: 4096, 4097: 8192, 65536: 65536, 1<<20 + 1: 2 << 20, MaxPayloadDefault: MaxPayloadDefault} {
		if got := classBytes(n); got != want {
			t.Errorf("a buffer for %d has %d bytes, want %d", n, got, want)
		}
	}
}
