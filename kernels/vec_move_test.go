package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/tensor"
)

func TestHalf(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := random(1)
		tails(func(n, off int) {
			src, _ := zoned[float32](n, off)
			fill(r, src)
			for i := range src {
				switch r.IntN(4) {
				case 0: // ties of either format
					src[i] = math.Float32frombits(r.Uint32()&^0x1fff | 0x1000)
				case 1:
					src[i] = math.Float32frombits(r.Uint32()&^0xffff | 0x8000)
				}
			}
			for _, f := range []struct {
				name   string
				narrow func(dst []uint16, src []float32)
				widen  func(dst []float32, src []uint16)
				from   func(float32) uint16
				to     func(uint16) float32
			}{
				{"float16", Float32ToFloat16, Float16ToFloat32, tensor.Float16FromFloat32, tensor.Float16ToFloat32},
				{"bfloat16", Float32ToBFloat16, BFloat16ToFloat32, tensor.BFloat16FromFloat32, tensor.BFloat16ToFloat32},
			} {
				h, check := zoned[uint16](n, (off+1)%4)
				f.narrow(h, src)
				check(t)
				for i, x := range src {
					if want := f.from(x); h[i] != want {
						t.Fatalf("n=%d: %s of %g is %04x, want %04x", n, f.name, x, h[i], want)
					}
				}
				x, check := zoned[float32](n, off)
				f.widen(x, h)
				check(t)
				for i, v := range h {
					if want := f.to(v); !same(x[i], want) {
						t.Fatalf("n=%d: %s code %04x is %g, want %g", n, f.name, v, x[i], want)
					}
				}
			}
		})
		all, x, back := make([]uint16, 1<<16), make([]float32, 1<<16), make([]uint16, 1<<16)
		for i := range all {
			all[i] = uint16(i)
		}
		Float16ToFloat32(x, all)
		Float32ToFloat16(back, x)
		for i, h := range back {
			if x[i] == x[i] && int(h) != i {
				t.Fatalf("float16 code %04x comes back as %04x", i, h)
			}
		}
	})
}

func testTranspose[T comparable](t *testing.T, value func(r *rand.Rand) T) {
	r := random(2)
	test := func(rows, cols, ldd, lds int) {
		src, _ := zoned[T]((rows-1)*lds+cols, rows%3)
		dst, check := zoned[T]((cols-1)*ldd+rows, cols%3)
		for i := range src {
			src[i] = value(r)
		}
		before := slices.Clone(dst)
		Transpose(dst, ldd, src, lds, rows, cols)
		check(t)
		for i := range dst {
			want := before[i]
			if c, r := i/ldd, i%ldd; r < rows {
				want = src[r*lds+c]
			}
			if dst[i] != want {
				t.Fatalf("%dx%d, strides %d and %d: element %d is %v, want %v", rows, cols, ldd, lds, i, dst[i], want)
			}
		}
	}
	for rows := 1; rows < 36; rows++ {
		for _, cols := range []int{1, 3, 4, 7, 8, 15, 16, 17, 33, 52} {
			test(rows, cols, rows, cols)
			test(rows, cols, rows+r.IntN(5), cols+r.IntN(5))
		}
	}
	Transpose[T](nil, 0, nil, 0, 0, 5)
}

func TestTranspose(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		testTranspose(t, func(r *rand.Rand) float32 { return r.Float32() })
		testTranspose(t, func(r *rand.Rand) int32 { return int32(r.Uint32()) })
		testTranspose(t, func(r *rand.Rand) uint8 { return uint8(r.Uint32()) })
		testTranspose(t, func(r *rand.Rand) int8 { return int8(r.Uint32()) })
		testTranspose(t, func(r *rand.Rand) uint16 { return uint16(r.Uint32()) })
		testTranspose(t, func(r *rand.Rand) int64 { return int64(r.Uint64()) })
	})
}

