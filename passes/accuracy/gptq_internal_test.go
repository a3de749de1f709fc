package accuracy

import (
	"math/rand/v2"
	"testing"
)

// TestLasting tells errors that follow from the inputs from those that do not.
func TestLasting(t *testing.T) {
	const k = 24
	share := func(follows bool) float32 {
		r := rand.New(rand.NewPCG(1, 2))
		h, cross := make([]float32, k*k), make([]float32, k*k)
		half, crossOfHalf := make([]float32, k*k), make([]float32, k*k)
		x, d := make([]float32, k), make([]float32, k)
		for i := range 3 * k {
			for j := range x {
				x[j], d[j] = float32(r.NormFloat64()), float32(r.NormFloat64())
			}
			if follows {
				for j := range d {
					d[j] = 0.1*x[(j+1)%k] - 0.2*x[j]
				}
			}
			for a := range k {
				for b := range k {
					h[a*k+b] += x[a] * x[b]
					cross[a*k+b] += d[a] * x[b]
					if i%2 == 0 {
						half[a*k+b] += x[a] * x[b]
						crossOfHalf[a*k+b] += d[a] * x[b]
					}
				}
			}
		}
		f, err := lasting(t.Context(), nil, h, cross, half, crossOfHalf, k)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if f := share(true); f < 0.95 {
		t.Errorf("%.2f of what follows from the inputs", f)
	}
	if f := share(false); f > 0.1 {
		t.Errorf("%.2f of what does not", f)
	}
}
