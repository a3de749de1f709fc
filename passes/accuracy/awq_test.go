package accuracy_test

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes/accuracy"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// TestAWQ scales the channels between constants and products of several kinds:
// the model computes what it did, the nearest codes of what is scaled give outputs
// nearer to the float model's, and scales go into the constants that were there
// where nothing else reads the value.
func TestAWQ(t *testing.T) {
	for name, c := range map[string]struct {
		text   string
		scaled string // the values, in order; those with a Mul of their own in brackets
		nodes  int    // that come on top
	}{
		"norm": {`(float[t,64] x) => (float[t,48] a, float[t,32] b, float[t,48] c) <float[64] s_norm = {...}, float[64] bias = {...}, float[64,48] q = {...}, float[64,32] k = {...}, float[48,64] v = {...}> {
  n = LayerNormalization (x, s_norm, bias) a = MatMul (n, q) b = MatMul (n, k) c = Gemm <transB = 1> (n, v) }`, "n", 0},
		"shared constant": {`(float[t,64] x) => (float[t,48] a, float[t,64] b) <float[64] s_norm = {...}, float[64,48] q = {...}> {
  n = RMSNormalization (x, s_norm) a = MatMul (n, q) b = Mul (x, s_norm) }`, "n", 0},
		"residual": {`(float[t,64] x) => (float[t,64] y) <float[64] s_norm = {...}, float[64] bias = {...}, float[64,64] w = {...}> {
  n = LayerNormalization (x, s_norm, bias) p = MatMul (n, w) y = Add (p, n) }`, "(n)", 1},
		"input": {`(float[t,64] s_x) => (float[t,48] y) <float[64,48] w = {...}> { y = MatMul (s_x, w) }`, "(s_x)", 1},
		"gelu": {`(float[t,16] x) => (float[t,48] y) <float[16,64] s_up = {...}, float[64,48] down = {...}, float half = {0.5}> {
  h = MatMul (x, s_up) e = Erf (h) g = Mul (e, h) m = Mul (g, half) y = MatMul (m, down) }`, "m", 0},
		"gate": {`(float[t,16] x) => (float[t,48] y) <float[16,64] gate = {...}, float[16,64] s_up = {...}, float[64] b = {...}, float[64,48] down = {...}> {
  h = MatMul (x, gate) s = Sigmoid (h) u = MatMul (x, s_up) a = Add (b, u) m = Mul (s, a) y = MatMul (m, down) }`, "m", 0},
		"chain": {`(float[t,16] x) => (float[t,48] y) <float[64,16] first = {...}, float[64] s_bias = {...}, float[64,48] second = {...}> {
  h = Gemm <transB = 1> (x, first, s_bias) r = Relu (h) y = MatMul (r, second) }`, "r", 0},
		"heads": {`(float[1,t,16] x, float[1,4,t,t] p) => (float[1,t,48] y) <float[16,64] s_v = {...}, int64[4] in = {0, 0, 4, 16}, int64[3] out = {0, 0, 64}, float[64,48] o = {...}> {
  v = MatMul (x, s_v) h = Reshape (v, in) a = Transpose <perm = [0, 2, 1, 3]> (h) m = MatMul (p, a)
  b = Transpose <perm = [0, 2, 1, 3]> (m) c = Reshape (b, out) y = MatMul (c, o) }`, "c", 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 8))
			m, err := graph.Parse(`<ir_version: 8, opset_import: ["": 23]> g ` + c.text)
			if err != nil {
				t.Fatal(err)
			}
			// The last axis of what is named s_ has channels of all magnitudes.
			fill := func(name string, x *tensor.Tensor) {
				data, shape := tensor.As[float32](x), x.Shape()
				if len(data) < 2 {
					return
				}
				strong := rand.New(rand.NewPCG(9, 9))
				channel := make([]float64, shape[len(shape)-1])
				for i := range channel {
					channel[i] = math.Exp(1.5 * strong.NormFloat64())
				}
				for i := range data {
					data[i] = float32(r.NormFloat64())
					if strings.HasPrefix(name, "s_") {
						data[i] *= float32(channel[i%len(channel)])
					}
				}
			}
			for _, v := range m.Graph.Initializers() {
				if v.Const.DType() == tensor.Float32 {
					fill(v.Name(), v.Const)
				}
			}
			if _, err := ops.Infer(m); err != nil {
				t.Fatal(err)
			}
			var feeds []map[string]ops.Data
			for range 8 {
				in := map[string]ops.Data{}
				for _, v := range m.Graph.FeedInputs() {
					shape := make([]int, len(v.Type.Shape))
					for i, d := range v.Type.Shape {
						if shape[i] = 50; d.Known {
							shape[i] = int(d.Size)
						}
					}
					x := tensor.New(tensor.Float32, shape...)
					fill(v.Name(), x)
					in[v.Name()] = x
				}
				feeds = append(feeds, in)
			}
			target, s := storage(t, "i4")
			o := qdq.Options{WeightsOnly: true, Blocks: &quant.Blocks{Storage: s, Size: 32}}
			noise := func(q *graph.Model) float64 {
				sum := 0.0
				for _, in := range feeds {
					want, got := floats(t, m, in), floats(t, q, in)
					for i := range want {
						for j, v := range want[i] {
							sum += float64(v-got[i][j]) * float64(v-got[i][j])
						}
					}
				}
				return sum
			}
			signal := 0.0
			for _, in := range feeds {
				for _, out := range floats(t, m, in) {
					for _, v := range out {
						signal += float64(v) * float64(v)
					}
				}
			}
			coded := func(m *graph.Model) *graph.Model {
				q := m.Clone()
				plan, err := qdq.Annotate(q, target, o)
				if err != nil {
					t.Fatal(err)
				}
				params, _, err := plan.Resolve(q, nil, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := qdq.Rewrite(q, plan, params); err != nil {
					t.Fatal(err)
				}
				return q
			}

			plan, err := qdq.Annotate(m, target, o)
			if err != nil {
				t.Fatal(err)
			}
			scaled := m.Clone()
			scales, err := accuracy.AWQ(t.Context(), scaled, plan, given(feeds), len(feeds), 1.3, exec.SessionOptions{Threads: 2})
			if err != nil {
				t.Fatal(err)
			}
			if err := scaled.Verify(); err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, s := range scales {
				if s.Folded {
					names = append(names, s.Value)
				} else {
					names = append(names, "("+s.Value+")")
				}
				if !(s.After < 0.9*s.Before) || !(s.Alpha > 0 && s.Alpha <= 1) {
					t.Errorf("%s: α %v, error %v, before %v", s.Value, s.Alpha, s.After, s.Before)
				}
			}
			if got := strings.Join(names, " "); got != c.scaled {
				t.Errorf("scaled %q, expected %q", got, c.scaled)
			}
			count := func(m *graph.Model) (n int) {
				for range m.Graph.Nodes() {
					n++
				}
				return n
			}
			if more := count(scaled) - count(m); more != c.nodes {
				t.Errorf("%d more nodes, expected %d", more, c.nodes)
			}
			if off := noise(scaled); !(off < 1e-10*signal) {
				t.Errorf("the scaled float model is off by %g of %g", off, signal)
			}
			if before, after := noise(coded(m)), noise(coded(scaled)); !(after < 0.9*before) {
				t.Errorf("squared error of the outputs %g, before %g", after, before)
			}
		})
	}
}
