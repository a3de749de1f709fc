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

// TestGroups compares with the definition, and every level with the portable
// form, bit by bit.
func TestGroups(t *testing.T) {
	r := random(12)
	type result struct {
		means, weights []Lanes
		total          [2]Lanes
		sums           Lanes
	}
	for _, groups := range []int{0, 1, 2, 5, 128} {
		for _, width := range []int{1, 2, 7, 31} {
			bins := groups*width + 3
			counts, filled := guarded[float64](t, bins+1), guarded[float64](t, bins+1)
			each := make([]float64, bins)
			for i := range bins {
				if r.IntN(3) > 0 {
					each[i] = float64(r.IntN(1 << r.IntN(40)))
				}
				counts[i+1], filled[i+1] = counts[i]+each[i], filled[i]
				if each[i] > 0 {
					filled[i+1]++
				}
			}
			less := Lanes{0, 1e-4, 0.3, 1.5}
			var portable *result
			compute := func() *result {
				c := &result{means: guarded[Lanes](t, groups), weights: guarded[Lanes](t, groups), sums: Lanes{1, 2, 3, 4}}
				c.total = GroupMeans(c.means, c.weights, counts[:bins+1], filled, width, &less, 1e-4)
				CrossLogs(&c.sums, c.means, c.weights, &less, 1e-4)
				return c
			}
			func() {
				defer func(l Level) { level = l }(level)
				level = Generic
				portable = compute()
			}()
			for j, m := range portable.means {
				for lane := range 4 {
					var sum, full float64
					for _, c := range each[lane+j*width : lane+(j+1)*width] {
						sum += c
						if c > 0 {
							full++
						}
					}
					want := 0.0
					if full > 0 {
						want = math.Floor(sum / full)
					}
					weight := sum - full*less[lane] + (float64(width)-full)*1e-4
					if m[lane] != want || math.Abs(portable.weights[j][lane]-weight) > 1e-9*(1+sum) {
						t.Fatalf("%d groups of %d: group %d, window %d: %v %v, want %v %v", groups, width, j, lane, m[lane], portable.weights[j][lane], want, weight)
					}
				}
			}
			eachLevel(t, func(t *testing.T) {
				got := compute()
				if !slices.Equal(got.means, portable.means) || !slices.Equal(got.weights, portable.weights) || got.total != portable.total || got.sums != portable.sums {
					t.Fatalf("%d groups of %d:\n got %v\nwant %v", groups, width, got, portable)
				}
			})
		}
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
	const groups, width = 128, 16
	counts, filled := make([]float64, groups*width+4), make([]float64, groups*width+4)
	for i := range counts {
		counts[i], filled[i] = float64(1000*i), float64(i)
	}
	means, weights := make([]Lanes, groups), make([]Lanes, groups)
	less, sums := Lanes{}, Lanes{}
	x, n := make([]float64, 2048), make([]float64, 2048)
	for i := range x {
		x[i], n[i] = float64(i)/100, 3
	}
	for _, c := range []struct {
		name string
		f    func()
	}{
		{"GroupMeans", func() { GroupMeans(means, weights, counts, filled, width, &less, 1e-4) }},
		{"CrossLogs", func() { CrossLogs(&sums, means, weights, &less, 1e-4) }},
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
