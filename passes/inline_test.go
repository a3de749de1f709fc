package passes

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// function adds a local function of domain "f" whose body is built by f.
func (b *builder) function(name, overload string, opset int, f func(*builder, *graph.Function)) {
	fn := b.m.AddFunction("f", name, overload)
	fn.Opsets = []graph.Opset{{Version: int64(opset)}, {Domain: "f", Version: 1}}
	f(&builder{m: b.m, g: fn.Body, rng: b.rng}, fn)
}

// param adds an input without type to the body of a function.
func (b *builder) param(name string) *graph.Value {
	v := b.g.NewValue(name, graph.Type{})
	b.g.AddInput(v)
	return v
}

func refAttr(name string, kind graph.AttrKind, ref string) *graph.Attr {
	return &graph.Attr{Name: name, Kind: kind, RefName: ref}
}

// evaluate runs a model with 2 x 3 values from -3 to 2 in input "x".
func evaluate(t *testing.T, m *graph.Model) []float32 {
	t.Helper()
	out, err := compute(m, map[string]ops.Data{"x": tensor.Of([]float32{-3, -2, -1, 0, 1, 2}, 2, 3)})
	if err != nil {
		t.Fatal(err)
	}
	return tensor.As[float32](out[0].(*tensor.Tensor))
}

