package ops

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// sourceIndex returns the linear index in a tensor of the given shape of the element
// that element k of a tensor of shape out is computed from.
func sourceIndex(k int, out, shape []int) int {
	index, stride := 0, 1
	for axis := len(out) - 1; axis >= 0; axis-- {
		i := k % out[axis]
		k /= out[axis]
		if s := axis - (len(out) - len(shape)); s >= 0 {
			if shape[s] != 1 {
				index += i * stride
			}
			stride *= shape[s]
		}
	}
	return index
}

func wholeNumbers(rng *rand.Rand, d tensor.DType, shape []int) *tensor.Tensor {
	t := tensor.New(d, shape...)
	v := make([]float64, t.Len())
	for i := range v {
		v[i] = float64(rng.IntN(200)) - 100
		if d.IsInt() && !d.IsSigned() {
			v[i] = math.Abs(v[i])
		}
	}
	tensor.Write(t, 0, v)
	return t
}

// TestBroadcast compares operators whose operands do not commute with the
// definition of broadcasting, element by element.
func TestBroadcast(t *testing.T) {
	shapes := [][3][]int{
		{{}, {}, {}},
		{{3}, {3}, {1}},
		{{7}, {}, {7}},
		{{2, 3, 4}, {3, 1}, {4}},
		{{4, 1}, {1, 5}, {}},
		{{2, 3, 4, 5}, {3, 1, 1}, {2, 1, 1, 1}},
		{{2, 1, 4, 1}, {3, 1, 5}, {1, 5}},
		{{6, 1, 1, 2, 1}, {5, 4, 1, 3}, {2, 1}},
		{{0, 3}, {1}, {3}},
		{{1, 2, 0}, {4, 1, 1}, {1}},
		{{70, 300}, {300}, {70, 1}},
		{{40, 30, 20}, {40, 1, 1}, {1, 30, 1}},
		{{3, 5000, 3}, {3}, {5000, 1}},
		{{1, 40000}, {1}, {40000}},
		{{33000}, {33000}, {33000}},
	}
	rng := rand.New(rand.NewPCG(5, 6))
	for _, threads := range []int{1, 3} {
		for _, s := range shapes {
			for _, d := range []tensor.DType{tensor.Float32, tensor.Float64, tensor.Int64, tensor.Int8, tensor.Uint8, tensor.Uint64, tensor.Float16} {
				x, y := wholeNumbers(rng, d, s[0]), wholeNumbers(rng, d, s[1])
				out, err := BroadcastDims(s[0], s[1])
				if err != nil {
					t.Fatal(err)
				}
				want, less := tensor.New(d, out...), tensor.New(tensor.Bool, out...)
				a, _ := tensor.Float64s(x)
				b, _ := tensor.Float64s(y)
				for k := range want.Len() {
					p, q := a[sourceIndex(k, out, s[0])], b[sourceIndex(k, out, s[1])]
					tensor.Write(want, k, []float64{p - q})
					if d == tensor.Uint64 {
						tensor.Write(want, k, []int64{int64(p) - int64(q)})
					}
					tensor.As[bool](less)[k] = p < q
				}
				single{op: graph.OpKey{Type: "Sub"}, opset: 14, ins: []Data{x, y}, threads: threads}.check(t, 0, 0, want)
				single{op: graph.OpKey{Type: "Less"}, opset: 13, ins: []Data{x, y}, threads: threads}.check(t, 0, 0, less)

				cond := tensor.New(tensor.Bool, s[2]...)
				for i := range cond.Len() {
					tensor.As[bool](cond)[i] = rng.IntN(2) == 0
				}
				if out, err = BroadcastDims(s[0], s[1], s[2]); err != nil {
					t.Fatal(err)
				}
				want = tensor.New(d, out...)
				for k := range want.Len() {
					v := b[sourceIndex(k, out, s[1])]
					if tensor.As[bool](cond)[sourceIndex(k, out, s[2])] {
						v = a[sourceIndex(k, out, s[0])]
					}
					tensor.Write(want, k, []float64{v})
				}
				single{op: graph.OpKey{Type: "Where"}, opset: 16, ins: []Data{cond, x, y}, threads: threads}.check(t, 0, 0, want)
			}
		}
	}
}

