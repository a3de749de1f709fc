package quant

import (
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// Half returns a float32 tensor as float16, rounded to nearest even; values
// beyond the range become infinite.
func Half(t *tensor.Tensor) *tensor.Tensor {
	out := tensor.New(tensor.Float16, t.Shape()...)
	codes, r := tensor.As[uint16](out), reader{t: t}
	for at := 0; at < len(codes); at += panel {
		part := codes[at:min(at+panel, len(codes))]
		kernels.Float32ToFloat16(part, r.floats(at, len(part)))
	}
	return out
}

// HalfNoise returns the mean square of what rounding to float16 does to a
// float32 tensor, relative to its mean square: +Inf or NaN where float16 does not
// reach an element or one is not finite, and 0 for a tensor of zeros.
func HalfNoise(t *tensor.Tensor) float64 {
	const piece = 1 << 12
	n := t.Len()
	codes, back := make([]uint16, min(piece, n)), make([]float32, min(piece, n))
	r := reader{t: t}
	var signal, noise float64
	for at := 0; at < n; at += piece {
		x := r.floats(at, min(piece, n-at))
		c, b := codes[:len(x)], back[:len(x)]
		kernels.Float32ToFloat16(c, x)
		kernels.Float16ToFloat32(b, c)
		kernels.Binary(kernels.Sub, b, x, b)
		signal += kernels.ReduceSumSquares(x)
		noise += kernels.ReduceSumSquares(b)
	}
	if signal == 0 {
		return 0
	}
	return noise / signal
}
