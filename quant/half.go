package quant

import (
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// Half returns a float32 tensor as float16, rounded to nearest even; values
// beyond the range become infinite.
func Half(t *tensor.Tensor) *tensor.Tensor {
	out := tensor.New(tensor.Float16, t.Shape()...)
	kernels.Float32ToFloat16(tensor.As[uint16](out), tensor.As[float32](t))
	return out
}

// FromHalf returns the elements of a float16 tensor.
func FromHalf(t *tensor.Tensor) []float32 {
	out := make([]float32, t.Len())
	kernels.Float16ToFloat32(out, tensor.As[uint16](t))
	return out
}
