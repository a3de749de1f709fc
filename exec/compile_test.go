package exec

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// net builds models node by node.
type net struct {
	g *graph.Graph
	r *rand.Rand
}

func (b *net) floats(shape ...int) *graph.Value {
	t := tensor.New(tensor.Float32, shape...)
	for i := range tensor.As[float32](t) {
		tensor.As[float32](t)[i] = float32(b.r.NormFloat64())
	}
	return b.g.NewInitializer("w", t)
}

func (b *net) codes(d tensor.DType, shape ...int) *graph.Value {
	t := tensor.New(d, shape...)
	for i := range t.Bytes() {
		t.Bytes()[i] = byte(b.r.Uint32())
	}
	return b.g.NewInitializer("q", t)
}

func (b *net) scalar(t *tensor.Tensor) *graph.Value { return b.g.NewInitializer("s", t) }

func (b *net) node(domain, op string, in []*graph.Value, attrs ...*graph.Attr) *graph.Value {
	v := b.g.NewValue(b.g.Model().UniqueName(op), graph.Type{})
	b.g.Append(b.g.NewNode(graph.OpKey{Domain: domain, Type: op}, "", in, []*graph.Value{v}, attrs...))
	return v
}

// floatNet has what is fused and what stays in blocks: channels that are no
// multiple of 16, pads, strides, residuals, pools, joins.
func floatNet(b *net, x *graph.Value) *graph.Value {
	pads := graph.Ints("pads", 1, 1, 1, 1)
	v := b.node("", "Conv", []*graph.Value{x, b.floats(24, 3, 3, 3), b.floats(24)}, pads, graph.Ints("strides", 2, 2))
	v = b.node("", "Add", []*graph.Value{v, b.floats(24, 1, 1)})
	v = b.node("", "Relu", []*graph.Value{v})
	d := b.node("", "Conv", []*graph.Value{v, b.floats(24, 1, 3, 3)}, pads, graph.Int("group", 24))
	d = b.node("", "Clip", []*graph.Value{d, b.scalar(tensor.Scalar(float32(-1))), b.scalar(tensor.Scalar(float32(6)))})
	d = b.node("", "Conv", []*graph.Value{d, b.floats(24, 24, 1, 1), b.floats(24)})
	v = b.node("", "Add", []*graph.Value{v, d})
	v = b.node("", "HardSigmoid", []*graph.Value{v})
	p := b.node("", "Conv", []*graph.Value{v, b.floats(32, 24, 3, 3)}, pads)
	q := b.node("", "Conv", []*graph.Value{v, b.floats(16, 24, 1, 1)})
	v = b.node("", "Concat", []*graph.Value{p, q}, graph.Int("axis", 1))
	v = b.node("", "MaxPool", []*graph.Value{v}, graph.Ints("kernel_shape", 3, 3), graph.Ints("strides", 2, 2), pads)
	v = b.node("", "Conv", []*graph.Value{v, b.floats(40, 48, 1, 1)})
	v = b.node("", "AveragePool", []*graph.Value{v}, graph.Ints("kernel_shape", 2, 2), graph.Ints("pads", 0, 1, 1, 0))
	v = b.node("", "Conv", []*graph.Value{v, b.floats(20, 40, 3, 3)}, pads)
	v = b.node("", "GlobalAveragePool", []*graph.Value{v})
	v = b.node("", "Flatten", []*graph.Value{v})
	v = b.node("", "MatMul", []*graph.Value{v, b.floats(20, 7)})
	v = b.node("", "Add", []*graph.Value{b.floats(7), v})
	return b.node("", "Relu", []*graph.Value{v})
}

// foldedNet has what is folded into weights and pads before it runs: two steps
// are left.
func foldedNet(b *net, x *graph.Value) *graph.Value {
	norm := func(v *graph.Value, channels int) *graph.Value {
		variance := b.floats(channels)
		for i, f := range tensor.As[float32](variance.Const) {
			tensor.As[float32](variance.Const)[i] = f*f + .5
		}
		return b.node("", "BatchNormalization", []*graph.Value{v, b.floats(channels), b.floats(channels), b.floats(channels), variance})
	}
	ints := func(v ...int32) *graph.Value { return b.scalar(tensor.Of(v)) }
	pads := b.node("", "Concat", []*graph.Value{ints(0, 0, 1, 0), ints(0, 0, 2, 1)}, graph.Int("axis", 0))
	pads = b.node("", "Cast", []*graph.Value{pads}, graph.Int("to", int64(tensor.Int64)))
	v := b.node("", "Pad", []*graph.Value{x, pads})
	v = norm(b.node("", "Conv", []*graph.Value{v, b.floats(24, 3, 3, 3)}, graph.Ints("strides", 2, 2)), 24)
	v = b.node("", "Relu", []*graph.Value{v})
	v = norm(b.node("", "Conv", []*graph.Value{v, b.floats(24, 1, 3, 3), b.floats(24)}, graph.Int("group", 24)), 24)
	v = b.node("", "Mul", []*graph.Value{b.floats(24, 1, 1), v})
	return b.node("", "Clip", []*graph.Value{v, b.scalar(tensor.Scalar(float32(-1)))})
}

