package kernels

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/internal/fuzztest"
)

// wantCode is the definition of quantization, in float64 after the division.
func wantCode(x, scale float32, zero, lo, hi int) int {
	d := float64(x / scale)
	if d != d {
		return lo
	}
	return int(min(max(math.RoundToEven(d)+float64(zero), float64(lo)), float64(hi)))
}

func testQuantize[T uint8 | int8 | uint16 | int16](t *testing.T, min, max int,
	quantize func(dst []T, src []float32, scale float32, zero T),
	quantizeRange func(dst []T, src []float32, scale float32, zero, lo, hi T),
	dequantize func(dst []float32, src []T, scale float32, zero T)) {
	eachLevel(t, func(t *testing.T) {
		r := random(1)
		tails(func(n, off int) {
			src, _ := zoned[float32](n, off)
			fill(r, src)
			scale := []float32{1, 0.1, 3, 0x1p-140, 1e30, 1.0 / 3}[r.IntN(6)]
			if n%3 == 0 { // exact ties
				for i := range src {
					src[i] = (float32(r.IntN(1<<17)-1<<16) + 0.5) * scale
				}
			}
			a, b := r.IntN(max-min+1)+min, r.IntN(max-min+1)+min
			if n%2 == 0 {
				a, b = min, max
			}
			lo, hi := T(a), T(b)
			if lo > hi {
				lo, hi = hi, lo
			}
			zero := T(r.IntN(max-min+1) + min)
			if lo > zero || zero > hi {
				zero = lo
			}
			dst, check := zoned[T](n, (off+1)%4)
			quantizeRange(dst, src, scale, zero, lo, hi)
			check(t)
			for i, x := range src {
				if want := T(wantCode(x, scale, int(zero), int(lo), int(hi))); dst[i] != want {
					t.Fatalf("n=%d: %g/%g, zero %d in [%d, %d] = %d, want %d", n, x, scale, zero, lo, hi, dst[i], want)
				}
			}
			back, check := zoned[float32](n, off)
			dequantize(back, dst, scale, zero)
			check(t)
			for i, q := range dst {
				if want := float32(int(q)-int(zero)) * scale; !same(back[i], want) {
					t.Fatalf("(%d-%d)*%g = %g, want %g", q, zero, scale, back[i], want)
				}
			}
			fake, check := zoned[float32](n, (off+2)%4)
			FakeQuantize(fake, src, scale, int32(zero), int32(lo), int32(hi))
			check(t)
			wantSame(t, "FakeQuantize", fake, back, src)
			scales, zeros := make([]float32, n), make([]int32, n)
			for i := range scales {
				scales[i] = float32(math.Exp(r.NormFloat64()))
				zeros[i] = int32(lo) + r.Int32N(int32(hi)-int32(lo)+1)
			}
			columns, check := zoned[T](n, (off+3)%4)
			QuantizeColumns(columns, src, scales, zeros, lo, hi)
			check(t)
			for i, x := range src {
				if want := T(wantCode(x, scales[i], int(zeros[i]), int(lo), int(hi))); columns[i] != want {
					t.Fatalf("n=%d: column %d: %g/%g, zero %d in [%d, %d] = %d, want %d", n, i, x, scales[i], zeros[i], lo, hi, columns[i], want)
				}
			}
			values, check := zoned[float32](n, (off+1)%4)
			DequantizeColumns(values, columns, scales, zeros)
			check(t)
			for i, q := range columns {
				if want := float32(int32(q)-zeros[i]) * scales[i]; !same(values[i], want) {
					t.Fatalf("column %d: (%d-%d)*%g = %g, want %g", i, q, zeros[i], scales[i], values[i], want)
				}
			}
			if lo, hi := T(min), T(max); n < 40 {
				other := make([]T, n)
				quantize(dst, src, scale, zero)
				quantizeRange(other, src, scale, zero, lo, hi)
				if !slices.Equal(dst, other) {
					t.Fatalf("full range: %v, want %v", dst, other)
				}
			}
		})
	})
}

func TestQuantizeU8(t *testing.T) {
	testQuantize(t, 0, 255, QuantizeU8, QuantizeRangeU8, DequantizeU8)
}

func TestQuantizeI8(t *testing.T) {
	testQuantize(t, -128, 127, QuantizeI8, QuantizeRangeI8, DequantizeI8)
}

func TestQuantizeU16(t *testing.T) {
	testQuantize(t, 0, 65535, QuantizeU16, QuantizeRangeU16, DequantizeU16)
}

func TestQuantizeI16(t *testing.T) {
	testQuantize(t, -32768, 32767, QuantizeI16, QuantizeRangeI16, DequantizeI16)
}

// TestQuantizeLikeORT has results of QuantizeLinear of onnxruntime 1.32.0 on
// x86-64, scale 1 and zero point 7.
func TestQuantizeLikeORT(t *testing.T) {
	src := []float32{nan, -nan, inf, -inf, 3e38, -3e38, 1e10, -1e10, 0.5, 1.5, 2.5, -0.5, -1.5, 300, -300, 70000, -70000, 0x1p31, 4e9}
	eachLevel(t, func(t *testing.T) {
		u8 := make([]uint8, len(src))
		QuantizeU8(u8, src, 1, 7)
		if want := []uint8{0, 0, 255, 0, 255, 0, 255, 0, 7, 9, 9, 7, 5, 255, 0, 255, 0, 255, 255}; !slices.Equal(u8, want) {
			t.Errorf("uint8 %v, want %v", u8, want)
		}
		i16 := make([]int16, len(src))
		QuantizeI16(i16, src, 1, 7)
		if want := []int16{-32768, -32768, 32767, -32768, 32767, -32768, 32767, -32768, 7, 9, 9, 7, 5, 307, -293,
			32767, -32768, 32767, 32767}; !slices.Equal(i16, want) {
			t.Errorf("int16 %v, want %v", i16, want)
		}
	})
}