func TestBroadcastRefuses(t *testing.T) {
	f := func(shape ...int) Data { return tensor.New(tensor.Float32, shape...) }
	for _, s := range []single{
		{op: graph.OpKey{Type: "Add"}, opset: 14, ins: []Data{f(2), f(3)}},
		{op: graph.OpKey{Type: "Add"}, opset: 14, ins: []Data{f(2), nil}},
		{op: graph.OpKey{Type: "Add"}, opset: 14, ins: []Data{f(2), tensor.New(tensor.Float64, 2)}},
		{op: graph.OpKey{Type: "And"}, opset: 7, ins: []Data{f(2), f(2)}},
		{op: graph.OpKey{Type: "Div"}, opset: 14, ins: []Data{tensor.Of([]int32{1, 2}), tensor.Of([]int32{1, 0})}},
		{op: graph.OpKey{Type: "Mod"}, opset: 13, ins: []Data{tensor.Of([]int64{1}), tensor.Of([]int64{0})}},
		{op: graph.OpKey{Type: "Exp"}, opset: 13, ins: []Data{tensor.Of([]int32{1})}},
		{op: graph.OpKey{Type: "Cast"}, opset: 13, ins: []Data{f(2)}},
		{op: graph.OpKey{Type: "Cast"}, opset: 13, ins: []Data{f(2)}, attrs: []*graph.Attr{graph.Int("to", 99)}},
		{op: graph.OpKey{Type: "Where"}, opset: 16, ins: []Data{f(2), f(2), f(2)}},
		{op: graph.OpKey{Type: "Clip"}, opset: 13, ins: []Data{f(2), f(2)}},
		{op: graph.OpKey{Type: "BitShift"}, opset: 11, ins: []Data{tensor.Of([]uint8{1}), tensor.Of([]uint8{1})}, attrs: []*graph.Attr{graph.String("direction", "UP")}},
		{op: graph.OpKey{Type: "Dropout"}, opset: 13, ins: []Data{f(2), tensor.Scalar(float32(1)), tensor.Scalar(true)}},
	} {
		if out, err := s.run(); err == nil {
			t.Errorf("%v of %v gave %v", s.op, s.ins, out)
		}
	}
}

// TestSpecials checks values at the ends of the number range; the results are
// those of numpy 2 and of the formulas in the ONNX specification.
func TestSpecials(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	x := []float32{-inf, -2.5, -0.5, 0, 0.5, 2.5, inf, nan}
	for _, c := range []struct {
		op    string
		opset int
		attrs []*graph.Attr
		want  []float32
	}{
		{"Relu", 14, nil, []float32{0, 0, 0, 0, 0.5, 2.5, inf, nan}},
		{"LeakyRelu", 16, []*graph.Attr{graph.Float("alpha", 0.5)}, []float32{-inf, -1.25, -0.25, 0, 0.5, 2.5, inf, nan}},
		{"Round", 22, nil, []float32{-inf, -2, 0, 0, 0, 2, inf, nan}},
		{"Sign", 13, nil, []float32{-1, -1, -1, 0, 1, 1, 1, nan}},
		{"Sigmoid", 13, nil, []float32{0, 0.07585818, 0.37754068, 0.5, 0.62245934, 0.92414182, 1, nan}},
		{"Softsign", 22, nil, []float32{-1, -0.71428573, -0.33333334, 0, 0.33333334, 0.71428573, 1, nan}},
		{"Softplus", 22, nil, []float32{0, 0.07888973, 0.474077, 0.6931472, 0.974077, 2.5788898, inf, nan}},
		{"Elu", 22, nil, []float32{-1, -0.917915, -0.39346933, 0, 0.5, 2.5, inf, nan}},
		{"Celu", 28, []*graph.Attr{graph.Float("alpha", 2)}, []float32{-2, -1.4269904, -0.44239843, 0, 0.5, 2.5, inf, nan}},
		{"ThresholdedRelu", 22, []*graph.Attr{graph.Float("alpha", 0.5)}, []float32{0, 0, 0, 0, 0, 2.5, inf, nan}},
		{"Shrink", 9, []*graph.Attr{graph.Float("bias", 1), graph.Float("lambd", 2)}, []float32{-inf, -1.5, 0, 0, 0, 1.5, inf, nan}},
		{"HardSigmoid", 22, nil, []float32{0, 0, 0.4, 0.5, 0.6, 1, 1, nan}},
		{"Swish", 24, []*graph.Attr{graph.Float("alpha", 2)}, []float32{0, -0.01673213, -0.1344707, 0, 0.36552930, 2.4832678, inf, nan}},
		{"Clip", 6, []*graph.Attr{graph.Float("min", -1), graph.Float("max", 2)}, []float32{-1, -1, -0.5, 0, 0.5, 2, 2, nan}},
	} {
		for _, d := range []tensor.DType{tensor.Float32, tensor.Float64, tensor.Float16, tensor.BFloat16} {
			in, want := tensor.New(d, len(x)), tensor.New(d, len(x))
			tensor.Write(in, 0, x)
			tensor.Write(want, 0, c.want)
			rtol := map[tensor.DType]float64{tensor.Float32: 1e-5, tensor.Float64: 1e-5, tensor.Float16: 2e-3, tensor.BFloat16: 1.6e-2}[d]
			single{op: graph.OpKey{Type: c.op}, opset: c.opset, attrs: c.attrs, ins: []Data{in}}.check(t, rtol, 1e-6, want)
		}
	}
}

