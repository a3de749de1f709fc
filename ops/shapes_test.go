package ops

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// shapeOf parses "N 3 ?" as a symbol, a size and an unknown dimension.
func shapeOf(s string) graph.Shape {
	shape := graph.Shape{}
	for _, f := range strings.Fields(s) {
		switch n, err := strconv.Atoi(f); {
		case err == nil:
			shape = append(shape, graph.D(int64(n)))
		case f == "?":
			shape = append(shape, graph.Dim{})
		default:
			shape = append(shape, graph.Sym(f))
		}
	}
	return shape
}

// TestInferredShapes checks the shape rules on symbolic and unknown
// dimensions. An operand in brackets is a constant list of integers.
func TestInferredShapes(t *testing.T) {
	i, s := graph.Int, graph.String
	for _, c := range []struct {
		op    string
		opset int
		ins   []string
		attrs []*graph.Attr
		want  string // of output 0, and of others behind bars
	}{
		{"Relu", 14, []string{"N 3 ?"}, nil, "[N,3,?]"},
		{"Add", 14, []string{"N 3 4", "3 1"}, nil, "[N,3,4]"},
		{"Add", 14, []string{"N 1 4", "M 1"}, nil, "[N,M,4]"},
		{"Add", 14, []string{"N 4", "M 4"}, nil, "[?,4]"},
		{"Add", 14, []string{"N", "5"}, nil, "[5]"},
		{"Max", 13, []string{"N 1", "1 5", ""}, nil, "[N,5]"},
		{"Where", 16, []string{"N 1", "1 M", "N M"}, nil, "[N,M]"},
		{"Equal", 19, []string{"N 4", "4"}, nil, "bool[N,4]"},
		{"Cast", 13, []string{"N 4"}, []*graph.Attr{i("to", 7)}, "int64[N,4]"},
		{"CastLike", 19, []string{"N 4", "[1]"}, nil, "int64[N,4]"},
		{"IsNaN", 20, []string{"N 4"}, nil, "bool[N,4]"},
		{"Dropout", 13, []string{"N 4"}, nil, "[N,4] | bool[N,4]"},
		{"Pow", 15, []string{"N 4", ""}, nil, "[N,4]"},
		{"ReduceSum", 13, []string{"N 3 M", "[1]"}, nil, "[N,1,M]"},
		{"ReduceSum", 13, []string{"N 3 M", "[-1 0]"}, []*graph.Attr{i("keepdims", 0)}, "[3]"},
		{"ReduceSum", 13, []string{"N 3 M"}, nil, "[1,1,1]"},
		{"ReduceSum", 13, []string{"N 3 M"}, []*graph.Attr{i("noop_with_empty_axes", 1)}, "[N,3,M]"},
		{"ReduceMean", 13, []string{"N 3 M"}, []*graph.Attr{graph.Ints("axes", 2), i("keepdims", 0)}, "[N,3]"},
		{"ArgMax", 13, []string{"N 3 M"}, []*graph.Attr{i("axis", -1), i("keepdims", 0)}, "int64[N,3]"},
		{"CumSum", 14, []string{"N 3", "[1]"}, nil, "[N,3]"},
		{"TopK", 11, []string{"N 100", "[5]"}, nil, "[N,5] | int64[N,5]"},
		{"TopK", 9, []string{"N 100"}, []*graph.Attr{i("k", 7)}, "[N,7] | int64[N,7]"},
		{"Softmax", 13, []string{"N 3"}, nil, "[N,3]"},
		{"Einsum", 12, []string{"B N H D", "B M H D"}, []*graph.Attr{s("equation", "bqhd,bkhd->bhqk")}, "[B,H,N,M]"},
		{"Einsum", 12, []string{"B 2 N 4", "B 2 4 M"}, []*graph.Attr{s("equation", "...ij,...jk->...ik")}, "[B,2,N,M]"},
		{"Einsum", 12, []string{"N N"}, []*graph.Attr{s("equation", "ii")}, "[]"},
		{"NegativeLogLikelihoodLoss", 13, []string{"N 5 M", "int64 N M"}, []*graph.Attr{s("reduction", "none")}, "[N,M]"},
		{"SoftmaxCrossEntropyLoss", 13, []string{"N 5 M", "int64 N M"}, nil, "[] | [N,5,M]"},
		{"BatchNormalization", 15, []string{"N 3 H W", "3", "3", "3", "3"}, nil, "[N,3,H,W]"},
		{"LayerNormalization", 17, []string{"N S 8", "8", "8"}, nil, "[N,S,8] | [N,S,1] | [N,S,1]"},
		{"GroupNormalization", 21, []string{"N 6 ?", "6", "6"}, []*graph.Attr{i("num_groups", 2)}, "[N,6,?]"},
		{"LRN", 13, []string{"N 6 H W"}, []*graph.Attr{i("size", 3)}, "[N,6,H,W]"},
	} {
		m := graph.NewModel(10, graph.Opset{Version: int64(c.opset)})
		g := m.Graph
		var ins, outs []*graph.Value
		for k, in := range c.ins {
			if list, ok := strings.CutPrefix(in, "["); ok {
				var v []int64
				for _, d := range shapeOf(strings.TrimSuffix(list, "]")) {
					v = append(v, d.Size)
				}
				ins = append(ins, g.NewInitializer("list", tensor.Of(v)))
				continue
			}
			elem := tensor.Float32
			if rest, ok := strings.CutPrefix(in, "int64 "); ok {
				elem, in = tensor.Int64, rest
			}
			v := g.NewValue(fmt.Sprint("in", k), graph.TensorType(elem, shapeOf(in)))
			g.AddInput(v)
			ins = append(ins, v)
		}
		wants := strings.Split(c.want, " | ")
		for k := range wants {
			outs = append(outs, g.NewValue(fmt.Sprint("out", k), graph.Type{}))
		}
		g.Append(g.NewNode(graph.OpKey{Type: c.op}, "n", ins, outs, c.attrs...))
		if _, err := Infer(m); err != nil {
			t.Errorf("%s %v: %v", c.op, c.ins, err)
			continue
		}
		for k, want := range wants {
			if strings.HasPrefix(want, "[") {
				want = "float" + want
			}
			if got := outs[k].Type.String(); got != want {
				t.Errorf("%s %v, output %d: %s, want %s", c.op, c.ins, k, got, want)
			}
		}
	}
}