// TestQuantizeEveryFloat compares the levels on a coarse walk over all floats.
func TestQuantizeEveryFloat(t *testing.T) {
	src := make([]float32, 1<<16)
	want, got := make([]uint8, len(src)), make([]uint8, len(src))
	defer func(l Level) { level = l }(level)
	for hi := range uint32(16) {
		for i := range src {
			src[i] = math.Float32frombits(uint32(i)<<16 | hi*0x1111)
		}
		level = Generic
		QuantizeU8(want, src, 0.37, 100)
		for _, level = range levels()[1:] {
			if QuantizeU8(got, src, 0.37, 100); !bytes.Equal(got, want) {
				t.Fatalf("%v differs from the portable form", level)
			}
		}
	}
}

func TestDequantizeI32(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := random(2)
		tails(func(n, off int) {
			src, _ := zoned[int32](n, off)
			want := make([]float32, n)
			for i := range src {
				src[i] = int32(r.Uint32()) >> r.IntN(31)
				want[i] = float32(src[i]) * 0.013
			}
			dst, check := zoned[float32](n, (off+3)%4)
			DequantizeI32(dst, src, 0.013)
			check(t)
			wantSame(t, "DequantizeI32", dst, want)
		})
	})
}

func BenchmarkQuantize(b *testing.B) {
	src := make([]float32, 1<<16)
	finite(random(1), src)
	scales, zeros := make([]float32, len(src)), make([]int32, len(src))
	for i := range scales {
		scales[i] = 0.02
	}
	u8, i16, f := make([]uint8, len(src)), make([]int16, len(src)), make([]float32, len(src))
	for _, c := range []struct {
		name  string
		bytes int
		f     func()
	}{
		{"U8", 5, func() { QuantizeU8(u8, src, 0.02, 128) }},
		{"I16", 6, func() { QuantizeI16(i16, src, 0.0002, 0) }},
		{"Fake8", 8, func() { FakeQuantize(f, src, 0.02, 128, 0, 255) }},
		{"Columns8", 13, func() { QuantizeColumns(u8, src, scales, zeros, 0, 255) }},
		{"DequantizeU8", 5, func() { DequantizeU8(f, u8, 0.02, 128) }},
		{"DequantizeI16", 6, func() { DequantizeI16(f, i16, 0.02, 0) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			benchLevels(b, func(b *testing.B) {
				b.SetBytes(int64(c.bytes * len(src)))
				for b.Loop() {
					c.f()
				}
			})
		})
	}
}

func FuzzQuantize(f *testing.F) {
	f.Add(float32(0.1), uint8(128), uint8(3), []byte("0123456789abcdef"))
	f.Fuzz(func(t *testing.T, scale float32, zero, repeat uint8, raw []byte) {
		fuzztest.Bound(t)
		var src []float32
		for range int(repeat)%20 + 1 {
			for i := 0; i+4 <= len(raw); i += 4 {
				src = append(src, math.Float32frombits(binary.LittleEndian.Uint32(raw[i:])))
			}
		}
		defer func(l Level) { level = l }(level)
		for _, level = range levels() {
			dst := make([]uint8, len(src))
			QuantizeU8(dst, src, scale, zero)
			for i, x := range src {
				if want := wantCode(x, scale, int(zero), 0, 255); int(dst[i]) != want {
					t.Fatalf("%v: %g/%g + %d = %d, want %d", level, x, scale, zero, dst[i], want)
				}
			}
		}
	})
}

func TestCodeSum(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(51, 52))
		for n := range 100 {
			a, b := guarded[uint8](t, n), guarded[uint8](t, n)
			sa, sb := guarded[int8](t, n), guarded[int8](t, n)
			for i := range a {
				a[i], b[i] = uint8(r.Uint32()), uint8(r.Uint32())
				sa[i], sb[i] = int8(a[i]), int8(b[i])
			}
			ra, rb, c := float32(r.NormFloat64()), float32(r.NormFloat64()), float32(100*r.NormFloat64())
			u, s := guarded[float32](t, n), guarded[float32](t, n)
			CodeSum(u, a, b, ra, rb, c)
			CodeSum(s, sa, sb, ra, rb, c)
			for i := range a {
				if want := FMA(float32(a[i]), ra, FMA(float32(b[i]), rb, c)); u[i] != want {
					t.Fatalf("n=%d: uint8 %d and %d give %v, want %v", n, a[i], b[i], u[i], want)
				}
				if want := FMA(float32(sa[i]), ra, FMA(float32(sb[i]), rb, c)); s[i] != want {
					t.Fatalf("n=%d: int8 %d and %d give %v, want %v", n, sa[i], sb[i], s[i], want)
				}
			}
		}
	})
}