func TestInline(t *testing.T) {
	f32 := tensor.Float32
	for _, c := range []struct {
		name  string
		opset int
		build func(*builder)
		ops   string
		want  string // of x = -3 -2 -1 0 1 2
	}{
		{"attributes, defaults, omitted inputs", 17, func(b *builder) {
			b.function("Leaky", "", 17, func(b *builder, f *graph.Function) {
				f.Attrs = []string{"unset"}
				f.AttrDefaults = []*graph.Attr{graph.Float("slope", 0.5)}
				x, lo := b.param("x"), b.param("lo")
				y := b.op("LeakyRelu", "y", vals{x}, refAttr("alpha", graph.AttrFloat, "slope"))
				y = b.op("Elu", "e", vals{y}, refAttr("alpha", graph.AttrFloat, "unset"))
				b.g.AddOutput(b.op("Clip", "z", vals{y, lo}))
			})
			x := b.float("x", 2, 3)
			y := b.op("f:Leaky", "a", vals{x}, graph.Float("slope", 0), graph.Float("unset", 2))
			b.out(f32, 2, b.op("f:Leaky", "b", vals{b.op("Sub", "s", vals{y, b.scalar("one", 1)}), b.scalar("lo", -0.25)}))
		}, "LeakyRelu Elu Clip Sub LeakyRelu Elu Clip", "[-0.25 -0.25 -0.25 -0.25 0 1]"},
		{"nested calls, overloads, the same names", 17, func(b *builder) {
			b.function("Add1", "", 17, func(b *builder, f *graph.Function) {
				one := b.op("Constant", "k", nil, graph.Float("value_float", 1))
				b.g.AddOutput(b.op("Add", "y", vals{b.param("x"), one}))
			})
			b.function("Add1", "ten", 17, func(b *builder, f *graph.Function) {
				ten := b.op("Constant", "k", nil, graph.Float("value_float", 10))
				b.g.AddOutput(b.op("Add", "y", vals{b.param("x"), ten}))
			})
			b.function("Twice", "", 17, func(b *builder, f *graph.Function) {
				y := b.op("f:Add1", "k", vals{b.param("x")})
				z := b.op("f:Add1", "y", vals{y})
				z.DefNode().Op.Overload = "ten"
				b.g.AddOutput(b.op("Neg", "z", vals{z}))
			})
			y := b.op("f:Twice", "k", vals{b.float("x", 2, 3)})
			b.out(f32, 2, b.op("f:Twice", "y", vals{y}))
		}, "Add Add Neg Add Add Neg", "[-3 -2 -1 -0 1 2]"},
		{"outputs that are inputs", 17, func(b *builder) {
			b.function("Echo", "", 17, func(b *builder, f *graph.Function) {
				x := b.param("x")
				y := b.op("Neg", "y", vals{x})
				b.g.AddOutput(x)
				b.g.AddOutput(y)
				b.g.AddOutput(y)
			})
			y := b.ops("f:Echo", []string{"a", "", "c"}, vals{b.float("x", 2, 3)})
			b.out(f32, 2, b.op("Sub", "y", vals{y[0], y[2]}))
		}, "Neg Sub", "[-6 -4 -2 0 2 4]"},
		{"branches inside, calls inside branches", 17, func(b *builder) {
			b.function("Abs2", "", 17, func(b *builder, f *graph.Function) {
				x := b.param("x")
				s := b.op("ReduceSum", "s", vals{x}, graph.Int("keepdims", 0))
				zero := b.op("Constant", "zero", nil, graph.Float("value_float", 0))
				c := b.op("Less", "c", vals{s, zero})
				yes := b.body(func(b *builder) { b.out(f32, 2, b.op("f:Negate", "yes", vals{x})) })
				no := b.body(func(b *builder) { b.out(f32, 2, b.op("Identity", "no", vals{x})) })
				b.g.AddOutput(b.op("If", "y", vals{c}, graphAttr("then_branch", yes), graphAttr("else_branch", no)))
			})
			b.function("Negate", "", 17, func(b *builder, f *graph.Function) {
				b.g.AddOutput(b.op("Neg", "y", vals{b.param("x")}))
			})
			y := b.op("f:Abs2", "a", vals{b.float("x", 2, 3)})
			b.out(f32, 2, b.op("f:Abs2", "y", vals{y}))
		}, "ReduceSum Less If[Neg][Identity] ReduceSum Less If[Neg][Identity]", "[3 2 1 -0 -1 -2]"},
		{"a body of an older operator set", 18, func(b *builder) {
			b.function("Sum", "", 11, func(b *builder, f *graph.Function) {
				x := b.param("x")
				y := b.op("ReduceSum", "s", vals{x}, graph.Ints("axes", 1))
				y = b.op("Squeeze", "q", vals{y}, refAttr("axes", graph.AttrInts, "axes"))
				f.Attrs = []string{"axes"}
				b.g.AddOutput(y)
			})
			b.out(f32, 1, b.op("f:Sum", "y", vals{b.float("x", 2, 3)}, graph.Ints("axes", 1)))
		}, "ReduceSum Squeeze", "[-6 3]"},
		{"a body of an older operator set, without references", 18, func(b *builder) {
			b.function("Sum", "", 11, func(b *builder, f *graph.Function) {
				y := b.op("ReduceMean", "s", vals{b.param("x")}, graph.Ints("axes", 1))
				b.g.AddOutput(b.op("Squeeze", "q", vals{y}, graph.Ints("axes", 1)))
			})
			b.out(f32, 1, b.op("f:Sum", "y", vals{b.float("x", 2, 3)}))
		}, "ReduceMean Squeeze", "[-2 1]"},
		{"a function that nothing calls", 17, func(b *builder) {
			b.function("F", "", 99, func(b *builder, f *graph.Function) { b.g.AddOutput(b.op("Neg", "y", vals{b.param("x")})) })
			b.out(f32, 2, b.op("Neg", "y", vals{b.float("x", 2, 3)}))
		}, "Neg", "[3 2 1 -0 -1 -2]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := build(10, c.opset, c.build)
			m.SetOpset("f", 1)
			before := encode(t, m)
			dump(t, t.Name()+".before", before)
			m = decode(t, before)
			_, err := Prepare(context.Background(), m, Options{Check: true})
			if err != nil {
				t.Fatal(err)
			}
			after := encode(t, m)
			dump(t, t.Name()+".after", after)
			m = decode(t, after)
			if got := opsOf(m.Graph); got != c.ops || len(m.Functions) > 0 {
				t.Errorf("left with %s and %d functions, want %s", got, len(m.Functions), c.ops)
			}
			if got := fmt.Sprint(evaluate(t, m)); got != c.want {
				t.Errorf("computes %v, want %v", got, c.want)
			}
		})
	}
}

