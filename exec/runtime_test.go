package exec

import (
	"context"
	"math"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// TestAsRuntime compiles what the runtime computes in another way than node by
// node, and compares with the kernels that stand for it.
func TestAsRuntime(t *testing.T) {
	half, one, root := float32(0.5), float32(1), float32(math.Sqrt2)
	values := func(v ...*graph.Value) []*graph.Value { return v }
	scalar := func(b *net, v float32) *graph.Value { return b.scalar(tensor.Scalar(v)) }
	erf := func(b *net, x *graph.Value, divided bool) *graph.Value {
		if divided {
			x = b.node("", "Div", values(x, scalar(b, root)))
		} else {
			x = b.node("", "Mul", values(scalar(b, 1/root), x))
		}
		return b.node("", "Add", values(b.node("", "Erf", values(x)), scalar(b, one)))
	}
	x := make([]float32, 100)
	for i := range x {
		x[i] = float32(i-50) / 8
	}
	unary := func(op kernels.UnaryOp) []float32 {
		y := make([]float32, len(x))
		kernels.Unary(op, y, x)
		return y
	}
	sum := func(op kernels.UnaryOp) []float32 {
		y := unary(op)
		kernels.Binary(kernels.Add, y, y, x)
		return y
	}
	quotient := func() []float32 {
		y := unary(kernels.Exp)
		kernels.Binary(kernels.Div, y, x, y)
		return y
	}
	for _, c := range []struct {
		name  string
		build func(b *net, x *graph.Value) *graph.Value
		want  []float32
		ops   []string
	}{
		{"x·(1+erf)·½", func(b *net, x *graph.Value) *graph.Value {
			return b.node("", "Mul", values(b.node("", "Mul", values(x, erf(b, x, true))), scalar(b, half)))
		}, unary(kernels.Gelu), []string{"Gelu"}},
		{"½x·(1+erf)", func(b *net, x *graph.Value) *graph.Value {
			e := erf(b, x, false)
			return b.node("", "Mul", values(b.node("", "Mul", values(scalar(b, half), x)), e))
		}, unary(kernels.Gelu), []string{"Gelu"}},
		{"Gelu without a half", func(b *net, x *graph.Value) *graph.Value {
			return b.node("", "Mul", values(x, erf(b, x, true)))
		}, nil, []string{"Div+Erf+Add+Mul"}},
		{"Gelu of two values", func(b *net, x *graph.Value) *graph.Value {
			y := b.node("", "Neg", values(x))
			return b.node("", "Mul", values(b.node("", "Mul", values(y, erf(b, x, true))), scalar(b, half)))
		}, nil, []string{"Div+Erf+Add", "Neg+Mul+Mul"}},
		{"1/x·y", func(b *net, x *graph.Value) *graph.Value {
			y := b.node("", "Div", values(scalar(b, one), b.node("", "Exp", values(x))))
			return b.node("", "Mul", values(y, x))
		}, quotient(), []string{"Exp+Div"}},
		{"1/x twice", func(b *net, x *graph.Value) *graph.Value {
			y := b.node("", "Div", values(scalar(b, one), x))
			return b.node("", "Mul", values(y, y))
		}, nil, []string{"Div", "Mul"}},
		{"scaled product", func(b *net, x *graph.Value) *graph.Value {
			x = b.node("", "Reshape", values(x, b.scalar(tensor.Of([]int64{1, 10, 10}, 3))))
			y := b.node("", "MatMul", values(b.node("", "Mul", values(scalar(b, .3), x)), b.node("", "Neg", values(x))))
			return b.node("", "Div", values(y, scalar(b, 7)))
		}, nil, []string{"Reshape", "Neg", "FusedMatMul"}},
		{"Sigmoid as output", func(b *net, x *graph.Value) *graph.Value {
			return b.node("", "Sigmoid", values(x))
		}, unary(kernels.Sigmoid), []string{"Sigmoid"}},
		{"Sigmoid inside", func(b *net, x *graph.Value) *graph.Value {
			return b.node("", "Add", values(b.node("", "Sigmoid", values(x)), x))
		}, sum(kernels.SigmoidRatio), []string{"Sigmoid+Add"}},
		{"Tanh inside", func(b *net, x *graph.Value) *graph.Value {
			return b.node("", "Add", values(b.node("", "Tanh", values(x)), x))
		}, sum(kernels.TanhRatio), []string{"Tanh+Add"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := tensor.Of(x, len(x))
			p, err := Compile(build(c.build, in, false), Options{})
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, s := range p.main.steps {
				names = append(names, s.node.Op.Type)
			}
			if !slices.Equal(names, c.ops) {
				t.Errorf("steps are %v, want %v", names, c.ops)
			}
			out, err := p.NewSession(SessionOptions{}).Run(context.Background(), map[string]ops.Data{"x": in}, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := tensor.As[float32](out[0].(*tensor.Tensor)); c.want != nil && !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}
