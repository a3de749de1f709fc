package kernels

import (
	"runtime"
	"slices"
	"sync"
)

const idleCycles = 8

// spares keeps working memory for the next caller. Unlike a sync.Pool, which
// keeps some for each processor, it never has more than were in use at the same
// time, so that it serves memory whose size follows the data. The most recently
// used comes first; what idleCycles collections of garbage pass without a use is
// given up. What is wanted again soon after would be there twice until the next
// collection, so they are not few.
type spares[T any] struct {
	mu    sync.Mutex
	free  []*T
	idle  [idleCycles]int // of free, how many were not used since the last collection, and in the cycles before
	armed bool
}

// get returns memory that the caller hands back by put.
func (s *spares[T]) get() *T {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.free) - 1
	if n < 0 {
		return new(T)
	}
	v := s.free[n]
	s.free[n] = nil
	s.free = s.free[:n]
	s.idle[0] = min(s.idle[0], n)
	return v
}

func (s *spares[T]) put(v *T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, v)
	s.arm()
}

// arm has collected called after the next collection. s.mu is held.
func (s *spares[T]) arm() {
	if s.armed {
		return
	}
	s.armed = true
	// An object with a pointer shares its memory with no other.
	runtime.AddCleanup(new(*T), (*spares[T]).collected, s)
}

// collected gives up what was idle for all cycles.
func (s *spares[T]) collected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = false
	n := slices.Min(s.idle[:])
	kept := copy(s.free, s.free[n:])
	clear(s.free[kept:])
	s.free = s.free[:kept]
	copy(s.idle[1:], s.idle[:])
	s.idle[0] = kept + n
	for i := range s.idle {
		s.idle[i] = min(s.idle[i]-n, kept)
	}
	if kept > 0 {
		s.arm()
	}
}
