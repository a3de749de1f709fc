package passes

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

type vals = []*graph.Value

// batchNorm appends a BatchNormalization with made-up statistics.
func (b *builder) batchNorm(x *graph.Value, name string, channels int, attrs ...*graph.Attr) *graph.Value {
	return b.op("BatchNormalization", name, vals{x, b.rand(name+"_scale", channels), b.rand(name+"_b", channels), b.rand(name+"_mean", channels), b.positive(name+"_var", channels)}, attrs...)
}

// TestPasses prepares small models and compares outputs before and after, and
// the operators that remain.
func TestPasses(t *testing.T) {
	f32 := tensor.Float32
	for _, c := range []struct {
		name  string
		opset int
		ir    int64
		build func(*builder)
		want  string
	}{
		{"conv bn relu", 13, 7, func(b *builder) {
			x := b.float("x", "N", 3, 8, 8)
			y := b.op("Conv", "c", vals{x, b.rand("w", 4, 3, 3, 3)}, graph.Ints("pads", 1, 1, 1, 1))
			b.out(f32, 4, b.op("Relu", "y", vals{b.batchNorm(y, "bn", 4)}))
		}, "Conv Relu"},
		{"conv 1-D, groups, dilations, bias, bn", 13, 7, func(b *builder) {
			x := b.float("x", 2, 4, 17)
			y := b.op("Conv", "c", vals{x, b.rand("w", 6, 2, 3), b.rand("bias", 6)}, graph.Int("group", 2), graph.Ints("dilations", 2), graph.Ints("strides", 2))
			b.out(f32, 3, b.batchNorm(y, "bn", 6))
		}, "Conv"},
		{"conv 3-D, auto_pad, bn", 15, 8, func(b *builder) {
			x := b.float("x", 1, 2, 5, 6, 7)
			y := b.op("Conv", "c", vals{x, b.rand("w", 3, 2, 3, 3, 3)}, graph.String("auto_pad", "SAME_UPPER"), graph.Ints("strides", 2, 2, 2))
			b.out(f32, 5, b.batchNorm(y, "bn", 3))
		}, "Conv"},
		{"depthwise conv, mul, add, sub, div", 13, 7, func(b *builder) {
			x := b.float("x", 1, 4, 6, 6)
			y := b.op("Conv", "c", vals{x, b.rand("w", 4, 1, 3, 3)}, graph.Int("group", 4))
			y = b.op("Mul", "m", vals{b.rand("k", 1, 4, 1, 1), y})
			y = b.op("Add", "a", vals{y, b.rand("k2", 4, 1, 1)})
			y = b.op("Sub", "s", vals{y, b.scalar("k3", 0.25)})
			b.out(f32, 4, b.op("Div", "y", vals{y, b.positive("k4", 1)}))
		}, "Conv"},
		{"constant minus conv stays", 13, 7, func(b *builder) {
			y := b.op("Conv", "c", vals{b.float("x", 1, 2, 4, 4), b.rand("w", 2, 2, 1, 1)})
			b.out(f32, 4, b.op("Sub", "y", vals{b.rand("k", 2, 1, 1), y}))
		}, "Conv Sub"},
		{"add along the width stays", 13, 7, func(b *builder) {
			y := b.op("Conv", "c", vals{b.float("x", 1, 4, 4, 4), b.rand("w", 4, 4, 1, 1)})
			b.out(f32, 4, b.op("Add", "y", vals{y, b.rand("k", 4)}))
		}, "Conv Add"},
		{"add that adds axes stays", 13, 7, func(b *builder) {
			y := b.op("Conv", "c", vals{b.float("x", 1, 4, 4), b.rand("w", 4, 4, 1)})
			b.out(f32, 4, b.op("Add", "y", vals{y, b.rand("k", 2, 1, 4, 1)}))
		}, "Conv Add"},
		{"convtranspose with groups, bn", 13, 7, func(b *builder) {
			x := b.float("x", 1, 4, 5, 5)
			y := b.op("ConvTranspose", "c", vals{x, b.rand("w", 4, 3, 2, 2), b.rand("bias", 6)}, graph.Int("group", 2), graph.Ints("strides", 2, 2))
			b.out(f32, 4, b.batchNorm(y, "bn", 6))
		}, "ConvTranspose"},
		{"gemm with transB, bn", 13, 7, func(b *builder) {
			y := b.op("Gemm", "c", vals{b.float("x", "N", 5), b.rand("w", 4, 5), b.rand("bias", 1, 4)}, graph.Int("transB", 1), graph.Float("alpha", 0.5), graph.Float("beta", 2))
			b.out(f32, 2, b.batchNorm(y, "bn", 4))
		}, "Gemm"},
		{"gemm without bias, mul", 13, 7, func(b *builder) {
			y := b.op("Gemm", "c", vals{b.float("x", 3, 5), b.rand("w", 5, 4)})
			b.out(f32, 2, b.op("Mul", "y", vals{y, b.rand("k", 4)}))
		}, "Gemm"},
		{"gemm with a bias for each row stays", 13, 7, func(b *builder) {
			y := b.op("Gemm", "c", vals{b.float("x", 4, 5), b.rand("w", 5, 4), b.rand("bias", 4, 1)})
			b.out(f32, 2, b.op("Mul", "y", vals{y, b.rand("k", 4)}))
		}, "Gemm Mul"},
		{"gemm with a scalar bias", 11, 6, func(b *builder) {
			b.out(f32, 2, b.op("Gemm", "y", vals{b.float("x", 4, 5), b.rand("w", 5, 3), b.scalar("bias", 0.5)}, graph.Float("beta", 3)))
		}, "Gemm"},
		{"matmul add", 13, 7, func(b *builder) {
			y := b.op("MatMul", "m", vals{b.float("x", 4, 5), b.rand("w", 5, 3)})
			b.out(f32, 2, b.op("Add", "y", vals{b.rand("bias", 3), y}))
		}, "Gemm"},
		{"matmul add of more axes", 13, 7, func(b *builder) {
			y := b.op("MatMul", "m", vals{b.float("x", 2, 4, 5), b.rand("w", 5, 3)})
			b.out(f32, 3, b.op("Add", "y", vals{b.rand("bias", 3), y}))
		}, "Reshape Gemm Reshape"},
		{"matmul add of a free axis stays", 13, 7, func(b *builder) {
			y := b.op("MatMul", "m", vals{b.float("x", -1, 4, 5), b.rand("w", 5, 3)})
			b.out(f32, 3, b.op("Add", "y", vals{b.rand("bias", 3), y}))
		}, "MatMul Add"},
		{"matmul add of a column stays", 13, 7, func(b *builder) {
			y := b.op("MatMul", "m", vals{b.float("x", 3, 5), b.rand("w", 5, 3)})
			b.out(f32, 2, b.op("Add", "y", vals{b.rand("bias", 3, 1), y}))
		}, "MatMul Add"},
		{"bn with zero variance", 13, 7, func(b *builder) {
			y := b.op("Conv", "c", vals{b.float("x", 1, 2, 4, 4), b.rand("w", 2, 2, 1, 1)})
			b.out(f32, 4, b.op("BatchNormalization", "y", vals{y, b.floats("s", 1, 2), b.floats("b", 0, 1), b.floats("m", 0.5, -1), b.floats("v", 0, 0)}))
		}, "Conv"},
		{"bn that divides by zero stays", 13, 7, func(b *builder) {
			y := b.op("Conv", "c", vals{b.float("x", 1, 2, 4, 4), b.rand("w", 2, 2, 1, 1)})
			b.out(f32, 4, b.op("BatchNormalization", "y", vals{y, b.floats("s", 1, 2), b.floats("b", 0, 1), b.floats("m", 0.5, -1), b.floats("v", 1, 0)}, graph.Float("epsilon", 0)))
		}, "Conv BatchNormalization"},
		{"bn before conv", 13, 7, func(b *builder) {
			y := b.batchNorm(b.float("x", 1, 4, 6, 6), "bn", 4)
			b.out(f32, 4, b.op("Conv", "y", vals{y, b.rand("w", 6, 2, 3, 3), b.rand("bias", 6)}, graph.Int("group", 2)))
		}, "Conv"},
		{"bn before padded conv stays", 13, 7, func(b *builder) {
			y := b.batchNorm(b.float("x", 1, 4, 6, 6), "bn", 4)
			b.out(f32, 4, b.op("Conv", "y", vals{y, b.rand("w", 6, 4, 3, 3)}, graph.Ints("pads", 0, 1, 0, 0)))
		}, "BatchNormalization Conv"},
		{"bn of an output stays", 13, 7, func(b *builder) {
			y := b.op("Conv", "c", vals{b.float("x", 1, 2, 4, 4), b.rand("w", 2, 2, 1, 1)})
			b.out(f32, 4, y, b.batchNorm(y, "y", 2))
		}, "Conv BatchNormalization"},
		{"shared weight", 13, 7, func(b *builder) {
			x, w := b.float("x", 1, 2, 4, 4), b.rand("w", 2, 2, 1, 1)
			y := b.batchNorm(b.op("Conv", "c", vals{x, w}), "bn", 2)
			b.out(f32, 4, b.op("Conv", "y", vals{y, w}, graph.Ints("pads", 1, 1, 1, 1)))
		}, "Conv Conv"},
		{"weight that is an output", 13, 7, func(b *builder) {
			x, w := b.float("x", 1, 2, 4, 4), b.rand("w", 2, 2, 1, 1)
			b.out(f32, 4, b.batchNorm(b.op("Conv", "c", vals{x, w}), "bn", 2), w)
		}, "Conv"},
		{"constants that are outputs", 13, 7, func(b *builder) {
			k := b.op("Constant", "k", nil, graph.TensorAttr("value", tensor.Of([]float32{1, 2}, 2)))
			s := b.op("Add", "s", vals{k, k})
			b.out(f32, 1, k, s, b.op("Add", "y", vals{b.float("x", 2), s}))
		}, "Constant Add Add"},
		{"identity that is an output", 13, 7, func(b *builder) {
			x := b.float("x", 2)
			y := b.op("Relu", "r", vals{x})
			b.out(f32, 1, b.op("Identity", "y", vals{y}), b.op("Identity", "z", vals{y}), b.op("Identity", "w", vals{x}), b.op("Neg", "n", vals{y}))
		}, "Relu Identity Identity Neg"},
		{"what changes nothing", 13, 7, func(b *builder) {
			x := b.float("x", 2, 3, 4)
			y := b.op("Cast", "a", vals{x}, graph.Int("to", 1))
			y = b.op("Transpose", "b", vals{y}, graph.Ints("perm", 0, 1, 2))
			y = b.op("Reshape", "c", vals{y, b.ints("shape", 0, 3, -1)})
			y = b.op("Expand", "d", vals{y, b.ints("ones", 1, 1)})
			y = b.op("Concat", "e", vals{y}, graph.Int("axis", 1))
			y = b.op("Pad", "f", vals{y, b.ints("pads", 0, 0, 0, 0, 0, 0)})
			y = b.op("Slice", "g", vals{y, b.ints("starts", 0), b.ints("ends", math.MaxInt64), b.ints("axes", 1)})
			y = b.op("Dropout", "h", vals{y})
			b.out(f32, 3, b.op("Relu", "y", vals{y}))
		}, "Relu"},
		{"what seems to change nothing", 13, 7, func(b *builder) {
			x := b.float("x", 3, 3)
			y := b.op("Slice", "g", vals{x, b.ints("starts", -1), b.ints("ends", math.MinInt64), b.ints("axes", 1), b.ints("steps", -1)})
			y = b.op("Transpose", "b", vals{y})
			y = b.op("Pad", "f", vals{y, b.ints("pads", 1, 0, -1, 0)})
			b.out(f32, 2, b.op("Relu", "y", vals{y}))
		}, "Slice Transpose Pad Relu"},
		{"chain of shapes", 13, 7, func(b *builder) {
			x := b.float("x", "N", 3, 4)
			s := b.op("Shape", "s", vals{x})
			n := b.op("Gather", "n", vals{s, b.g.NewInitializer("zero", tensor.Scalar(int64(0)))}, graph.Int("axis", 0))
			u := b.op("Unsqueeze", "u", vals{n, b.ints("axes", 0)})
			c := b.op("Concat", "cat", vals{u, b.ints("rest", 12)}, graph.Int("axis", 0))
			b.out(f32, 2, b.op("Reshape", "y", vals{x, c}))
		}, "Reshape"},
		{"pad into conv", 13, 7, func(b *builder) {
			x := b.float("x", 1, 2, 5, 6)
			y := b.op("Pad", "p", vals{x, b.ints("pads", 0, 0, 0, 1, 0, 0, 2, 1)})
			b.out(f32, 4, b.op("Conv", "y", vals{y, b.rand("w", 3, 2, 3, 3)}, graph.Ints("pads", 1, 0, 0, 1)),
				b.op("Conv", "z", vals{y, b.rand("w2", 3, 2, 2, 2)}, graph.String("auto_pad", "VALID")))
		}, "Conv Conv"},
		{"pads of a column stay", 13, 7, func(b *builder) {
			y := b.op("Pad", "p", vals{b.float("x", 1, 2, 9, 1), b.ints("pads", 0, 0, 2, 0, 0, 0, 1, 0)})
			b.out(f32, 4, b.op("Conv", "y", vals{y, b.rand("w", 3, 2, 4, 1)}))
		}, "Pad Conv"},
		{"pads that cannot move", 13, 7, func(b *builder) {
			x := b.float("x", 1, 2, 5, 6)
			w := b.rand("w", 3, 2, 2, 2)
			p1 := b.op("Pad", "p1", vals{x, b.ints("pads", 0, 0, 1, 1, 0, 0, 1, 1), b.scalar("half", 0.5)})
			p2 := b.op("Pad", "p2", vals{x, b.ints("pads2", 0, 0, 1, 1, 0, 0, -1, 1)})
			p3 := b.op("Pad", "p3", vals{x, b.ints("pads3", 0, 0, 1, 1, 0, 0, 1, 1)}, graph.String("mode", "edge"))
			p4 := b.op("Pad", "p4", vals{x, b.ints("pads4", 0, 0, 1, 1, 0, 0, 1, 1)})
			b.out(f32, 4, b.op("Conv", "y1", vals{p1, w}), b.op("Conv", "y2", vals{p2, w}), b.op("Conv", "y3", vals{p3, w}),
				b.op("Conv", "y4", vals{p4, w}, graph.String("auto_pad", "SAME_LOWER")), b.op("MaxPool", "y5", vals{p4}, graph.Ints("kernel_shape", 2, 2)))
		}, "Pad Pad Pad Pad Conv Conv Conv Conv MaxPool"},
		{"pad into averagepool", 13, 7, func(b *builder) {
			x := b.float("x", 1, 2, 6, 6)
			y := b.op("Pad", "p", vals{x, b.ints("pads", 0, 0, 1, 1, 0, 0, 1, 0)})
			b.out(f32, 4, b.op("AveragePool", "y", vals{y}, graph.Ints("kernel_shape", 3, 3), graph.Ints("strides", 2, 2)))
		}, "AveragePool"},
		{"pad beyond the window of averagepool stays", 13, 7, func(b *builder) {
			x := b.float("x", 1, 2, 6, 6)
			y := b.op("Pad", "p", vals{x, b.ints("pads", 0, 0, 2, 2, 0, 0, 2, 2)})
			b.out(f32, 4, b.op("AveragePool", "y", vals{y}, graph.Ints("kernel_shape", 2, 2)))
		}, "Pad AveragePool"},
		{"values captured by branches", 13, 7, func(b *builder) {
			x := b.float("x", 2, 3)
			cond := b.in("cond", tensor.Bool)
			k := b.op("Constant", "k", nil, graph.TensorAttr("value", tensor.Of([]float32{1, 2, 3}, 3)))
			y := b.op("Identity", "id", vals{b.op("Relu", "r", vals{x})})
			unused := b.op("Neg", "unused", vals{y})
			_ = unused
			yes := b.body(func(s *builder) { s.out(f32, 2, s.op("Add", "yes", vals{y, k})) })
			no := b.body(func(s *builder) { s.out(f32, 2, s.op("Identity", "no", vals{y})) })
			b.out(f32, 2, b.op("If", "y", vals{cond}, graphAttr("then_branch", yes), graphAttr("else_branch", no)))
		}, "Relu If[Add][Identity]"},
		{"constants inside a loop", 13, 7, func(b *builder) {
			x := b.float("x", 2, 2)
			body := b.body(func(s *builder) {
				s.in("i", tensor.Int64)
				c := s.in("c", tensor.Bool)
				v := s.float("v", 2, 2)
				k := s.op("Constant", "k", nil, graph.TensorAttr("value", tensor.Of([]float32{2}, 1)))
				s.out(tensor.Bool, 0, s.op("Identity", "c2", vals{c}))
				s.out(f32, 2, s.op("Mul", "v2", vals{v, s.op("Sqrt", "q", vals{k})}))
			})
			b.out(f32, 2, b.op("Loop", "y", vals{b.g.NewInitializer("m", tensor.Scalar(int64(3))), nil, x}, graphAttr("body", body)))
		}, "Loop[Identity Mul]"},
		{"what a loop hands on", 13, 7, func(b *builder) {
			x, w := b.float("x", 2, 2), b.rand("w", 2, 2)
			body := b.body(func(s *builder) {
				s.in("i", tensor.Int64)
				c := s.in("c", tensor.Bool)
				u, v, k := s.float("u", 2, 2), s.float("v", 2, 2), s.float("k", 2, 2)
				s.out(tensor.Bool, 0, s.op("Identity", "c2", vals{c}))
				s.out(f32, 2, s.op("Identity", "u2", vals{u}), s.op("MatMul", "v2", vals{v, u}), s.op("Identity", "k2", vals{k}), s.op("Add", "s", vals{v, k}))
			})
			l := b.ops("Loop", []string{"u3", "v3", "k3", "s3"}, vals{b.g.NewInitializer("m", tensor.Scalar(int64(3))), nil, w, x, x}, graphAttr("body", body))
			b.out(f32, 2, b.op("Add", "y", vals{l[1], l[0]}), b.op("Neg", "z", vals{l[2]}))
			b.out(f32, 3, l[3])
		}, "Loop[Identity MatMul Add] Add Neg"},
		{"weights of branches are stored once", 13, 7, func(b *builder) {
			x := b.float("x", 1, 32)
			cond := b.in("cond", tensor.Bool)
			branch := func() *graph.Graph {
				return b.body(func(s *builder) {
					w := s.op("Transpose", b.m.UniqueName("t"), vals{s.op("Constant", b.m.UniqueName("k"), nil, graph.TensorAttr("value", noise(&s.rng, 32, 32)))})
					s.out(f32, 2, s.op("MatMul", b.m.UniqueName("mm"), vals{x, w}))
				})
			}
			b.out(f32, 2, b.op("If", "y", vals{cond}, graphAttr("then_branch", branch()), graphAttr("else_branch", branch())))
		}, "If[MatMul][MatMul]"},
		{"initializers as inputs of IR 3", 8, 3, func(b *builder) {
			x := b.float("x", 1, 2, 4, 4)
			w, k := b.rand("w", 2, 2, 1, 1), b.rand("k", 2, 1, 1)
			b.g.AddInput(w)
			b.g.AddInput(k)
			b.out(f32, 4, b.op("Add", "y", vals{b.op("Conv", "c", vals{x, w}), k}))
		}, "Conv"},
		{"inputs with defaults stay", 8, 4, func(b *builder) {
			x := b.float("x", 1, 2, 4, 4)
			w, k := b.rand("w", 2, 2, 1, 1), b.rand("k", 2, 1, 1)
			b.g.AddInput(k)
			b.out(f32, 4, b.op("Pow", "p", vals{b.op("Add", "y", vals{b.op("Conv", "c", vals{x, w}), k}), b.scalar("three", 3)}))
		}, "Conv Add Pow"},
		{"a GELU written out stays whole", 13, 7, func(b *builder) {
			x := b.op("Conv", "c", vals{b.float("x", 1, 2, 4, 4), b.rand("w", 2, 2, 1, 1)})
			gate := b.op("Add", "a", vals{b.op("Erf", "e", vals{b.op("Div", "d", vals{x, b.scalar("r", 1.4142135)})}), b.scalar("one", 1)})
			y := b.op("Mul", "h", vals{b.op("Mul", "m", vals{x, gate}), b.scalar("half", 0.5)})
			b.out(f32, 4, b.op("Conv", "y", vals{y, b.rand("v", 3, 2, 3, 3)}))
		}, "Conv Div Erf Add Mul Mul Conv"},
		{"quantized weight is not folded", 13, 7, func(b *builder) {
			w := b.g.NewInitializer("w", tensor.Of([]int8{1, 2, 3, 4}, 2, 2))
			d := b.op("DequantizeLinear", "d", vals{w, b.scalar("s", 0.5)})
			b.out(f32, 2, b.op("MatMul", "y", vals{b.float("x", 2, 2), d}))
		}, "DequantizeLinear MatMul"},
		{"a constant that would grow the model is not made", 13, 7, func(b *builder) {
			big := b.op("ConstantOfShape", "big", vals{b.ints("shape", 100, 100)})
			b.out(f32, 2, b.op("Add", "y", vals{b.float("x", 1, 100), big}))
		}, "ConstantOfShape Add"},
		{"transposes", 13, 7, func(b *builder) {
			x := b.float("x", 2, 3, 4)
			y := b.op("Transpose", "a", vals{x}, graph.Ints("perm", 1, 2, 0))
			y = b.op("Transpose", "b", vals{y}, graph.Ints("perm", 1, 2, 0))
			z := b.op("Transpose", "c", vals{y}, graph.Ints("perm", 1, 2, 0))
			w := b.op("Transpose", "d", vals{b.op("Transpose", "e", vals{x})})
			b.out(f32, 3, b.op("Neg", "y", vals{y}), b.op("Relu", "z", vals{z}), b.op("Exp", "w", vals{w}))
		}, "Transpose Neg Relu Exp"},
		{"views", 13, 7, func(b *builder) {
			x := b.float("x", 2, 3, 1)
			ax := func(name string, axes ...int64) *graph.Value { return b.ints(name, axes...) }
			y := b.op("Unsqueeze", "a", vals{b.op("Unsqueeze", "b", vals{x, ax("ax1", 1)}), ax("ax2", -1, 0)})
			b.out(f32, 6, b.op("Neg", "y", vals{y}))
			z := b.op("Squeeze", "c", vals{b.op("Squeeze", "d", vals{b.float("x2", 1, 2, 1, 3, 1), ax("ax3", 2)}), ax("ax4", 0, -1)})
			b.out(f32, 2, b.op("Exp", "z", vals{z}))
			w := b.op("Squeeze", "e", vals{b.op("Unsqueeze", "f", vals{x, ax("ax5", 0, 2)}), ax("ax6", -3, 0)})
			b.out(f32, 3, b.op("Sin", "w", vals{w}))
			v := b.op("Unsqueeze", "g", vals{b.op("Reshape", "h", vals{b.op("Flatten", "i", vals{x}), b.ints("s", 3, -1)}), ax("ax7", 1)})
			b.out(f32, 3, b.op("Cos", "v", vals{v}))
		}, "Unsqueeze Neg Squeeze Exp Sin Reshape Cos"},
		{"views with attributes", 11, 6, func(b *builder) {
			y := b.op("Unsqueeze", "a", vals{b.op("Unsqueeze", "b", vals{b.float("x", 2, 3)}, graph.Ints("axes", 1))}, graph.Ints("axes", 0, 4))
			b.out(f32, 5, b.op("Neg", "y", vals{y}))
			v := b.op("Squeeze", "g", vals{b.op("Reshape", "h", vals{b.float("x2", 6), b.ints("s", 3, 1, -1)})}, graph.Ints("axes", 1))
			b.out(f32, 2, b.op("Cos", "v", vals{v}))
		}, "Unsqueeze Neg Reshape Cos"},
		{"views that stay", 13, 7, func(b *builder) {
			x := b.float("x", 2, 3)
			r := b.op("Reshape", "r", vals{x, b.ints("s", 3, 2)})
			y := b.op("Reshape", "a", vals{r, b.ints("s0", 0, -1, 1)})
			u := b.op("Unsqueeze", "u", vals{x, b.ints("ax", 0)})
			z := b.op("Squeeze", "q", vals{b.op("Unsqueeze", "u2", vals{b.float("x2", 1, 3), b.ints("ax2", 0)}), b.ints("ax3", 1)})
			b.out(f32, 3, b.op("Neg", "y", vals{y}), u)
			b.out(f32, 4, b.op("Unsqueeze", "w", vals{u, b.ints("ax4", 0)}))
			b.out(f32, 2, b.op("Exp", "z", vals{z}))
		}, "Reshape Reshape Unsqueeze Unsqueeze Squeeze Neg Unsqueeze Exp"},
		{"neutral elements", 13, 7, func(b *builder) {
			x := b.float("x", 2, 3)
			y := b.op("Add", "a", vals{b.scalar("z", 0), x})
			y = b.op("Mul", "b", vals{y, b.floats("o", 1)})
			y = b.op("Div", "c", vals{y, b.rowOf("o2", 1)})
			y = b.op("Sub", "d", vals{y, b.scalar("z2", 0)})
			b.out(f32, 2, b.op("Neg", "y", vals{y}))
		}, "Neg"},
		{"neutral elements that matter", 13, 7, func(b *builder) {
			x := b.float("x", 3)
			b.out(f32, 2, b.op("Add", "a", vals{b.rowOf("z", 0), x}))
			b.out(f32, 1, b.op("Sub", "b", vals{b.scalar("z2", 0), x}), b.op("Div", "c", vals{b.scalar("o", 1), x}), b.op("Mul", "d", vals{x, b.floats("oo", 1, 1, 2)}))
		}, "Add Sub Div Mul"},
		{"bounds", 13, 7, func(b *builder) {
			x := b.float("x", 2, 3)
			n := 0
			clip := func(v *graph.Value, lo, hi float32) *graph.Value {
				n++
				name := string(rune('a' + n))
				return b.op("Clip", name, vals{v, b.scalar(name+"l", lo), b.scalar(name+"h", hi)})
			}
			b.out(f32, 2, b.op("Neg", "y1", vals{clip(b.op("Relu", "r1", vals{x}), -0.5, 0.6)}))
			b.out(f32, 2, b.op("Neg", "y2", vals{clip(clip(x, -0.5, 0.25), 0, 1)}))
			b.out(f32, 2, b.op("Neg", "y3", vals{b.op("Min", "mi", vals{b.op("Max", "ma", vals{b.scalar("l", -0.25), x}), b.floats("h", 0.5)})}))
			b.out(f32, 2, b.op("Neg", "y4", vals{b.op("Relu", "r2", vals{b.op("Relu", "r3", vals{x})})}))
			b.out(f32, 2, b.op("Neg", "y5", vals{b.op("Clip", "k", vals{b.op("Relu", "r4", vals{x}), nil, b.scalar("kh", 6)})}))
		}, "Relu Clip Neg Clip Neg Clip Neg Neg Clip Neg"},
		{"bounds that do not meet", 13, 7, func(b *builder) {
			x := b.float("x", 2, 3)
			y := b.op("Min", "mi", vals{b.op("Max", "ma", vals{b.scalar("l", 0.5), x}), b.scalar("h", 0.25)})
			r := b.op("Relu", "r", vals{x})
			b.out(f32, 2, b.op("Neg", "y", vals{y}), r, b.op("Clip", "c", vals{r, nil, b.scalar("h2", 0.5)}))
		}, "Max Min Relu Neg Clip"},
		{"expansion by a shape", 13, 7, func(b *builder) {
			x := b.float("x", "N", 1, 4)
			s := b.op("Shape", "s", vals{x})
			n := b.op("Gather", "n", vals{s, b.ints("zero", 0)})
			c := b.op("Concat", "c", vals{n, b.ints("mid", 3), b.ints("last", -1)}, graph.Int("axis", 0))
			e := b.op("Equal", "e", vals{c, b.ints("minus", -1, -1, -1)})
			w := b.op("Where", "w", vals{e, b.ints("ones", 1, 1, 1), c})
			b.out(f32, 3, b.op("Expand", "y", vals{x, w}))
		}, "Expand"},
		{"a branch that is always taken", 13, 7, func(b *builder) {
			x := b.float("x", 2, 1, 3)
			s := b.op("Gather", "n", vals{b.op("Shape", "s", vals{x}), b.ints("one", 1)})
			c := b.op("Equal", "e", vals{s, b.ints("1", 1)})
			other := b.in("other", tensor.Bool)
			yes := b.body(func(s *builder) {
				k := s.rand("k", 3)
				inner := s.body(func(q *builder) { q.out(f32, 3, q.op("Mul", "in1", vals{x, k})) })
				inner2 := s.body(func(q *builder) { q.out(f32, 3, q.op("Identity", "in2", vals{x})) })
				y := s.op("If", "p", vals{other}, graphAttr("then_branch", inner), graphAttr("else_branch", inner2))
				s.g.AddOutput(s.op("Squeeze", "sq", vals{y, s.ints("ax", 1)}))
				s.g.AddOutput(x)
			})
			no := b.body(func(s *builder) {
				s.g.AddOutput(s.op("Neg", "ne", vals{x}))
				s.g.AddOutput(x)
			})
			y := b.ops("If", []string{"y", "z"}, vals{c}, graphAttr("then_branch", yes), graphAttr("else_branch", no))
			b.out(f32, 2, b.op("Relu", "r", vals{y[0]}))
			b.out(f32, 3, b.op("Exp", "r2", vals{y[1]}))
		}, "If[Mul][Identity] Squeeze Relu Exp"},
		{"the same twice", 13, 7, func(b *builder) {
			x := b.float("x", 2, 3)
			a, c := b.op("Exp", "a", vals{x}), b.op("Exp", "c", vals{x})
			d := b.op("LeakyRelu", "d", vals{a}, graph.Float("alpha", 0.1))
			e := b.op("LeakyRelu", "e", vals{c}, graph.Float("alpha", 0.2))
			f := b.op("LeakyRelu", "f", vals{c}, graph.Float("alpha", 0.1))
			b.out(f32, 2, b.op("Sum", "y", vals{d, e, f}), b.op("Exp", "z", vals{x}))
		}, "Exp LeakyRelu LeakyRelu Sum Exp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := checkEqual(t, build(c.ir, c.opset, c.build), Options{}, 1e-6)
			if got := opsOf(m.Graph); got != c.want {
				t.Errorf("left with %s\nwant      %s", got, c.want)
			}
		})
	}
}

