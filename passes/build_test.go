package passes

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// builder makes small models for tests; its methods panic on misuse.
type builder struct {
	m   *graph.Model
	g   *graph.Graph
	rng uint32
}

func build(ir int64, opset int, f func(*builder)) *graph.Model {
	b := &builder{m: graph.NewModel(ir, graph.Opset{Version: int64(opset)}), rng: 1}
	b.g = b.m.Graph
	b.g.Name = "g"
	f(b)
	return b.m
}

func irFor(opset int) int64 { return max(irOf[opset-lowestLift], 4) }

// in adds an input; dimensions are ints or symbols.
func (b *builder) in(name string, elem tensor.DType, dims ...any) *graph.Value {
	shape := graph.Shape{}
	for _, d := range dims {
		switch d := d.(type) {
		case int:
			shape = append(shape, graph.D(int64(d)))
		case string:
			shape = append(shape, graph.Sym(d))
		}
	}
	v := b.g.NewValue(name, graph.TensorType(elem, shape))
	b.g.AddInput(v)
	return v
}

func (b *builder) float(name string, dims ...any) *graph.Value {
	return b.in(name, tensor.Float32, dims...)
}

// rand returns an initializer of values in [-1, 1).
func (b *builder) rand(name string, dims ...int) *graph.Value {
	return b.g.NewInitializer(name, noise(&b.rng, dims...))
}

// positive returns an initializer of values in [0.5, 1.5).
func (b *builder) positive(name string, dims ...int) *graph.Value {
	t := noise(&b.rng, dims...)
	for i, x := range tensor.As[float32](t) {
		tensor.As[float32](t)[i] = 1 + x/2
	}
	return b.g.NewInitializer(name, t)
}

func noise(state *uint32, dims ...int) *tensor.Tensor {
	t := tensor.New(tensor.Float32, dims...)
	for i := range tensor.As[float32](t) {
		*state = *state*1664525 + 1013904223
		tensor.As[float32](t)[i] = float32(int32(*state)>>8) / (1 << 23)
	}
	return t
}

func (b *builder) floats(name string, v ...float32) *graph.Value {
	return b.g.NewInitializer(name, tensor.Of(v))
}

// rowOf returns an initializer of shape [1, 1].
func (b *builder) rowOf(name string, v float32) *graph.Value {
	return b.g.NewInitializer(name, tensor.Of([]float32{v}, 1, 1))
}

func (b *builder) ints(name string, v ...int64) *graph.Value {
	return b.g.NewInitializer(name, tensor.Of(append([]int64{}, v...)))
}

func (b *builder) scalar(name string, v float32) *graph.Value {
	return b.g.NewInitializer(name, tensor.Scalar(v))
}

// op appends a node with one output.
func (b *builder) op(typ, out string, in []*graph.Value, attrs ...*graph.Attr) *graph.Value {
	return b.ops(typ, []string{out}, in, attrs...)[0]
}

func (b *builder) ops(typ string, outs []string, in []*graph.Value, attrs ...*graph.Attr) []*graph.Value {
	var vs []*graph.Value
	for _, o := range outs {
		if o == "" {
			vs = append(vs, nil)
			continue
		}
		vs = append(vs, b.g.NewValue(o, graph.Type{}))
	}
	key := graph.OpKey{Type: typ}
	if domain, name, ok := strings.Cut(typ, ":"); ok {
		key = graph.OpKey{Domain: domain, Type: name}
	}
	b.g.Append(b.g.NewNode(key, b.m.UniqueNodeName(outs[0]), in, vs, attrs...))
	return vs
}

// out makes values outputs of the given element type and rank.
func (b *builder) out(elem tensor.DType, rank int, vs ...*graph.Value) {
	for _, v := range vs {
		if v.Type.Kind == graph.KindUnknown {
			v.Type = graph.TensorType(elem, graph.UnknownShape(rank))
		}
		b.g.AddOutput(v)
	}
}

// body builds a nested graph.
func (b *builder) body(f func(*builder)) *graph.Graph {
	g := b.m.NewGraph()
	g.Name = b.m.UniqueName("body")
	f(&builder{m: b.m, g: g, rng: b.rng + 7})
	return g
}

func graphAttr(name string, g *graph.Graph) *graph.Attr {
	return &graph.Attr{Name: name, Kind: graph.AttrGraph, G: g}
}

// feeds returns values for the inputs that need one; symbols are 2.
func feeds(m *graph.Model, seed uint32) map[string]ops.Data {
	out := map[string]ops.Data{}
	for _, v := range m.Graph.FeedInputs() {
		dims := make([]int, len(v.Type.Shape))
		for i, d := range v.Type.Shape {
			dims[i] = 2
			if d.Known {
				dims[i] = int(d.Size)
			}
		}
		seed++
		x := noise(&seed, dims...)
		if v.Type.Elem == tensor.Float32 {
			out[v.Name()] = x
			continue
		}
		t := tensor.New(v.Type.Elem, dims...)
		for i, f := range tensor.As[float32](x) {
			tensor.As[float32](x)[i] = f * 3
		}
		if v.Type.Elem == tensor.Bool {
			for i, f := range tensor.As[float32](x) {
				if f > 0 {
					t.Bytes()[i] = 1
				}
			}
		} else if err := tensor.Convert(t, x, 0, x.Len(), tensor.ConvertOptions{}); err != nil {
			panic(err)
		}
		out[v.Name()] = t
	}
	return out
}

// opsOf lists the operators of a model, those of nested graphs in brackets.
func opsOf(g *graph.Graph) string {
	var list []string
	for n := range g.Nodes() {
		s := n.Op.Type
		for _, a := range n.Attrs {
			for _, sub := range a.Subgraphs() {
				s += "[" + opsOf(sub) + "]"
			}
		}
		list = append(list, s)
	}
	return strings.Join(list, " ")
}

// dump writes a model to the folder that ONNXQ_DUMP names, if any, so that
// other runtimes can compare models before and after.
func dump(t *testing.T, name string, b []byte) {
	dir := os.Getenv("ONNXQ_DUMP")
	if dir == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(dir, strings.NewReplacer("/", "_", " ", "_", "#", "_").Replace(name)+".onnx"), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// checkEqual prepares m and fails unless its outputs stay what they are. It
// returns the prepared model as a file holds it.
func checkEqual(t *testing.T, m *graph.Model, o Options, tol float64) *graph.Model {
	t.Helper()
	o.Check = true
	if err := m.Verify(); err != nil {
		t.Fatal("before: ", err)
	}
	before := encode(t, m)
	dump(t, t.Name()+".before", before)
	prepared := decode(t, before)
	if _, err := Prepare(context.Background(), prepared, o); err != nil {
		t.Fatal(err)
	}
	after := encode(t, prepared)
	dump(t, t.Name()+".after", after)
	checkOrders(t, before, after, o)
	names := func(m *graph.Model) (s []string) {
		for _, v := range append(slices.Clone(m.Graph.FeedInputs()), m.Graph.Outputs()...) {
			s = append(s, v.Name())
		}
		return s
	}
	if a, b := names(decode(t, before)), names(decode(t, after)); !slices.Equal(a, b) {
		t.Errorf("inputs and outputs are %v, were %v", b, a)
	}
	for seed := range uint32(3) {
		feed := feeds(decode(t, before), seed*1000)
		want, err := compute(decode(t, before), feed)
		if err != nil {
			t.Fatal("before: ", err)
		}
		got, err := compute(decode(t, after), feed)
		if err != nil {
			t.Fatal("after: ", err)
		}
		if err := compare(got, want, tol); err != nil {
			t.Error(err)
		}
	}
	return decode(t, after)
}
