//go:build !noort && (linux || darwin || windows) && (amd64 || arm64)

package ort

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onnxq/onnxq/calibration/npy"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/internal/orttest"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

func open(t testing.TB) exec.Engine {
	t.Helper()
	e, err := Open(Options{Library: orttest.Library(t)})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func parse(t testing.TB, text string) *graph.Model {
	t.Helper()
	m, err := graph.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// start returns a Runner of m that the test closes.
func start(t testing.TB, e exec.Engine, m *graph.Model, o exec.Options, so exec.SessionOptions) exec.Runner {
	t.Helper()
	x, err := e.Compile(t.Context(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	r, err := x.Open(t.Context(), so)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func floats(shape []int, v ...float32) *tensor.Tensor {
	t := tensor.New(tensor.Float32, shape...)
	copy(tensor.As[float32](t), v)
	return t
}

// same returns an error unless floats agree within a relative L2 error of tol,
// absolutely 1e-6 where the reference is zero, and all else is equal.
func same(got, want ops.Data, tol float64) error {
	switch want := want.(type) {
	case *tensor.Tensor:
		got, ok := got.(*tensor.Tensor)
		if !ok || got.String() != want.String() {
			return fmt.Errorf("got %v, want %v", got, want)
		}
		if !want.DType().IsFloat() {
			if !got.Equal(want) {
				return fmt.Errorf("%v differs", want)
			}
			return nil
		}
		a, err := tensor.Float64s(got)
		if err != nil {
			return err
		}
		b, err := tensor.Float64s(want)
		if err != nil {
			return err
		}
		var diff, norm float64
		for i := range a {
			if a[i] == b[i] || math.IsNaN(a[i]) && math.IsNaN(b[i]) {
				continue
			}
			diff += (a[i] - b[i]) * (a[i] - b[i])
		}
		for _, x := range b {
			norm += x * x
		}
		if !(math.Sqrt(diff) <= tol*math.Sqrt(norm)+1e-6) {
			return fmt.Errorf("%v: relative error %g", want, math.Sqrt(diff/norm))
		}
		return nil
	case ops.Sequence:
		got, ok := got.(ops.Sequence)
		if !ok || len(got) != len(want) {
			return fmt.Errorf("got %v, want a sequence of %d", got, len(want))
		}
		for i := range want {
			if err := same(got[i], want[i], tol); err != nil {
				return fmt.Errorf("item %d: %w", i, err)
			}
		}
		return nil
	case *ops.Optional:
		got, ok := got.(*ops.Optional)
		if !ok || (got.Elem == nil) != (want.Elem == nil) {
			return fmt.Errorf("got %v, want %v", got, want)
		}
		if want.Elem == nil {
			return nil
		}
		return same(got.Elem, want.Elem, tol)
	}
	return fmt.Errorf("unexpected %T", want)
}

// TestZoo holds the two engines against each other on trained models, all
// tensors in float32 tapped in one of the samples.
func TestZoo(t *testing.T) {
	e := open(t)
	shared := os.Getenv("ONNXQ_SHARED")
	if shared == "" {
		shared = filepath.Join("..", "..", "..", "shared")
	}
	files, _ := filepath.Glob(filepath.Join(shared, "zoo", "*", "model.onnx"))
	if len(files) == 0 {
		t.Logf("NOT TESTED: there is no zoo of real models in %s", shared)
	}
	own, _ := filepath.Glob(filepath.Join("..", "..", "models", "*", "model.onnx"))
	// Portable kernels add without fused multiplication; behind a logarithm of
	// small values and a subtraction of the mean that shows.
	inner := 1e-4
	if kernels.CPU() == kernels.Generic {
		inner = 1e-3
	}
	for _, file := range append(own, files...) {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			m, err := onnxfile.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if _, ok := onnxfile.Source(m); !ok {
				t.Error("the model is not what its file says")
			}
			samples, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "calib", "*.npz"))
			if len(samples) == 0 {
				t.Fatal("no samples")
			}
			var taps []bool
			for range m.NumValues() {
				taps = append(taps, true)
			}
			plain, tapping := start(t, e, m, exec.Options{}, exec.SessionOptions{Threads: 2}), start(t, e, m, exec.Options{Taps: taps}, exec.SessionOptions{Threads: 1})
			want := start(t, exec.Embedded{}, m, exec.Options{Taps: taps}, exec.SessionOptions{Threads: 1})
			for i, path := range samples[:min(3, len(samples))] {
				feed := readFeed(t, m, path)
				seen := map[int]*tensor.Tensor{}
				x, err := want.Run(t.Context(), feed, func(v *graph.Value, d *tensor.Tensor) error {
					if v.Graph().Scope() == graph.MainScope {
						seen[v.ID] = d.Clone()
					}
					return nil
				}, taps)
				if err != nil {
					t.Fatal(err)
				}
				y, err := plain.Run(t.Context(), feed, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				for k := range x {
					if err := same(y[k], x[k], 1e-4); err != nil {
						t.Errorf("sample %d, output %d: %v", i, k, err)
					}
				}
				if i > 0 {
					continue
				}
				y, err = tapping.Run(t.Context(), feed, func(v *graph.Value, d *tensor.Tensor) error {
					if seen[v.ID] == nil {
						t.Errorf("value %q is not known to the other engine", v.Name())
					} else if err := same(d, seen[v.ID], inner); err != nil {
						t.Errorf("value %q: %v", v.Name(), err)
					}
					delete(seen, v.ID)
					return nil
				}, taps)
				if err != nil {
					t.Fatal(err)
				}
				for k := range x {
					if err := same(y[k], x[k], 1e-4); err != nil {
						t.Errorf("with taps, output %d: %v", k, err)
					}
				}
				if len(seen) > 0 {
					t.Errorf("%d values were not reported", len(seen))
				}
			}
		})
	}
}

func readFeed(t *testing.T, m *graph.Model, path string) map[string]ops.Data {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	a, err := npy.OpenArchive(bytes.NewReader(b), int64(len(b)), 0)
	if err != nil {
		t.Fatal(err)
	}
	feed := map[string]ops.Data{}
	for _, x := range a.Arrays {
		d, err := x.Tensor()
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range m.Graph.FeedInputs() {
			if v.Name() == x.Name {
				feed[x.Name] = d
			}
		}
	}
	return feed
}

// TestTypes sends every element type through the runtime and back.
func TestTypes(t *testing.T) {
	e := open(t)
	// Those that ONNX Runtime 1.32.0 does not have tensors of.
	refused := map[tensor.DType]bool{tensor.Complex64: true, tensor.Complex128: true}
	for d := tensor.Float32; d <= tensor.Int2; d++ {
		t.Run(d.String(), func(t *testing.T) {
			for _, shape := range [][]int{{}, {3, 5}, {2, 0}} {
				// The input is the output, since few kernels take the smallest types.
				m := graph.NewModel(11, graph.Opset{Version: 23})
				v := m.Graph.NewValue("x", graph.Type{Kind: graph.KindTensor, Elem: d})
				m.Graph.AddInput(v)
				m.Graph.AddOutput(v)
				x := tensor.New(d, shape...)
				if d == tensor.String {
					for i, s := range []string{"", "a\x00b", "grün", strings.Repeat("long", 1000)} {
						if i < x.Len() {
							x.Strings()[i] = s
						}
					}
				}
				for i := range x.Bytes() {
					x.Bytes()[i] = byte(i * 7 & 1)
				}
				r, err := launch(t, e, m)
				if refused[d] {
					if err == nil {
						t.Fatal("no error")
					}
					t.Skipf("the runtime refuses it: %v", err)
				}
				if err != nil {
					t.Fatal(err)
				}
				out, err := r.Run(t.Context(), map[string]ops.Data{"x": x}, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				if y := out[0].(*tensor.Tensor); !y.Equal(x) {
					t.Errorf("%v became %v", x, y)
				}
			}
		})
	}
}

func launch(t *testing.T, e exec.Engine, m *graph.Model) (exec.Runner, error) {
	t.Helper()
	x, err := e.Compile(t.Context(), m, exec.Options{})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { x.Close() })
	r, err := x.Open(t.Context(), exec.SessionOptions{Threads: 1})
	if err == nil {
		t.Cleanup(func() { r.Close() })
	}
	return r, err
}

// TestUnaligned feeds memory that is not aligned for its elements.
func TestUnaligned(t *testing.T) {
	r := start(t, open(t), parse(t, `<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) { y = Neg(x) }`), exec.Options{}, exec.SessionOptions{Threads: 1})
	b := tensor.AlignedBytes(41)[1:]
	for i := range 10 {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(float32(i)))
	}
	x, err := tensor.FromBytes(tensor.Float32, []int{10}, b)
	if err != nil {
		t.Fatal(err)
	}
	out, err := r.Run(t.Context(), map[string]ops.Data{"x": x}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, y := range tensor.As[float32](out[0].(*tensor.Tensor)) {
		if y != -float32(i) {
			t.Fatalf("element %d is %v", i, y)
		}
	}
}

// TestContainers passes sequences and optionals, and names what cannot pass.
func TestContainers(t *testing.T) {
	e := open(t)
	one, two := floats([]int{1}, 1), floats([]int{2}, 2, 3)
	seq := `<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]> g `
	for _, c := range []struct {
		name, text string
		feed       ops.Data
		want       ops.Data
		err        string
	}{
		{name: "sequence", text: `(seq(float[N]) x) => (seq(float[N]) y) { y = SequenceInsert(x, c) }`, feed: ops.Sequence{one, two}, want: ops.Sequence{one, two, floats([]int{1}, 4)}},
		{name: "empty sequence in", text: `(seq(float[N]) x) => (seq(float[N]) y) { y = SequenceInsert(x, c) }`, feed: ops.Sequence{}, err: "an empty sequence cannot be fed"},
		{name: "empty sequence out", text: `(float[N] x) => (seq(float) y) { y = SequenceEmpty() }`, feed: one, want: ops.Sequence{}},
		{name: "optional out", text: `(float[N] x) => (optional(float[N]) y) { y = Optional(x) }`, feed: two, want: &ops.Optional{Elem: two}},
		{name: "empty optional out", text: `(float[N] x) => (optional(float[N]) y) { y = Optional<type: type_proto = float[N]>() }`, feed: two, want: &ops.Optional{}},
		{name: "optional in", text: `(optional(float[N]) x) => (float[N] y) { y = OptionalGetElement(x) }`, feed: &ops.Optional{Elem: two}, want: two},
		{name: "empty optional in", text: `(optional(float[N]) x) => (bool y) { y = OptionalHasElement(x) }`, feed: &ops.Optional{}, err: "an empty optional cannot be fed"},
		{name: "map", text: `(float[1,2] x) => (seq(map(int64, float)) y) { y = ai.onnx.ml.ZipMap<classlabels_int64s: ints = [0, 1]>(x) }`, feed: floats([]int{1, 2}, 1, 2), err: "a map cannot be taken out"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := parse(t, seq+strings.Replace(c.text, "{", "<float[1] c = {4}> {", 1))
			r := start(t, e, m, exec.Options{}, exec.SessionOptions{Threads: 1})
			out, err := r.Run(t.Context(), map[string]ops.Data{"x": c.feed}, nil, nil)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want an error with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := same(out[0], c.want, 0); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestErrors checks what is said of wrong models and feeds.
func TestErrors(t *testing.T) {
	e := open(t)
	add := parse(t, `<ir_version: 8, opset_import: ["" : 17]> g (float[2] a, float[N] b) => (float[M] y) { [first] c = Neg(b) [second] y = Add(a, c) }`)
	r := start(t, e, add, exec.Options{}, exec.SessionOptions{Threads: 1})
	a := floats([]int{2}, 1, 2)
	for _, c := range []struct {
		name string
		feed map[string]ops.Data
		want string
	}{
		{"missing", map[string]ops.Data{"a": a}, `"b": input is missing`},
		{"unknown", map[string]ops.Data{"a": a, "b": a, "z": a}, `no input "z"`},
		{"type", map[string]ops.Data{"a": a, "b": tensor.New(tensor.Int32, 2)}, "got int32[2], the model wants float"},
		{"rank", map[string]ops.Data{"a": a, "b": floats([]int{1, 2}, 1, 2)}, "got float[1,2], the model wants float"},
		{"shape", map[string]ops.Data{"a": floats([]int{3}, 1, 2, 3), "b": a}, "got float[3], the model wants float[2]"},
		{"in a node", map[string]ops.Data{"a": a, "b": floats([]int{3}, 1, 2, 3)}, `"second"`},
		{"nothing", map[string]ops.Data{"a": a, "b": nil}, "cannot be fed"},
	} {
		if _, err := r.Run(t.Context(), c.feed, nil, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error with %s", c.name, err, c.want)
		}
	}
	if _, err := r.Run(t.Context(), map[string]ops.Data{"a": a, "b": a}, nil, nil); err != nil {
		t.Errorf("after errors: %v", err)
	}
	for _, c := range []struct{ name, text, want string }{
		{"unknown operator", `<ir_version: 8, opset_import: ["" : 17]> g (float[2] a) => (float[2] y) { [odd] y = NoSuch(a) }`, "NoSuch"},
		{"no kernel", `<ir_version: 8, opset_import: ["" : 17]> g (complex64[2] a) => (complex64[2] y) { [sum] y = Add(a, a) }`, "sum"},
		{"newer opset", `<ir_version: 8, opset_import: ["" : 1000]> g (float[2] a) => (float[2] y) { y = Neg(a) }`, "1000"},
	} {
		_, err := launch(t, e, parse(t, c.text))
		var content *onnxfile.ContentError
		if !errors.As(err, &content) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want a *onnxfile.ContentError with %s on one line", c.name, err, c.want)
		}
	}
}

// TestPlaced finds the node in messages of ONNX Runtime 1.32.0.
func TestPlaced(t *testing.T) {
	for _, c := range []struct{ message, op, node string }{
		{"Non-zero status code returned while running Add node. Name:'second' Status Message: 2 by 3", "Add", "second"},
		{"Could not find an implementation for Add(14) node with name 'sum'", "Add", "sum"},
		{"Failed to find kernel for com.microsoft.Cast(28) (node:'to half' ep:'CPUExecutionProvider'). Op with name (to half)", "com.microsoft.Cast", "to half"},
		{"Node (a b) Op (MatMul) [ShapeInferenceError] Incompatible dimensions", "MatMul", "a b"},
		{"Load model failed: something else", "", ""},
	} {
		var e *graph.Error
		if err := placed("run", &Error{Code: 1, Message: c.message}); !errors.As(err, &e) || e.Op != c.op || e.Node != c.node {
			t.Errorf("%q: got node %q of %q", c.message, e.Node, e.Op)
		}
	}
}

// TestSource hands models over as files and encoded.
func TestSource(t *testing.T) {
	e := open(t)
	dir := t.TempDir()
	m := parse(t, `<ir_version: 8, opset_import: ["" : 17]> g (float[1024] x) => (float[1024] y) <float[1024] w = {...}> { y = Add(x, w) }`)
	for i, external := range []onnxfile.External{onnxfile.ExternalNever, onnxfile.ExternalAlways} {
		path := filepath.Join(dir, fmt.Sprintf("grün %d.onnx", i))
		if err := onnxfile.Save(t.Context(), m, path, onnxfile.SaveOptions{External: external}); err != nil {
			t.Fatal(err)
		}
		loaded, err := onnxfile.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer loaded.Close()
		x, err := e.Compile(t.Context(), loaded, exec.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got := x.(*executable).path; got != path {
			t.Errorf("the path is %q, want %q", got, path)
		}
		edited := loaded.Clone()
		edited.Graph.First().Op.Type = "Sub"
		if x, err = e.Compile(t.Context(), edited, exec.Options{}); err != nil {
			t.Fatal(err)
		}
		if got := x.(*executable).path; got != "" {
			t.Errorf("the path of an edited model is %q", got)
		}
		zero := tensor.New(tensor.Float32, 1024)
		var sums [2]float64
		for k, m := range []*graph.Model{loaded, edited} {
			r := start(t, e, m, exec.Options{}, exec.SessionOptions{Threads: 1})
			out, err := r.Run(t.Context(), map[string]ops.Data{"x": zero}, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, y := range tensor.As[float32](out[0].(*tensor.Tensor)) {
				sums[k] += float64(y)
			}
		}
		if sums[0] == 0 || sums[0] != -sums[1] {
			t.Errorf("sums %v", sums)
		}
		var renamed = loaded.Clone()
		if err := os.Truncate(path, 100); err != nil {
			t.Fatal(err)
		}
		if _, ok := onnxfile.Source(renamed); ok {
			t.Error("a file that was changed counts as the model")
		}
	}
}

// loop is a model that computes for n rounds.
const loop = `<ir_version: 8, opset_import: ["" : 17]> g (int64 n, float[400,400] x) => (float[400,400] y) <bool go = {1}> {
	y = Loop(n, go, x)<body: graph = b (int64 i, bool c, float[400,400] v) => (bool d, float[400,400] w) { d = Identity(c) u = MatMul(v, v) w = Tanh(u) }>
}`

func TestCancel(t *testing.T) {
	e := open(t)
	n := tensor.New(tensor.Int64)
	tensor.As[int64](n)[0] = 1 << 40
	product := parse(t, `<ir_version: 8, opset_import: ["" : 17]> g (double[N,N] x) => (double[N,N] y) { y = MatMul(x, x) }`)
	for _, c := range []struct {
		name string
		m    *graph.Model
		feed map[string]ops.Data
	}{
		{"many nodes", parse(t, loop), map[string]ops.Data{"n": n, "x": tensor.New(tensor.Float32, 400, 400)}},
		{"one long node", product, map[string]ops.Data{"x": tensor.New(tensor.Float64, 4000, 4000)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, e, c.m, exec.Options{}, exec.SessionOptions{Threads: 1})
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				_, err := r.Run(ctx, c.feed, nil, nil)
				ended <- err
			}()
			select {
			case err := <-ended:
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("got %v", err)
				}
			case <-time.After(2 * time.Minute): // more than any machine is busy with something else
				t.Fatal("goes on")
			}
		})
	}
	x, err := e.Compile(t.Context(), product, exec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := x.Open(ctx, exec.SessionOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("opened after the end: %v", err)
	}
	r := start(t, e, product, exec.Options{}, exec.SessionOptions{Threads: 1})
	if _, err := r.Run(ctx, map[string]ops.Data{"x": tensor.New(tensor.Float64, 1, 1)}, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("ran after the end: %v", err)
	}
}

// TestConcurrent runs Runners that share a session, and others that do not.
func TestConcurrent(t *testing.T) {
	e := open(t)
	m := parse(t, loop)
	var taps []bool
	for range m.NumValues() {
		taps = append(taps, true)
	}
	shared, err := e.Compile(t.Context(), m, exec.Options{Taps: taps})
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			r, err := shared.Open(t.Context(), exec.SessionOptions{Threads: 1 + k%2})
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			x := tensor.New(tensor.Float32, 400, 400)
			for i := range x.Len() {
				tensor.As[float32](x)[i] = float32(k) / 400
			}
			n := tensor.New(tensor.Int64)
			for i := range 5 {
				tensor.As[int64](n)[0] = int64(i)
				want := float64(k) / 400
				for range i {
					want = math.Tanh(400 * want * want)
				}
				out, err := r.Run(t.Context(), map[string]ops.Data{"n": n, "x": x}, nil, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if got := tensor.As[float32](out[0].(*tensor.Tensor))[777]; math.Abs(float64(got)-want) > 1e-4 {
					t.Errorf("runner %d, %d rounds: got %v, want %v", k, i, got, want)
				}
			}
		})
	}
	wg.Wait()
	if n := shared.Untapped(); n != 6 {
		t.Errorf("%d values of the body are not tapped, want 6", n)
	}
	if n := len(shared.(*executable).sessions); n != 2 {
		t.Errorf("%d sessions for two numbers of threads", n)
	}
}

// TestMemory runs a model with tensors, strings and sequences 40,000 times,
// with taps, and opens it many times.
func TestMemory(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("NOT TESTED: the resident set is known on Linux only")
	}
	orttest.Library(t)
	if os.Getenv("ONNXQ_TEST_MEMORY") == "" {
		// Other tests leave too much behind.
		c := osexec.Command(os.Args[0], "-test.run=^TestMemory$", "-test.v")
		c.Env = append(os.Environ(), "ONNXQ_TEST_MEMORY=1")
		out, err := c.CombinedOutput()
		if t.Logf("%s", out); err != nil {
			t.Error(err)
		}
		return
	}
	e := open(t)
	m := parse(t, `<ir_version: 8, opset_import: ["" : 17]> g (float[N] x, string[K] s) => (seq(float[N]) y, string[K] u) {
		a = Neg(x) y = SequenceConstruct(a, x) u = Identity(s) }`)
	var taps []bool
	for range m.NumValues() {
		taps = append(taps, true)
	}
	x, err := e.Compile(t.Context(), m, exec.Options{Taps: taps})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	feed := map[string]ops.Data{"x": tensor.New(tensor.Float32, 1000), "s": tensor.FromStrings([]int{2}, []string{strings.Repeat("x", 500), "b"})}
	seen := 0
	rounds := func(opens, runs int) {
		for range opens {
			r, err := x.Open(t.Context(), exec.SessionOptions{Threads: 1})
			if err != nil {
				t.Fatal(err)
			}
			for range runs {
				if _, err := r.Run(t.Context(), feed, func(*graph.Value, *tensor.Tensor) error { seen++; return nil }, nil); err != nil {
					t.Fatal(err)
				}
				if _, err := r.Run(t.Context(), map[string]ops.Data{"x": feed["x"]}, nil, nil); err == nil {
					t.Fatal("no error")
				}
			}
			r.Close()
		}
	}
	rounds(20, 100)
	before := resident(t)
	rounds(20, 2000)
	if after := resident(t); after > before+4<<20 && !detector {
		t.Errorf("the resident set grew from %d to %d bytes", before, after)
	} else {
		t.Logf("the resident set went from %d to %d bytes", before, after)
	}
	if seen != 20*2100*4 {
		t.Errorf("%d values were reported", seen)
	}
}

func resident(t *testing.T) int64 {
	t.Helper()
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

func TestProfile(t *testing.T) {
	e := open(t)
	r := start(t, e, parse(t, loop), exec.Options{}, exec.SessionOptions{Threads: 1, Profile: true})
	n := tensor.New(tensor.Int64)
	tensor.As[int64](n)[0] = 6
	for range 2 {
		if _, err := r.Run(t.Context(), map[string]ops.Data{"n": n, "x": tensor.New(tensor.Float32, 400, 400)}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		list, err := r.Profile()
		if err != nil {
			t.Fatal(err)
		}
		count := map[string]int{}
		for i, o := range list {
			count[o.Op.Type] = o.Count
			if o.Time < 0 || i > 0 && o.Time > list[i-1].Time {
				t.Errorf("%v took %v", o.Op, o.Time)
			}
		}
		if count["MatMul"] != 12 || count["Tanh"] != 12 || count["Loop"] != 2 || list[0].Op.Type == "Loop" {
			t.Errorf("profile %v", list)
		}
	}
	dir := r.(*runner).profile
	r.Close()
	if _, err := os.Stat(dir); err == nil {
		t.Error("the profile is still there")
	}
}

func TestReadProfile(t *testing.T) {
	list, err := readProfile(strings.NewReader(`[
		{"cat":"Session","tid":1,"ts":0,"dur":100,"name":"model_run","args":{}},
		{"cat":"Node","tid":1,"ts":12,"dur":5,"name":"b_kernel_time","args":{"op_name":"Add"}},
		{"cat":"Node","tid":1,"ts":10,"dur":50,"name":"a_kernel_time","args":{"op_name":"If"}},
		{"cat":"Node","tid":1,"ts":20,"dur":30,"name":"c_kernel_time","args":{"op_name":"If"}},
		{"cat":"Node","tid":1,"ts":21,"dur":28,"name":"d_kernel_time","args":{"op_name":"Mul"}},
		{"cat":"Node","tid":1,"ts":60,"dur":7,"name":"e_kernel_time","args":{"op_name":"Add"}},
		{"cat":"Node","tid":2,"ts":13,"dur":1,"name":"f_kernel_time","args":{"op_name":"Add"}}]`))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(list), "[{Mul 1 28µs} {If 2 17µs} {Add 3 13µs}]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := readProfile(strings.NewReader(`[{"cat":`)); err == nil {
		t.Error("a profile that is cut short is no error")
	}
}

// TestLibrary checks what is said of libraries that cannot be used.
func TestLibrary(t *testing.T) {
	t.Setenv(LibraryEnv, "")
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	check := func(path, want string) {
		t.Helper()
		_, err := Open(Options{Library: path})
		var lib *LibraryError
		if !errors.As(err, &lib) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "pip download --no-deps onnxruntime==") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want a *LibraryError with %q on one line", filepath.Base(path), err, want)
		}
	}
	check(filepath.Join(dir, "missing"), "no such file")
	check(dir, "no regular file")
	check(write("text", []byte("no library")), "no shared library")
	check(write("empty", nil), "no shared library")
	check("no-such-library-anywhere.so", "not found")
	if text := (&LibraryError{}).Error(); !strings.Contains(text, "no ONNX Runtime library was found; get one with: pip") {
		t.Error(text)
	}
	if runtime.GOOS != "linux" {
		t.Skip("NOT TESTED: broken libraries of this system")
	}
	f, err := os.Open(realLibrary(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 1<<20)
	if _, err := f.Read(head); err != nil {
		t.Fatal(err)
	}
	info, _ := f.Stat()
	// The table of sections is at the end of the file.
	binary.LittleEndian.PutUint64(head[0x28:], 0)
	binary.LittleEndian.PutUint16(head[0x3c:], 0)
	binary.LittleEndian.PutUint16(head[0x3e:], 0)
	check(write("short", head[:min(info.Size()/2, 1<<20)]), "cut short")
	head[18]++
	check(write("other", head), "another processor")
	gcc, err := osexec.LookPath("gcc")
	if err != nil {
		t.Skip("NOT TESTED: libraries of other versions, since there is no gcc")
	}
	for _, c := range []struct{ name, source, want string }{
		{"unrelated", `int something(void) { return 1; }`, "OrtGetApiBase"},
		{"no base", `void *OrtGetApiBase(void) { return 0; }`, "no C API"},
		{"old", apiBase("1.15.1", "0"), `"1.15.1", 1.16 or later is needed`},
		{"garbled", apiBase("?", "0"), `"?", 1.16 or later is needed`},
		{"without", apiBase("1.40.0", "0"), "does not have version 16 of the C API"},
	} {
		source := write(c.name+".c", []byte(c.source))
		lib := filepath.Join(dir, c.name+".so")
		if out, err := osexec.Command(gcc, "-shared", "-fPIC", "-o", lib, source).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		check(lib, c.want)
	}
}

// apiBase is the source of a library that says it is of a version.
func apiBase(version, api string) string {
	return `static void *get(unsigned v) { return ` + api + `; }
static const char *version(void) { return "` + version + `"; }
static struct { void *(*get)(unsigned); const char *(*version)(void); } base = { get, version };
void *OrtGetApiBase(void) { return &base; }`
}

// realLibrary returns the library's path with the environment as it was.
func realLibrary(t *testing.T) string {
	t.Helper()
	if library == "" {
		return orttest.Library(t)
	}
	return library
}

var library = os.Getenv(LibraryEnv)

// TestSameBits checks that convolutions and products add in ONNX Runtime's
// order, on processors where that is its order with AVX-512.
func TestSameBits(t *testing.T) {
	e := open(t)
	if kernels.CPU() < kernels.AVX512 || runtime.GOARCH != "amd64" {
		t.Skip("SKIPPED: the order of sums was taken from processors with AVX-512")
	}
	r := rand.New(rand.NewPCG(1, 2))
	values := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(r.NormFloat64())
		}
		return v
	}
	// constant is an initializer in the text form.
	constant := func(name string, shape ...int) string {
		n, _ := tensor.NumElements(shape)
		return fmt.Sprintf("float[%s] %s = {%s}", strings.Trim(strings.ReplaceAll(fmt.Sprint(shape), " ", ","), "[]"), name,
			strings.ReplaceAll(strings.Trim(fmt.Sprint(values(n)), "[]"), " ", ", "))
	}
	check := func(name, text string, shape ...int) {
		t.Run(name, func(t *testing.T) {
			n, _ := tensor.NumElements(shape)
			feed := map[string]ops.Data{"x": floats(shape, values(n)...)}
			m := parse(t, text)
			var bytes [2][]byte
			for i, e := range []exec.Engine{e, exec.Embedded{}} {
				out, err := start(t, e, m, exec.Options{}, exec.SessionOptions{Threads: 1}).Run(t.Context(), feed, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				bytes[i] = out[0].(*tensor.Tensor).Bytes()
			}
			if string(bytes[0]) != string(bytes[1]) {
				t.Error("results differ")
			}
		})
	}
	const head = `<ir_version: 8, opset_import: ["" : 17]> g `
	for _, c := range []struct{ in, out, kernel, stride, size, group int }{
		{3, 32, 3, 2, 32, 1},   // planar input: by channel
		{12, 32, 3, 1, 20, 1},  //
		{24, 48, 3, 2, 21, 1},  // by block of 16 channels
		{72, 40, 5, 2, 14, 1},  //
		{32, 64, 3, 2, 15, 2},  //
		{144, 24, 1, 1, 28, 1}, // by 128 channels
		{320, 64, 1, 1, 14, 1}, //
		{48, 48, 5, 1, 20, 48}, // depthwise
		{96, 96, 3, 2, 31, 96}, //
	} {
		text := fmt.Sprintf("%s (float[1,%d,%d,%d] x) => (float[1,%d,N,M] y) <%s, %s> { c = Conv<strides = [%d,%d], pads = [%d,%d,%d,%d], group = %d>(x, w, b) y = Relu(c) }", head, c.in, c.size, c.size, c.out,
			constant("w", c.out, c.in/c.group, c.kernel, c.kernel), constant("b", c.out), c.stride, c.stride, c.kernel/2, c.kernel/2, c.kernel/2, c.kernel/2, c.group)
		check(fmt.Sprint(c), text, 1, c.in, c.size, c.size)
	}
	for _, c := range [][3]int{{40, 64, 64}, {64, 384, 96}, {100, 1024, 64}} {
		text := fmt.Sprintf("%s (float[%d,%d] x) => (float[N,M] y) <%s> { y = MatMul(x, w) }", head, c[0], c[1], constant("w", c[1], c[2]))
		check(fmt.Sprint(c), text, c[0], c[1])
	}
}
