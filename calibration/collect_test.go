package calibration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// collectModel multiplies and, for a first element above 0, takes a branch.
const collectModel = `<ir_version: 8, opset_import: ["" : 13]>
g (float[4] x) => (float[4] y)
<float[4] k = {1,-2,3,0.1}, float zero = {0}, int64 first = {0}>
{
  m = Mul (x, k)
  e = Gather (x, first)
  c = Greater (e, zero)
  [if] y = If (c) <then_branch = t () => (float[4] p) { p = Relu (m) }, else_branch = f () => (float[4] q) { q = Tanh (m) }>
}
`

// collector is a model and the samples that it is run on.
type collector struct {
	prog  *exec.Program
	watch []quant.Watch
	path  string
	ids   map[string]int
}

// newCollector makes n samples, of which those in bad hold another shape.
func newCollector(t *testing.T, n int, positive bool, bad ...int) *collector {
	t.Helper()
	m, err := graph.Parse(collectModel)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Infer(m); err != nil {
		t.Fatal(err)
	}
	c := &collector{watch: make([]quant.Watch, m.NumValues()), ids: map[string]int{}}
	taps := make([]bool, m.NumValues())
	for g := range m.Scopes() {
		for node := range g.Nodes() {
			if v := node.Output(0); v.Type.Elem == tensor.Float32 || v.Type.Elem == tensor.Undefined {
				c.watch[v.ID] = quant.Watch{Observe: true, Channels: len(v.Type.Shape) == 1, Axis: -1}
				taps[v.ID] = true
				c.ids[v.Name()] = v.ID
			}
		}
	}
	if c.prog, err = exec.Compile(m, exec.Options{Taps: taps}); err != nil {
		t.Fatal(err)
	}
	var lines bytes.Buffer
	for i := range n {
		x := []float64{float64(i%5) - 2, float64(i), 0.3 * float64(i*i%7), -float64(i % 3)}
		if positive {
			x[0] = 1
		}
		for _, b := range bad {
			if b == i {
				x = x[:3]
			}
		}
		b, err := json.Marshal(map[string]any{"x": x})
		if err != nil {
			t.Fatal(err)
		}
		lines.Write(append(b, '\n'))
	}
	c.path = filepath.Join(t.TempDir(), "s.jsonl")
	if err := os.WriteFile(c.path, lines.Bytes(), 0o666); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *collector) source(t *testing.T, o calibration.Options) *calibration.Source {
	t.Helper()
	in := []calibration.Input{{Name: "x", DType: tensor.Float32, Shape: []int{4}}}
	s, err := calibration.Open(t.Context(), []string{c.path}, in, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func encode(t *testing.T, table *calibration.Table) string {
	t.Helper()
	var b bytes.Buffer
	if err := table.Encode(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestCollectSameForAnyThreads(t *testing.T) {
	c := newCollector(t, 41, false)
	want := ""
	for _, threads := range []int{1, 2, 7, 64} {
		table, err := calibration.Collect(t.Context(), c.prog, c.source(t, calibration.Options{}), calibration.CollectOptions{Watch: c.watch, Model: "m", Session: exec.SessionOptions{Threads: threads}})
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			want = encode(t, table)
		}
		if encode(t, table) != want {
			t.Errorf("%d threads give another table", threads)
		}
		if !table.Complete() {
			t.Error("the table is not complete")
		}
		m := table.Values["m"]
		if m == nil || m.Count != 41*4 || m.Min != -80 || m.Max < 3.59 || m.Max > 3.61 {
			t.Errorf("m: %d elements in [%g, %g]", m.Count, m.Min, m.Max)
		}
		// 16 of 41 samples have a first element above 0.
		if p, q := table.Values["if/then_branch/p"], table.Values["if/else_branch/q"]; p == nil || q == nil || p.Count != 16*4 || q.Count != 25*4 {
			t.Error("the branches have seen other samples")
		}
	}
}

func TestCollectShards(t *testing.T) {
	c := newCollector(t, 23, false)
	whole, err := calibration.Collect(t.Context(), c.prog, c.source(t, calibration.Options{}), calibration.CollectOptions{Watch: c.watch, Model: "m"})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{2, 3, 23} {
		var tables []*calibration.Table
		for i := range n {
			src := c.source(t, calibration.Options{})
			table, err := calibration.Collect(t.Context(), c.prog, src.Shard(i, n), calibration.CollectOptions{Watch: c.watch, Model: "m", Shard: i, Shards: n, Total: src.Len(), Session: exec.SessionOptions{Threads: 1 + i%3}})
			if err != nil {
				t.Fatal(err)
			}
			tables = append([]*calibration.Table{table}, tables...)
		}
		merged, err := calibration.Merge(tables...)
		if err != nil {
			t.Fatal(err)
		}
		if encode(t, merged) != encode(t, whole) {
			t.Errorf("%d shards give another table", n)
		}
	}
}

// A branch that no sample takes leaves no statistics.
func TestCollectUnreached(t *testing.T) {
	c := newCollector(t, 5, true)
	table, err := calibration.Collect(t.Context(), c.prog, c.source(t, calibration.Options{}), calibration.CollectOptions{Watch: c.watch})
	if err != nil {
		t.Fatal(err)
	}
	if table.Values["if/else_branch/q"] != nil || table.Values["if/then_branch/p"] == nil {
		t.Error("statistics of the wrong branch")
	}
}

// The error is that of the first bad sample, for any number of threads.
func TestCollectFirstBadSample(t *testing.T) {
	c := newCollector(t, 60, false, 59, 17, 18, 41)
	want := ""
	for _, threads := range []int{1, 2, 7} {
		for range 5 {
			_, err := calibration.Collect(t.Context(), c.prog, c.source(t, calibration.Options{}), calibration.CollectOptions{Watch: c.watch, Session: exec.SessionOptions{Threads: threads}})
			var bad *calibration.DataError
			if !errors.As(err, &bad) || !strings.HasSuffix(bad.Sample, "17") {
				t.Fatalf("%d threads: error %v", threads, err)
			}
			if want == "" {
				want = err.Error()
			}
			if err.Error() != want {
				t.Errorf("%d threads: error %v, want %s", threads, err, want)
			}
		}
	}
}

func TestCollectSkipsBadSamples(t *testing.T) {
	c := newCollector(t, 20, false, 3, 11)
	want := ""
	for _, threads := range []int{1, 2, 7} {
		table, err := calibration.Collect(t.Context(), c.prog, c.source(t, calibration.Options{SkipBad: 2}), calibration.CollectOptions{Watch: c.watch, Session: exec.SessionOptions{Threads: threads}})
		if err != nil {
			t.Fatal(err)
		}
		if len(table.Samples) != 18 || len(table.Skipped) != 2 || table.Skipped[0].Index != 3 || table.Skipped[1].Index != 11 || table.Skipped[0].Error == "" {
			t.Errorf("samples %v, skipped %v", table.Samples, table.Skipped)
		}
		if table.Values["m"].Count != 18*4 {
			t.Errorf("%d elements", table.Values["m"].Count)
		}
		if want == "" {
			want = encode(t, table)
		}
		if encode(t, table) != want {
			t.Errorf("%d threads give another table", threads)
		}
	}
}

func TestCollectCancelled(t *testing.T) {
	c := newCollector(t, 300, false)
	for _, at := range []int{0, 1, 50} {
		ctx, cancel := context.WithCancel(t.Context())
		if at == 0 {
			cancel()
		}
		_, err := calibration.Collect(ctx, c.prog, c.source(t, calibration.Options{}), calibration.CollectOptions{
			Watch: c.watch, Session: exec.SessionOptions{Threads: 2},
			Progress: func(done, total int) {
				if done == at {
					cancel()
				}
				if total != 300 {
					panic(fmt.Sprint(total, " samples"))
				}
			},
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled after %d samples: error %v", at, err)
		}
		cancel()
	}
}

// A checkpoint taken at any sample and taken up again gives the table of an
// undivided run.
func TestCollectResume(t *testing.T) {
	c := newCollector(t, 30, false)
	o := calibration.CollectOptions{Watch: c.watch, Model: "m", Measured: []int{0, 3, 14, 20}, Session: exec.SessionOptions{Threads: 2}}
	whole, err := calibration.Collect(t.Context(), c.prog, c.source(t, calibration.Options{}), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{1, 13, 29} {
		ctx, cancel := context.WithCancel(t.Context())
		first := o
		first.Progress = func(done, _ int) {
			if done == at {
				cancel()
			}
		}
		first.Checkpoint, first.CheckpointEvery = filepath.Join(t.TempDir(), "t.json"), 1<<62
		if _, err := calibration.Collect(ctx, c.prog, c.source(t, calibration.Options{}), first); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		saved, err := calibration.Load(first.Checkpoint)
		if err != nil || len(saved.Samples) < at {
			t.Fatalf("after %d samples: checkpoint of %v, %v", at, saved, err)
		}
		second := o
		second.Resume = saved
		table, err := calibration.Collect(t.Context(), c.prog, c.source(t, calibration.Options{}), second)
		if err != nil {
			t.Fatal(err)
		}
		if encode(t, table) != encode(t, whole) {
			t.Errorf("another table after resuming at %d", at)
		}
	}
	wrong := o
	wrong.Resume, wrong.Model = whole, "another"
	var e *calibration.ResumeError
	if _, err := calibration.Collect(t.Context(), c.prog, c.source(t, calibration.Options{}), wrong); !errors.As(err, &e) {
		t.Errorf("resumed a run of another model: error %v", err)
	}
}

// NaN in a sample is an error that names tensor and sample.
func TestCollectNotFinite(t *testing.T) {
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : 13]> g (float[1] x) => (float[1] y) { l = Log (x) y = Relu (l) }`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Infer(m); err != nil {
		t.Fatal(err)
	}
	prog, err := exec.Compile(m, exec.Options{Taps: []bool{true, true, true}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s.jsonl")
	if err := os.WriteFile(path, []byte("{\"x\": [1]}\n{\"x\": [-1]}\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	src, err := calibration.Open(t.Context(), []string{path}, []calibration.Input{{Name: "x", DType: tensor.Float32, Shape: []int{1}}}, calibration.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	watch := make([]quant.Watch, m.NumValues())
	for i := range watch {
		watch[i].Observe = true
	}
	table, err := calibration.Collect(t.Context(), prog, src, calibration.CollectOptions{Watch: watch})
	if err == nil {
		l := table.Values["l"]
		if l.NaN != 1 || l.Count != 1 {
			t.Errorf("%d NaN, %d elements", l.NaN, l.Count)
		}
		if _, err = calibration.Range(l, calibration.MinMax, calibration.MethodOptions{Scheme: quant.Scheme{Type: quant.U8, Axis: -1}}); err == nil {
			t.Error("a range in spite of NaN")
		}
	} else if !strings.Contains(err.Error(), `"l"`) {
		t.Errorf("error %v", err)
	}
}
