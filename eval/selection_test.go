package eval_test

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// selecting returns a model of 40 rows of 4 numbers and one score, of which the
// nodes pick some, with weights off by a share of their size.
func selecting(t *testing.T, opset, nodes, outputs string, off float64) *graph.Model {
	t.Helper()
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : ` + opset + `]> g (float[1,40,8] x) => (` + outputs + `)
<float[8,4] wb = {...}, float[8,1] ws = {...}, int64[1] k = {10}, int64[1] last = {-1}, int64[1] flat = {-1}, int64[3] whole = {1,40,4}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3},
 float half = {0.6}, float[1] few = {0.3}, int64[1] most = {20}, int64[2] row = {1,10}, int64[3] wide = {1,10,4}, int64[3] line = {1,1,40}, int64 zero = {0}>
{ boxes = MatMul (x, wb) raw = MatMul (x, ws) score = Sigmoid (raw) column = Squeeze (score, last)
` + nodes + ` }`)
	if err != nil {
		t.Fatal(err)
	}
	r, noise := rand.New(rand.NewPCG(7, 7)), rand.New(rand.NewPCG(8, 8))
	for _, v := range m.Graph.Initializers() {
		if name := v.Name(); name == "wb" || name == "ws" {
			w := tensor.New(tensor.Float32, v.Const.Shape()...)
			for i := range tensor.As[float32](w) {
				tensor.As[float32](w)[i] = float32(r.NormFloat64() * (1 + off*noise.NormFloat64()))
			}
			v.Const = w
		}
	}
	return m
}

// run runs a model once.
func run(t *testing.T, m *graph.Model, in map[string]ops.Data) []ops.Data {
	t.Helper()
	if err := m.Verify(); err != nil {
		t.Fatal(err)
	}
	p, err := exec.Compile(m, exec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.NewSession(exec.SessionOptions{}).Run(t.Context(), in, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What picks rows by values that quantization changes.
var selections = []struct{ name, nodes, outputs string }{
	{"TopK", `best, at = TopK (column, k) index = Unsqueeze (at, last) all = Expand (index, wide) y = GatherElements <axis: int = 1> (boxes, all)`, "float[1,10,4] y, float[1,10] best"},
	{"a mask before TopK", `hot = Greater (column, half) mask = Cast <to: int = 1> (hot) kept = Mul (column, mask) best, at = TopK (kept, k) index = Unsqueeze (at, last) all = Expand (index, wide) y = GatherElements <axis: int = 1> (boxes, all)`, "float[1,10,4] y, float[1,10] best"},
	{"NonMaxSuppression", `scores = Reshape (score, line) rows = NonMaxSuppression (boxes, scores, most, few) at = Gather <axis: int = 1> (rows, two) y = GatherND (boxes0, at)`, "float[N,4] y"},
	{"NonZero", `hot = Greater (column, half) at = NonZero (hot) rows = Transpose <perm: ints = [1, 0]> (at) y = GatherND (boxes, rows)`, "float[N,4] y"},
}

// Rows that change places are compared with what they are, and not with what
// stands in their place.
func TestSelection(t *testing.T) {
	for _, c := range selections {
		t.Run(c.name, func(t *testing.T) {
			nodes := c.nodes
			if c.name == "NonMaxSuppression" {
				nodes = "boxes0 = Squeeze (boxes, first) " + nodes
			}
			build := func(off float64) *graph.Model {
				return selecting(t, "13", `first = Constant <value: tensor = int64[1] {0}> () `+nodes, c.outputs, off)
			}
			ref, got := build(0), build(.02)
			s, a, b := eval.Align(t.Context(), ref, got)
			if s == nil {
				t.Fatal("compared as they are")
			}
			plain, aligned := eval.NewComparison(s.Names(ref)[:len(ref.Graph.Outputs())]), eval.NewComparison(s.Names(ref))
			for seed := range uint64(24) {
				x := tensor.New(tensor.Float32, 1, 40, 8)
				r := rand.New(rand.NewPCG(seed, 1))
				for i := range tensor.As[float32](x) {
					tensor.As[float32](x)[i] = float32(r.NormFloat64())
				}
				in := map[string]ops.Data{"x": x}
				if err := plain.Add(run(t, ref, in), run(t, got, in)); err != nil {
					t.Fatal(err)
				}
				want, picked := s.Split(run(t, a, in))
				more := maps.Clone(in)
				maps.Copy(more, picked)
				if err := aligned.Add(want, run(t, b, more)); err != nil {
					t.Fatal(err)
				}
			}
			before, after := plain.Outputs()[0], aligned.Outputs()[0]
			if before.SQNR == nil || *before.SQNR > 15 {
				t.Errorf("row by row %v dB: the test shows nothing", eval.Decibel(before.SQNR))
			}
			if after.SQNR == nil || *after.SQNR < 28 || after.Different > 0 {
				t.Errorf("aligned %v dB, %d different; row by row %v dB", eval.Decibel(after.SQNR), after.Different, eval.Decibel(before.SQNR))
			}
		})
	}
}

// What is not picked, or is put back, stands where it stood.
func TestSelectionOnlyOfRows(t *testing.T) {
	for _, c := range []struct{ name, nodes, outputs string }{
		{"nothing is picked", `y = Mul (boxes, score)`, "float[1,40,4] y"},
		{"by a shape", `size = Shape (boxes) ones = ConstantOfShape (size) at = NonZero (ones) part = Gather (at, zero) f = Cast <to: int = 1> (part) s = ReduceSum <keepdims: int = 0> (f) y = Mul (boxes, s)`, "float[1,40,4] y"},
		{"by an input", `hot = Greater (x, half) at = NonZero (hot) rows = Transpose <perm: ints = [1, 0]> (at) p = GatherND (x, rows) s = ReduceSum <keepdims: int = 0> (p) y = Mul (boxes, s)`, "float[1,40,4] y"},
		{"put back", `best, at = TopK (column, k) none = Sub (column, column) y = ScatterElements <axis: int = 1> (none, at, best)`, "float[1,40] y"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if s := eval.NewSelection(selecting(t, "13", c.nodes, c.outputs, 0)); s != nil {
				t.Errorf("%+v", s)
			}
		})
	}
}

// Where outputs do not tell, what they follow from is compared as well.
func TestSelectionJudges(t *testing.T) {
	for _, c := range []struct {
		name, nodes, outputs string
		want                 []string
	}{
		{"a label", `best = ArgMax <axis: int = 1, keepdims: int = 0> (column)`, "int64[1] best", []string{"column"}},
		{"a label beside scores", `best = ArgMax <axis: int = 1, keepdims: int = 0> (column) y = Identity (column)`, "int64[1] best, float[1,40] y", nil},
		{"a mask", `hot = Greater (score, half) also = Less (raw, half) both = And (hot, also) y = Cast <to: int = 2> (both)`, "uint8[1,40,1] y", []string{"score", "raw"}},
		{"as many as are hot", `hot = Greater (column, half) at = NonZero (hot) rows = Transpose <perm: ints = [1, 0]> (at) y = GatherND (boxes, rows)`, "float[N,4] y", []string{"column"}},
		{"the best", `best, at = TopK (column, k)`, "float[1,10] best, int64[1,10] at", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := selecting(t, "13", c.nodes, c.outputs, 0)
			var got []string
			for _, j := range eval.NewSelection(m).Beside() {
				got = append(got, j.Name)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// A quantized model that lacks what was picked is compared as it is, and one whose
// copies of values are gone, or of an old operator set, is not.
func TestAlign(t *testing.T) {
	const nodes = `best, at = TopK (column, k) y = Identity (best) index = Identity (at)`
	const outputs = "float[1,10] y, int64[1,10] index"
	ref := selecting(t, "10", nodes, outputs, 0)
	if s, _, b := eval.Align(t.Context(), ref, selecting(t, "10", "y, index = TopK (column, k)", outputs, .1)); s == nil {
		t.Error("without copies: compared as they are")
	} else if b.Opset(graph.OnnxDomain) < 11 {
		t.Error("the operator set lacks what stands for TopK")
	}
	got := selecting(t, "10", "y = Identity (column) n = Shape (column) index = Identity (n)", "float[1,40] y, int64[2] index", 0)
	if s, a, b := eval.Align(t.Context(), ref, got); s != nil || a != ref || b != got {
		t.Error("aligned with what picks nothing")
	}
}