// TestFreeDimensions prepares a model whose declared batch size is 0.
func TestFreeDimensions(t *testing.T) {
	m := build(7, 13, func(b *builder) {
		x := b.float("x", 0, 6)
		s := b.op("Gather", "n", vals{b.op("Shape", "s", vals{x}), b.ints("zero", 0)})
		b.out(tensor.Float32, 3, b.op("Reshape", "y", vals{x, b.op("Concat", "c", vals{s, b.ints("rest", 2, 3)}, graph.Int("axis", 0))}))
	})
	if _, err := Prepare(context.Background(), m, Options{Check: true}); err != nil {
		t.Fatal(err)
	}
	out, err := compute(m, map[string]ops.Data{"x": tensor.New(tensor.Float32, 5, 6)})
	if err != nil {
		t.Fatal(err)
	}
	if got := out[0].(*tensor.Tensor).String(); got != "float[5,2,3]" {
		t.Errorf("computes %s", got)
	}
}

// TestCleanup removes what nothing reads and stores equal constants once.
func TestCleanup(t *testing.T) {
	m := build(7, 13, func(b *builder) {
		x := b.float("x", 3)
		y := b.op("Add", "a", vals{x, b.floats("k1", 1, 2, 3)})
		y = b.op("Mul", "b", vals{y, b.floats("k2", 1, 2, 3)})
		b.op("Neg", "unused", vals{y})
		b.floats("unread", 4)
		same := b.floats("kept", 1, 2, 3)
		b.out(tensor.Float32, 1, b.op("Sub", "y", vals{y, b.g.NewInitializer("other", tensor.Of([]float32{1, 2, 3}, 1, 3))}), same)
	})
	changes, err := Cleanup(context.Background(), m, Options{Check: true})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, v := range m.Graph.Initializers() {
		names = append(names, v.Name())
	}
	if got := fmt.Sprint(opsOf(m.Graph), names, changes); got != "Add Mul Sub[k1 kept other] [{remove-dead 2} {share-constants 1}]" {
		t.Errorf("left with %s", got)
	}
}

