package par

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

func TestForCoversEveryIndexOnce(t *testing.T) {
	for _, threads := range []int{1, 2, 7} {
		p := New(threads)
		p.Begin()
		for _, n := range []int{0, 1, 5, 64, 1001} {
			for _, chunk := range []int{0, 1, 3, 64, 5000} {
				hits := make([]atomic.Int32, n)
				p.For(n, chunk, func(lo, hi int) {
					if c := max(chunk, 1); lo%c != 0 || hi-lo > c {
						t.Errorf("piece [%d,%d) of n=%d chunk=%d", lo, hi, n, chunk)
					}
					for i := lo; i < hi; i++ {
						hits[i].Add(1)
					}
				})
				for i := range hits {
					if hits[i].Load() != 1 {
						t.Fatalf("threads=%d n=%d chunk=%d: index %d ran %d times", threads, n, chunk, i, hits[i].Load())
					}
				}
			}
		}
		p.End()
	}
}

func TestForRaisesPanicInCaller(t *testing.T) {
	p := New(3)
	p.Begin()
	defer p.End()
	defer func() {
		if r := recover(); r != "boom" {
			t.Fatalf("recovered %v", r)
		}
	}()
	p.For(100, 1, func(lo, _ int) {
		if lo == 42 {
			panic("boom")
		}
	})
	t.Fatal("no panic reached the caller")
}

// TestEachIsParallel: the first loop of a pool already has all its workers.
func TestEachIsParallel(t *testing.T) {
	for k := 0; k < 20 && !t.Failed(); k++ {
		var begun atomic.Int32
		Each(2, 2, func(int) {
			begun.Add(1)
			for start := time.Now(); begun.Load() < 2; runtime.Gosched() {
				if time.Since(start) > time.Minute {
					t.Error("a piece waited in vain for the other to begin")
					return
				}
			}
		})
	}
}
