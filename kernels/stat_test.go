package kernels

import (
	"math"
	"math/big"
	"slices"
	"testing"
)

func wantExtrema(src []float32) Extrema {
	e := Extrema{Min: inf, Max: -inf}
	for _, x := range src {
		switch {
		case x != x:
			e.NaN++
		case math.IsInf(float64(x), 0):
			e.Inf++
		default:
			if x < e.Min {
				e.Min = x
			}
			if x > e.Max {
				e.Max = x
			}
		}
	}
	return e
}

// sameExtrema tells whether got is want with zeros of positive sign.
func sameExtrema(got, want Extrema) bool {
	return got == want && !(got.Min == 0 && math.Signbit(float64(got.Min))) &&
		!(got.Max == 0 && math.Signbit(float64(got.Max)))
}

func TestMinMax(t *testing.T) {
	negzero := float32(math.Copysign(0, -1))
	eachLevel(t, func(t *testing.T) {
		r := random(1)
		tails(func(n, off int) {
			x, check := zoned[float32](n, off)
			for _, put := range []func(){
				func() { finite(r, x) },
				func() { fill(r, x) },
				func() {
					finite(r, x)
					if n > 0 {
						x[r.IntN(n)] = specials[r.IntN(len(specials))]
					}
				},
				func() {
					for i := range x {
						x[i] = []float32{nan, inf, -inf}[r.IntN(3)]
					}
				},
				func() {
					for i := range x {
						x[i] = negzero
					}
				},
			} {
				put()
				if got, want := MinMax(x), wantExtrema(x); !sameExtrema(got, want) {
					t.Fatalf("n=%d: got %v, want %v of %v", n, got, want, x)
				}
				k := n / 3
				if got, want := MinMax(x[:k]).Merge(MinMax(x[k:])), MinMax(x); got != want {
					t.Fatalf("n=%d: merged %v, want %v", n, got, want)
				}
			}
			check(t)
		})
	})
}

func TestMinMaxChannels(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := random(2)
		for _, shape := range [][3]int{{1, 1, 1}, {3, 5, 1}, {2, 40, 1}, {7, 67, 1}, {1, 3, 70}, {4, 3, 9}, {2, 2, 33}, {0, 3, 4}, {5, 1, 1}} {
			outer, channels, inner := shape[0], shape[1], shape[2]
			for round := range 6 {
				src, _ := zoned[float32](outer*channels*inner, round)
				if finite(r, src); round > 2 {
					fill(r, src)
				}
				if round == 5 {
					for i, x := range src {
						if x-x != 0 && x == x {
							src[i] = nan
						}
					}
				}
				lows, check1 := zoned[float32](channels, 1)
				highs, check2 := zoned[float32](channels, 2)
				nans, infs := MinMaxChannels(lows, highs, src, inner)
				check1(t)
				check2(t)
				all := wantExtrema(src)
				if nans != all.NaN || infs != all.Inf {
					t.Fatalf("%v: %d NaN and %d Inf, want %d and %d", shape, nans, infs, all.NaN, all.Inf)
				}
				for c := range channels {
					var row []float32
					for o := range outer {
						row = append(row, src[(o*channels+c)*inner:][:inner]...)
					}
					want := wantExtrema(row)
					got := Extrema{lows[c], highs[c], want.NaN, want.Inf}
					if !sameExtrema(got, want) {
						t.Fatalf("%v: channel %d: got %v, want %v", shape, c, got, want)
					}
				}
			}
		}
	})
}

