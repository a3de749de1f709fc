package exec

import (
	"runtime"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
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

// TestTransient has outputs of a run stay valid as feeds of the next, and their
// memory serve the one after that.
func TestTransient(t *testing.T) {
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y, float[N] z) { y = Neg(x) z = Identity(y) }`)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Compile(m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	const n = 1 << 14
	s := p.NewSession(SessionOptions{Threads: 1, Transient: true, Frugal: true})
	x := tensor.New(tensor.Float32, n)
	tensor.As[float32](x)[n-1] = 3
	var seen []*tensor.Tensor
	for i, in := 0, x; i < 6; i++ {
		out, err := s.Run(t.Context(), map[string]ops.Data{"x": in}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		y := out[0].(*tensor.Tensor)
		want := float32(3 - 6*((i+1)%2))
		for k, d := range out {
			if got := tensor.As[float32](d.(*tensor.Tensor))[n-1]; got != want {
				t.Errorf("run %d, output %d: %v, want %v", i, k, got, want)
			}
		}
		if i > 0 && sameMemory(y, seen[i-1]) {
			t.Errorf("run %d writes over what it reads", i)
		}
		if i > 2 && !sameMemory(y, seen[i-2]) {
			t.Errorf("run %d takes new memory", i)
		}
		seen, in = append(seen, y), y
	}
	if tensor.As[float32](x)[n-1] != 3 {
		t.Error("a feed of the caller was written to")
	}
}
