package onnxq

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
)

// Benchmark is how long runs of a model take.
type Benchmark struct {
	Engine   string   `json:"engine"`
	Version  string   `json:"version,omitempty"` // of a runtime outside of this program
	Threads  int      `json:"threads"`           // 0: one per processor
	Runs     int      `json:"runs"`
	MedianMS float64  `json:"median_ms"`
	MinMS    float64  `json:"min_ms"`
	MaxMS    float64  `json:"max_ms"`
	PeakRSS  int64    `json:"peak_rss_bytes"` // of the process, before operators were timed; 0 where the system does not tell
	Ops      []OpCost `json:"ops"`
}

// OpCost is the part that one operator has in the time of a run.
type OpCost struct {
	Op    string  `json:"op"`
	Calls float64 `json:"calls"` // a run
	MS    float64 `json:"ms"`    // a run
	Share float64 `json:"share"` // of the time of all operators
}

const (
	// benchTime is how long runs are repeated that nobody counted.
	benchTime = 2 * time.Second
	// maxBenchSamples bounds the samples that are held in memory.
	maxBenchSamples = 64
)

// Bench measures runs of m on the samples that o names, in turn, after one
// that does not count; runs is their number, 0 for about two seconds of them.
// The times by operator come from further runs.
func Bench(ctx context.Context, m *graph.Model, o Options, runs int) (*Benchmark, error) {
	release, err := o.bound(m)
	if err != nil {
		return nil, err
	}
	defer release()
	m = o.renamed(ctx, m, o.Data)
	src, err := Open(ctx, m, o.Data, o)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	if src = o.limit(src); src.Len() > maxBenchSamples {
		src = src.First(maxBenchSamples)
	}
	var feeds []int
	loaded := make([]map[string]ops.Data, src.Len())
	for i := range src.Len() {
		feed, err := src.Load(ctx, i)
		if err != nil {
			if src.Skip(i, err) {
				continue
			}
			return nil, suggest(m, src.AllBad(ctx, err))
		}
		loaded[i] = feedData(feed)
		feeds = append(feeds, i)
	}
	if len(feeds) == 0 {
		return nil, fmt.Errorf("bench: no sample to run on")
	}
	once := func(r *runner, i int) (time.Duration, error) {
		i = feeds[i%len(feeds)]
		in := make(map[string]ops.Data, len(loaded[i]))
		for k, d := range loaded[i] {
			in[k] = d
		}
		start := time.Now()
		_, err := r.run(ctx, src.Sample(i), in)
		return time.Since(start), err
	}
	o.transient = true
	r, err := newRunner(ctx, m, o)
	if err != nil {
		return nil, err
	}
	defer func() { r.close() }()
	if _, err := once(r, 0); err != nil {
		return nil, err
	}
	var times []float64
	for start := time.Now(); len(times) < runs || runs == 0 && (len(times) < 5 || time.Since(start) < benchTime); {
		d, err := once(r, len(times))
		if err != nil {
			return nil, err
		}
		times = append(times, d.Seconds()*1e3)
		o.progress("bench", len(times), runs)
	}
	b := &Benchmark{Engine: o.engine().Name(), Version: o.engine().Version(), Threads: o.Threads, Runs: len(times), PeakRSS: peakRSS(), Ops: []OpCost{}}
	n := max(1, min(len(times)/4, 100))
	slices.Sort(times)
	b.MinMS, b.MedianMS, b.MaxMS = times[0], (times[(len(times)-1)/2]+times[len(times)/2])/2, times[len(times)-1]

	o.profile = true
	p, err := newRunner(ctx, m, o)
	if err != nil {
		return nil, err
	}
	r.close()
	r = p
	for i := range n {
		if _, err := once(r, i); err != nil {
			return nil, err
		}
	}
	profile, err := r.session.Profile()
	if err != nil {
		return nil, err
	}
	var total float64
	for _, t := range profile {
		c := OpCost{Op: t.Op.String(), Calls: float64(t.Count) / float64(n), MS: t.Time.Seconds() * 1e3 / float64(n)}
		total += c.MS
		b.Ops = append(b.Ops, c)
	}
	for i := range b.Ops {
		b.Ops[i].Share = b.Ops[i].MS / max(total, 1e-9)
	}
	return b, nil
}
