// Package par runs loops in parallel with a division of work that does not
// depend on the number of workers, so that results do not either.
package par

import (
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Pool is a team of workers for parallel loops. Between Begin and End the
// workers spin for the next loop, which then starts in well under a
// microsecond; outside a loop runs on the caller alone. Workers end soon after
// End, unless another Begin follows. A nil Pool runs everything on the caller. A
// Pool serves one caller at a time.
type Pool struct {
	extra  int
	active atomic.Bool
	job    atomic.Pointer[job]
	seq    atomic.Uint32
	mu     sync.Mutex
	alive  int // workers, guarded by mu
}

// linger is how long a worker waits for another Begin: starting one takes a good
// part of that.
const linger = 200 * time.Microsecond

type job struct {
	f        func(lo, hi int)
	n, chunk int64
	next     atomic.Int64
	pending  atomic.Int64
	panicked atomic.Pointer[any]
}

// New returns a pool of the given number of threads, the caller included; 0
// means one per available processor.
func New(threads int) *Pool {
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	if threads == 1 {
		return nil
	}
	return &Pool{extra: threads - 1}
}

// Threads returns the number of threads that take part in a loop.
func (p *Pool) Threads() int {
	if p == nil {
		return 1
	}
	return p.extra + 1
}

// Begin wakes the workers. Every Begin is followed by one End.
func (p *Pool) Begin() {
	if p == nil || p.active.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.active.Store(true)
	seen := p.seq.Load() // a loop may have begun before a worker runs
	for ; p.alive < p.extra; p.alive++ {
		go p.work(seen)
	}
}

// End lets the workers go.
func (p *Pool) End() {
	if p != nil {
		p.active.Store(false)
	}
}

// Lend runs f between loops, with the workers let go if they were awake, so that
// f may use the processors in its own way.
func (p *Pool) Lend(f func()) {
	if p != nil && p.active.Load() {
		p.End()
		defer p.Begin()
	}
	f()
}

// work takes part in the loops after the first seen ones.
func (p *Pool) work(seen uint32) {
	debug.SetPanicOnFault(true) // a mapped file may be cut short
	var since time.Time         // when the pool became idle
	for idle := 0; ; idle++ {
		if s := p.seq.Load(); s != seen {
			seen = s
			if j := p.job.Load(); j != nil {
				j.run()
			}
			idle = 0
			continue
		}
		pause(idle)
		switch {
		case p.active.Load():
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case idle%16 == 0 && time.Since(since) > linger && p.leave():
			return
		}
	}
}

// leave ends a worker, unless a Begin counts on it.
func (p *Pool) leave() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.active.Load() {
		return false
	}
	p.alive--
	return true
}

// pause is a step of waiting for another thread, after the given number of
// others: at first nothing, since what is waited for mostly takes less than a
// microsecond; then the processor goes to threads that want it, of which the
// other may be one, and once in a while to other goroutines.
func pause(steps int) {
	switch {
	case steps < 1<<10:
	case steps%16 == 0:
		runtime.Gosched()
	default:
		yield()
	}
}

func (j *job) run() {
	for {
		k := j.next.Add(1) - 1
		lo := k * j.chunk
		if lo >= j.n {
			return
		}
		j.step(int(lo), int(min(lo+j.chunk, j.n)))
	}
}

func (j *job) step(lo, hi int) {
	defer func() {
		if r := recover(); r != nil {
			j.panicked.CompareAndSwap(nil, &r)
		}
		j.pending.Add(-1)
	}()
	j.f(lo, hi)
}

// Each calls f for all i of [0, n) on the given number of threads, 0 for one per
// available processor.
func Each(threads, n int, f func(i int)) {
	pool := New(threads)
	pool.Begin()
	defer pool.End()
	pool.For(n, 1, func(i, _ int) { f(i) })
}

// For calls f for the consecutive pieces [k*chunk, min((k+1)*chunk, n)) of
// [0, n), in any order and possibly at the same time, and returns when all are
// done. The pieces depend on n and chunk alone. A panic of f is raised again
// in the caller. f must not call For of the same pool.
func (p *Pool) For(n, chunk int, f func(lo, hi int)) {
	if n <= 0 {
		return
	}
	chunk = max(chunk, 1)
	if p == nil || n <= chunk || !p.active.Load() {
		for lo := 0; lo < n; lo += chunk {
			f(lo, min(lo+chunk, n))
		}
		return
	}
	j := &job{f: f, n: int64(n), chunk: int64(chunk)}
	j.pending.Store(int64((n + chunk - 1) / chunk))
	p.job.Store(j)
	p.seq.Add(1)
	j.run()
	for spin := 0; j.pending.Load() > 0; spin++ {
		pause(spin)
	}
	p.job.Store(nil)
	if r := j.panicked.Load(); r != nil {
		panic(*r)
	}
}