func TestMoments(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := random(3)
		tails(func(n, off int) {
			x, check := zoned[float32](n, off)
			finite(r, x)
			for i := range x {
				x[i] *= float32(math.Ldexp(1, r.IntN(60)-30))
			}
			sum, squares, magnitudes := Moments(x)
			check(t)
			var want [3][16]float64
			exact := [3]*big.Float{new(big.Float).SetPrec(400), new(big.Float).SetPrec(400), new(big.Float).SetPrec(400)}
			for i, v := range x {
				for j, p := range []float64{float64(v), float64(v) * float64(v), math.Abs(float64(v))} {
					want[j][i%16] += p
					exact[j].Add(exact[j], big.NewFloat(p))
				}
			}
			for j, got := range []float64{sum, squares, magnitudes} {
				w := want[j]
				for h := 8; h > 0; h /= 2 {
					for l := range h {
						w[l] += w[l+h]
					}
				}
				if got != w[0] {
					t.Fatalf("n=%d: sum %d = %v, want %v", n, j, got, w[0])
				}
				e, _ := exact[j].Float64()
				bound, _ := exact[2].Float64()
				if j == 1 {
					bound = e
				}
				if math.Abs(got-e) > 1e-14*bound {
					t.Fatalf("n=%d: sum %d = %v, exactly %v", n, j, got, e)
				}
			}
		})
		if s, q, m := Moments([]float32{1, inf, -3}); s != math.Inf(1) || q != math.Inf(1) || m != math.Inf(1) {
			t.Errorf("with Inf: %v %v %v", s, q, m)
		}
		x := make([]float32, 40)
		x[7] = nan
		if s, q, m := Moments(x); s == s || q == q || m == m {
			t.Errorf("with NaN: %v %v %v", s, q, m)
		}
	})
}

// wantBin is floor(x/2^k) in exact arithmetic.
func wantBin(x float32, k int) int {
	r := new(big.Rat).SetFloat64(float64(x))
	p := new(big.Rat).SetFloat64(math.Ldexp(1, -k))
	r.Mul(r, p)
	q, m := new(big.Int).DivMod(r.Num(), r.Denom(), new(big.Int))
	_ = m
	return int(q.Int64())
}

func TestHistogram(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := random(4)
		test := func(n, off, k int) {
			w := float32(math.Ldexp(1, k))
			src, check := zoned[float32](n, off)
			for i := range src {
				switch r.IntN(4) {
				case 0:
					src[i] = float32(r.IntN(20)-10) * w
				case 1:
					src[i] = math.Nextafter32(float32(r.IntN(20)-10)*w, []float32{inf, -inf}[r.IntN(2)])
				case 2:
					src[i] = float32(r.IntN(3)-1) * math.SmallestNonzeroFloat32
				default:
					src[i] = float32(r.NormFloat64()*2) * w
				}
			}
			got, checkCounts := zoned[uint64](30, 0)
			want := make([]uint64, 30)
			for i := range got {
				got[i] = uint64(i)
				want[i] = uint64(i)
			}
			for _, x := range src {
				want[wantBin(x, k)+13]++
			}
			if outside := Histogram(got, src, k, -13); outside != 0 {
				t.Fatalf("n=%d k=%d: %d values outside", n, k, outside)
			}
			check(t)
			checkCounts(t)
			if !slices.Equal(got, want) {
				t.Fatalf("n=%d k=%d:\n got %v\nwant %v", n, k, got, want)
			}
		}
		tails(func(n, off int) { test(n, off, r.IntN(30)-25) })
		for _, k := range []int{-149, -140, -127, -126, -121, -120, -119, 20, 60, 119, 120, 121, 123} {
			test(500, 1, k)
		}
	})
}

func TestHistogramOutside(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		base := make([]float32, 200)
		for i := range base {
			base[i] = float32(i%8) / 2
		}
		for _, bad := range [][]float32{{nan}, {inf}, {-inf}, {4}, {-1e-45}, {1e38}, {-3e38, nan, 5, 4}} {
			src := slices.Clone(base)
			for i, x := range bad {
				src[17*i+50] = x
			}
			counts := make([]uint64, 8)
			if n := Histogram(counts, src, -1, 0); n != len(bad) || slices.Max(counts) != 0 {
				t.Errorf("%v: %d outside, counts %v", bad, n, counts)
			}
		}
		counts := make([]uint64, 8)
		if n := Histogram(counts, base, -1, 0); n != 0 || !slices.Equal(counts, []uint64{25, 25, 25, 25, 25, 25, 25, 25}) {
			t.Errorf("%d outside, counts %v", n, counts)
		}
		if n := Histogram(nil, nil, 0, 0); n != 0 {
			t.Errorf("nothing: %d outside", n)
		}
	})
}

