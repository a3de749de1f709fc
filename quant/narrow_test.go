package quant_test

import (
	"math/rand/v2"
	"testing"

	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// Narrow changes the slices that a few far elements widen and no others, and
// never raises the error that it says to lower.
func TestNarrow(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, axis := range []int{0, 1} {
		const rows, cols = 6, 400
		shape := []int{rows, cols}
		if axis == 1 {
			shape = []int{cols, rows}
		}
		w := tensor.New(tensor.Float32, shape...)
		at := func(slice, k int) *float32 {
			if axis == 1 {
				slice, k = k, slice
			}
			return &tensor.As[float32](w)[slice*shape[1]+k]
		}
		for s := range rows {
			for k := range cols {
				*at(s, k) = float32(r.NormFloat64())
				if s == 1 {
					*at(s, k) = float32(r.Float64() - 0.5)
				}
			}
		}
		*at(2, 17) = 14
		*at(4, 3) = 100 // too much to give up
		p, err := quant.Scheme{Type: quant.I8.Narrow(), Symmetric: true, Axis: axis}.Weights(w)
		if err != nil {
			t.Fatal(err)
		}
		loss := func() []float64 {
			codes, err := p.Quantize(nil, w)
			if err != nil {
				t.Fatal(err)
			}
			back := p.Dequantize(codes)
			out := make([]float64, rows)
			for s := range rows {
				for k := range cols {
					i := s*shape[1] + k
					if axis == 1 {
						i = k*shape[1] + s
					}
					d := float64(tensor.As[float32](back)[i] - *at(s, k))
					out[s] += d * d
				}
			}
			return out
		}
		before, scales := loss(), append([]float32{}, p.Scale...)
		changed := p.Narrow(w, nil)
		after := loss()
		count := 0
		for s := range rows {
			if p.Scale[s] != scales[s] {
				count++
			}
			if after[s] > before[s]*(1+1e-9) {
				t.Errorf("axis %d, slice %d: loss %g → %g", axis, s, before[s], after[s])
			}
		}
		if count != changed || p.Scale[1] != scales[1] || p.Scale[4] != scales[4] {
			t.Errorf("axis %d: %d scales changed, %d said: %v → %v", axis, count, changed, scales, p.Scale)
		}
	}
	// Far elements that count little are cut.
	w := tensor.New(tensor.Float32, 400)
	for i := range tensor.As[float32](w) {
		tensor.As[float32](w)[i] = float32(r.NormFloat64())
	}
	tensor.As[float32](w)[7] = 12
	p, err := quant.Scheme{Type: quant.I8.Narrow(), Symmetric: true, Axis: -1}.Weights(w)
	if err != nil {
		t.Fatal(err)
	}
	full := p.Scale[0]
	if p.Narrow(w, func(i int) float64 {
		if i == 7 {
			return 1e-6
		}
		return 1
	}) != 1 || p.Scale[0] > 0.6*full {
		t.Errorf("scale %g → %g", full, p.Scale[0])
	}
}
