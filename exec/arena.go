package exec

import (
	"fmt"
	"math/bits"
	"runtime"
	"runtime/metrics"
	"slices"
	"unsafe"

	"github.com/onnxq/onnxq/tensor"
)

// Bounds on single tensors, so that sizes that come from data can neither
// overflow nor ask the runtime for the impossible.
const (
	maxElements = 1 << 40
	maxStrings  = 1 << 24
)

// buffer is a piece of memory that tensors of a run live in.
type buffer struct {
	mem     []byte
	refs    int // slots whose tensors live here
	run     int // that had it last
	escaped bool
}

func (b *buffer) holds(t *tensor.Tensor) bool {
	return unsafe.SliceData(t.Bytes()) == unsafe.SliceData(b.mem)
}

func sameMemory(a, b *tensor.Tensor) bool {
	return unsafe.SliceData(a.Bytes()) == unsafe.SliceData(b.Bytes())
}

// arena recycles buffers by size class.
type arena struct {
	limit   int64
	process *Memory // may be nil
	frugal  bool    // trim always
	lends   bool    // what escapes a run is taken back after the next
	live    int64   // bytes of all buffers, free ones included
	free    [64][]*buffer
	escaped []*buffer
	lent    []*buffer // that escaped the last run, where lends is set
	lost    int64     // bytes given up since collect called the collector
	run     int       // the number of the run
	used    int64     // bytes of the buffers that it had
}

// minWant is the size of a buffer from which on the bound of the process is
// held against it.
const minWant = 64 << 10

// minLost is the number of bytes given up that are worth a look at the heap.
const minLost = 32 << 20

// class returns the size class of n bytes and its size: powers of two with
// three steps in between, so that at most a fifth is wasted.
func class(n int) (int, int) {
	if n <= 256 {
		return 0, 256
	}
	top := bits.Len(uint(n-1)) - 1 // 2^top < n <= 2^(top+1)
	step := 1 << (top - 2)
	size := (n + step - 1) / step * step
	return min(top, 63), size
}

func (a *arena) get(n int) (*buffer, error) {
	if n < 0 {
		return nil, fmt.Errorf("%w: negative size", ErrLimit)
	}
	c, size := class(n)
	// The smallest that fits and is not twice as large.
	for k := c; k <= min(c+1, len(a.free)-1); k++ {
		best := -1
		for i, b := range a.free[k] {
			if len(b.mem) >= n && len(b.mem) <= max(2*n, 256) && (best < 0 || len(b.mem) < len(a.free[k][best].mem)) {
				best = i
			}
		}
		if best >= 0 {
			b := a.free[k][best]
			a.free[k] = slices.Delete(a.free[k], best, best+1)
			b.refs = 0
			a.take(b)
			return b, nil
		}
	}
	if a.limit > 0 && a.live+int64(size) > a.limit {
		a.drop()
		if a.live+int64(size) > a.limit {
			return nil, fmt.Errorf("%w: %d bytes in use, %d more wanted, %d allowed", ErrLimit, a.live, size, a.limit)
		}
	}
	if size >= minWant && a.process != nil && a.process.want(int64(size)) != nil {
		a.drop()
		if err := a.process.want(int64(size)); err != nil {
			return nil, err
		}
	}
	a.live += int64(size)
	b := &buffer{mem: tensor.AlignedBytes(size), run: -1}
	a.take(b)
	return b, nil
}

// take notes that the run has b.
func (a *arena) take(b *buffer) {
	if b.run != a.run {
		b.run = a.run
		a.used += int64(len(b.mem))
	}
}

// trim forgets the free buffers that the run did not have, where those take
// more memory than the run: inputs of other sizes left them.
func (a *arena) trim() {
	if a.live <= 2*a.used && !(a.frugal && a.live > a.used+a.used/8) {
		return
	}
	for c, list := range a.free {
		a.free[c] = slices.DeleteFunc(list, func(b *buffer) bool {
			if b.run == a.run {
				return false
			}
			a.live -= int64(len(b.mem))
			a.lost += int64(len(b.mem))
			return true
		})
	}
}

func (a *arena) release(b *buffer) {
	if b.escaped {
		return
	}
	c, _ := class(len(b.mem))
	a.free[c] = append(a.free[c], b)
}

// escape keeps b from being recycled: someone outside the run may hold it.
func (a *arena) escape(b *buffer) {
	if !b.escaped {
		b.escaped = true
		a.escaped = append(a.escaped, b)
	}
}

// drop forgets all free buffers.
func (a *arena) drop() {
	for c := range a.free {
		for _, b := range a.free[c] {
			a.live -= int64(len(b.mem))
		}
		a.free[c] = nil
	}
}

// endRun hands the escaped buffers over to the caller of the run, for good or
// until the next run has ended.
func (a *arena) endRun() {
	if !a.lends {
		for _, b := range a.escaped {
			a.live -= int64(len(b.mem))
			a.lost += int64(len(b.mem))
		}
		clear(a.escaped)
	}
	a.trim()
	if a.lends {
		for _, b := range a.lent {
			b.escaped = false
			a.release(b)
		}
		clear(a.lent)
		a.lent, a.escaped = a.escaped, a.lent
	}
	a.escaped = a.escaped[:0]
	a.collect()
	a.run++
	a.used = 0
}

// collect calls the garbage collector, which by itself waits until the heap has
// doubled, once a fifth of the heap or more is memory that the arena gave up.
func (a *arena) collect() {
	if a.lost < minLost {
		return
	}
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	if metrics.Read(heap); heap[0].Value.Kind() == metrics.KindUint64 && uint64(a.lost) >= heap[0].Value.Uint64()/5 {
		runtime.GC()
		a.lost = 0
	}
}

// reset forgets everything after a failed run.
func (a *arena) reset() {
	*a = arena{limit: a.limit, process: a.process, frugal: a.frugal, lends: a.lends}
}
