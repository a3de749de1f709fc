package accuracy

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/tensor"
)

// TestFeedback rounds random weights against correlated inputs: their errors on
// these cancel.
func TestFeedback(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, k := range []int{9, 64, 150} {
		n, rows := 5, 4*k
		mix := make([]float64, k*k)
		for i := range mix {
			mix[i] = r.NormFloat64() / math.Sqrt(float64(k)) * 0.7
		}
		x := make([]float32, rows*k)
		for i := range rows {
			z := make([]float64, k)
			for j := range z {
				z[j] = r.NormFloat64()
			}
			for j := range k {
				s := 0.3*z[j] + 1
				for l := range k / 4 {
					s += mix[j*k+l] * z[l] * 2
				}
				x[i*k+j] = float32(s)
			}
		}
		h := make([]float32, k*k)
		for i := range rows {
			for a := range k {
				for b := range k {
					h[a*k+b] += x[i*k+a] * x[i*k+b]
				}
			}
		}
		w := make([]float32, k*n)
		for i := range w {
			w[i] = float32(r.NormFloat64())
		}
		scale, zero := make([]float32, n), make([]int32, n)
		for i := range scale {
			scale[i] = 0.2
		}
		order, u, err := factor(t.Context(), h, k, rowsPerInput*k)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]float32, k*n)
		for a, i := range order {
			copy(p[a*n:(a+1)*n], w[i*n:(i+1)*n])
		}
		codes := feedback(p, u, scale, zero, -127, 127, k, n)
		loss := func(code func(a, o int) float64) float64 {
			total := 0.0
			for i := range rows {
				for o := range n {
					s := 0.0
					for a, j := range order {
						s += (code(a, o)*float64(scale[o]) - float64(p[a*n+o])) * float64(x[i*k+j])
					}
					total += s * s
				}
			}
			return total
		}
		near := loss(func(a, o int) float64 { return math.RoundToEven(float64(p[a*n+o] / scale[o])) })
		got := loss(func(a, o int) float64 { return float64(codes[a*n+o]) })
		if got > near/2 {
			t.Errorf("k %d: error %g, nearest codes give %g", k, got, near)
		}
	}
}

// Inputs that say nothing, and those that repeat each other, leave the nearest
// codes or make others of the same worth; nothing becomes NaN.
func TestFeedbackDegenerate(t *testing.T) {
	const k, n = 70, 3
	w, scale, zero := make([]float32, k*n), []float32{1, 1, 1}, make([]int32, n)
	for i := range w {
		w[i] = float32(i%7) / 3
	}
	for name, fill := range map[string]func(a, b int) float32{
		"zeros": func(a, b int) float32 { return 0 },
		"ones":  func(a, b int) float32 { return 1 },
		"huge":  func(a, b int) float32 { return 1e30 },
		"dead": func(a, b int) float32 {
			if a == b && a%2 == 0 {
				return 4
			}
			return 0
		},
	} {
		h := make([]float32, k*k)
		for a := range k {
			for b := range k {
				h[a*k+b] = fill(a, b)
			}
		}
		order, u, err := factor(t.Context(), h, k, rowsPerInput*k)
		if err != nil {
			t.Fatal(err)
		}
		if seen := map[int]bool{}; len(order) != k {
			t.Errorf("%s: %d inputs in the order", name, len(order))
		} else {
			for _, i := range order {
				seen[i] = true
			}
			if len(seen) != k {
				t.Errorf("%s: the order repeats inputs: %v", name, order)
			}
		}
		for _, x := range u {
			if x != x || math.IsInf(float64(x), 0) {
				t.Fatalf("%s: factor holds %g", name, x)
			}
		}
		for i, c := range feedback(w, u, scale, zero, -127, 127, k, n) {
			if name != "ones" && name != "huge" && float64(c) != math.RoundToEven(float64(w[i])) {
				t.Errorf("%s: code %d of %g", name, c, w[i])
			}
		}
	}
}