// TestStops honours a context that is done.
func TestStops(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Prepare(ctx, chain(8), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// Weights that a caller could override are constants where the model lists most of
// them among its inputs, and what they are where it does not.
func TestSealWeights(t *testing.T) {
	for _, c := range []struct {
		name, inputs, rest, node string
		want                     int
	}{
		{"all", "float[4,4] x, float[4,4] w = {...}, float[4] b = {...}", "", "y = Gemm (x, w, b)", 1},
		{"a bias is a constant", "float[4,4] x, float[4,4] w = {...}", "<float[4] b = {...}>", "y = Gemm (x, w, b)", 1},
		{"most", "float[4,4] x, float[4,4] w = {...}", "<float[4,1] a = {...}, float[1,4] b = {...}>", "h = MatMul (x, w) u = MatMul (h, a) y = MatMul (u, b)", 1},
		{"few", "float[4,4] x, float[4,4] w = {...}, float[4,1] a = {...}, float[1,4] b = {...}", "<float[4,4] v = {...}>", "h = MatMul (x, v) u = MatMul (h, a) z = MatMul (u, b) y = Add (z, w)", 4},
		{"no weights", "float[4,4] x, float[4] b = {...}", "", "y = Add (x, b)", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : 13]> g (` + c.inputs + `) => (float[4,4] y) ` + c.rest + ` { ` + c.node + ` }`)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Prepare(t.Context(), m, Options{Check: true}); err != nil {
				t.Fatal(err)
			}
			if got := len(m.Graph.Inputs()); got != c.want {
				t.Errorf("%d inputs, want %d", got, c.want)
			}
		})
	}
}

// Weights that nodes share, as those of layers that are the same, stay one whatever is
// folded into them.
func TestWeightsStayShared(t *testing.T) {
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : 17]> g (float[N,16] x) => (float[N,16] y)
		<float[16,16] w = {...}, float[16,16] v = {...}> {
		a = MatMul (x, w) b = Relu (a)
		w1 = Identity (w) c = MatMul (b, w1) d = Relu (c)
		w2 = Identity (w) w3 = Identity (w2) e = MatMul (d, w3) f = Relu (e)
		v1 = Transpose <perm = [1, 0]> (v) h = MatMul (f, v1) i = Relu (h)
		v2 = Transpose <perm = [1, 0]> (v) y = MatMul (i, v2) }`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Prepare(t.Context(), m, Options{}); err != nil {
		t.Fatal(err)
	}
	weights := map[*graph.Value]int{}
	for n := range m.Graph.Nodes() {
		switch n.Op.Type {
		case "MatMul":
			weights[n.Input(1)]++
		case "Identity", "Transpose":
			t.Errorf("a %s is left", n.Op)
		}
	}
	if len(weights) != 2 || len(m.Graph.Initializers()) != 2 {
		t.Errorf("%d weights of %d initializers", len(weights), len(m.Graph.Initializers()))
	}
}
