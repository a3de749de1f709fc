package accuracy_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes/accuracy"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
)

func parse(t *testing.T, text string) *graph.Model {
	t.Helper()
	m, err := graph.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Infer(m); err != nil {
		t.Fatal(err)
	}
	return m
}

// scaleBy multiplies the slices of an initializer along its axis by factors
// from 1 down to 1/1024.
func scaleBy(t *testing.T, m *graph.Model, name string, axis int, up bool) {
	t.Helper()
	for _, v := range m.Graph.Initializers() {
		if v.Name() != name {
			continue
		}
		shape := v.Const.Shape()
		inner := 1
		for _, d := range shape[axis+1:] {
			inner *= d
		}
		for i := range tensor.As[float32](v.Const) {
			c := i / inner % shape[axis]
			f := math.Exp2(-10 * float64(c) / float64(shape[axis]-1))
			if up {
				f = 1 / f
			}
			tensor.As[float32](v.Const)[i] *= float32(f)
		}
		return
	}
	t.Fatalf("no initializer %q", name)
}

const samples = 8

// run gives the outputs for made-up inputs: offset + [-1, 1).
func run(t *testing.T, m *graph.Model, tap exec.Tap) []float32 {
	t.Helper()
	if err := m.Verify(); err != nil {
		t.Fatal(err)
	}
	var o exec.Options
	if tap != nil {
		o.Taps = make([]bool, m.NumValues())
		for i := range o.Taps {
			o.Taps[i] = true
		}
	}
	prog, err := exec.Compile(m, o)
	if err != nil {
		t.Fatal(err)
	}
	s := prog.NewSession(exec.SessionOptions{Threads: 1})
	var all []float32
	for _, feed := range feeds(m) {
		out, err := s.Run(t.Context(), feed, tap, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range out {
			all = append(all, tensor.As[float32](d.(*tensor.Tensor))...)
		}
	}
	return all
}

// stats holds what calibration would.
type stats struct {
	lo, hi map[int][]float32
	sum, n map[int][]float64
}

// feeds are made-up inputs of m.
func feeds(m *graph.Model) []map[string]ops.Data {
	r := rand.New(rand.NewPCG(1, 2))
	var all []map[string]ops.Data
	for range samples {
		feed := map[string]ops.Data{}
		for _, v := range m.Graph.FeedInputs() {
			shape := make([]int, len(v.Type.Shape))
			for i, d := range v.Type.Shape {
				shape[i] = int(d.Size)
			}
			x := tensor.New(v.Type.Elem, shape...)
			if v.Type.Elem == tensor.Bool {
				x.Bytes()[0] = 1
			} else {
				for i := range tensor.As[float32](x) {
					tensor.As[float32](x)[i] = float32(2*r.Float64() - 0.7)
				}
			}
			feed[v.Name()] = x
		}
		all = append(all, feed)
	}
	return all
}

// observe taps every value along channels: axis 1 from rank 3 on, else the
// last.
func observe(t *testing.T, m *graph.Model) *stats {
	t.Helper()
	st := &stats{map[int][]float32{}, map[int][]float32{}, map[int][]float64{}, map[int][]float64{}}
	run(t, m, func(v *graph.Value, x *tensor.Tensor) error {
		if x.DType() != tensor.Float32 || x.Rank() < 2 {
			return nil
		}
		shape, inner := x.Shape(), 1
		axis := 1
		for _, d := range shape[axis+1:] {
			inner *= d
		}
		c := shape[axis]
		if st.lo[v.ID] == nil {
			st.lo[v.ID], st.hi[v.ID] = make([]float32, c), make([]float32, c)
			st.sum[v.ID], st.n[v.ID] = make([]float64, c), make([]float64, c)
		}
		for i, f := range tensor.As[float32](x) {
			k := i / inner % c
			st.lo[v.ID][k], st.hi[v.ID][k] = min(st.lo[v.ID][k], f), max(st.hi[v.ID][k], f)
			st.sum[v.ID][k] += float64(f)
			st.n[v.ID][k]++
		}
		return nil
	})
	return st
}

func (s *stats) bounds(v *graph.Value) (lo, hi []float32) { return s.lo[v.ID], s.hi[v.ID] }

func (s *stats) ranges(v *graph.Value, _ *qdq.TensorPlan) (quant.Range, string) {
	r := quant.Range{}
	for i := range s.lo[v.ID] {
		r.Min, r.Max = min(r.Min, float64(s.lo[v.ID][i])), max(r.Max, float64(s.hi[v.ID][i]))
	}
	return r, ""
}

func (s *stats) mean(v *graph.Value) []float64 {
	var out []float64
	for i, x := range s.sum[v.ID] {
		out = append(out, x/s.n[v.ID][i])
	}
	return out
}

// planOf returns the plan of m for ort-cpu.
func planOf(t *testing.T, m *graph.Model, o qdq.Options) *qdq.Plan {
	t.Helper()
	target, err := targets.Get("ort-cpu")
	if err != nil {
		t.Fatal(err)
	}
	p, err := qdq.Annotate(m, target, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// quantize returns m quantized with min-max ranges; with correct, biases are
// corrected first, and their number returned.
func quantize(t *testing.T, m *graph.Model, correct bool) (*graph.Model, int) {
	t.Helper()
	return quantizeAs(t, m, qdq.Options{}, correct)
}

// quantizeAs is quantize with the plan that o gives.
func quantizeAs(t *testing.T, m *graph.Model, o qdq.Options, correct bool) (*graph.Model, int) {
	t.Helper()
	p := planOf(t, m, o)
	st := observe(t, m)
	params, bad, err := p.Resolve(m, st.ranges, 0)
	if err != nil || len(bad) > 0 {
		t.Fatal(bad, err)
	}
	q, count := m.Clone(), 0
	if correct {
		if count, err = accuracy.CorrectBias(q, p, params, st.mean, nil, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := qdq.Rewrite(q, p, params); err != nil {
		t.Fatal(err)
	}
	return q, count
}

// ratio is the noise to signal ratio of b.
func ratio(a, b []float32) float64 {
	var signal, noise float64
	for i, x := range a {
		signal += float64(x) * float64(x)
		noise += math.Pow(float64(x)-float64(b[i]), 2)
	}
	return noise / signal
}

const head = `<ir_version: 8, opset_import: ["" : 13]> g `

func TestEqualize(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       int
	}{
		{"dense", `(float[1,3,6,6] x) => (float[1,4,6,6] y) <float[8,3,1,1] w1 = {...}, float[8] b1 = {...}, float[4,8,1,1] w2 = {...}, float[4] b2 = {...}>
		{ a = Conv (x, w1, b1) r = Relu (a) y = Conv (r, w2, b2) }`, 1},
		{"no bias", `(float[1,3,6,6] x) => (float[1,4,4,4] y) <float[8,3,1,1] w1 = {...}, float[4,8,3,3] w2 = {...}>
		{ a = Conv (x, w1) y = Conv (a, w2) }`, 1},
		{"depthwise", `(float[1,3,6,6] x) => (float[1,8,4,4] y) <float[8,3,1,1] w1 = {...}, float[8] b1 = {...}, float[8,1,3,3] w2 = {...}>
		{ a = Conv (x, w1, b1) r = Relu (a) y = Conv <group = 8> (r, w2) }`, 1},
		{"groups, pooling", `(float[1,3,6,6] x) => (float[1,4,2,2] y) <float[8,3,1,1] w1 = {...}, float[8] b1 = {...}, float[4,4,1,1] w2 = {...}>
		{ a = Conv (x, w1, b1) r = LeakyRelu (a) p = MaxPool <kernel_shape = [3,3], strides = [3,3]> (r) y = Conv <group = 2> (p, w2) }`, 1},
		{"shared weight of another node", `(float[1,3,6,6] x) => (float[1,4,6,6] y, float[1,8,6,6] z) <float[8,3,1,1] w1 = {...}, float[8] b1 = {...}, float[4,8,1,1] w2 = {...}>
		{ a = Conv (x, w1, b1) z = Conv (x, w1, b1) r = Relu (a) y = Conv (r, w2) }`, 0},
		{"shared head", `(float[1,3,6,6] x) => (float[1,4,6,6] y, float[1,4,6,6] z) <float[8,3,1,1] w1 = {...}, float[8] b1 = {...}, float[4,8,1,1] w2 = {...}>
		{ u = Neg (x) a = Conv (x, w1, b1) b = Conv (u, w1, b1) y = Conv (a, w2) z = Conv (b, w2) }`, 2},
		{"read twice", `(float[1,3,6,6] x) => (float[1,4,6,6] y, float[1,8,6,6] z) <float[8,3,1,1] w1 = {...}, float[4,8,1,1] w2 = {...}>
		{ a = Conv (x, w1) r = Relu (a) y = Conv (r, w2) z = Neg (r) }`, 0},
		{"output", `(float[1,3,6,6] x) => (float[1,4,6,6] y, float[1,8,6,6] r) <float[8,3,1,1] w1 = {...}, float[4,8,1,1] w2 = {...}>
		{ a = Conv (x, w1) r = Relu (a) y = Conv (r, w2) }`, 0},
		{"bounded", `(float[1,3,6,6] x) => (float[1,4,6,6] y) <float[8,3,1,1] w1 = {...}, float[4,8,1,1] w2 = {...}, float lo = {0}, float hi = {6}>
		{ a = Conv (x, w1) r = Clip (a, lo, hi) y = Conv (r, w2) }`, 0},
		{"read by two", `(float[1,3,6,6] x) => (float[1,4,6,6] y, float[1,4,6,6] z) <float[8,3,1,1] w1 = {...}, float[4,8,1,1] w2 = {...}>
		{ a = Conv (x, w1) r = Relu (a) y = Conv (r, w2) z = Conv (r, w2) }`, 1},
		{"residual", `(float[1,3,6,6] x) => (float[1,4,6,6] y) <float[8,3,1,1] w1 = {...}, float[8] b1 = {...}, float[8,8,3,3] v = {...}, float[4,8,1,1] w2 = {...}>
		{ a = Conv (x, w1, b1) r = Relu (a) b = Conv <pads = [1,1,1,1]> (r, v) c = Add (b, r) y = Conv (c, w2) }`, 2},
		{"concatenated", `(float[1,3,6,6] x) => (float[1,4,6,6] y) <float[4,3,1,1] u = {...}, float[8,3,1,1] w1 = {...}, float[4,12,1,1] v = {...}, float k = {0.1}>
		{ a = Conv (x, u) b = Conv (x, w1) c = Mul (b, k) d = Concat <axis = 1> (a, c) y = Conv (d, v) }`, 1},
		{"a product at the end", `(float[1,3,6,6] x) => (float[1,4] y) <float[8,3,1,1] w1 = {...}, float[8] b1 = {...}, float[4,8] w2 = {...}, float[4] b2 = {...}>
		{ a = Conv (x, w1, b1) r = Relu (a) m = GlobalAveragePool (r) f = Flatten (m) y = Gemm <transB = 1> (f, w2, b2) }`, 1},
		{"a mean", `(float[1,3,6,6] x) => (float[1,4] y) <float[8,3,1,1] w1 = {...}, float[8] b1 = {...}, float[8,4] w2 = {...}>
		{ a = Conv (x, w1, b1) r = Relu (a) f = ReduceMean <axes = [2,3], keepdims = 0> (r) y = MatMul (f, w2) }`, 1},
		{"bent", `(float[1,3,6,6] x) => (float[1,4,6,6] y) <float[8,3,1,1] w1 = {...}, float[4,8,1,1] w2 = {...}>
		{ a = Conv (x, w1) r = Sigmoid (a) y = Conv (r, w2) }`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := parse(t, head+c.text)
			// Channels from loud to quiet, evened out by the second weight.
			scaleBy(t, m, "w1", 0, false)
			for _, v := range m.Graph.Initializers() {
				if v.Name() == "b1" {
					scaleBy(t, m, "b1", 0, false)
				}
				if v.Name() == "v" && c.name == "concatenated" {
					for i := range tensor.As[float32](v.Const) {
						if k := i%12 - 4; k >= 0 {
							tensor.As[float32](v.Const)[i] *= 10 * float32(math.Exp2(5*float64(k)/7))
						}
					}
				}
				if v.Name() == "v" && c.name == "residual" {
					scaleBy(t, m, "v", 0, false)
					scaleBy(t, m, "v", 1, true)
				}
				if s := v.Const.Shape(); v.Name() == "w2" && (s[1] == 1 || c.name == "a mean") {
					scaleBy(t, m, "w2", 0, true)
				} else if v.Name() == "w2" {
					scaleBy(t, m, "w2", 1, true)
				}
			}
			want := run(t, m, nil)
			plain, _ := quantize(t, m, false)
			e := m.Clone()
			st := observe(t, m)
			if got := accuracy.Equalize(e, st.bounds, st.mean); got != c.want {
				t.Fatalf("%d values equalized, want %d", got, c.want)
			}
			if r := ratio(want, run(t, e, nil)); !(r < 1e-10) {
				t.Errorf("the float model changed: noise to signal %g", r)
			}
			if a, b := elements(m), elements(e); b > a+16 { // a bias may be read by others
				t.Errorf("%d elements of weights became %d", a, b)
			}
			if c.want == 0 {
				return
			}
			better, _ := quantize(t, e, false)
			before, after := ratio(want, run(t, plain, nil)), ratio(want, run(t, better, nil))
			if !(after < before/4) {
				t.Errorf("noise to signal %g, was %g", after, before)
			}
		})
	}
}

// elements counts those of the constants of m.
func elements(m *graph.Model) (n int) {
	for g := range m.Scopes() {
		for _, v := range g.Initializers() {
			n += v.Const.Len()
		}
	}
	return n
}

func TestSmooth(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       int
	}{
		{"product", `(float[4,16] x) => (float[4,8] y) <float[16] k = {...}, float[16,8] w = {...}> { h = Mul (x, k) y = MatMul (h, w) }`, 1},
		{"transB", `(float[4,16] x) => (float[4,8] y) <float[16] k = {...}, float[8,16] w = {...}, float[8] b = {...}> { h = Mul (x, k) y = Gemm <transB = 1> (h, w, b) }`, 1},
		{"two readers and a residual", `(float[4,16] x) => (float[4,16] y, float[4,8] z) <float[16] k = {...}, float[16,16] w = {...}, float[16,8] v = {...}>
		{ h = Mul (x, k) a = MatMul (h, w) z = MatMul (h, v) y = Add (a, h) }`, 1},
		{"shared weight", `(float[4,16] x) => (float[4,8] y, float[4,8] z) <float[16] k = {...}, float[16,8] w = {...}> { h = Mul (x, k) y = MatMul (h, w) z = MatMul (x, w) }`, 2},
		{"shared weight that something else reads", `(float[4,16] x) => (float[4,8] y, float[8,16] z) <float[16] k = {...}, float[16,8] w = {...}> { h = Mul (x, k) y = MatMul (h, w) z = Transpose (w) }`, 0},
		{"captured", `(bool[] c, float[4,16] x) => (float[4,8] y) <float[16] k = {...}, float[16,8] w = {...}>
		{ h = Mul (x, k) y = If (c) <then_branch = t () => (float[4,8] p) { p = MatMul (h, w) }, else_branch = e () => (float[4,8] q) <float[4,8] d = {...}> { q = Identity (d) }> }`, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := parse(t, head+c.text)
			for _, v := range m.Graph.Initializers() {
				if v.Name() == "k" {
					for i := range tensor.As[float32](v.Const) {
						tensor.As[float32](v.Const)[i] = 0.5
					}
					tensor.As[float32](v.Const)[3] = 200 // the outlier
				}
			}
			for _, v := range m.Graph.Initializers() {
				shape := v.Const.Shape()
				if v.Name() != "w" && v.Name() != "v" {
					continue
				}
				for i := range tensor.As[float32](v.Const) {
					if row := i / shape[1]; c.name != "transB" && row == 3 || c.name == "transB" && i%shape[1] == 3 {
						tensor.As[float32](v.Const)[i] /= 200
					}
				}
			}
			want := run(t, m, nil)
			e := m.Clone()
			if got := accuracy.Smooth(e, func(*graph.Node) bool { return true }, observe(t, m).bounds, 0.65, 2); got != c.want {
				t.Fatalf("%d values smoothed, want %d", got, c.want)
			}
			if r := ratio(want, run(t, e, nil)); !(r < 1e-10) {
				t.Errorf("the float model changed: noise to signal %g", r)
			}
			if a, b := elements(m), elements(e); b > a+16*c.want {
				t.Errorf("%d elements of weights became %d", a, b)
			}
			if c.want == 0 {
				return
			}
			plain, _ := quantize(t, m, false)
			smooth, _ := quantize(t, e, false)
			before, after := ratio(want, run(t, plain, nil)), ratio(want, run(t, smooth, nil))
			if c.name != "shared weight" && c.name != "two readers and a residual" && !(after < before/4) {
				t.Errorf("noise to signal %g, was %g", after, before)
			}
			if !(after < before) {
				t.Errorf("noise to signal %g, was %g", after, before)
			}
			if n := accuracy.Smooth(m.Clone(), func(*graph.Node) bool { return false }, observe(t, m).bounds, 0.65, 2); n != 0 {
				t.Errorf("%d values smoothed that nobody wants", n)
			}
		})
	}
}

// CorrectBias takes the mean error of every output channel out. Per-tensor
// weights with one loud element make the error large.
func TestCorrectBias(t *testing.T) {
	for _, c := range []struct {
		name, text string
		channels   int // of the output, along axis 1
	}{
		{"conv", `(float[1,6,5,5] x) => (float[1,4,5,5] y) <float[4,6,1,1] w = {...}, float[4] b = {...}> { y = Conv (x, w, b) }`, 4},
		{"groups", `(float[1,6,5,5] x) => (float[1,4,3,3] y) <float[4,3,3,3] w = {...}, float[4] b = {...}> { y = Conv <group = 2> (x, w, b) }`, 4},
		{"depthwise", `(float[1,6,5,5] x) => (float[1,6,3,3] y) <float[6,1,3,3] w = {...}, float[6] b = {...}> { y = Conv <group = 6> (x, w, b) }`, 6},
		{"gemm", `(float[8,12] x) => (float[8,5] y) <float[12,5] w = {...}, float[5] b = {...}> { y = Gemm (x, w, b) }`, 5},
		{"gemm transB", `(float[8,12] x) => (float[8,5] y) <float[5,12] w = {...}, float[5] b = {...}> { y = Gemm <transB = 1> (x, w, b) }`, 5},
		{"matmul and add", `(float[8,12] x) => (float[8,5] y) <float[12,5] w = {...}, float[5] b = {...}> { a = MatMul (x, w) y = Add (b, a) }`, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := parse(t, head+c.text)
			for _, v := range m.Graph.Initializers() {
				if v.Name() != "w" {
					continue
				}
				// One loud element in each channel makes coarse steps.
				d, spec := tensor.As[float32](v.Const), ops.Lookup(m.Graph.First())
				axis := spec.Axis(m.Graph.First(), 1, v.Const.Rank())
				shape, inner := v.Const.Shape(), 1
				for _, k := range shape[axis+1:] {
					inner *= k
				}
				seen := map[int]bool{}
				for i := range d {
					if ch := i / inner % shape[axis]; !seen[ch] {
						seen[ch] = true
						d[i] = 40
					}
				}
			}
			want := run(t, m, nil)
			meanError := func(q *graph.Model) float64 {
				got := run(t, q, nil)
				per := len(want) / samples
				inner := 1
				for _, d := range m.Graph.Outputs()[0].Type.Shape[2:] {
					inner *= int(d.Size)
				}
				sum := make([]float64, c.channels)
				for i := range want {
					sum[i%per/inner%c.channels] += (float64(got[i]) - float64(want[i])) / float64(len(want)/c.channels)
				}
				worst := 0.0
				for _, s := range sum {
					worst = math.Max(worst, math.Abs(s))
				}
				return worst
			}
			plain, _ := quantize(t, m, false)
			fixed, count := quantize(t, m, true)
			if count != 1 {
				t.Fatalf("%d biases corrected", count)
			}
			before, after := meanError(plain), meanError(fixed)
			if !(after < before/2) {
				t.Errorf("mean error %g, was %g", after, before)
			}
		})
	}
}