// pointwiseNet has runs of element-wise nodes: constants and tensors on either
// side, results in blocks, and a value that two nodes read, which ends a run.
func pointwiseNet(b *net, x *graph.Value) *graph.Value {
	scalar := func(v float32) *graph.Value { return b.scalar(tensor.Scalar(v)) }
	op := func(op string, in ...*graph.Value) *graph.Value { return b.node("", op, in) }
	swish := func(x *graph.Value) *graph.Value {
		return op("Div", op("Mul", x, op("Clip", op("Add", x, scalar(3)), scalar(0), scalar(6))), scalar(6))
	}
	v := swish(op("Conv", x, b.floats(24, 3, 3, 3)))
	v = op("Conv", v, b.floats(20, 24, 1, 1))
	s := op("Sigmoid", v)
	v = op("Mul", op("Sub", scalar(1), op("Tanh", s)), op("Mul", v, v))
	v = op("Div", scalar(2), op("Add", s, op("Exp", op("Sub", v, op("Abs", v)))))
	return op("Max", op("Sqrt", v), op("Neg", b.floats(1, 20, 17, 15)))
}

// integerNet has what works with channels last.
func integerNet(b *net, x *graph.Value) *graph.Value {
	scale := func(v float32) *graph.Value { return b.scalar(tensor.Scalar(v)) }
	zero := func(v uint8) *graph.Value { return b.scalar(tensor.Scalar(v)) }
	x = b.node("", "QuantizeLinear", []*graph.Value{x, scale(.02), zero(128)})
	conv := func(x *graph.Value, cin, cout, k, group int) *graph.Value {
		w := b.codes(tensor.Int8, cout, cin/group, k, k)
		in := []*graph.Value{x, scale(.02), zero(120), w, scale(.004), b.scalar(tensor.Scalar(int8(0))), scale(.05), zero(120)}
		return b.node("", "QLinearConv", in, graph.Int("group", int64(group)), graph.Ints("pads", int64(k/2), int64(k/2), int64(k/2), int64(k/2)))
	}
	v := conv(x, 3, 24, 3, 1)
	d := conv(v, 24, 24, 3, 24)
	v = b.node(msDomain, "QLinearAdd", []*graph.Value{v, scale(.05), zero(120), d, scale(.03), zero(99), scale(.06), zero(110)})
	v = b.node("", "MaxPool", []*graph.Value{v}, graph.Ints("kernel_shape", 3, 2), graph.Ints("strides", 2, 2), graph.Ints("pads", 1, 0, 1, 0))
	p, q := conv(v, 24, 10, 1, 1), conv(v, 24, 16, 3, 1)
	v = b.node(msDomain, "QLinearConcat", []*graph.Value{scale(.05), zero(120), p, scale(.05), zero(120), q, scale(.04), zero(120)}, graph.Int("axis", 1))
	v = b.node(msDomain, "QLinearAveragePool", []*graph.Value{v, scale(.05), zero(120), scale(.05), zero(120)}, graph.Ints("kernel_shape", 2, 2))
	v = conv(v, 26, 8, 1, 1)
	v = b.node(msDomain, "QLinearGlobalAveragePool", []*graph.Value{v, scale(.05), zero(120), scale(.01), zero(120)})
	return b.node("", "DequantizeLinear", []*graph.Value{v, scale(.01), zero(120)})
}

// build returns a model with the input x, or the constant x.
func build(f func(*net, *graph.Value) *graph.Value, x *tensor.Tensor, constant bool) *graph.Model {
	m := graph.NewModel(8, graph.Opset{Version: 17}, graph.Opset{Domain: msDomain, Version: 1})
	m.Graph = m.NewGraph()
	b := &net{m.Graph, rand.New(rand.NewPCG(1, 2))}
	v := m.Graph.NewValue("x", graph.Type{Kind: graph.KindTensor, Elem: tensor.Float32, Shape: graph.ShapeOf(x.Shape()...)})
	if constant {
		m.Graph.AddInitializer(v, x)
	} else {
		m.Graph.AddInput(v)
	}
	m.Graph.AddOutput(f(b, v))
	return m
}

