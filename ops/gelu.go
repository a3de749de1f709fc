package ops

import (
	"fmt"

	"github.com/onnxq/onnxq/tensor"
)

// geluSpecs lists the activations of com.microsoft, which fused models use, and
// SwiGLU.
func geluSpecs() []Spec {
	fused := func(name string, build func(s *Site) unary, bias *Port, attrs ...AttrSpec) Spec {
		in := []Port{{Name: "X", Role: Activation}}
		if bias != nil {
			in = append(in, *bias)
		}
		return Spec{Domain: msDomain, Type: name, Since: 1, Flow: Compute, Pure: true,
			In: in, Out: []Port{{Name: "Y", Role: Activation}}, Attrs: attrs,
			Infer: inferLikeFirst,
			Compile: func(s *Site) (Kernel, error) {
				return build(s).withBias(), nil
			}}
	}
	erf := func(*Site) unary { return geluErf }
	tanh := func(*Site) unary { return geluTanh }
	return []Spec{
		fused("Gelu", erf, nil),
		fused("BiasGelu", erf, &Port{Name: "B"}),
		fused("FastGelu", tanh, &Port{Name: "bias", Optional: true}),
		fused("QuickGelu", func(s *Site) unary { return swish(s.Node.Float("alpha", 1.702)) }, nil, floatAttrs("alpha")...),
		{Type: "SwiGLU", Since: 28, Flow: Compute, Pure: true,
			In: []Port{{Name: "A", Role: Activation}, {Name: "B", Role: Activation}}, Out: []Port{{Name: "Y", Role: Activation}},
			Attrs: floatAttrs("alpha"), Infer: inferLikeFirst,
			Compile: func(s *Site) (Kernel, error) { return swish(s.Node.Float("alpha", 1)).gate(), nil }},
	}
}

// gate returns the kernel that multiplies u of input 0 by input 1, which has
// the same shape.
func (u unary) gate() Kernel {
	if u.f32 == nil {
		u.f32 = func(dst, src []float32) {
			for i, x := range src {
				dst[i] = float32(u.f64(float64(x)))
			}
		}
	}
	return func(c *Call) error {
		x, err := c.tensor(0)
		if err != nil {
			return err
		}
		if g, err := c.tensor(1); err != nil || !equalInts(g.Shape(), x.Shape()) || g.DType() != x.DType() {
			return fmt.Errorf("operands %v and %v", x, c.In(1))
		}
		return byFloat(x,
			func() error { return gated(c, x, u.f32) },
			func() error { return gated(c, x, rowOf(u.f64)) })
	}
}

func gated[T floating](c *Call, x *tensor.Tensor, row func(dst, src []T)) error {
	return reduceTensor(c, x, x.Shape(), func(dst, src []T) error {
		if err := c.For(len(dst), costlyChunk, func(lo, hi int) { row(dst[lo:hi], src[lo:hi]) }); err != nil {
			return err
		}
		return combineInput(c, multiplication, dst, dst, x.Shape(), 1)
	})
}

// withBias returns the kernel that applies u to the sum of inputs 0 and 1, the
// second of which may be omitted.
func (u unary) withBias() Kernel {
	plain := u.kernel()
	return func(c *Call) error {
		if c.In(1) == nil {
			return plain(c)
		}
		x, err := c.tensor(0)
		if err != nil {
			return err
		}
		return byFloat(x,
			func() error { return biased(c, x, u.f32) },
			func() error { return biased(c, x, rowOf(u.f64)) })
	}
}

func biased[T floating](c *Call, x *tensor.Tensor, row func(dst, src []T)) error {
	return reduceTensor(c, x, x.Shape(), func(dst, src []T) error {
		if err := combineInput(c, addition, dst, src, x.Shape(), 1); err != nil {
			return err
		}
		return c.For(len(dst), costlyChunk, func(lo, hi int) { row(dst[lo:hi], dst[lo:hi]) })
	})
}