func TestPow(t *testing.T) {
	for _, c := range []struct{ x, y, want Data }{
		{tensor.Of([]float32{-3, 2, 0.5}), tensor.Scalar(float32(2)), tensor.Of([]float32{9, 4, 0.25})},
		{tensor.Of([]float32{-3, 2, 0.5}), tensor.Scalar(int64(3)), tensor.Of([]float32{-27, 8, 0.125})},
		{tensor.Of([]float32{4, 2, 9}), tensor.Of([]float32{0.5, -1, 1.5}), tensor.Of([]float32{2, 0.5, 27})},
		{tensor.Of([]int32{-3, 2, 7}), tensor.Of([]int32{3, 10, 0}), tensor.Of([]int32{-27, 1024, 1})},
		{tensor.Of([]int64{2, 1, -1, -1}), tensor.Of([]int64{-1, -5, -2, -3}), tensor.Of([]int64{0, 1, 1, -1})},
		{tensor.Of([]int32{9, 5}), tensor.Scalar(float32(0.5)), tensor.Of([]int32{3, 2})},
		{tensor.Scalar(float32(2)), tensor.Of([]float32{1, 2, 3}), tensor.Of([]float32{2, 4, 8})},
	} {
		single{op: graph.OpKey{Type: "Pow"}, opset: 15, ins: []Data{c.x, c.y}}.check(t, 1e-6, 0, c.want.(*tensor.Tensor))
	}
}

// TestPropagatedArithmetic follows shape vectors through arithmetic.
func TestPropagatedArithmetic(t *testing.T) {
	n, m := graph.Sym("N"), graph.Sym("M")
	in := []graph.Dim{n, graph.D(6), m, graph.D(-1)}
	one := func(v int64) []graph.Dim { return []graph.Dim{graph.D(v)} }
	for _, c := range []struct {
		op   string
		b    []graph.Dim
		want string
	}{
		{"Add", one(0), "[N 6 M -1]"},
		{"Add", one(2), "[? 8 ? 1]"},
		{"Sub", in, "[0 0 0 0]"},
		{"Mul", one(1), "[N 6 M -1]"},
		{"Mul", one(0), "[0 0 0 0]"},
		{"Div", one(4), "[? 1 ? 0]"},
		{"Div", one(0), "[? ? ? ?]"},
		{"Max", one(0), "[N 6 M 0]"},
		{"Min", one(3), "[? 3 ? -1]"},
		{"Equal", one(-1), "[0 0 0 1]"},
		{"Equal", in, "[1 1 1 1]"},
		{"Less", one(2), "[? 0 ? 1]"},
	} {
		model := graph.NewModel(10, graph.Opset{Version: 21})
		g := model.Graph
		vector := graph.TensorType(tensor.Int64, graph.ShapeOf(4))
		a := g.NewValue("a", vector)
		b := g.NewValue("b", graph.TensorType(tensor.Int64, graph.ShapeOf(len(c.b))))
		out := g.NewValue("out", graph.Type{})
		node := g.NewNode(graph.OpKey{Type: c.op}, "n", []*graph.Value{a, b}, []*graph.Value{out})
		g.Append(node)
		types := &Types{data: make([][]graph.Dim, model.NumValues())}
		types.data[a.ID], types.data[b.ID] = in, c.b
		if err := types.graph(g); err != nil {
			t.Fatal(err)
		}
		got, _ := types.Dims(out)
		if fmt.Sprint(got) != c.want {
			t.Errorf("%s %v %v: %v, want %s", c.op, in, c.b, got, c.want)
		}
	}
}

