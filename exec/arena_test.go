package exec

import (
	"runtime"
	"testing"
)

// TestArena keeps what runs use again and forgets what other sizes left.
func TestArena(t *testing.T) {
	var a arena
	run := func(sizes ...int) {
		var list []*buffer
		for _, n := range sizes {
			b, err := a.get(n)
			if err != nil {
				t.Fatal(err)
			}
			if len(b.mem) < n {
				t.Fatalf("%d bytes for %d", len(b.mem), n)
			}
			list = append(list, b)
		}
		for _, b := range list {
			a.release(b)
		}
		a.endRun()
	}
	run(1<<20, 1<<20)
	if a.live != 2<<20 {
		t.Errorf("%d bytes are held", a.live)
	}
	run(1000<<10, 900<<10)
	if a.live != 2<<20 {
		t.Errorf("%d bytes are held after smaller sizes", a.live)
	}
	run(1 << 16)
	if a.live != 1<<16 {
		t.Errorf("%d bytes are held after small runs", a.live)
	}
}

// TestArenaCollects checks that what runs give away or up does not wait until
// the heap has doubled.
func TestArenaCollects(t *testing.T) {
	var a arena
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 4 * minLost >> 20 {
		b, err := a.get(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		a.escape(b)
		a.endRun()
	}
	runtime.ReadMemStats(&after)
	if n := after.NumForcedGC - before.NumForcedGC; n < 2 || n > 4 {
		t.Errorf("the collector was called %d times", n)
	}
	if a.live != 0 {
		t.Errorf("%d bytes are counted that were given away", a.live)
	}
}
