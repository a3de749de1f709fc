package exec

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/fusion"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// The names that the cases of TestIntegerForm use.
const integerInits = `float s = {0.01}, float s2 = {0.02}, float so = {0.05}, float sr = {0.03}, uint8 z = {128}, uint8 zero = {0}, uint8 zi = {100},
 int8 zs = {0}, float two = {2}, float lo = {0}, float hi = {4}, int64[2] flat = {1,64}, int64[1] seven = {7}, bool flag = {1},
 float[4] sw = {0.01,0.02,0.005,0.01}, int8[4] zw = {0,0,0,0}, int8[4,4,3,3] w = {...}, int8[64,4] wm = {...}, int32[4] b = {100,-2000,3000,5}, float[4] sb = {0.0001,0.0002,0.00005,0.0001}, float[4] fb = {0.1,0.2,0.3,0.4}`

const (
	dqx = "xd = DequantizeLinear (xq, s, z)\n"
	dqw = "wd = DequantizeLinear <axis = 0> (w, sw, zw)\n"
	dqm = "wd = DequantizeLinear <axis = 1> (wm, sw, zw)\n"
	qd  = "yq = QuantizeLinear (a, so, z)\ny = DequantizeLinear (yq, so, z)\n"
)

// TestIntegerForm compares groups in integer form with the same groups run as
// they stand, which differ by rounding only, and looks at what was fused. Each
// case has the conditions of the runtime's selectors, or breaks one.
func TestIntegerForm(t *testing.T) {
	for _, c := range []struct {
		name, nodes string
		want        string // operators, less QuantizeLinear and DequantizeLinear
	}{
		{"conv", dqx + dqw + "a = Conv (xd, wd)\n" + qd, "QLinearConv"},
		{"conv with bias", dqx + dqw + "bd = DequantizeLinear <axis = 0> (b, sb)\na = Conv <pads = [1,1,1,1]> (xd, wd, bd)\n" + qd, "QLinearConv"},
		{"conv with float bias", dqx + dqw + "a = Conv (xd, wd, fb)\n" + qd, "QLinearConv"},
		{"conv with float output", dqx + dqw + "y = Conv (xd, wd)\n", "Conv"},
		{"conv whose output is read twice", dqx + dqw + "a = Conv (xd, wd)\nr = Neg (a)\n" + qd, "Conv Neg"},
		{"conv, implied relu", dqx + dqw + "c = Conv (xd, wd)\na = Relu (c)\nyq = QuantizeLinear (a, so, zero)\ny = DequantizeLinear (yq, so, zero)\n", "QLinearConv"},
		{"conv, relu that matters", dqx + dqw + "c = Conv (xd, wd)\na = Relu (c)\n" + qd, "Conv Relu"},
		{"conv, clip that matters", dqx + dqw + "c = Conv (xd, wd)\na = Clip (c, lo, hi)\nyq = QuantizeLinear (a, so, zero)\ny = DequantizeLinear (yq, so, zero)\n", "Conv Clip"},
		{"conv, output of another type", dqx + dqw + "a = Conv (xd, wd)\nyq = QuantizeLinear (a, so, zs)\ny = DequantizeLinear (yq, so, zs)\n", "Conv"},
		{"product", dqx + "r = Reshape (xd, flat)\nrq = QuantizeLinear (r, s, z)\nrd = DequantizeLinear (rq, s, z)\n" + dqm + "y = MatMul (rd, wd)\n", "Reshape MatMulIntegerToFloat"},
		{"quantized product", dqx + "r = Reshape (xd, flat)\nrq = QuantizeLinear (r, s, z)\nrd = DequantizeLinear (rq, s, z)\n" + dqm + "a = MatMul (rd, wd)\n" + qd, "Reshape QLinearMatMul"},
		{"gemm", dqx + "r = Reshape (xd, flat)\nrq = QuantizeLinear (r, s, z)\nrd = DequantizeLinear (rq, s, z)\n" + dqm + "bd = DequantizeLinear <axis = 0> (b, sb)\ny = Gemm (rd, wd, bd)\n", "Reshape QGemm"},
		{"gemm with beta", dqx + "r = Reshape (xd, flat)\nrq = QuantizeLinear (r, s, z)\nrd = DequantizeLinear (rq, s, z)\n" + dqm + "bd = DequantizeLinear <axis = 0> (b, sb)\ny = Gemm <beta = 2.0> (rd, wd, bd)\n", "Reshape Gemm"},
		{"reshape between different scales", dqx + "a = Reshape (xd, flat)\n" + qd, "Reshape"},
		{"max pooling", dqx + "p = MaxPool <kernel_shape = [2,2]> (xd)\npq = QuantizeLinear (p, s, z)\ny = DequantizeLinear (pq, s, z)\n", "MaxPool"},
		{"add", dqx + "hd = DequantizeLinear (xq, s2, zi)\na = Add (xd, hd)\n" + qd, "QLinearAdd"},
		{"mul", dqx + "hd = DequantizeLinear (xq, s2, zi)\na = Mul (xd, hd)\n" + qd, "QLinearMul"},
		{"add of a float", dqx + "a = Add (xd, x)\n" + qd, "Add"},
		{"concat of different scales", dqx + "hd = DequantizeLinear (xq, s2, zi)\na = Concat <axis = 1> (xd, hd)\n" + qd, "QLinearConcat"},
		{"average pooling", dqx + "a = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (xd)\n" + qd, "QLinearAveragePool"},
		{"global average pooling", dqx + "a = GlobalAveragePool (xd)\n" + qd, "QLinearGlobalAveragePool"},
		{"leaky relu", dqx + "a = LeakyRelu (xd)\n" + qd, "QLinearLeakyRelu"},
		{"sigmoid", dqx + "a = Sigmoid (xd)\n" + qd, "QLinearSigmoid"},
		{"softmax", dqx + "a = Softmax (xd)\n" + qd, "QLinearSoftmax"},
		{"where", dqx + "hd = DequantizeLinear (xq, s2, zi)\na = Where (flag, xd, hd)\n" + qd, "QLinearWhere"},
		{"what has no integer kernel", dqx + "a = Tanh (xd)\n" + qd, "Tanh"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := graph.Parse("<ir_version: 8, opset_import: [\"\" : 13]>\ng (float[1,4,4,4] x) => (y)\n<" + integerInits + ">\n{\nxq = QuantizeLinear (x, s, z)\n" + c.nodes + "}\n")
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(1, 1))
			for _, v := range m.Graph.Initializers() {
				if v.Const.DType() == tensor.Int8 && v.Const.Len() > 4 {
					for i := range tensor.As[int8](v.Const) {
						tensor.As[int8](v.Const)[i] = int8(r.IntN(255) - 127)
					}
				}
			}
			if _, err := ops.Infer(m); err != nil {
				t.Fatal(err)
			}
			before := graph.Text(m, -1)
			form := IntegerForm(m)
			if err := form.Verify(); err != nil {
				t.Fatal(err)
			}
			if graph.Text(m, -1) != before {
				t.Error("the model itself was changed")
			}
			var list []string
			for n := range form.Graph.Nodes() {
				if !fusion.IsQ(n) && !fusion.IsDQ(n) {
					list = append(list, n.Op.Type)
				}
			}
			if got := strings.Join(list, " "); got != c.want {
				t.Errorf("operators %s, want %s", got, c.want)
			}
			plain := &compiler{}
			main, err := plain.graph(m.Graph, nil)
			if err != nil {
				t.Fatal(err)
			}
			fast, err := Compile(m, Options{})
			if err != nil {
				t.Fatal(err)
			}
			// Integer kernels add exactly and round once more: half a step of the
			// output, or of its scale where two roundings meet.
			step := 0.0501
			if !strings.Contains(c.nodes, "so,") {
				step = 1e-3
			}
			for range 5 {
				x := tensor.New(tensor.Float32, 1, 4, 4, 4)
				for i := range tensor.As[float32](x) {
					tensor.As[float32](x)[i] = float32(r.Float64()*2.4 - 1.2)
				}
				feed := map[string]ops.Data{"x": x}
				want, err := (&Program{model: m, main: main}).NewSession(SessionOptions{Threads: 1}).Run(t.Context(), feed, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				got, err := fast.NewSession(SessionOptions{Threads: 2}).Run(t.Context(), feed, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				a, b := want[0].(*tensor.Tensor), got[0].(*tensor.Tensor)
				if !slices.Equal(a.Shape(), b.Shape()) {
					t.Fatalf("%v, want %v", b, a)
				}
				off := 0
				for i, f := range tensor.As[float32](a) {
					if d := math.Abs(float64(f) - float64(tensor.As[float32](b)[i])); d > step {
						t.Fatalf("element %d is %g, want %g", i, tensor.As[float32](b)[i], f)
					} else if d > 1e-3 {
						off++
					}
				}
				if off > a.Len()/10+1 {
					t.Errorf("%d of %d elements differ by a step", off, a.Len())
				}
			}
		})
	}
}