// TestHistogramWide has more bins than the private tables, and few elements a
// bin.
func TestHistogramWide(t *testing.T) {
	r := random(5)
	src := make([]float32, 300000)
	for i := range src {
		src[i] = float32(r.NormFloat64())
	}
	for _, k := range []int{-5, -11, -14, -15, -16} {
		bins := 12 << -k
		eachLevel(t, func(t *testing.T) {
			got, want := make([]uint64, bins), make([]uint64, bins)
			for _, x := range src {
				want[int(math.Floor(math.Ldexp(float64(x), -k)))+bins/2]++
			}
			if n := Histogram(got, src, k, -bins/2); n != 0 || !slices.Equal(got, want) {
				t.Fatalf("k=%d: %d outside or wrong counts", k, n)
			}
		})
	}
}

// TestBlockMoments compares with the statistics of the columns, one by one.
func TestBlockMoments(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := random(15)
		for rows := 1; rows < 12; rows++ {
			x, check := zoned[float32](rows*BlockSize, rows)
			finite(r, x)
			got, ok := BlockMoments(x)
			check(t)
			if !ok {
				t.Fatalf("%d rows of finite elements: not finite", rows)
			}
			all, squares, magnitudes := MinMax(x), 0.0, 0.0
			for k := range BlockSize {
				var column []float32
				sum := 0.0
				for i := k; i < len(x); i += BlockSize {
					column = append(column, x[i])
					sum += float64(x[i])
					squares += float64(x[i]) * float64(x[i])
					magnitudes += math.Abs(float64(x[i]))
				}
				if e := MinMax(column); got.Min[k] != e.Min || got.Max[k] != e.Max || got.Sum[k] != sum ||
					math.Signbit(float64(got.Min[k])) != math.Signbit(float64(e.Min)) || math.Signbit(float64(got.Max[k])) != math.Signbit(float64(e.Max)) {
					t.Fatalf("%d rows, column %d: %v, %v, %v, want %v, %v", rows, k, got.Min[k], got.Max[k], got.Sum[k], e, sum)
				}
			}
			if e := got.Extrema(); e != all || math.Abs(got.Squares-squares) > 1e-12*squares || math.Abs(got.Magnitudes-magnitudes) > 1e-12*magnitudes {
				t.Fatalf("%d rows: %v, %v, %v, want %v, %v, %v", rows, e, got.Squares, got.Magnitudes, all, squares, magnitudes)
			}
			for _, bad := range []float32{nan, inf, -inf} {
				i := r.IntN(len(x))
				old := x[i]
				x[i] = bad
				if _, ok := BlockMoments(x); ok {
					t.Fatalf("%d rows: element %d of %v is finite", rows, i, bad)
				}
				x[i] = old
			}
		}
	})
}

func BenchmarkStat(b *testing.B) {
	src := make([]float32, 1<<18)
	finite(random(1), src)
	relu := slices.Clone(src)
	for i, x := range relu {
		relu[i] = max(x, 0)
	}
	masked := slices.Clone(src)
	for i := 0; i < len(masked); i += 3 {
		masked[i] = -inf
	}
	counts := make([]uint64, 4096)
	lows, highs := make([]float32, 256), make([]float32, 256)
	for _, c := range []struct {
		name string
		f    func()
	}{
		{"MinMax", func() { MinMax(src) }},
		{"MinMaxInf", func() { MinMax(masked) }},
		{"MinMaxColumns", func() { MinMaxChannels(lows, highs, src, 1) }},
		{"MinMaxRows", func() { MinMaxChannels(lows, highs, src, 64) }},
		{"Moments", func() { Moments(src) }},
		{"BlockMoments", func() { BlockMoments(src) }},
		{"Histogram", func() { Histogram(counts, src, -7, -2048) }},
		{"HistogramRelu", func() { Histogram(counts, relu, -7, -2048) }},
		{"HistogramFine", func() { Histogram(counts, src, -8, -2048) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			benchLevels(b, func(b *testing.B) {
				b.SetBytes(int64(4 * len(src)))
				for b.Loop() {
					c.f()
				}
			})
		})
	}
}
