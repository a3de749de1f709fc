package onnxq_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/onnxq/onnxq"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/models"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

func sampleModel(name string) string { return filepath.Join("models", name, "model.onnx") }
func samples(name string) []string   { return []string{filepath.Join("models", name, "calib")} }

func quantize(t *testing.T, name string, o onnxq.Options) ([]byte, *onnxq.Result) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out.onnx")
	if o.Data == nil && o.Table == nil {
		o.Data = samples(name)
	}
	res, err := onnxq.Quantize(t.Context(), sampleModel(name), out, o)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b, res
}

func TestSameBytesForAnyThreads(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, s := range models.All() {
		var want []byte
		for _, n := range []int{1, 2, 7} {
			runtime.GOMAXPROCS(n)
			got, _ := quantize(t, s.Name, onnxq.Options{})
			if want == nil {
				want = got
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: another file with GOMAXPROCS=%d", s.Name, n)
			}
		}
		if got, _ := quantize(t, s.Name, onnxq.Options{Threads: 3}); !bytes.Equal(got, want) {
			t.Errorf("%s: another file with 3 threads", s.Name)
		}
	}
}

// TestOneThread quantizes on one thread in a process that has several: no loop has
// workers beside the caller, whatever the mode, but has where threads are left open.
func TestOneThread(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	works := func(stacks []byte) bool {
		return bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("par.(*Pool).work"))
	}
	// helped reports whether some goroutine was a worker of a loop while f ran.
	helped := func(f func()) bool {
		stacks := make([]byte, 1<<20)
		for works(stacks) { // those of before end by themselves
			time.Sleep(time.Millisecond)
		}
		done, seen := make(chan struct{}), make(chan bool)
		go func() {
			found := false
			for {
				select {
				case <-done:
					seen <- found
					return
				default:
				}
				found = found || works(stacks)
			}
		}()
		func() {
			defer close(done)
			f()
		}()
		return <-seen
	}
	options := []onnxq.Options{
		{Mode: onnxq.Static}, {}, {Weights: "i4"}, {Mode: onnxq.Dynamic}, {Mode: onnxq.Float16}, {BitsPerWeight: 6},
	}
	for _, o := range options {
		o.Data, o.Samples, o.Threads = samples("digits"), 24, 1
		// A worker that is seen once may be a late one of another test.
		tries := 0
		for tries < 3 && helped(func() { quantize(t, "digits", o) }) {
			tries++
		}
		if tries == 3 {
			t.Errorf("mode %q, weights %q: several threads worked", o.Mode, o.Weights)
		}
	}
	o := onnxq.Options{Mode: onnxq.Static, Data: samples("digits"), Samples: 24}
	if !helped(func() { quantize(t, "digits", o) }) {
		t.Error("workers are not seen where threads are left open, so nothing is known")
	}
}

func TestResultFields(t *testing.T) {
	b, res := quantize(t, "text", onnxq.Options{})
	if res.BytesIn != int64(len(models.Text().Model)) || res.BytesOut != int64(len(b)) {
		t.Errorf("bytes %d → %d, the files have %d → %d", res.BytesIn, res.BytesOut, len(models.Text().Model), len(b))
	}
	if res.Nodes != res.Quantized+len(res.Float) || res.Quantized == 0 {
		t.Errorf("%d nodes, %d quantized, %d float", res.Nodes, res.Quantized, len(res.Float))
	}
	for _, f := range res.Float {
		if f.Why == "" || f.Node == "" || f.Scope != graph.MainScope {
			t.Errorf("no reason or place: %+v", f)
		}
	}
	var in, out int64
	for _, w := range res.Weights {
		in, out = in+w.BytesIn, out+w.BytesOut
		if w.BytesOut > w.BytesIn {
			t.Errorf("%+v grew", w)
		}
	}
	if in != res.WeightBytesIn || out != res.WeightBytesOut || in == 0 || float64(out) > 0.3*float64(in) {
		t.Errorf("weights %d → %d, in sum %d → %d", res.WeightBytesIn, res.WeightBytesOut, in, out)
	}
	if len(res.Outputs) != 1 || res.SQNR == nil || *res.SQNR != *res.Outputs[0].SQNR || res.Measured != "held-out samples" {
		t.Errorf("outputs %+v, SQNR %v, measured on %s", res.Outputs, res.SQNR, res.Measured)
	}
	if res.Int8MACs <= 0 || res.Int8MACs > 1 || res.Seconds <= 0 || res.Mode == "" || res.Target != "ort-cpu" {
		t.Errorf("%+v", res)
	}
}