func TestPoolRow(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := random(3)
		for n := range 75 {
			for _, c := range [][3]int{{1, 1, 1}, {2, 1, 1}, {3, 1, 1}, {3, 2, 1}, {1, 1, 2}, {2, 1, 2}, {3, 1, 2}, {5, 3, 2}, {3, 1, 3}, {2, 4, 5}} {
				taps, dilation, stride := c[0], c[1], c[2]
				for more := range 2 {
					src, _ := zoned[float32](max(n-1, 0)*stride+(taps-1)*dilation+1+more, n%4)
					fill(r, src)
					maxima, check1 := zoned[float32](n, 1)
					sums, check2 := zoned[float32](n, 2)
					MaxRow(maxima, src, taps, dilation, stride)
					SumRow(sums, src, taps, dilation, stride)
					check1(t)
					check2(t)
					for i := range n {
						most, sum := -inf, float32(0)
						for k := range taps {
							v := src[i*stride+k*dilation]
							most = max(most, v)
							if k == 0 {
								sum = v
							} else {
								sum += v
							}
						}
						if maxima[i] != most && !same(maxima[i], most) || !same(sums[i], sum) {
							t.Fatalf("n=%d %v: element %d: max %g and sum %g, want %g and %g", n, c, i, maxima[i], sums[i], most, sum)
						}
					}
				}
			}
		}
	})
}

func TestMax8(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := random(4)
		tails(func(n, off int) {
			a, _ := zoned[uint8](n, off)
			b, _ := zoned[uint8](n, 1)
			x, _ := zoned[int8](n, off)
			y, _ := zoned[int8](n, 2)
			dst, check1 := zoned[uint8](n, 3)
			signed, check2 := zoned[int8](n, 3)
			for i := range a {
				a[i], b[i] = uint8(r.Uint32()), uint8(r.Uint32())
				x[i], y[i] = int8(a[i]), int8(b[i])
			}
			MaxU8(dst, a, b)
			MaxI8(signed, x, y)
			check1(t)
			check2(t)
			for i := range dst {
				if dst[i] != max(a[i], b[i]) || signed[i] != max(x[i], y[i]) {
					t.Fatalf("n=%d: element %d of (%d, %d): %d and %d", n, i, a[i], b[i], dst[i], signed[i])
				}
			}
		})
	})
}

func BenchmarkMove(b *testing.B) {
	const n = 1 << 16
	x, y, h := make([]float32, n), make([]float32, n), make([]uint16, n)
	u, v := make([]uint8, n), make([]uint8, n)
	finite(random(1), x)
	for _, c := range []struct {
		name  string
		bytes int
		f     func()
	}{
		{"ToFloat16", 6 * n, func() { Float32ToFloat16(h, x) }},
		{"FromFloat16", 6 * n, func() { Float16ToFloat32(y, h) }},
		{"ToBFloat16", 6 * n, func() { Float32ToBFloat16(h, x) }},
		{"FromBFloat16", 6 * n, func() { BFloat16ToFloat32(y, h) }},
		{"Transpose4", 8 * n, func() { Transpose(y, 64, x, n/64, 64, n/64) }},
		{"Transpose4Square", 8 * n, func() { Transpose(y, 256, x, 256, 256, 256) }},
		{"Transpose1", 2 * n, func() { Transpose(u, 64, v, n/64, 64, n/64) }},
		{"MaxRow3/2", 6 * n, func() { MaxRow(y[:n/2-8], x, 3, 1, 2) }},
		{"MaxRow3/1", 8 * n, func() { MaxRow(y[:n-8], x, 3, 1, 1) }},
	} {
		b.Run(fmt.Sprint(c.name), func(b *testing.B) {
			benchLevels(b, func(b *testing.B) {
				b.SetBytes(int64(c.bytes))
				for b.Loop() {
					c.f()
				}
			})
		})
	}
}

func TestTruncate(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := random(3)
		tails(func(n, off int) {
			src, _ := zoned[float32](n, off)
			fill(r, src)
			for i := range src {
				if r.IntN(3) == 0 {
					src[i] = (r.Float32() - .5) * (1 << 33)
				}
			}
			dst, check := zoned[int32](n, (off+1)%4)
			Truncate(dst, src)
			check(t)
			for i, x := range src {
				want := int32(math.MinInt32)
				if v := math.Trunc(float64(x)); v >= math.MinInt32 && v <= math.MaxInt32 {
					want = int32(v)
				}
				if dst[i] != want {
					t.Fatalf("n=%d: %g becomes %d, want %d", n, x, dst[i], want)
				}
			}
		})
	})
}