// reference computes a model of constants node by node.
func reference(t *testing.T, m *graph.Model) map[string]*tensor.Tensor {
	all := map[string]*tensor.Tensor{}
	for _, n := range slices.Collect(m.Graph.Nodes()) {
		out, err := Evaluate(context.Background(), n, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		v := n.Output(0)
		all[v.Name()] = out[0]
		n.SetOutput(0, nil)
		m.Graph.AddInitializer(v, out[0])
	}
	return all
}

func distance(a, b *tensor.Tensor) float64 {
	var d, s float64
	for i, v := range tensor.As[float32](a) {
		d += math.Pow(float64(v-tensor.As[float32](b)[i]), 2)
		s += float64(v) * float64(v)
	}
	return math.Sqrt(d / max(s, 1e-30))
}

// fromBlocks returns an image, in blocks of channels, channel by channel.
func fromBlocks(t *tensor.Tensor, channels int) *tensor.Tensor {
	shape := slices.Clone(t.Shape())
	up := shape[1]
	shape[1] = channels
	out := tensor.New(tensor.Float32, shape...)
	inner := out.Len() / (shape[0] * channels)
	x := tensor.As[float32](t)
	for i := range tensor.As[float32](out) {
		image, c, at := i/(channels*inner), i/inner%channels, i%inner
		tensor.As[float32](out)[i] = x[((image*up/16+c/16)*inner+at)*16+c%16]
	}
	return out
}

// TestCompile compares compiled models with their nodes run one by one, for
// several numbers of threads, and with every value tapped, twice each.
func TestCompile(t *testing.T) {
	for _, c := range []struct {
		name  string
		f     func(*net, *graph.Value) *graph.Value
		steps int // at most, where nothing is tapped
	}{{"float", floatNet, 14}, {"folded", foldedNet, 2}, {"pointwise", pointwiseNet, 9}, {"integer", integerNet, 17}} {
		t.Run(c.name, func(t *testing.T) {
			x := tensor.New(tensor.Float32, 2, 3, 19, 17)
			r := rand.New(rand.NewPCG(3, 4))
			for i := range tensor.As[float32](x) {
				tensor.As[float32](x)[i] = float32(r.NormFloat64())
			}
			want := reference(t, build(c.f, x, true))
			m := build(c.f, x, false)
			last := want[m.Graph.Outputs()[0].Name()]
			taps := slices.Repeat([]bool{true}, m.NumValues())
			for _, o := range []Options{{}, {Taps: taps}, {Taps: taps, Blocks: true}} {
				p, err := Compile(m, o)
				if err != nil {
					t.Fatal(err)
				}
				if n := len(p.main.steps); o.Taps == nil && n > c.steps {
					t.Errorf("%d steps, want at most %d", n, c.steps)
				}
				var first []byte
				for _, threads := range []int{1, 2, 5} {
					s := p.NewSession(SessionOptions{Threads: threads, Profile: threads == 2})
					for range 2 {
						seen, blocks := 0, 0
						tap := func(v *graph.Value, got *tensor.Tensor) error {
							w := want[v.Name()]
							if w == nil || got.DType() != tensor.Float32 {
								return nil
							}
							if channels := p.Blocked(v); channels > 0 {
								got = fromBlocks(got, channels)
								blocks++
							}
							if seen++; distance(w, got) > 1e-5 {
								t.Errorf("%s is off by %g", v.Name(), distance(w, got))
							}
							return nil
						}
						if o.Taps == nil {
							tap = nil
						}
						out, err := s.Run(context.Background(), map[string]ops.Data{"x": x}, tap, o.Taps)
						if err != nil {
							t.Fatal(err)
						}
						y := out[0].(*tensor.Tensor)
						if d := distance(last, y); d > 1e-5 || c.name == "integer" && d != 0 {
							t.Errorf("output is off by %g with %d threads, taps %t", d, threads, o.Taps != nil)
						}
						if first == nil {
							first = slices.Clone(y.Bytes())
						} else if !slices.Equal(first, y.Bytes()) {
							t.Errorf("output differs with %d threads", threads)
						}
						if c.name == "float" && tap != nil && seen != len(want) {
							t.Errorf("%d of %d values were tapped", seen, len(want))
						}
						if can := ops.ChainConv([]int{24, 24, 1, 1}, 1); c.name == "float" && (blocks > 0) != (o.Blocks && can) {
							t.Errorf("%d values were tapped in blocks, where Blocks is %t", blocks, o.Blocks)
						}
					}
					if list, err := s.Profile(); threads == 2 && (err != nil || len(list) == 0) {
						t.Error("no profile")
					}
				}
			}
		})
	}
}

// TestConstants computes what is constant once, and gives the caller a result
// of its own.
func TestConstants(t *testing.T) {
	m := graph.NewModel(8, graph.Opset{Version: 17})
	m.Graph = m.NewGraph()
	b := &net{m.Graph, rand.New(rand.NewPCG(1, 2))}
	v := b.node("", "Neg", []*graph.Value{b.scalar(tensor.Of([]float32{1, 2}))})
	m.Graph.AddOutput(b.node("", "Exp", []*graph.Value{v}))
	p, err := Compile(m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.main.steps) != 0 {
		t.Errorf("%d steps are left", len(p.main.steps))
	}
	s := p.NewSession(SessionOptions{})
	for range 2 {
		out, err := s.Run(context.Background(), nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		y := tensor.As[float32](out[0].(*tensor.Tensor))
		if math.Abs(float64(y[1])-math.Exp(-2)) > 1e-7 {
			t.Errorf("got %v", y)
		}
		clear(y)
	}
}