// recycled is a Memory that gives out the same tensor again.
type recycled struct{ t *tensor.Tensor }

func (r *recycled) New(d tensor.DType, shape []int) (*tensor.Tensor, error) {
	if n, _ := tensor.NumElements(shape); r.t == nil || r.t.DType() != d || r.t.Len() != n {
		r.t = tensor.New(d, shape...)
	}
	return r.t, nil
}

func (r *recycled) Reuse(_ *Call, _ int, d tensor.DType, shape []int) (*tensor.Tensor, error) {
	return r.New(d, shape)
}

func (*recycled) Free(*tensor.Tensor) {}

func (*recycled) Scratch(n int) ([]byte, error) { return tensor.AlignedBytes(n), nil }

// TestPropagatedChoice follows the usual way of replacing a -1 in a shape:
// Where(Equal(shape, -1), size, shape), with a constant condition as well.
func TestPropagatedChoice(t *testing.T) {
	model := graph.NewModel(10, graph.Opset{Version: 21})
	g := model.Graph
	value := func(name string) *graph.Value { return g.NewValue(name, graph.Type{}) }
	node := func(op string, ins ...*graph.Value) *graph.Value {
		out := value(op)
		g.Append(g.NewNode(graph.OpKey{Type: op}, op, ins, []*graph.Value{out}))
		return out
	}
	shape := g.NewInitializer("shape", tensor.Of([]int64{2, -1, 4}))
	size := g.NewInitializer("size", tensor.Of([]int64{7}))
	minus := g.NewInitializer("minus", tensor.Scalar(int64(-1)))
	cond := g.NewInitializer("cond", tensor.Of([]bool{true, false, true}))
	chosen := node("Where", node("Equal", shape, minus), size, shape)
	constant := node("Where", cond, size, shape)
	types, err := Infer(model)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := types.Dims(chosen); fmt.Sprint(got) != "[2 7 4]" {
		t.Errorf("chosen %v", got)
	}
	if got, _ := types.Dims(constant); fmt.Sprint(got) != "[7 -1 7]" {
		t.Errorf("chosen by a constant %v", got)
	}
}

func BenchmarkElementwise(b *testing.B) {
	rng := rand.New(rand.NewPCG(7, 8))
	for _, c := range []struct {
		op     string
		shapes [][]int
	}{
		{"Add", [][]int{{4}, {1}}},
		{"Add", [][]int{{1, 64, 56, 56}, {1, 64, 56, 56}}},
		{"Add", [][]int{{1, 64, 56, 56}, {64, 1, 1}}},
		{"Add", [][]int{{1, 256, 7, 7}, {256, 1, 1}}},
		{"Mul", [][]int{{128, 384}, {384}}},
		{"Sub", [][]int{{128, 384}, {128, 1}}},
		{"Mul", [][]int{{1, 3, 80, 80, 2}, {2}}},
		{"Relu", [][]int{{1, 64, 56, 56}}},
		{"Sigmoid", [][]int{{1, 64, 56, 56}}},
	} {
		s := single{op: graph.OpKey{Type: c.op}, opset: 14}
		for _, shape := range c.shapes {
			s.ins = append(s.ins, wholeNumbers(rng, tensor.Float32, shape))
		}
		n := s.node()
		kernel, err := Lookup(n).Compile(&Site{Node: n, Opset: 14, Consts: make([]*tensor.Tensor, len(s.ins))})
		if err != nil {
			b.Fatal(err)
		}
		call := &Call{Ctx: context.Background(), Mem: &recycled{}, Ins: s.ins, Outs: make([]Data, 1)}
		b.Run(fmt.Sprint(c.op, c.shapes), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := kernel(call); err != nil {
					b.Fatal(err)
				}
			}
			out := call.Outs[0].(*tensor.Tensor)
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(out.Len()), "ns/element")
		})
	}
}
