package ops

import (
	"fmt"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// bnb4Values are the values that the sixteen codes of MatMulBnb4 stand for, by
// quant_type: FP4, and NF4 (Dettmers et al.: QLoRA, 2023, appendix E).
var bnb4Values = [2][16]float32{
	{0, 0.0052083335, 2. / 3, 1, 1. / 3, 0.5, 1. / 6, 0.25, 0, -0.0052083335, -2. / 3, -1, -1. / 3, -0.5, -1. / 6, -0.25},
	{-1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0,
		0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1},
}

func bnb4Specs() []Spec {
	ints := func(required bool, names ...string) (a []AttrSpec) {
		for _, n := range names {
			a = append(a, AttrSpec{Name: n, Kind: graph.AttrInt, Required: required})
		}
		return a
	}
	return []Spec{{
		Domain: msDomain, Type: "MatMulBnb4", Since: 1, Flow: Opaque, Pure: true,
		In:    []Port{{Name: "A", Role: Activation}, {Name: "B"}, {Name: "absmax"}},
		Out:   []Port{{Name: "Y", Role: Activation}},
		Attrs: append(ints(true, "K", "N", "block_size", "quant_type"), ints(false, "training_mode", "transB")...),
		Infer: func(c *Inference) error {
			x := c.Shape(0)
			var out graph.Shape
			if len(x) > 0 {
				out = append(bare(x[:len(x)-1]), dimOf(c.Node.Int("N", -1)))
			}
			c.Tensor(0, c.Elem(0), out)
			return nil
		},
		Compile: compileBnb4,
	}}
}

// bnb4Matrix is the right operand of a MatMulBnb4: n rows of k codes of 4 bits,
// the first of two in the high half of a byte, in blocks that run on from row to
// row.
type bnb4Matrix struct {
	n, k, block int
	values      *[16]float32
}

func compileBnb4(s *Site) (Kernel, error) {
	a := s.Node
	kind := a.Int("quant_type", 0)
	m := bnb4Matrix{n: int(a.Int("N", 0)), k: int(a.Int("K", 0)), block: int(a.Int("block_size", 0))}
	if m.n < 1 || m.k < 1 || m.n > maxExtent || m.k > maxExtent || m.block < 1 || m.block > maxExtent || kind < 0 || kind > 1 {
		return nil, s.Errorf("N %d, K %d, block_size %d, quant_type %d", m.n, m.k, m.block, kind)
	}
	if a.Int("transB", 1) == 0 {
		return nil, s.Errorf("transB is 0: the product of training is not supported")
	}
	m.values = &bnb4Values[kind]
	var packed *kernels.PackedB
	if b, scale := s.Const(1), s.Const(2); b != nil && scale != nil {
		var err error
		if packed, err = m.pack(b, scale); err != nil {
			return nil, s.Errorf("%w", err)
		}
	}
	return widened(func(c *Call) error {
		x := c.In(0)
		if x.DType() != tensor.Float32 || x.Rank() == 0 || x.Shape()[x.Rank()-1] != m.k {
			return fmt.Errorf("input %v for K %d", x, m.k)
		}
		p := packed
		if p == nil {
			var err error
			if p, err = m.pack(c.In(1), c.In(2)); err != nil {
				return err
			}
		}
		shape := append([]int{}, x.Shape()...)
		shape[len(shape)-1] = m.n
		y, err := c.Out(0, tensor.Float32, shape...)
		if err != nil || y.Len() == 0 {
			return err
		}
		kernels.GemmPacked(c.Pool, x.Len()/m.k, kernels.Matrix{Data: tensor.As[float32](x), Ld: m.k}, p, tensor.As[float32](y), m.n, &kernels.Epilogue{})
		return c.Ctx.Err()
	}), nil
}

// pack dequantizes the weights for the float kernel.
func (m *bnb4Matrix) pack(b, scale *tensor.Tensor) (*kernels.PackedB, error) {
	size := m.n * m.k
	if b.DType() != tensor.Uint8 || b.Len() != (size+1)/2 || scale.Len() != (size+m.block-1)/m.block {
		return nil, fmt.Errorf("weights %v, absmax %v for N %d, K %d, block_size %d", b, scale, m.n, m.k, m.block)
	}
	s, err := tensor.Float32s(scale)
	if err != nil {
		return nil, err
	}
	w, codes := make([]float32, size), b.Bytes()
	for i := range w {
		w[i] = m.values[codes[i/2]>>(4-i%2*4)&15] * s[i/m.block]
	}
	return kernels.PackB(m.k, m.n, kernels.Matrix{Data: w, Ld: m.k, Trans: true}), nil
}