// TestThreads checks that the number of threads changes no bit.
func TestThreads(t *testing.T) {
	random := func(shape ...int) Data {
		x := tensor.New(tensor.Float32, shape...)
		v := tensor.As[float32](x)
		state := uint32(1)
		for i := range v {
			state = state*1664525 + 1013904223
			v[i] = float32(int32(state)) / (1 << 30)
		}
		return x
	}
	for _, s := range []single{
		{op: graph.OpKey{Type: "Gelu"}, opset: 20, ins: []Data{random(3, 7000)}},
		{op: graph.OpKey{Type: "Mul"}, opset: 14, ins: []Data{random(30, 1, 70), random(40, 1)}},
		{op: graph.OpKey{Type: "Less"}, opset: 13, ins: []Data{random(300, 200), random(300, 1)}},
		{op: graph.OpKey{Type: "ReduceSum"}, opset: 13, ins: []Data{random(50, 60, 70), tensor.Of([]int64{1})}},
		{op: graph.OpKey{Type: "ReduceL2"}, opset: 18, ins: []Data{random(50, 60, 70), tensor.Of([]int64{0, 2})}},
		{op: graph.OpKey{Type: "ReduceLogSumExp"}, opset: 18, ins: []Data{random(50, 60, 70), tensor.Of([]int64{2})}},
		{op: graph.OpKey{Type: "Softmax"}, opset: 13, ins: []Data{random(40, 50, 60)}, attrs: []*graph.Attr{graph.Int("axis", 1)}},
		{op: graph.OpKey{Type: "LogSoftmax"}, opset: 13, ins: []Data{random(400, 100)}},
		{op: graph.OpKey{Type: "TopK"}, opset: 11, ins: []Data{random(100, 200), tensor.Of([]int64{9})}},
		{op: graph.OpKey{Type: "Einsum"}, opset: 12, ins: []Data{random(6, 40, 50), random(6, 30, 50)}, attrs: []*graph.Attr{graph.String("equation", "bij,bkj->bki")}},
		{op: graph.OpKey{Type: "BatchNormalization"}, opset: 15, ins: []Data{random(4, 30, 20, 20), random(30), random(30), random(30), tensor.Of(ones[float32](30))}},
		{op: graph.OpKey{Type: "LayerNormalization"}, opset: 17, ins: []Data{random(200, 96), random(96), random(96)}},
		{op: graph.OpKey{Type: "InstanceNormalization"}, opset: 6, ins: []Data{random(4, 30, 400), random(30), random(30)}},
		{op: graph.OpKey{Type: "LRN"}, opset: 13, ins: []Data{random(2, 30, 40, 40)}, attrs: []*graph.Attr{graph.Int("size", 5)}},
	} {
		want, err := s.run()
		if err != nil {
			t.Errorf("%v: %v", s.op, err)
			continue
		}
		for _, s.threads = range []int{2, 3} {
			got, err := s.run()
			if err != nil {
				t.Fatal(err)
			}
			if !got[0].(*tensor.Tensor).Equal(want[0].(*tensor.Tensor)) {
				t.Errorf("%v: %d threads give other bits than one", s.op, s.threads)
			}
		}
	}
}

// What a file says of the shape of a value that is no output gives way to what its node
// makes of the inputs.
func TestContradictedShapes(t *testing.T) {
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : 13]>
g (float[2,3] x) => (float[6] y)
<float[] t, float[3,9] u, float[n,2] v, int64[1] s = {6}>
{
  t = Transpose (x)
  u = Relu (t)
  v = Neg (u)
  y = Reshape (v, s)
}`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Infer(m); err != nil {
		t.Fatal(err)
	}
	for n := range m.Graph.Nodes() {
		if v := n.Output(0); v.Name() != "y" && v.Type.Shape.String() != "[3,2]" {
			t.Errorf("%s has the shape %v", v.Name(), v.Type.Shape)
		}
	}
}
