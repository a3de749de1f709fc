package ops

import (
	"math/rand/v2"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

func randomTensor(r *rand.Rand, shape ...int) *tensor.Tensor {
	t := tensor.New(tensor.Float32, shape...)
	for i := range tensor.As[float32](t) {
		tensor.As[float32](t)[i] = float32(r.NormFloat64())
	}
	return t
}

func to(d tensor.DType, t *tensor.Tensor) *tensor.Tensor {
	out := tensor.New(d, t.Shape()...)
	if err := tensor.Convert(out, t, 0, t.Len(), tensor.ConvertOptions{}); err != nil {
		panic(err)
	}
	return out
}

// linear lists operators that honour Fusion, with operands for which the
// output has the shape of the last tensor.
func linear(r *rand.Rand) []single {
	rt := func(shape ...int) Data { return randomTensor(r, shape...) }
	return []single{
		{op: graph.OpKey{Type: "Conv"}, opset: 13, ins: []Data{rt(2, 4, 6, 5), rt(6, 2, 3, 3), rt(6), rt(2, 6, 4, 3)}, attrs: []*graph.Attr{graph.Int("group", 2)}},
		{op: graph.OpKey{Type: "Conv"}, opset: 13, ins: []Data{rt(1, 4, 6, 5), rt(4, 1, 3, 3), nil, rt(1, 4, 4, 3)}, attrs: []*graph.Attr{graph.Int("group", 4)}},
		{op: graph.OpKey{Type: "Conv"}, opset: 13, ins: []Data{rt(1, 4, 6, 5), rt(3, 4, 1, 1), rt(3), rt(1, 3, 6, 5)}},
		{op: graph.OpKey{Type: "ConvTranspose"}, opset: 13, ins: []Data{rt(2, 4, 3, 3), rt(4, 3, 2, 2), rt(3), rt(2, 3, 4, 4)}},
		{op: graph.OpKey{Type: "Gemm"}, opset: 13, ins: []Data{rt(4, 5), rt(5, 3), rt(3), rt(4, 3)}, attrs: []*graph.Attr{graph.Float("beta", 0.5)}},
		{op: graph.OpKey{Type: "Gemm"}, opset: 13, ins: []Data{rt(4, 5), rt(5, 3), rt(4, 1), rt(4, 3)}, attrs: []*graph.Attr{graph.Float("alpha", 0.5)}},
		{op: graph.OpKey{Type: "MatMul"}, opset: 13, ins: []Data{rt(2, 4, 5), rt(5, 3), nil, rt(2, 4, 3)}},
		{op: graph.OpKey{Type: "MatMul"}, opset: 13, ins: []Data{rt(2, 4, 5), rt(2, 5, 3), nil, rt(2, 4, 3)}},
		{op: graph.OpKey{Domain: msDomain, Type: "FusedMatMul"}, opset: 1, ins: []Data{rt(2, 4, 5), rt(2, 5, 3), nil, rt(2, 4, 3)}, attrs: []*graph.Attr{graph.Float("alpha", 0.5)}},
	}
}

func TestFusion(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, s := range linear(r) {
		for _, d := range []tensor.DType{tensor.Float32, tensor.Float64} {
			for i := range s.ins {
				if x, ok := s.ins[i].(*tensor.Tensor); ok {
					s.ins[i] = to(d, x)
				}
			}
			plain := s
			plain.ins, plain.fused = s.ins[:3], nil
			out, err := plain.run()
			if err != nil {
				t.Fatal(err)
			}
			y := out[0].(*tensor.Tensor)
			res := s.ins[3].(*tensor.Tensor)
			channels, inner := y.Shape()[y.Rank()-1], 1
			if y.Rank() == 4 {
				channels, inner = y.Shape()[1], y.Shape()[2]*y.Shape()[3]
			}
			f := &Fusion{Bias: make([]float32, channels), Residual: 3, Clip: true, Min: -0.5, Max: 1.25}
			for i := range f.Bias {
				f.Bias[i] = float32(r.NormFloat64())
			}
			ys, _ := tensor.Float64s(to(tensor.Float64, y))
			rs, _ := tensor.Float64s(res)
			for i := range ys {
				ys[i] = min(max(ys[i]+float64(f.Bias[i/inner%channels])+rs[i], -0.5), 1.25)
			}
			want := to(d, tensor.Of(ys, y.Shape()...))
			s.fused = f
			for _, consts := range [][]bool{nil, {false, true, true}} {
				s.consts = consts
				s.check(t, 1e-5, 1e-5, want)
			}
		}
	}
}

// TestHalf compares 16-bit operands with the same values in float32.
func TestHalf(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, s := range linear(r) {
		for _, d := range []tensor.DType{tensor.Float16, tensor.BFloat16} {
			half, full := s, s
			half.ins, full.ins = nil, nil
			for _, x := range s.ins[:3] {
				x, ok := x.(*tensor.Tensor)
				if !ok {
					half.ins, full.ins = append(half.ins, nil), append(full.ins, nil)
					continue
				}
				h := to(d, x)
				half.ins, full.ins = append(half.ins, h), append(full.ins, to(tensor.Float32, h))
			}
			out, err := full.run()
			if err != nil {
				t.Fatal(err)
			}
			half.consts = []bool{false, true, true}
			half.check(t, 0, 0, to(d, out[0].(*tensor.Tensor)))
		}
	}
}

// TestRefusals feeds operands and attributes that contradict each other: an
// error, never a panic.
func TestRefusals(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	rt := func(shape ...int) Data { return randomTensor(r, shape...) }
	u8 := func(shape ...int) Data { return tensor.New(tensor.Uint8, shape...) }
	op := func(name string) graph.OpKey { return graph.OpKey{Type: name} }
	ml := func(name string) graph.OpKey { return graph.OpKey{Domain: mlDomain, Type: name} }
	// tree returns a node whose true branch leads to node or leaf kid.
	tree := func(kid, leaf, feature int64) []*graph.Attr {
		return []*graph.Attr{
			graph.Ints("tree_roots", 0), graph.Ints("nodes_featureids", feature), graph.TensorAttr("nodes_modes", tensor.Of([]uint8{0})),
			graph.TensorAttr("nodes_splits", tensor.Of([]float32{0})), graph.Ints("nodes_truenodeids", kid), graph.Ints("nodes_trueleafs", leaf),
			graph.Ints("nodes_falsenodeids", 0), graph.Ints("nodes_falseleafs", 1), graph.TensorAttr("leaf_weights", tensor.Of([]float32{1})),
			graph.Ints("leaf_targetids", 0),
		}
	}
	for _, s := range []single{
		{op: op("Conv"), ins: []Data{rt(1, 3, 5, 5), rt(4, 2, 3, 3)}},
		{op: op("Conv"), ins: []Data{rt(1, 4, 5, 5), rt(4, 2, 3, 3)}, attrs: []*graph.Attr{graph.Int("group", 0)}},
		{op: op("Conv"), ins: []Data{rt(1, 3, 5, 5), rt(4, 3, 3, 3), rt(5)}},
		{op: op("Conv"), ins: []Data{rt(1, 3, 5, 5), rt(4, 3, 3, 3)}, attrs: []*graph.Attr{graph.Ints("strides", 0, 1)}},
		{op: op("Conv"), ins: []Data{rt(1, 3, 5, 5), rt(4, 3, 3, 3)}, attrs: []*graph.Attr{graph.Ints("pads", 1, 1)}},
		{op: op("Conv"), ins: []Data{rt(1, 3, 5, 5), rt(4, 3, 3)}},
		{op: op("Conv"), ins: []Data{rt(1, 3, 5, 5), rt(4, 3, 3, 3)}, attrs: []*graph.Attr{graph.Ints("kernel_shape", 3, 2)}},
		{op: op("Conv"), ins: []Data{rt(1, 3, 5, 5), rt(4, 3, 3, 3)}, attrs: []*graph.Attr{graph.Ints("pads", 1<<62, 0, 0, 0)}},
		{op: op("ConvTranspose"), ins: []Data{rt(1, 3, 5, 5), rt(4, 3, 3, 3)}},
		{op: op("MaxPool"), ins: []Data{rt(1, 3, 5, 5)}},
		{op: op("MaxPool"), ins: []Data{rt(1, 3)}, attrs: []*graph.Attr{graph.Ints("kernel_shape", 2)}},
		{op: op("MaxUnpool"), ins: []Data{rt(1, 1, 1, 1), tensor.Of([]int64{7}, 1, 1, 1, 1)}, attrs: []*graph.Attr{graph.Ints("kernel_shape", 2, 2)}},
		{op: op("MatMul"), ins: []Data{rt(2, 3), rt(2, 3)}},
		{op: op("MatMul"), ins: []Data{rt(2, 2, 3), rt(3, 3, 4)}},
		{op: op("MatMul"), ins: []Data{rt(), rt(3)}},
		{op: op("Gemm"), ins: []Data{rt(2, 3), rt(3, 4), rt(3)}},
		{op: op("Gemm"), ins: []Data{rt(2, 3), rt(4)}},
		{op: op("QuantizeLinear"), ins: []Data{rt(2, 3), rt(2)}},
		{op: op("QuantizeLinear"), ins: []Data{rt(2, 3), rt(3), tensor.New(tensor.Uint8, 2)}},
		{op: op("QuantizeLinear"), ins: []Data{rt(2, 3), rt(3), tensor.New(tensor.Int64, 3)}},
		{op: op("DequantizeLinear"), ins: []Data{rt(2, 3), rt()}},
		{op: op("DequantizeLinear"), ins: []Data{u8(2, 6), rt(2, 3), u8(2, 3)}, attrs: []*graph.Attr{graph.Int("block_size", 5)}},
		{op: op("MatMulInteger"), ins: []Data{u8(2, 3), u8(2, 3)}},
		{op: op("MatMulInteger"), ins: []Data{u8(2, 3), u8(3, 2), nil, u8(3)}},
		{op: op("QLinearConv"), ins: []Data{u8(1, 2, 3, 3), rt(), u8(), u8(2, 2, 1, 1), rt(3), u8(), rt(), u8()}},
		{op: op("LSTM"), ins: []Data{rt(2, 1, 3), rt(1, 8, 3), rt(1, 8, 3)}},
		{op: op("LSTM"), ins: []Data{rt(2, 1, 3), rt(1, 8, 3), rt(1, 8, 2), rt(1, 9)}},
		{op: op("LSTM"), ins: []Data{rt(2, 1, 3), rt(1, 8, 3), rt(1, 8, 2), nil, tensor.Of([]int32{3})}},
		{op: op("GRU"), ins: []Data{rt(2, 1, 3), rt(1, 6, 3), rt(1, 6, 2)}, attrs: []*graph.Attr{graph.String("direction", "sideways")}},
		{op: ml("ArrayFeatureExtractor"), ins: []Data{rt(2, 3), tensor.Of([]int64{3})}},
		{op: ml("Scaler"), ins: []Data{rt(2, 3)}, attrs: []*graph.Attr{graph.Floats("scale", 1, 2), graph.Floats("offset", 1, 2)}},
		{op: ml("TreeEnsemble"), ins: []Data{rt(2, 3)}, attrs: tree(0, 0, 0)},
		{op: ml("TreeEnsemble"), ins: []Data{rt(2, 3)}, attrs: tree(7, 1, 0)},
		{op: ml("TreeEnsemble"), ins: []Data{rt(2, 3)}, attrs: tree(0, 1, 3)},
		{op: ml("TreeEnsemble"), ins: []Data{rt(2, 3)}, attrs: tree(1, 1, 0)},
	} {
		s.opset = 21
		if _, err := s.run(); err == nil {
			t.Errorf("%v%v: no error", s.op, s.ins)
		}
	}
}

// TestEmpty computes operators whose output has no elements, or whose sums
// have no terms.
func TestEmpty(t *testing.T) {
	f := func(shape ...int) *tensor.Tensor { return tensor.New(tensor.Float32, shape...) }
	for _, c := range []struct {
		s    single
		want *tensor.Tensor
	}{
		{single{op: graph.OpKey{Type: "MatMul"}, ins: []Data{f(0, 3), f(3, 2)}}, f(0, 2)},
		{single{op: graph.OpKey{Type: "MatMul"}, ins: []Data{f(2, 0), f(0, 3)}}, f(2, 3)},
		{single{op: graph.OpKey{Type: "MatMul"}, ins: []Data{f(0, 2, 3), f(0, 3, 4)}}, f(0, 2, 4)},
		{single{op: graph.OpKey{Type: "Gemm"}, ins: []Data{f(2, 0), f(0, 3), f(3)}}, f(2, 3)},
		{single{op: graph.OpKey{Type: "Conv"}, ins: []Data{f(0, 3, 5, 5), f(4, 3, 3, 3)}}, f(0, 4, 3, 3)},
		{single{op: graph.OpKey{Type: "Conv"}, ins: []Data{f(1, 3, 2, 5), f(4, 3, 3, 3)}}, f(1, 4, 0, 3)},
		{single{op: graph.OpKey{Type: "MaxPool"}, ins: []Data{f(0, 3, 5, 5)}, attrs: []*graph.Attr{graph.Ints("kernel_shape", 2, 2)}}, f(0, 3, 4, 4)},
	} {
		c.s.opset = 13
		c.s.check(t, 0, 0, c.want)
		c.s.consts = []bool{false, true, true}
		c.s.check(t, 0, 0, c.want)
	}
}
