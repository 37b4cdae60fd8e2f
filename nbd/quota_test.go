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
	for i := range quotas {
		q := &quotas[i]
		*q = newQuota(l, b)
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
	if b.free != l.MaxBytes || len(b.waiters) != 0 {
		t.Errorf("the budget has %d of %d bytes and %d waiters", b.free, l.MaxBytes, len(b.waiters))
	}
}

func TestBudgetIsGivenInOrder(t *testing.T) {
	b := &budget{free: 10}
	if !b.tryTake(8) {
		t.Fatal("8 of 10 are not free")
	}
	large := make(chan error, 1)
	go func() { large <- b.take(context.Background(), 9) }()
	for waiting := 0; waiting == 0; {
		b.mu.Lock()
		waiting = len(b.waiters)
		b.mu.Unlock()
	}
	if b.tryTake(1) {
		t.Error("a small request overtook a large one")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.take(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("take with a finished context: %v", err)
	}
	b.give(8)
	if err := <-large; err != nil || b.free != 1 {
		t.Errorf("the large request: %v, %d left, want 1", err, b.free)
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
