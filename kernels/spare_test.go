package kernels

import (
	"runtime"
	"testing"
	"time"
)

// TestSpares makes sure that memory is used again, that there is no more of it
// than was in use at a time, and that it goes when nobody wants it.
func TestSpares(t *testing.T) {
	var s spares[[64]float32]
	a, b := s.get(), s.get()
	if a == b {
		t.Fatal("two callers have the same memory")
	}
	s.put(a)
	s.put(b)
	for range 100 {
		if v := s.get(); v != b {
			t.Fatal("not the most recently used")
		} else {
			s.put(v)
		}
	}
	if len(s.free) != 2 {
		t.Errorf("%d spares of 2", len(s.free))
	}
	left := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.free)
	}
	for try := 0; left() > 1 && try < 1000; try++ {
		s.put(s.get())
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
	if n := left(); n != 1 {
		t.Errorf("%d spares are kept where one is in use", n)
	}
	for try := 0; left() > 0 && try < 1000; try++ {
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
	if n := left(); n != 0 {
		t.Errorf("%d spares are kept where none is in use", n)
	}
}
