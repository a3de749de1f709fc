package kernels

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/internal/fuzztest"
)

// everyLevel runs f at every level, with random choices from the same seeds.
func everyLevel(a, b uint64, f func(r *rand.Rand)) {
	defer func(l Level) { level = l }(level)
	for _, level = range levels() {
		f(rand.New(rand.NewPCG(a, b)))
	}
}

// Any convolution has the defined values at every level, in every form.
func FuzzConv(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		fuzztest.Bound(t)
		everyLevel(a, b, func(r *rand.Rand) {
			switch a % 3 {
			case 0:
				testRandomConv(t, r, nil)
			case 1:
				testRandomBlockConv(t, r, nil)
			default:
				testRandomQConv(t, r, nil)
			}
		})
	})
}

// Any product of matrices has the defined values at every level.
func FuzzGemm(f *testing.F) {
	f.Add(uint64(1), uint64(2), uint8(3), uint8(40), uint8(9), uint8(0))
	f.Add(uint64(3), uint64(4), uint8(29), uint8(33), uint8(0), uint8(7))
	f.Fuzz(func(t *testing.T, s1, s2 uint64, m, n, k, mode uint8) {
		fuzztest.Bound(t)
		c := gemmCase{int(m%64) + 1, int(n) + 1, int(k)}
		everyLevel(s1, s2, func(r *rand.Rand) {
			a, b, out, ldc, ep := gemmFixture(t, r, c, mode&1 != 0, mode&2 != 0)
			if mode&4 != 0 {
				GemmPacked(nil, c.m, a, PackB(c.k, c.n, b), out, ldc, ep)
			} else {
				Gemm(nil, c.m, c.n, c.k, a, b, out, ldc, ep)
			}
			checkGemm(t, c.m, c.n, c.k, a, b, out, ldc, ep)
		})
	})
}

// Kernels on floats and codes give the bits of the portable form at every level,
// whatever the bits of their arguments.
func FuzzLevels(f *testing.F) {
	f.Add([]byte("\x00\x00\x80\x3f\x00\x00\xc0\x7f\x00\x00\x80\xff\x01\x00\x00\x80 and some bytes more, past one vector and its tail"), float32(0.5), float32(-1), uint8(3))
	f.Fuzz(func(t *testing.T, raw []byte, p, q float32, shape uint8) {
		fuzztest.Bound(t)
		n := len(raw) / 4
		if n == 0 {
			return
		}
		x, y := make([]float32, n), make([]float32, n)
		for i := range x {
			x[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
			y[n-1-i] = x[i]
		}
		i8 := make([]int8, len(raw))
		for i, b := range raw {
			i8[i] = int8(b)
		}
		half := make([]uint16, n)
		for i := range half {
			half[i] = binary.LittleEndian.Uint16(raw[4*i:])
		}
		rows := 1 + int(shape)%n
		cols := n / rows
		run := func() (floats [][]float32, words [][]uint64) {
			out := func(f func(dst []float32)) {
				d := make([]float32, n)
				f(d)
				floats = append(floats, d)
			}
			for op := range binaryOps {
				out(func(d []float32) { Binary(op, d, x, y) })
				out(func(d []float32) { Binary(op, d, x, []float32{p}) })
				out(func(d []float32) { Binary(op, d, []float32{p}, y) })
			}
			out(func(d []float32) { LeakyRelu(d, x, p) })
			out(func(d []float32) { Clip(d, x, min(p, q), max(p, q)) })
			out(func(d []float32) { HardSigmoid(d, x, p, q) })
			out(func(d []float32) { Swish(d, x, p) })
			out(func(d []float32) { Softmax(d, x) })
			out(func(d []float32) { LogSoftmax(d, x) })
			out(func(d []float32) { SoftmaxRows(d[:rows*cols], x[:rows*cols], cols) })
			out(func(d []float32) { LayerNorm(d, x, y, x, 1e-5) })
			out(func(d []float32) { RMSNorm(d, x, y, 1e-5) })
			out(func(d []float32) { DequantizeU8(d, raw[:n], p, 7) })
			out(func(d []float32) { DequantizeI8(d, i8[:n], p, -7) })
			out(func(d []float32) { CodeSum(d, raw[:n], raw[len(raw)-n:], p, q, 3) })
			out(func(d []float32) { CodeSum(d, i8[:n], i8[len(raw)-n:], p, q, 3) })
			out(func(d []float32) { Float16ToFloat32(d, half) })
			out(func(d []float32) { BFloat16ToFloat32(d, half) })
			out(func(d []float32) { Transpose(d, rows, x, cols, rows, cols) })
			out(func(d []float32) { d[0] = LineSum(x, int(shape%8)) })
			out(func(d []float32) { d[0], d[n-1] = ReduceMin(x), ReduceMax(x) })
			e := MinMax(x)
			floats = append(floats, []float32{e.Min, e.Max})
			words = append(words, []uint64{uint64(e.NaN), uint64(e.Inf)})
			bits := make([]uint16, n)
			Float32ToFloat16(bits, x)
			words = append(words, widened(bits))
			bits = make([]uint16, n)
			Float32ToBFloat16(bits, x)
			words = append(words, widened(bits))
			ints := make([]int32, n)
			Truncate(ints, x)
			words = append(words, widened(ints))
			if p > 0 && p < math.MaxFloat32 {
				codes := make([]uint8, n)
				QuantizeU8(codes, x, p, 9)
				words = append(words, widened(codes))
				signed := make([]int8, n)
				QuantizeI8(signed, x, p, -9)
				words = append(words, widened(signed))
			}
			counts := make([]uint64, 64)
			outside := Histogram(counts, x, -2, -32)
			words = append(words, append(counts, uint64(outside)))
			return floats, words
		}
		defer func(l Level) { level = l }(level)
		level = Generic
		wantFloats, wantWords := run()
		for _, level = range levels()[1:] {
			floats, words := run()
			for i := range wantFloats {
				for k, want := range wantFloats[i] {
					if got := floats[i][k]; !same(got, want) {
						t.Fatalf("%v: result %d: element %d of %d is %g (%08x), want %g (%08x)", level, i, k, n, got, math.Float32bits(got), want, math.Float32bits(want))
					}
				}
			}
			for i := range wantWords {
				if !slices.Equal(words[i], wantWords[i]) {
					t.Fatalf("%v: integer result %d is %v, want %v", level, i, words[i], wantWords[i])
				}
			}
		}
	})
}

func widened[T uint8 | int8 | uint16 | int32](s []T) []uint64 {
	out := make([]uint64, len(s))
	for i, v := range s {
		out[i] = uint64(v)
	}
	return out
}
