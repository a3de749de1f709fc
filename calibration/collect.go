package calibration

import (
	"context"
	"fmt"
	"sync"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
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
	// Shard of Shards is what src holds of Total samples; with Shards 0 it
	// holds all.
	Shard, Shards, Total int

	Threads  int   // samples that run at the same time; 0: one per processor
	MaxBytes int64 // bound on the tensors of all runs together; 0: none
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

// Collect runs every sample of src through prog and observes values as they
// are produced; no activation is kept. Samples run in parallel, each on one
// thread; the statistics depend neither on that nor on the order in which
// samples finish. Values that no sample produced are not in the table.
func Collect(ctx context.Context, prog *exec.Program, src *Source, o CollectOptions) (*Table, error) {
	if o.Settings.Bins == 0 {
		o.Settings.Bins = DefaultBins
	}
	if o.Shards == 0 {
		o.Shards, o.Total = 1, src.Len()
	}
	workers := max(1, min(par.New(o.Threads).Threads(), src.Len()))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &collector{o: o, src: src, values: make([][]*Observer, workers), failed: src.Len()}
	wanted := make([]bool, len(o.Watch))
	for i, w := range o.Watch {
		wanted[i] = w.Observe
	}
	var wg sync.WaitGroup
	for w := range workers {
		c.values[w] = make([]*Observer, len(o.Watch))
		session := prog.NewSession(exec.SessionOptions{Threads: 1, MaxBytes: o.MaxBytes / int64(workers)})
		wg.Go(func() {
			for {
				i := c.take()
				if i < 0 || ctx.Err() != nil {
					return
				}
				if err := c.sample(ctx, session, i, w, wanted); err != nil {
					c.fail(i, err)
				}
			}
		})
	}
	wg.Wait()
	if c.err != nil {
		return nil, c.err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return c.table(prog.Model())
}

// collector is the state that the workers of Collect share.
type collector struct {
	o      CollectOptions
	src    *Source
	values [][]*Observer // by worker and value ID

	mu     sync.Mutex
	next   int
	done   int
	failed int // lowest sample that failed
	err    error
}

// take returns the next sample to run, or -1. After a failure only samples
// before the failed one are handed out, so that the error is that of the first
// bad sample whatever the number of workers.
func (c *collector) take() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next >= c.failed {
		return -1
	}
	c.next++
	return c.next - 1
}

func (c *collector) fail(i int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i < c.failed {
		c.failed, c.err = i, err
	}
}

func (c *collector) sample(ctx context.Context, session *exec.Session, i, worker int, wanted []bool) error {
	feed, err := c.src.Load(ctx, i)
	if err != nil {
		if c.src.Skip(i, err) {
			return nil
		}
		return err
	}
	in := make(map[string]ops.Data, len(feed))
	for k, t := range feed {
		in[k] = t
	}
	info := c.src.Sample(i)
	observers := c.values[worker]
	tap := func(v *graph.Value, t *tensor.Tensor) error {
		if t.DType() != tensor.Float32 {
			return nil
		}
		w := c.o.Watch[v.ID]
		ob := observers[v.ID]
		if ob == nil {
			axis := -1
			if w.Channels {
				if axis = w.Axis; axis < 0 {
					axis += t.Rank()
				}
			}
			ob = NewObserver(c.o.Settings.Bins, axis)
			observers[v.ID] = ob
		}
		if err := ob.Update(info.Index, t.Shape(), tensor.As[float32](t)); err != nil {
			return graph.ValueError("calibrate", v, err)
		}
		return nil
	}
	if _, err := session.Run(ctx, in, tap, wanted); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &DataError{Path: info.Path, Sample: info.Name, Err: err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done++
	if c.o.Progress != nil {
		c.o.Progress(c.done, c.src.Len())
	}
	return nil
}

// table merges what the workers saw.
func (c *collector) table(m *graph.Model) (*Table, error) {
	t := &Table{
		Model: c.o.Model, Data: c.src.Hash(), Options: c.o.Settings, Total: c.o.Total,
		Shards: c.o.Shards, Have: []int{c.o.Shard}, Values: map[string]*Stats{},
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
		if s := c.src.Sample(i); !skipped[s.Index] {
			t.Samples = append(t.Samples, s.Index)
		}
	}
	for g := range m.Scopes() {
		for _, v := range g.Inputs() {
			if err := c.add(t, v); err != nil {
				return nil, err
			}
		}
		for n := range g.Nodes() {
			for _, v := range n.Outputs() {
				if err := c.add(t, v); err != nil {
					return nil, err
				}
			}
		}
	}
	return t, nil
}

// add puts the merged statistics of v into t.
func (c *collector) add(t *Table, v *graph.Value) error {
	if v == nil || v.ID >= len(c.o.Watch) || !c.o.Watch[v.ID].Observe {
		return nil
	}
	var all *Observer
	for _, observers := range c.values {
		switch ob := observers[v.ID]; {
		case ob == nil:
		case all == nil:
			all = ob
		default:
			if err := all.Merge(ob); err != nil {
				return graph.ValueError("calibrate", v, err)
			}
		}
	}
	if all == nil {
		return nil
	}
	key := ValueKey(v)
	if t.Values[key] != nil {
		return graph.ValueError("calibrate", v, fmt.Errorf("two values are called %q", key))
	}
	t.Values[key] = all.Stats()
	return nil
}