// Patches are what a convolution multiplies its weight with.
func TestRows(t *testing.T) {
	for _, text := range []string{
		"(float[2,6,7,5] x) => (float[2,4,a,b] y) <float[4,3,3,2] w = {...}> { y = Conv <group = 2, strides = [2,1], dilations = [1,2], pads = [1,0,2,1]> (x, w) }",
		"(float[1,4,9] x) => (float[1,4,a] y) <float[4,1,4] w = {...}> { y = Conv <group = 4, auto_pad = \"SAME_UPPER\", strides = [2]> (x, w) }",
		"(float[1,4,9] x) => (float[1,2,a] y) <float[2,4,4] w = {...}> { y = Conv <auto_pad = \"SAME_LOWER\"> (x, w) }",
		"(float[3,5,6] x) => (float[3,5,4] y) <float[6,4] w = {...}> { y = MatMul (x, w) }",
		"(float[5,6] x) => (float[5,4] y) <float[4,6] w = {...}> { y = Gemm <transB = 1> (x, w) }",
	} {
		m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : 13]> g ` + text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ops.Infer(m); err != nil {
			t.Fatal(err)
		}
		w := m.Graph.Initializers()[0]
		plan := &qdq.Plan{Nodes: []qdq.NodePlan{{Scope: graph.MainScope, Node: m.Graph.First().Label(), Op: m.Graph.First().Op.String()}},
			Tensors: []qdq.TensorPlan{{Scope: graph.MainScope, Tensor: w.Name(), Kind: qdq.Weight, Type: "i8", Axis: -1}}}
		list, err := products(m, plan, false)
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		p := &list[0]
		var shape []int
		for _, d := range m.Graph.FeedInputs()[0].Type.Shape {
			shape = append(shape, int(d.Size))
		}
		x := tensor.New(tensor.Float32, shape...)
		r := rand.New(rand.NewPCG(5, 6))
		for i := range tensor.As[float32](x) {
			tensor.As[float32](x)[i] = float32(r.NormFloat64())
		}
		prog, err := exec.Compile(m, exec.Options{})
		if err != nil {
			t.Fatal(err)
		}
		outs, err := prog.NewSession(exec.SessionOptions{Threads: 1}).Run(t.Context(), map[string]ops.Data{"x": x}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		y := outs[0].(*tensor.Tensor)
		positions := y.Len() / (p.groups * p.n)
		plane := positions
		if p.inputs[0].window.kernel != nil {
			plane = positions / y.Shape()[0]
		}
		wt := tensor.As[float32](w.Const)
		for g := range p.groups {
			all := moments{origin: p.inputs[0], groups: p.groups, k: p.k, limit: 1 << 20}
			drawn := make([][]float32, p.groups)
			all.draw(nil, drawn, x)
			rows := drawn[g]
			count := len(rows) / p.k
			if count != positions {
				t.Fatalf("%s: %d patches of %d", text, count, positions)
			}
			for i := range count {
				for o := range p.n {
					sum := 0.0
					for j := range p.k {
						at := (g*p.n+o)*p.k + j
						if p.byColumn {
							at = j*p.n + o
						}
						sum += float64(wt[at]) * float64(rows[i*p.k+j])
					}
					at := i*p.n + o
					if p.inputs[0].window.kernel != nil {
						at = (i/plane*p.groups*p.n+g*p.n+o)*plane + i%plane
					}
					if got := float64(tensor.As[float32](y)[at]); math.Abs(got-sum) > 1e-4*(1+math.Abs(sum)) {
						t.Fatalf("%s: position %d, channel %d: %g, the operator gives %g", text, i, o, sum, got)
					}
				}
			}
			all.limit = 3
			drawn = make([][]float32, p.groups)
			all.draw(nil, drawn, x)
			if few := len(drawn[g]) / p.k; few != 3 {
				t.Errorf("%s: %d patches, 3 asked for", text, few)
			}
		}
	}
}

// The fewer rows there are, the less is made of what they do not show.
func TestFewRows(t *testing.T) {
	const k = 8
	x := make([]float32, k)
	h := make([]float32, k*k)
	for i := range x {
		x[i] = float32(i + 1)
	}
	for i := range k {
		for j := range k {
			h[i*k+j] = x[i] * x[j]
		}
	}
	push := func(rows int) (sum float64) {
		_, u, err := factor(t.Context(), h, k, rows)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range u {
			sum += math.Abs(float64(v))
		}
		return sum
	}
	if many, one := push(rowsPerInput*k), push(1); !(one < many/1.05) || push(2*rowsPerInput*k) != many {
		t.Errorf("errors are passed on %g times with one row, %g with many", one, many)
	}
}
