package calibration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/atomicfile"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// CollectOptions say what Collect observes and how.
type CollectOptions struct {
	Watch []quant.Watch // by graph.Value.ID
	// Model identifies the model, and Settings the run, in the table.
	Model    string
	Settings TableOptions
	// Shard of Shards, counted from 0, is what src holds of Total samples; with
	// Shards 0 it holds all.
	Shard, Shards, Total int
	// Measured holds the Index of each sample that decisions will be measured
	// on, sorted, and Sources how the samples were named; both go into the
	// table.
	Measured []int
	Sources  []string

	// State is fed back from sample to sample within a file; the samples of a
	// file then run one after the other.
	State []Feedback

	// Resume is the table of an earlier run over the same samples that did not
	// get through them. What it covers is not observed again.
	Resume *Table
	// Checkpoint is a file that the table of the samples that are through is
	// saved to: about every CheckpointEvery, and when ctx ends if the samples in
	// flight get through within a short time. "" for none.
	Checkpoint      string
	CheckpointEvery time.Duration

	// Session bounds the runs. Threads is the number of samples that run at
	// the same time; MaxBytes and Ceiling are for all of these together.
	Session exec.SessionOptions
	// Progress is called after each sample, one call at a time.
	Progress func(done, total int)
}

// ValueKey is the name of a value in Table.Values: its own in the main graph,
// behind its scope and a slash elsewhere.
func ValueKey(v *graph.Value) string {
	if s := v.Graph().Scope(); s != graph.MainScope {
		return s + "/" + v.Name()
	}
	return v.Name()
}

// Observable yields what a run of m can observe: the inputs and the results of
// nodes of all graphs.
func Observable(m *graph.Model) iter.Seq[*graph.Value] {
	return func(yield func(*graph.Value) bool) {
		for g := range m.Scopes() {
			for _, v := range g.Inputs() {
				if !yield(v) {
					return
				}
			}
			for n := range g.Nodes() {
				for _, v := range n.Outputs() {
					if v != nil && !yield(v) {
						return
					}
				}
			}
		}
	}
}

// ResumeError says that CollectOptions.Resume is of another run.
type ResumeError struct{ Err error }