// A context that ends stops samples that would take hours, wherever they are.
func TestCancelled(t *testing.T) {
	for _, after := range []time.Duration{0, 20 * time.Millisecond, 300 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		dir := t.TempDir()
		out := filepath.Join(dir, "out.onnx")
		ended := make(chan error, 1)
		go func() {
			_, err := onnxq.Quantize(ctx, sampleModel("text"), out, onnxq.Options{Data: []string{"random:100000"}})
			ended <- err
		}()
		select {
		case err := <-ended:
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("after %v: %v", after, err)
			}
		case <-time.After(2 * time.Minute): // more than any machine is busy with something else
			t.Fatalf("after %v: goes on", after)
		}
		cancel()
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("after %v: left %v", after, left)
		}
	}
}

func TestDestinations(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "model.onnx")
	model := models.Digits().Model
	if err := os.WriteFile(in, model, 0o666); err != nil {
		t.Fatal(err)
	}
	o := onnxq.Options{Data: samples("digits")}
	for _, out := range []string{in, filepath.Join(dir, ".", "x", "..", "model.onnx")} {
		_, err := onnxq.Quantize(t.Context(), in, out, o)
		if !errors.Is(err, onnxfile.ErrInput) && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", out, err)
		}
	}
	if _, err := onnxq.Quantize(t.Context(), in, filepath.Join(dir, "none", "out.onnx"), o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing folder: %v", err)
	}
	if got, _ := os.ReadFile(in); !bytes.Equal(got, model) {
		t.Error("the input was changed")
	}
	o.InPlace = true
	if _, err := onnxq.Quantize(t.Context(), in, in, o); err != nil {
		t.Error(err)
	}
	if got, _ := os.ReadFile(in); len(got) >= len(model) {
		t.Error("the input was not replaced")
	}
}

func TestErrorsNameTheirPlace(t *testing.T) {
	for _, c := range []struct {
		in   string
		o    onnxq.Options
		want string
	}{
		{"missing.onnx", onnxq.Options{}, "missing.onnx"},
		{sampleModel("digits"), onnxq.Options{Mode: onnxq.Static}, "samples"},
		{sampleModel("digits"), onnxq.Options{Mode: onnxq.Weights, Weights: "u9"}, "u9"},
		{sampleModel("digits"), onnxq.Options{Mode: onnxq.Static, Weights: "f16", Data: samples("digits")}, "f16"},
		{sampleModel("digits"), onnxq.Options{Mode: onnxq.Static, Block: 32, Data: samples("digits")}, "mode weights"},
		{sampleModel("digits"), onnxq.Options{Weights: "mxfp4"}, "float4e2m1"},
		{sampleModel("digits"), onnxq.Options{Weights: "i4", ScaleType: "bf16"}, "bfloat16"},
		{sampleModel("digits"), onnxq.Options{Data: []string{"nowhere"}}, "nowhere"},
		{sampleModel("digits"), onnxq.Options{Data: samples("text")}, `"image"`},
		{sampleModel("digits"), onnxq.Options{Data: samples("digits"), Ranges: map[string][2]float64{"nothing": {0, 1}}}, `"nothing"`},
		{sampleModel("digits"), onnxq.Options{Data: samples("digits"), Exclude: []string{"no*where"}}, "no*where"},
		{sampleModel("digits"), onnxq.Options{Data: samples("digits"), Opset: 99}, "99"},
	} {
		out := filepath.Join(t.TempDir(), "out.onnx")
		_, err := onnxq.Quantize(t.Context(), c.in, out, c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %+v: %v", c.in, c.o, err)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s: the output was written", c.in)
		}
	}
}

// accumulate adds up its inputs: hn = x + h, y = max(hn, 0).
const accumulate = `<ir_version: 8, opset_import: ["" : 13]>
accumulate (float[1, 4] x, float[1, 4] h) => (float[1, 4] y, float[1, 4] hn)
<float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}>
{
  p = MatMul (x, w)
  hn = Add (p, h)
  y = Relu (hn)
}
`