func TestInlineRefusals(t *testing.T) {
	f32 := tensor.Float32
	neg := func(b *builder, call string) { b.g.AddOutput(b.op(call, "y", vals{b.param("x")})) }
	for _, c := range []struct {
		name  string
		build func(*builder)
		want  string
	}{
		{"cycle", func(b *builder) {
			b.function("F", "", 17, func(b *builder, f *graph.Function) { neg(b, "f:G") })
			b.function("G", "", 17, func(b *builder, f *graph.Function) { neg(b, "f:F") })
		}, "calls itself"},
		{"newer operator set", func(b *builder) {
			b.function("F", "", 18, func(b *builder, f *graph.Function) { neg(b, "Neg") })
		}, "version 18"},
		{"expansion", func(b *builder) {
			for i := range 40 {
				b.function(fmt.Sprintf("F%d", i), "", 17, func(b *builder, f *graph.Function) {
					y := b.op(fmt.Sprintf("f:F%d", i+1), "a", vals{b.param("x")})
					b.g.AddOutput(b.op(fmt.Sprintf("f:F%d", i+1), "b", vals{y}))
				})
			}
			b.function("F40", "", 17, func(b *builder, f *graph.Function) { neg(b, "Neg") })
			b.function("F", "", 17, func(b *builder, f *graph.Function) { neg(b, "f:F0") })
		}, "more than"},
		{"too many inputs", func(b *builder) {
			b.function("F", "", 17, func(b *builder, f *graph.Function) {
				b.g.AddOutput(b.op("Constant", "k", nil, graph.Float("value_float", 1)))
			})
		}, "1 inputs"},
		{"twice", func(b *builder) {
			for range 2 {
				b.function("F", "", 17, func(b *builder, f *graph.Function) { neg(b, "Neg") })
			}
		}, "defined twice"},
		{"kind of attribute", func(b *builder) {
			b.function("F", "", 17, func(b *builder, f *graph.Function) {
				f.Attrs = []string{"a"}
				b.g.AddOutput(b.op("LeakyRelu", "y", vals{b.param("x")}, refAttr("alpha", graph.AttrFloat, "a")))
			})
		}, "kind"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := build(10, 17, func(b *builder) {
				c.build(b)
				b.out(f32, 2, b.op("f:F", "y", vals{b.float("x", 2, 3)}, graph.Int("a", 1)))
			})
			m.SetOpset("f", 1)
			_, err := Prepare(context.Background(), m, Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one about %q", err, c.want)
			}
		})
	}
}

// TestLiftFunctions lifts the bodies of local functions, which hold no
// initializers.
func TestLiftFunctions(t *testing.T) {
	m := build(10, 11, func(b *builder) {
		b.function("F", "", 11, func(b *builder, f *graph.Function) {
			f.Attrs = []string{"axes"}
			x := b.param("x")
			y := b.op("ReduceSum", "s", vals{x}, graph.Ints("axes", 1))
			y = b.op("Softmax", "m", vals{y})
			b.g.AddOutput(b.op("Unsqueeze", "u", vals{y}, refAttr("axes", graph.AttrInts, "axes")))
		})
		b.out(tensor.Float32, 3, b.op("f:F", "y", vals{b.float("x", 2, 3)}, graph.Ints("axes", 0)))
	})
	m.SetOpset("f", 1)
	s := &State{Ctx: context.Background(), Model: m, Options: Options{MinOpset: 18}}
	if err := liftOpset(s); err != nil {
		t.Fatal(err)
	}
	if err := m.Verify(); err != nil {
		t.Fatal(err)
	}
	f := m.Functions[0]
	if f.Opsets[0].Version != 18 || m.Opset("") != 18 || len(f.Body.Initializers()) > 0 {
		t.Errorf("function at %d, model at %d, %d initializers", f.Opsets[0].Version, m.Opset(""), len(f.Body.Initializers()))
	}
	if got, want := opsOf(f.Body), "Constant ReduceSum Shape Flatten Softmax Reshape Constant Unsqueeze"; got != want {
		t.Errorf("left with %s, want %s", got, want)
	}
	again := decode(t, encode(t, m))
	if _, err := Prepare(context.Background(), again, Options{Check: true}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(evaluate(t, again)); got != "[1 1]" {
		t.Errorf("computes %s", got)
	}
}
