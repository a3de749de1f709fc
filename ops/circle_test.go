package ops

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestCircleRow compares sine and cosine with those of package math.
func TestCircleRow(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	src := []float32{0, float32(math.Copysign(0, -1)), 1e-30, -1e-30, math.MaxFloat32, float32(math.Inf(1)), float32(math.NaN()), 1 << 20, 1<<20 - 0.0625}
	for k := range 2000 { // where the results are smallest
		src = append(src, float32(float64(k*311)*math.Pi/2))
	}
	for range 20000 {
		src = append(src, float32(rng.NormFloat64()*math.Pow(10, float64(rng.IntN(9)-3))))
	}
	dst := make([]float32, len(src))
	for turn, f := range []func(float64) float64{math.Sin, math.Cos} {
		circleRow(dst, src, int64(turn))
		for i, x := range src {
			want := float32(f(float64(x)))
			got := dst[i]
			if want != want {
				if got == got {
					t.Fatalf("turn %d of %g: %g, want NaN", turn, x, got)
				}
				continue
			}
			if ulps := int64(math.Float32bits(got)) - int64(math.Float32bits(want)); ulps < -1 || ulps > 1 {
				t.Fatalf("turn %d of %g: %g, want %g", turn, x, got, want)
			}
		}
	}
}