// The biases of nodes that stay float are corrected as well, where their weights are
// stored in 8 bits.
func TestCorrectStoredBias(t *testing.T) {
	m := parse(t, head+`(float[1,16,5,5] x) => (float[1,16,5,5] y) <float[16,16,1,1] w = {...}, float[16] b = {...}, float[16,16,3,3] v = {...}> {
		a = Conv (x, w) y = Conv <pads = [1, 1, 1, 1]> (a, v, b) }`)
	want := run(t, m, nil)
	o := qdq.Options{Store: "i8", Keep: map[int]string{}}
	for n := range m.Graph.Nodes() {
		o.Keep[n.ID] = "for a test"
	}
	p := planOf(t, m, o)
	watch, err := p.Wants(m)
	if err != nil {
		t.Fatal(err)
	}
	a := m.Graph.First().Output(0)
	if w := watch[a.ID]; w.Observe || !w.Channels || w.Axis != 1 {
		t.Errorf("wants %+v of what the stored weight multiplies", w)
	}
	plain, _ := quantizeAs(t, m, o, false)
	fixed, count := quantizeAs(t, m, o, true)
	if count != 1 {
		t.Fatalf("%d biases corrected", count)
	}
	if before, after := ratio(want, run(t, plain, nil)), ratio(want, run(t, fixed, nil)); !(after < before) {
		t.Errorf("noise to signal %g, was %g", after, before)
	}
}

// A bias that nodes share stays one value, with the name that the plan knows, or
// it is not corrected where something else reads it too.
func TestCorrectSharedBias(t *testing.T) {
	const nodes = `h = Gemm (x, w, b) r = Relu (h) z = Gemm (r, w, b)`
	for text, want := range map[string]int{
		`(float[8,12] x) => (float[8,12] z) <float[12,12] w = {...}, float[12] b = {...}> { ` + nodes + ` }`:                          1,
		`(float[8,12] x) => (float[8,12] z, float[12] c) <float[12,12] w = {...}, float[12] b = {...}> { ` + nodes + ` c = Neg (b) }`: 0,
	} {
		m := parse(t, head+text)
		q, count := quantize(t, m, true)
		if count != want {
			t.Errorf("%d biases corrected, want %d", count, want)
		}
		for n := range q.Graph.Nodes() {
			if n.Op.Type != "Gemm" {
				continue
			}
			if d := n.Input(2).DefNode(); d == nil || d.Op.Type != "DequantizeLinear" || d.Input(0).Const.DType() != tensor.Int32 {
				t.Errorf("%d corrected: the bias of %s is not in integers", count, n.Label())
			}
		}
	}
}
