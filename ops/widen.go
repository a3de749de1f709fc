package ops

import "github.com/onnxq/onnxq/tensor"

// isHalf reports whether d is a 16-bit float type.
func isHalf(d tensor.DType) bool { return d == tensor.Float16 || d == tensor.BFloat16 }

// widened returns a kernel that runs k on float32 copies of the float16 and
// bfloat16 inputs and rounds its float32 outputs to the type of input 0, if
// that is one of these.
func widened(k Kernel) Kernel {
	return func(c *Call) error {
		x := c.In(0)
		if x == nil || !isHalf(x.DType()) {
			return k(c)
		}
		sub := *c
		sub.Mem = freshMemory{c.Mem}
		sub.Ins = append([]Data(nil), c.Ins...)
		sub.Outs = make([]Data, len(c.Outs))
		for i := range c.Ins {
			t := c.In(i)
			if t == nil || !isHalf(t.DType()) {
				continue
			}
			buf, err := c.Floats(t.Len())
			if err != nil {
				return err
			}
			tensor.Read(t, 0, buf)
			sub.Ins[i] = tensor.Of(buf, t.Shape()...)
		}
		if err := k(&sub); err != nil {
			return err
		}
		for i, d := range sub.Outs {
			t, ok := d.(*tensor.Tensor)
			if !ok || t.DType() != tensor.Float32 {
				c.Outs[i] = d
				continue
			}
			out, err := c.Out(i, x.DType(), t.Shape()...)
			if err != nil {
				return err
			}
			tensor.Write(out, 0, tensor.As[float32](t))
		}
		return nil
	}
}

// freshMemory never reuses the memory of an input.
type freshMemory struct{ Memory }

func (m freshMemory) Reuse(_ *Call, _ int, dtype tensor.DType, shape []int) (*tensor.Tensor, error) {
	return m.New(dtype, shape)
}