// TestState runs two files of three rows; each starts from zeros.
func TestState(t *testing.T) {
	dir := t.TempDir()
	rows := "{\"x\": [[1, 2, 3, 4]]}\n{\"x\": [[1, 1, 1, 1]]}\n{\"x\": [[-5, 1, 1, 1]]}\n"
	for _, name := range []string{"a.jsonl", "b.jsonl"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(rows), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	m, err := graph.Parse(accumulate)
	if err != nil {
		t.Fatal(err)
	}
	o := onnxq.Options{Data: []string{dir}, State: []calibration.Feedback{{Input: "h", Output: "hn"}}}
	var got [][]float32
	n, err := onnxq.Run(t.Context(), m, o, func(_ string, out []ops.Data) error {
		got = append(got, append([]float32{}, tensor.As[float32](out[0].(*tensor.Tensor))...))
		return nil
	})
	if err != nil || n != 6 {
		t.Fatal(n, err)
	}
	once := "[[1 2 3 4] [2 3 4 5] [0 4 5 6]"
	want := once + " " + once[1:] + "]"
	if fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}

	// Calibration sees the same state, whatever the number of threads.
	in := filepath.Join(dir, "model.onnx")
	if err := onnxfile.Save(t.Context(), m, in, onnxfile.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	o.Data = []string{filepath.Join(dir, "a.jsonl"), filepath.Join(dir, "b.jsonl")}
	var tables [2]bytes.Buffer
	for i := range tables {
		o.Threads = i + 1
		plan, err := onnxq.MakePlan(m, o)
		if err != nil {
			t.Fatal(err)
		}
		src, err := onnxq.Open(t.Context(), m, o.Data, o)
		if err != nil {
			t.Fatal(err)
		}
		table, err := onnxq.Calibrate(t.Context(), m, plan, src, o)
		if err != nil {
			t.Fatal(err)
		}
		src.Close()
		if err := table.Encode(&tables[i]); err != nil {
			t.Fatal(err)
		}
		if s := table.Values["x"]; s == nil || s.Min != -5 || s.Max != 4 {
			t.Errorf("x: %+v", s)
		}
	}
	if !bytes.Equal(tables[0].Bytes(), tables[1].Bytes()) {
		t.Error("another table with two threads")
	}

	o.State = nil
	_, err = onnxq.Run(t.Context(), m, o, func(string, []ops.Data) error { return nil })
	if err == nil || !strings.Contains(err.Error(), `--state "h=hn"`) {
		t.Errorf("no suggestion in: %v", err)
	}
	o.State = []calibration.Feedback{{Input: "h", Output: "nothing"}}
	var option *onnxq.OptionError
	if _, err = onnxq.Run(t.Context(), m, o, nil); !errors.As(err, &option) {
		t.Errorf("wrong state: %v", err)
	}
}

// TestResume stops a calibration and takes it up again: the table is that of a
// run that was not stopped.
func TestResume(t *testing.T) {
	dir := t.TempDir()
	in := sampleModel("text")
	whole, part := filepath.Join(dir, "whole.json"), filepath.Join(dir, "part.json")
	o := onnxq.CalibrateOptions{Options: onnxq.Options{Data: []string{"random:400"}}}
	if _, err := onnxq.CalibrateFile(t.Context(), in, whole, o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o.Progress = func(stage string, done, total int) {
		if done == 50 {
			cancel()
		}
	}
	if _, err := onnxq.CalibrateFile(ctx, in, part, o); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	table, err := calibration.Load(part + ".partial")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(table.Samples); n < 50 || n >= 360 {
		t.Errorf("%d samples in the table of the stopped run", n)
	}
	before := len(table.Samples)
	ran := 0
	o.Resume = true
	o.Progress = func(string, int, int) { ran++ }
	if _, err := onnxq.CalibrateFile(t.Context(), in, part, o); err != nil {
		t.Fatal(err)
	}
	if ran != 360-before {
		t.Errorf("%d samples ran, %d were left", ran, 360-before)
	}
	a, _ := os.ReadFile(whole)
	b, _ := os.ReadFile(part)
	if !bytes.Equal(a, b) {
		t.Error("another table than without the stop")
	}
	if _, err := os.Stat(part + ".partial"); err == nil {
		t.Error("the partial table is still there")
	}
}

// TestTable quantizes with a table made before: together with the samples, or
// where nothing is to be measured without them, the result is the one that
// samples alone give.
func TestTable(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"digits", "text"} {
		in := sampleModel(name)
		file := filepath.Join(dir, name+".json")
		data := samples(name)
		table, err := onnxq.CalibrateFile(t.Context(), in, file, onnxq.CalibrateOptions{Options: onnxq.Options{Data: data}})
		if err != nil {
			t.Fatal(err)
		}
		same := func(a, b onnxq.Options) bool {
			x, _ := quantize(t, name, a)
			y, _ := quantize(t, name, b)
			return bytes.Equal(x, y)
		}
		if !same(onnxq.Options{Data: data}, onnxq.Options{Data: data, Table: table}) {
			t.Errorf("%s: the table changes what the samples give", name)
		}
		if !same(onnxq.Options{Data: data}, onnxq.Options{Table: table}) {
			t.Errorf("%s: the table does not find its samples", name)
		}
		alone := *table
		alone.Sources = nil
		for _, plain := range []onnxq.Options{
			{Mode: onnxq.Static, Algorithms: []onnxq.Algorithm{}},
			{Mode: onnxq.Static, Algorithms: []onnxq.Algorithm{onnxq.BiasCorrection}, Method: calibration.Percentile},
		} {
			without := plain
			plain.Data, without.Table = data, &alone
			if !same(plain, without) {
				t.Errorf("%s: the table alone gives another model than the samples", name)
			}
		}
	}
}

// TestMaxMemory keeps a bound and refuses one that is too small; the result
// does not depend on it.
func TestMaxMemory(t *testing.T) {
	calibrate := func(bytes int64) (*calibration.Table, error) {
		return onnxq.CalibrateFile(t.Context(), sampleModel("digits"), "", onnxq.CalibrateOptions{Options: onnxq.Options{Data: samples("digits"), MaxMemory: bytes}})
	}
	encode := func(table *calibration.Table) []byte {
		var b bytes.Buffer
		if err := table.Encode(&b); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	free, err := calibrate(0)
	if err != nil {
		t.Fatal(err)
	}
	bound, err := calibrate(1 << 30)
	if err != nil || !bytes.Equal(encode(free), encode(bound)) {
		t.Errorf("another table within a bound, or %v", err)
	}
	if _, err := calibrate(1 << 20); !errors.Is(err, exec.ErrLimit) {
		t.Errorf("within 1 MiB: %v", err)
	}
	if old := debug.SetMemoryLimit(-1); old != math.MaxInt64 {
		t.Errorf("the bound stays: %d", old)
	}
}

// TestControlCharacters checks that no name of an operator reaches a terminal.
func TestControlCharacters(t *testing.T) {
	m := graph.NewModel(8, graph.Opset{Version: 17})
	g := m.Graph
	x, y := g.NewValue("x", graph.TensorType(tensor.Float32, graph.ShapeOf(2))), g.NewValue("y", graph.TensorType(tensor.Float32, nil))
	g.AddInput(x)
	g.Append(g.NewNode(graph.OpKey{Type: "Evil\x1b[2J"}, "", []*graph.Value{x}, []*graph.Value{y}))
	g.AddOutput(y)
	path := filepath.Join(t.TempDir(), "evil.onnx")
	if err := onnxfile.Save(t.Context(), m, path, onnxfile.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	var content *onnxfile.ContentError
	if _, err := onnxq.Load(path); !errors.As(err, &content) || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("%v", err)
	}
}

// TestSampleModels: what the demo shows. The quantized models keep 99 % of the
// float metric and take at most 0.6 of the bytes.
func TestSampleModels(t *testing.T) {
	for _, s := range models.All() {
		b, res := quantize(t, s.Name, onnxq.Options{})
		m, err := onnxfile.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		var outputs [][]float32
		_, err = onnxq.Run(t.Context(), m, onnxq.Options{Data: []string{filepath.Join("models", s.Name, "eval")}}, func(_ string, out []ops.Data) error {
			outputs = append(outputs, tensor.As[float32](out[0].(*tensor.Tensor)))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Score(outputs)
		if err != nil {
			t.Fatal(err)
		}
		loss := (s.Float - got) / s.Float
		if s.Metric.LowerIsBetter() {
			loss = -loss
		}
		t.Logf("%s: %s %.4f → %.4f, %d → %d bytes, %.1f dB", s.Name, s.Metric, s.Float, got, res.BytesIn, res.BytesOut, *res.SQNR)
		if !(loss <= 0.01) || math.IsNaN(got) {
			t.Errorf("%s: %s is %.4f, float %.4f", s.Name, s.Metric, got, s.Float)
		}
		if float64(res.BytesOut) > 0.6*float64(res.BytesIn) {
			t.Errorf("%s: %d bytes of %d", s.Name, res.BytesOut, res.BytesIn)
		}
	}
}
