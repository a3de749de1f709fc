package quant

import (
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// narrowings are the scales that Narrow tries, relative to one that covers the
// range.
var narrowings = []float64{0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5}

// peaked returns the ratio of the greatest magnitude to the root mean square of a
// slice up to which clipping codes cannot pay: for a normal distribution, which
// has the least of it, the best of all clips lies at 3.92 times the root mean
// square for 8 bits, at 2.55 times for 4 (R. Banner et al., "Post training 4-bit
// quantization", 2019).
func (t Type) peaked() float64 {
	if t.DType.Bits() <= 4 {
		return 2.5
	}
	return 3.9
}

// Narrow makes the scale of each slice of p smaller where clipping the largest
// elements of t, a float32 tensor, costs less than the finer steps gain: where
// that lowers Σ importance·(t - its value)². Importance is by element; nil means
// 1. It returns the number of scales that changed. Slices with a zero point
// other than 0 stay as they are.
func (p *Params) Narrow(t *tensor.Tensor, importance func(i int) float64) int {
	data := tensor.As[float32](t)
	outer, channels, inner := split(t.Shape(), p.Axis)
	lo, hi, peaked := float64(p.Type.Min), float64(p.Type.Max), p.Type.peaked()
	var x, weights []float64
	changed := 0
	for c := range channels {
		if p.Zero[c] != 0 {
			continue
		}
		x = x[:0]
		var top, squares float64
		for o := range outer {
			for _, v := range data[(o*channels+c)*inner:][:inner] {
				v := float64(v)
				x = append(x, v)
				top = max(top, v, -v)
				squares += float64(v * v)
			}
		}
		if top*top*float64(len(x)) <= peaked*peaked*squares {
			continue
		}
		weights = weights[:0]
		for o := range outer {
			at := (o*channels + c) * inner
			for i := at; i < at+inner; i++ {
				w := 1.0
				if importance != nil {
					w = importance(i)
				}
				weights = append(weights, w)
			}
		}
		loss := func(scale float64) float64 {
			return kernels.QuantCost(x, weights, scale, lo*scale, hi*scale, false)
		}
		full := float64(p.Scale[c])
		best, least := full, loss(full)
		for _, f := range narrowings {
			if l := loss(full * f); l < least {
				best, least = full*f, l
			}
		}
		if s := float32(best); best != full && s >= smallestScale {
			p.Scale[c] = s
			changed++
		}
	}
	return changed
}