// Error says what differs.
func (e *ResumeError) Error() string { return "cannot resume: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *ResumeError) Unwrap() error { return e.Err }

// grace is how long samples in flight may go on after the end of the context,
// so that a checkpoint can be made.
const grace = 300 * time.Millisecond

// Collect runs every sample of src through prog and observes values as they
// are produced; no activation is kept. Samples run in parallel, each on one
// thread; the statistics depend neither on that nor on the order in which
// samples finish.
func Collect(ctx context.Context, prog exec.Executable, src *Source, o CollectOptions) (*Table, error) {
	if o.Settings.Bins == 0 {
		o.Settings.Bins = DefaultBins
	}
	if o.Shards == 0 {
		o.Shards, o.Total = 1, src.Len()
	}
	if _, err := NewState(prog.Model().Graph, o.State); err != nil {
		return nil, err
	}
	if len(o.State) > 0 && len(o.Measured) > 0 {
		return nil, errors.New("calibrate: samples that follow one another cannot be left out of statistics one by one")
	}
	c := &collector{o: o, src: src, prog: prog}
	for _, run := range sequences(src, len(o.State) > 0) {
		part := 0
		if c.isMeasured(run[0]) {
			part = 1
		}
		c.runs[part] = append(c.runs[part], run)
	}
	if err := c.watch(); err != nil {
		return nil, err
	}
	workers := max(1, min(par.New(o.Session.Threads).Threads(), max(len(c.runs[0]), len(c.runs[1]))))
	t, err := c.collect(ctx, workers)
	if workers > 1 && errors.Is(err, exec.ErrLimit) && ctx.Err() == nil {
		// One sample at a time may fit.
		debug.FreeOSMemory()
		return c.collect(ctx, 1)
	}
	return t, err
}

// collect runs all samples, at most so many at a time.
func (c *collector) collect(ctx context.Context, workers int) (*Table, error) {
	o := &c.o
	n := c.src.Len()
	c.through, c.digests, c.last, c.failed, c.err, c.queue, c.count, c.broken, c.unseen = make([]bool, n), make([]uint64, n), time.Now(), n, nil, c.runs[0], 0, false, nil
	if err := c.resume(); err != nil {
		return nil, &ResumeError{err}
	}
	// Samples end with runCtx, which outlasts ctx a little where a checkpoint
	// is to be made.
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	delay := time.Duration(0)
	if o.Checkpoint != "" {
		delay = grace
	}
	defer context.AfterFunc(ctx, func() {
		if delay > 0 {
			time.Sleep(delay)
		}
		stop()
	})()

	c.values = make([][]*Observer, workers)
	for w := range c.values {
		c.values[w] = make([]*Observer, len(o.Watch))
	}
	open := func() (exec.Runner, error) {
		so := o.Session
		so.Threads, so.Frugal, so.Transient = 1, true, true
		so.MaxBytes /= int64(workers)
		so.Ceiling /= int64(workers)
		return c.prog.Open(ctx, so)
	}
	first, err := open()
	if err != nil {
		return nil, err
	}
	sessions := []exec.Runner{first}
	closeAll := func() {
		for _, s := range sessions {
			s.Close()
		}
		sessions = nil
	}
	defer closeAll()
	if o.Session.Process != nil {
		// What the first samples take says how many can run side by side.
		before := o.Session.Process.Left()
		c.work(ctx, runCtx, first, 0, 1)
		left := o.Session.Process.Left()
		each := max(before-left, 1<<20)
		workers = int(max(1, min(int64(workers), 1+left*3/4/each)))
	}
	for len(sessions) < workers {
		session, err := open()
		if err != nil {
			return nil, err
		}
		sessions = append(sessions, session)
	}
	run := func() {
		var wg sync.WaitGroup
		for w, session := range sessions {
			wg.Go(func() { c.work(ctx, runCtx, session, w, n) })
		}
		wg.Wait()
	}
	run()
	if len(o.Measured) > 0 && ctx.Err() == nil {
		// Which sample is the first bad one is known at the end only.
		if err := c.pack(); err != nil && c.err == nil {
			return nil, err
		}
		c.queue = c.runs[1]
		run()
	}
	if ctx.Err() != nil {
		if o.Checkpoint != "" && !c.broken {
			if err := c.checkpoint(); err != nil {
				return nil, errors.Join(ctx.Err(), err)
			}
		}
		return nil, ctx.Err()
	}
	if c.err != nil {
		if _, err := c.src.Load(ctx, c.failed); err == nil {
			return nil, c.err // the model refuses what can be read
		}
		return nil, c.src.AllBad(ctx, c.err)
	}
	// The table takes the place of what the samples needed.
	closeAll()
	runtime.GC()
	return c.table()
}

// sequences cuts the samples into what has to run one after the other: [from,
// to).
func sequences(src *Source, state bool) [][2]int {
	var out [][2]int
	for i := range src.Len() {
		if !state || i == 0 || src.Sample(i).Row == 0 || src.Sample(i).Path != src.Sample(i-1).Path {
			out = append(out, [2]int{i, i})
		}
		out[len(out)-1][1] = i + 1
	}
	return out
}

// collector is the state that the workers of Collect share.
type collector struct {
	o      CollectOptions
	src    *Source
	prog   exec.Executable
	runs   [2][][2]int // of samples that are not in o.Measured, and those that are
	wanted []bool
	keys   []watched     // by key
	values [][]*Observer // by worker and value ID
	// unseen has the statistics, as they stand in a table's file, of the samples
	// that are not in o.Measured, once they all are through: so the others
	// need no observers of their own.
	unseen map[string]json.RawMessage
	done   []bool // samples that Resume covers

	// pause is held for reading while a sample runs, for writing while a
	// checkpoint is made.
	pause sync.RWMutex

	garbage atomic.Int64 // bytes of samples since the last collection

	mu      sync.Mutex
	queue   [][2]int // runs to come
	through []bool   // samples that were observed or skipped
	digests []uint64 // of those observed
	count   int
	failed  int // lowest sample that failed
	err     error
	broken  bool // a sample was cut off while its values were observed
	last    time.Time
}

// watched is a value that is observed, by its name in the table.
type watched struct {
	key string
	v   *graph.Value
}

// watch lists what is observed.
func (c *collector) watch() error {
	c.wanted = make([]bool, len(c.o.Watch))
	for v := range Observable(c.prog.Model()) {
		if v.ID < len(c.wanted) && c.o.Watch[v.ID].Observe {
			c.wanted[v.ID] = true
			c.keys = append(c.keys, watched{ValueKey(v), v})
		}
	}
	slices.SortStableFunc(c.keys, func(a, b watched) int { return strings.Compare(a.key, b.key) })
	for i := 1; i < len(c.keys); i++ {
		if k := c.keys[i]; k.key == c.keys[i-1].key {
			return graph.ValueError("calibrate", k.v, fmt.Errorf("two values are called %q", k.key))
		}
	}
	return nil
}

// resume marks the samples that an earlier run dealt with.
func (c *collector) resume() error {
	c.done = make([]bool, c.src.Len())
	t := c.o.Resume
	if t == nil {
		return nil
	}
	if err := c.head().sameRun(t); err != nil {
		return err
	}
	covered := map[int]bool{}
	for _, k := range t.Done() {
		covered[k] = true
	}
	for i := range c.src.Len() {
		if c.done[i] = covered[c.src.Sample(i).Index]; c.done[i] {
			c.count++
			delete(covered, c.src.Sample(i).Index)
		}
	}
	if len(covered) > 0 {
		return errors.New("the earlier run holds samples that are not among these")
	}
	return nil
}

// sameRun returns an error unless u is a table of the same run and shard.
func (t *Table) sameRun(u *Table) error {
	for _, c := range []struct {
		what string
		same bool
	}{
		{"another model", t.Model == u.Model},
		{"other data", t.Data == u.Data && t.Total == u.Total},
		{"other options", t.Options.equal(u.Options)},
		{"another choice of samples to measure on", slices.Equal(t.Measured, u.Measured)},
		{"another shard", t.Shards == u.Shards && slices.Equal(t.Have, u.Have)},
	} {
		if !c.same {
			return fmt.Errorf("the earlier run was of %s", c.what)
		}
	}
	return nil
}

// take returns the next sequence to run. After a failure only those that begin
// before the failed sample are handed out, so that the error is that of the
// first bad sample whatever the number of workers.
func (c *collector) take() (run [2]int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 || c.queue[0][0] >= c.failed {
		return run, false
	}
	run, c.queue = c.queue[0], c.queue[1:]
	return run, true
}

// blocked returns the channels of a value that comes in blocks, else 0.
func (c *collector) blocked(v *graph.Value) int {
	if p, ok := c.prog.(interface{ Blocked(*graph.Value) int }); ok {
		return p.Blocked(v)
	}
	return 0
}

// isMeasured reports whether sample i is in o.Measured.
func (c *collector) isMeasured(i int) bool {
	_, found := slices.BinarySearch(c.o.Measured, c.src.Sample(i).Index)
	return found
}

func (c *collector) fail(i int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i < c.failed {
		c.failed, c.err = i, err
	}
}

// work runs sequences, at most so many, until there are none left.
func (c *collector) work(ctx, runCtx context.Context, session exec.Runner, worker, most int) {
	state, err := NewState(c.prog.Model().Graph, c.o.State)
	if err != nil {
		c.fail(0, err)
		return
	}
	for range most {
		run, ok := c.take()
		if !ok {
			return
		}
		state.Reset()
		for i := run[0]; i < run[1]; i++ {
			if ctx.Err() != nil {
				return
			}
			if c.done[i] && len(c.o.State) == 0 {
				continue
			}
			c.pause.RLock()
			err := c.sample(runCtx, session, state, i, worker)
			c.pause.RUnlock()
			if err == nil {
				err = c.maybeCheckpoint(ctx)
			}
			if err != nil {
				c.fail(i, err)
				break
			}
		}
	}
}

// maybeCheckpoint makes a checkpoint if it is time for one.
func (c *collector) maybeCheckpoint(ctx context.Context) error {
	if c.o.Checkpoint == "" || ctx.Err() != nil {
		return nil
	}
	c.mu.Lock()
	due := time.Since(c.last) >= c.o.CheckpointEvery
	if due {
		c.last = time.Now()
	}
	c.mu.Unlock()
	if !due {
		return nil
	}
	c.pause.Lock()
	defer c.pause.Unlock()
	return c.checkpoint()
}

// checkpoint saves the table so far. A value after the other is made of what the
// workers have, so that it takes no more memory than that of one.
func (c *collector) checkpoint() error {
	t := c.head()
	var failed error
	var room Stats
	list := func(of func(*Stats, watched) (*Stats, error)) iter.Seq2[string, *Stats] {
		return func(yield func(string, *Stats) bool) {
			for _, k := range c.keys {
				var s *Stats
				if s, failed = of(&room, k); failed != nil || s != nil && !yield(k.key, s) {
					return
				}
			}
		}
	}
	return atomicfile.Write(c.o.Checkpoint, 0o644, func(w io.Writer) error {
		if err := t.encode(w, list(c.allOf), list(c.unseenOf)); err != nil {
			return err
		}
		return failed
	})
}

func (c *collector) sample(ctx context.Context, session exec.Runner, state *State, i, worker int) error {
	feed, err := c.src.Load(ctx, i)
	if err != nil {
		if !c.src.Skip(i, err) {
			return err
		}
		c.finish(i, 0)
		return nil
	}
	digest := feed.Digest()
	in := make(map[string]ops.Data, len(feed))
	for k, t := range feed {
		in[k] = t
	}
	info := c.src.Sample(i)
	bad := func(err error) error { return &DataError{Path: info.Path, Sample: info.Name, Err: err} }
	if c.done[i] {
		// A sample that is run again for the state behind it.
		if was, ok := c.o.Resume.Digest(info.Index); ok && was != digest {
			return bad(errors.New("it has changed since the earlier run"))
		}
	}
	if err := state.Feed(in); err != nil {
		return bad(err)
	}
	tap := func(v *graph.Value, t *tensor.Tensor) error {
		if t.DType() != tensor.Float32 {
			return nil
		}
		w := c.o.Watch[v.ID]
		ob := c.values[worker][v.ID]
		if ob == nil {
			axis := -1
			if w.Channels {
				if axis = w.Axis; axis < 0 {
					axis += t.Rank()
				}
			}
			ob = NewObserver(c.o.Settings.Bins, axis)
			c.values[worker][v.ID] = ob
		}
		var err error
		if channels := c.blocked(v); channels > 0 {
			err = ob.UpdateBlocks(info.Index, t.Shape(), channels, tensor.As[float32](t))
		} else {
			err = ob.Update(info.Index, t.Shape(), tensor.As[float32](t))
		}
		if err != nil {
			return graph.ValueError("calibrate", v, err)
		}
		return nil
	}
	wanted := c.wanted
	if c.done[i] {
		tap, wanted = nil, nil
	}
	out, err := session.Run(ctx, in, tap, wanted)
	if err != nil {
		c.mu.Lock()
		c.broken = true
		c.mu.Unlock()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return bad(err)
	}
	state.Keep(out)
	c.discard(feed, out)
	if !c.done[i] {
		c.finish(i, digest)
	}
	return nil
}

// discardLimit is the number of bytes of samples and outputs that may wait for
// the garbage collector, which by itself waits until the heap has doubled: so
// memory does not grow with the number of samples.
const discardLimit = 8 << 20

// discard notes that a sample is not needed any more.
func (c *collector) discard(feed Feed, out []ops.Data) {
	size := int64(0)
	for _, t := range feed {
		size += 2 * int64(len(t.Bytes())) // read and converted
	}
	// An engine may lend its outputs, or make new ones each time.
	for _, d := range out {
		if t, ok := d.(*tensor.Tensor); ok {
			size += int64(len(t.Bytes()))
		}
	}
	if c.garbage.Add(size) >= discardLimit {
		c.garbage.Store(0)
		runtime.GC()
	}
}

// finish notes that sample i is through, and what it held.
func (c *collector) finish(i int, digest uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.through[i], c.digests[i] = true, digest
	c.count++
	if c.o.Progress != nil {
		c.o.Progress(c.count, c.src.Len())
	}
}

// head returns a table of what is through, without the values.
func (c *collector) head() *Table {
	t := &Table{
		Model: c.o.Model, Data: c.src.Hash(), Options: c.o.Settings, Total: c.o.Total,
		Shards: c.o.Shards, Have: []int{c.o.Shard}, Values: map[string]*Stats{},
		Measured: c.o.Measured, Sources: c.o.Sources,
	}
	if len(c.o.Measured) > 0 {
		t.Unseen = map[string]*Stats{}
	}
	skipped := map[int]bool{}
	for _, e := range c.src.Skipped() {
		for i := range c.src.Len() {
			if s := c.src.Sample(i); s.Name == e.Sample && !skipped[s.Index] {
				skipped[s.Index] = true
				t.Skipped = append(t.Skipped, SkippedSample{s.Index, s.Name, e.Err.Error()})
				break
			}
		}
	}
	for i := range c.src.Len() {
		if s := c.src.Sample(i); c.through[i] && !skipped[s.Index] {
			t.Samples = append(t.Samples, TableSample{s.Index, c.digests[i]})
		}
	}
	if r := c.o.Resume; r != nil {
		t.Samples = append(t.Samples, r.Samples...)
		t.Skipped = append(t.Skipped, r.Skipped...)
		t.sortSamples()
	}
	for _, k := range c.keys {
		if len(c.parts(k, false)) == 0 {
			t.Unreached = append(t.Unreached, k.key)
		}
	}
	return t
}

// parts returns the statistics of a value that belong together: of what has been
// observed, with what the earlier run has of all samples, or of those that are
// not in o.Measured.
func (c *collector) parts(k watched, unseen bool) []*Stats {
	var out []*Stats
	for _, observers := range c.values {
		if ob := observers[k.v.ID]; ob != nil {
			out = append(out, ob.Stats())
		}
	}
	if r := c.o.Resume; r != nil {
		values := r.Values
		if unseen {
			values = r.Unseen
		}
		if s := values[k.key]; s != nil {
			out = append(out, s)
		}
	}
	return out
}

// sumOf returns the sum of statistics of v, in the memory of room, or nil where
// there are none.
func sumOf(room *Stats, list []*Stats, v *graph.Value) (*Stats, error) {
	if len(list) == 0 {
		return nil, nil
	}
	room.set(list[0])
	for _, p := range list[1:] {
		if err := room.Merge(p); err != nil {
			return nil, graph.ValueError("calibrate", v, err)
		}
	}
	return room, nil
}

// allOf returns the statistics of all samples, in the memory of room, or nil
// where there are none.
func (c *collector) allOf(room *Stats, k watched) (*Stats, error) {
	return sumOf(room, c.parts(k, false), k.v)
}

// unseenOf returns the statistics of the samples that are not in o.Measured,
// maybe in the memory of room, or nil where there are none.
func (c *collector) unseenOf(room *Stats, k watched) (*Stats, error) {
	if c.unseen == nil {
		return sumOf(room, c.parts(k, true), k.v)
	}
	packed := c.unseen[k.key]
	if packed == nil {
		return nil, nil
	}
	return decodeStats(packed, c.o.Settings.Bins)
}

// pack makes c.unseen of what has been observed.
func (c *collector) pack() error {
	unseen := map[string]json.RawMessage{}
	var room Stats
	var wr writer
	for _, k := range c.keys {
		s, err := sumOf(&room, c.parts(k, true), k.v)
		if err != nil {
			return err
		}
		if s == nil {
			continue
		}
		b, err := wr.stats(s)
		if err != nil {
			return graph.ValueError("calibrate", k.v, err)
		}
		unseen[k.key] = slices.Clone(b)
	}
	c.unseen = unseen
	return nil
}

// table merges what the workers saw and the earlier run, and lets go of the
// observers.
func (c *collector) table() (*Table, error) {
	t := c.head()
	for _, k := range c.keys {
		s, err := c.allOf(new(Stats), k)
		if err != nil {
			return nil, err
		}
		for _, observers := range c.values {
			observers[k.v.ID] = nil
		}
		if s == nil {
			continue
		}
		t.Values[k.key] = s
		if t.Unseen == nil {
			continue
		}
		if s, err = c.unseenOf(nil, k); err != nil {
			return nil, err
		}
		if s != nil {
			t.Unseen[k.key] = s
		}
	}
	return t, nil
}
