package exec

import "testing"

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