// Values outside of fused groups can be tapped in a quantized model, by the
// IDs of the model that was compiled.
func TestIntegerFormTaps(t *testing.T) {
	m, err := graph.Parse("<ir_version: 8, opset_import: [\"\" : 13]>\ng (float[1,4,4,4] x) => (n)\n<" + integerInits + ">\n{\nxq = QuantizeLinear (x, s, z)\n" + dqx + dqw + "a = Conv (xd, wd)\n" + qd + "n = Neg (y)\n}\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Infer(m); err != nil {
		t.Fatal(err)
	}
	taps := slices.Repeat([]bool{true}, m.NumValues())
	prog, err := Compile(m, Options{Taps: taps})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[int]string{m.Graph.Inputs()[0].ID: "x"}
	for n := range m.Graph.Nodes() {
		ids[n.Output(0).ID] = n.Output(0).Name()
	}
	seen := map[string]string{}
	_, err = prog.NewSession(SessionOptions{Threads: 1}).Run(t.Context(), map[string]ops.Data{"x": tensor.New(tensor.Float32, 1, 4, 4, 4)}, func(v *graph.Value, d *tensor.Tensor) error {
		if ids[v.ID] != "" {
			seen[ids[v.ID]] = fmt.Sprint(d)
		}
		return nil
	}, taps)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"x": "float[1,4,4,4]", "xq": "uint8[1,4,4,4]", "y": "float[1,4,2,2]", "n": "float[1,4,2,2]"} {
		if seen[name] != want {
			t.Errorf("%s was seen as %q, want %s; all: %v", name, seen[name], want, seen)
		}
	}
	if seen["a"] != "" {
		t.Error("a value inside of a fused group was seen")
	}
}
