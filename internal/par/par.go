// Package par runs loops in parallel with a division of work that does not
// depend on the number of workers, so that results do not either.
package par

import (
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// Pool is a team of workers for parallel loops. Between Begin and End the
// workers spin for the next loop, which then starts in well under a
// microsecond; outside they are parked and a loop runs on the caller alone.
// A nil Pool runs everything on the caller. A Pool serves one caller at a
// time.
type Pool struct {
	extra  int
	active atomic.Bool
	job    atomic.Pointer[job]
	seq    atomic.Uint32
	parked sync.WaitGroup
}

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
	if p == nil || p.active.Swap(true) {
		return
	}
	p.parked.Add(p.extra)
	for range p.extra {
		go p.work()
	}
}

// End parks the workers and waits until they are.
func (p *Pool) End() {
	if p == nil || !p.active.Swap(false) {
		return
	}
	p.parked.Wait()
}

func (p *Pool) work() {
	debug.SetPanicOnFault(true)
	defer p.parked.Done()
	debug.SetPanicOnFault(true) // a mapped file may be cut short
	seen := p.seq.Load()
	for idle := 0; p.active.Load(); idle++ {
		if s := p.seq.Load(); s != seen {
			seen = s
			if j := p.job.Load(); j != nil {
				j.run()
				idle = 0
			}
			continue
		}
		if idle > 1<<10 {
			runtime.Gosched()
		}
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
		if spin > 1<<10 {
			runtime.Gosched()
		}
	}
	p.job.Store(nil)
	if r := j.panicked.Load(); r != nil {
		panic(*r)
	}
}
