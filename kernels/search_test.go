package kernels

import (
	"math"
	"slices"
	"testing"
)

func TestLog64(t *testing.T) {
	r := random(11)
	for range 20000 {
		x := math.Ldexp(1+r.Float64(), r.IntN(2000)-1000)
		got, want := log64(x), math.Log(x)
		if math.Abs(got-want) > 4e-16*math.Max(math.Abs(want), 1) {
			t.Fatalf("log(%v) = %v, want %v", x, got, want)
		}
	}
	for _, x := range []float64{1, math.Sqrt2, math.Nextafter(math.Sqrt2, 2), math.Sqrt2 / 2, 2, 1e-4} {
		if got, want := log64(x), math.Log(x); math.Abs(got-want) > 1e-16 && math.Abs(got-want) > 4e-16*math.Abs(want) {
			t.Errorf("log(%v) = %v, want %v", x, got, want)
		}
	}
}

// TestLogs compares every level with the portable form, bit by bit.
func TestLogs(t *testing.T) {
	r := random(12)
	for n := range 20 {
		x, want := guarded[float64](t, n), make([]float64, n)
		for i := range x {
			x[i] = math.Ldexp(1+r.Float64(), r.IntN(2000)-1000)
			want[i] = log64(x[i])
		}
		eachLevel(t, func(t *testing.T) {
			got := guarded[float64](t, n)
			if Logs(got, x); !slices.Equal(got, want) {
				t.Fatalf("%d logarithms: %v, want %v", n, got, want)
			}
			copy(got, x)
			if Logs(got, got); !slices.Equal(got, want) {
				t.Fatalf("%d logarithms in place: %v, want %v", n, got, want)
			}
		})
	}
}

func TestQuantCost(t *testing.T) {
	r := random(13)
	for n := range 40 {
		x, w := guarded[float64](t, n), guarded[float64](t, n)
		for i := range x {
			x[i], w[i] = r.NormFloat64(), float64(r.IntN(1000))
			if r.IntN(3) == 0 {
				x[i] = (float64(r.IntN(40)) - 20) / 20 // ties, and the bounds
			}
		}
		for _, magnitudes := range []bool{false, true} {
			want := 0.0
			for i, v := range x {
				d := math.Abs(v - min(max(math.RoundToEven(v/0.1)*0.1, -1), 0.9))
				if !magnitudes {
					d *= d
				}
				want += w[i] * d
			}
			var first *float64
			eachLevel(t, func(t *testing.T) {
				got := QuantCost(x, w, 0.1, -1, 0.9, magnitudes)
				if first == nil {
					first = &got
				}
				if got != *first || math.Abs(got-want) > 1e-12*(1+want) {
					t.Fatalf("%d elements, magnitudes %v: %v, want %v, before %v", n, magnitudes, got, want, *first)
				}
			})
		}
	}
}

func TestAddColumns(t *testing.T) {
	r := random(14)
	eachLevel(t, func(t *testing.T) {
		for n := range 20 {
			sums, row := guarded[float64](t, n), guarded[float32](t, n)
			want := make([]float64, n)
			for i := range sums {
				sums[i], row[i] = r.NormFloat64(), float32(r.NormFloat64())
				want[i] = sums[i] + float64(row[i])
			}
			AddColumns(sums, row)
			if !slices.Equal(sums, want) {
				t.Fatalf("%d columns: %v, want %v", n, sums, want)
			}
		}
	})
}

func BenchmarkSearch(b *testing.B) {
	x, n, logs := make([]float64, 2048), make([]float64, 2048), make([]float64, 2048)
	for i := range x {
		x[i], n[i] = float64(i)/100, 3
	}
	for _, c := range []struct {
		name string
		f    func()
	}{
		{"Logs", func() { Logs(logs, n) }},
		{"QuantCost", func() { QuantCost(x, n, 0.07, 0, 17, false) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			benchLevels(b, func(b *testing.B) {
				for b.Loop() {
					c.f()
				}
			})
		})
	}
}
