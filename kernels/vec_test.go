package kernels

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"

	"github.com/onnxq/onnxq/internal/fuzztest"
)

const guardLen = 96

// zoned returns a slice of n elements that starts off elements after an
// aligned address, inside guard zones, and a function that reports writes to
// the zones.
func zoned[T any](n, off int) ([]T, func(t *testing.T)) {
	buf := make([]T, guardLen+off+n+guardLen)
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), len(buf)*int(unsafe.Sizeof(buf[0])))
	size := int(unsafe.Sizeof(buf[0]))
	for i := range raw {
		raw[i] = 0xa5
	}
	return buf[guardLen+off:][:n:n], func(t *testing.T) {
		t.Helper()
		for i, b := range raw {
			if e := i/size - guardLen - off; b != 0xa5 && (e < 0 || e >= n) {
				t.Fatalf("n=%d off=%d: write outside, element %d", n, off, e)
			}
		}
	}
}

var nan, inf = float32(math.NaN()), float32(math.Inf(1))

// specials are float32 values at which kernels go wrong.
var specials = []float32{
	nan, -nan, inf, -inf, 0, float32(math.Copysign(0, -1)),
	0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 127.5, 128.5, -128.5, 254.5, 255.5, 65534.5, -32768.5,
	math.MaxFloat32, -math.MaxFloat32, math.SmallestNonzeroFloat32, -math.SmallestNonzeroFloat32,
	1e-39, -1e-39, 0x1p-126, -0x1p-126, 1e30, -1e30, 0x1p31, -0x1p31, 0x1p32, 0x1p22, 0x1p23, 0x1p24 + 2, 8388607.5,
	0.49999997, 0.50000006, 1, -1, 2, 88.7, 89, -87.3, -103, -104,
}

// fill puts random numbers of mixed magnitude and specials into x.
func fill(r *rand.Rand, x []float32) {
	for i := range x {
		switch r.IntN(8) {
		case 0:
			x[i] = specials[r.IntN(len(specials))]
		case 1:
			x[i] = math.Float32frombits(r.Uint32())
		case 2:
			x[i] = float32(r.IntN(600)-300) / 2
		default:
			x[i] = float32(r.NormFloat64() * 60)
		}
	}
}

// finite puts normal random numbers into x.
func finite(r *rand.Rand, x []float32) {
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
}

// tails calls f for the lengths 0 to 259 and a few longer ones, each with an
// offset from an aligned address of 0 to 4 elements.
func tails(f func(n, off int)) {
	for n := range 260 {
		f(n, n%5)
		if n < 70 {
			f(n, (n+1)%5)
		}
	}
	f(1000, 1)
	f(4099, 3)
}

func same(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

// wantSame fails where got and want differ, NaN being equal to NaN.
func wantSame(t *testing.T, what string, got, want []float32, in ...[]float32) {
	t.Helper()
	for i := range want {
		if !same(got[i], want[i]) {
			at := ""
			for _, x := range in {
				at += fmt.Sprintf(" %g (%08x)", x[i], math.Float32bits(x[i]))
			}
			t.Fatalf("%s: element %d of %d:%s: got %g (%08x), want %g (%08x)", what, i, len(want), at,
				got[i], math.Float32bits(got[i]), want[i], math.Float32bits(want[i]))
		}
	}
}

func random(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

var unaryNames = [unaryOps]string{"Abs", "Neg", "Floor", "Ceil", "Round", "Sqrt", "Reciprocal", "Relu", "Exp", "Log",
	"Tanh", "Sigmoid", "Erf", "Gelu", "GeluTanh", "Silu", "HardSwish", "Softplus", "Mish", "SigmoidRatio", "TanhRatio"}

var binaryNames = [binaryOps]string{"Add", "Sub", "Mul", "Div", "Min", "Max", "PRelu"}

func TestUnary(t *testing.T) {
	for op, name := range unaryNames {
		t.Run(name, func(t *testing.T) {
			eachLevel(t, func(t *testing.T) {
				r := random(1)
				tails(func(n, off int) {
					src, _ := zoned[float32](n, off)
					fill(r, src)
					want := make([]float32, n)
					for i, x := range src {
						want[i] = unaryTwins[op](x)
					}
					dst, check := zoned[float32](n, (off+1)%4)
					Unary(UnaryOp(op), dst, src)
					check(t)
					wantSame(t, name, dst, want, src)
					Unary(UnaryOp(op), src, src)
					wantSame(t, name+" in place", src, want)
				})
			})
		})
	}
}

// TestUnaryEveryFloat compares the levels on a coarse walk over all floats.
func TestUnaryEveryFloat(t *testing.T) {
	defer func(l Level) { level = l }(level)
	src := make([]float32, 1<<16)
	got, want := make([]float32, len(src)), make([]float32, len(src))
	for hi := range uint32(4) {
		for i := range src {
			src[i] = math.Float32frombits(uint32(i)<<16 | hi*0x4321)
		}
		for op, name := range unaryNames {
			level = Generic
			Unary(UnaryOp(op), want, src)
			for _, level = range levels()[1:] {
				Unary(UnaryOp(op), got, src)
				wantSame(t, name+" "+level.String(), got, want, src)
			}
		}
	}
}

func FuzzUnary(f *testing.F) {
	f.Add([]byte("\x00\x00\x80\x3f\x00\x00\xc0\x7f\x00\x00\x80\xff\x01\x00\x00\x80 some more bytes"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		fuzztest.Bound(t)
		src := make([]float32, len(raw)/4)
		for i := range src {
			src[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		}
		defer func(l Level) { level = l }(level)
		want, got := make([]float32, len(src)), make([]float32, len(src))
		for op, name := range unaryNames {
			level = Generic
			Unary(UnaryOp(op), want, src)
			for _, level = range levels()[1:] {
				Unary(UnaryOp(op), got, src)
				wantSame(t, name+" "+level.String(), got, want, src)
			}
		}
	})
}

// TestUnaryValues has the defining values at the edges.
func TestUnaryValues(t *testing.T) {
	negzero := float32(math.Copysign(0, -1))
	for _, c := range []struct {
		op   UnaryOp
		x, y float32
	}{
		{Exp, 0, 1}, {Exp, inf, inf}, {Exp, -inf, 0}, {Exp, 88.72283, 3.4027985e+38}, {Exp, 88.72284, inf},
		{Exp, -103.97, math.SmallestNonzeroFloat32}, {Exp, -103.98, 0}, {Exp, -87.5, float32(math.Exp(-87.5))},
		{Log, 1, 0}, {Log, 0, -inf}, {Log, negzero, -inf}, {Log, -1, nan}, {Log, -inf, nan}, {Log, inf, inf},
		{Log, math.SmallestNonzeroFloat32, -103.27893},
		{Tanh, negzero, negzero}, {Tanh, inf, 1}, {Tanh, -inf, -1}, {Tanh, 1e-40, 1e-40},
		{Sigmoid, 0, 0.5}, {Sigmoid, inf, 1}, {Sigmoid, -inf, 0}, {Sigmoid, -100, float32(math.Exp(-100))},
		{Erf, negzero, negzero}, {Erf, inf, 1}, {Erf, -inf, -1},
		{Gelu, -inf, negzero}, {Gelu, inf, inf}, {Gelu, 1, 0.8413447}, {Gelu, -20, negzero},
		{GeluTanh, -inf, negzero}, {GeluTanh, inf, inf}, {GeluTanh, 1, 0.841192}, {GeluTanh, -1e30, negzero},
		{Softplus, -inf, 0}, {Softplus, inf, inf}, {Softplus, 0, 0.6931472}, {Softplus, -100, float32(math.Exp(-100))}, {Softplus, 50, 50},
		{Mish, -inf, negzero}, {Mish, inf, inf}, {Mish, 0, 0}, {Mish, 100, 100},
		{Silu, -inf, negzero}, {Silu, inf, inf}, {SigmoidRatio, 0, 0.5}, {SigmoidRatio, -inf, 0}, {SigmoidRatio, inf, 1}, {TanhRatio, negzero, negzero}, {TanhRatio, 0.5, 0.46211717}, {HardSwish, -inf, negzero}, {HardSwish, 3, 3}, {HardSwish, 1, 4. / 6},
		{Round, 0.5, 0}, {Round, 1.5, 2}, {Round, -2.5, -2}, {Round, -0.3, negzero}, {Floor, -0.5, -1}, {Ceil, -0.5, negzero},
		{Sqrt, -1, nan}, {Sqrt, negzero, negzero}, {Reciprocal, negzero, -inf}, {Relu, -3, 0}, {Abs, -inf, inf}, {Neg, 0, negzero},
	} {
		if y := unaryTwins[c.op](c.x); !same(y, c.y) {
			t.Errorf("%s(%g) = %g, want %g", unaryNames[c.op], c.x, y, c.y)
		}
	}
	for op, name := range unaryNames {
		if y := unaryTwins[op](nan); y == y {
			t.Errorf("%s(NaN) = %g", name, y)
		}
	}
}

func TestBinary(t *testing.T) {
	for op, name := range binaryNames {
		t.Run(name, func(t *testing.T) {
			eachLevel(t, func(t *testing.T) {
				r := random(2)
				f := binaryTwins[op]
				one := make([]float32, 1)
				tails(func(n, off int) {
					a, _ := zoned[float32](n, off)
					b, _ := zoned[float32](n, (off+2)%4)
					fill(r, a)
					fill(r, b)
					fill(r, one)
					for i := range a { // equal arguments
						if i%7 == 0 {
							b[i] = a[i]
						}
					}
					dst, check := zoned[float32](n, (off+1)%4)
					want := make([]float32, n)
					for i := range want {
						want[i] = f(a[i], one[0])
					}
					Binary(BinaryOp(op), dst, a, one)
					wantSame(t, name+" scalar right", dst, want, a)
					for i := range want {
						want[i] = f(one[0], b[i])
					}
					Binary(BinaryOp(op), dst, one, b)
					wantSame(t, name+" scalar left", dst, want, b)
					if n == 1 {
						return
					}
					for i := range want {
						want[i] = f(a[i], b[i])
					}
					Binary(BinaryOp(op), dst, a, b)
					wantSame(t, name, dst, want, a, b)
					check(t)
					Binary(BinaryOp(op), b, a, b)
					wantSame(t, name+" in place", b, want, a)
				})
			})
		})
	}
	for _, c := range []struct {
		op      BinaryOp
		a, b, y float32
	}{
		{Min, nan, 1, nan}, {Min, 1, nan, nan}, {Max, nan, 1, nan}, {Max, -inf, nan, nan}, {Min, -inf, 3, -inf}, {Max, 2, 3, 3},
		{PRelu, -2, 0.5, -1}, {PRelu, 2, 0.5, 2}, {PRelu, nan, 2, nan}, {Div, 1, 0, inf}, {Sub, 2, 5, -3},
	} {
		if y := binaryTwins[c.op](c.a, c.b); !same(y, c.y) {
			t.Errorf("%s(%g, %g) = %g, want %g", binaryNames[c.op], c.a, c.b, y, c.y)
		}
	}
}

func TestClipAndFriends(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := random(3)
		tails(func(n, off int) {
			src, _ := zoned[float32](n, off)
			fill(r, src)
			dst, check := zoned[float32](n, (off+1)%4)
			for _, c := range []struct {
				name string
				run  func()
				want func(x float64) float64
			}{
				{"Clip", func() { Clip(dst, src, -1, 6) }, func(x float64) float64 { return math.Min(math.Max(x, -1), 6) }},
				{"LeakyRelu", func() { LeakyRelu(dst, src, 0.25) }, func(x float64) float64 { return max(x, 0) + 0.25*min(x, 0) }},
				{"HardSigmoid", func() { HardSigmoid(dst, src, 0.5, 0.25) },
					func(x float64) float64 { return math.Max(0, math.Min(1, float64(float32(x*0.5)+0.25))) }},
			} {
				c.run()
				check(t)
				for i, x := range src {
					want := float32(c.want(float64(x)))
					if x != x {
						want = nan
					}
					if dst[i] != want && !same(dst[i], want) {
						t.Fatalf("n=%d: %s(%g) = %g, want %g", n, c.name, x, dst[i], want)
					}
				}
			}
		})
	})
}

func TestExpLinear(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := random(6)
		for _, p := range [][3]float32{{1, 1, 1}, {1, 0.5, 0.5}, {1.0507, 1.75809934, 1}} {
			tails(func(n, off int) {
				src, _ := zoned[float32](n, off)
				fill(r, src)
				want := make([]float32, n)
				for i, x := range src {
					want[i] = expLinear32(x, p[0], p[1], p[2])
				}
				dst, check := zoned[float32](n, (off+1)%4)
				ExpLinear(dst, src, p[0], p[1], p[2])
				check(t)
				wantSame(t, "ExpLinear", dst, want, src)
			})
		}
	})
	if y := expLinear32(-inf, 1, 2, 1); y != -2 {
		t.Errorf("at -Inf: %g", y)
	}
	if y := expLinear32(nan, 1, 2, 1); y == y {
		t.Errorf("at NaN: %g", y)
	}
}

func TestReduce(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := random(4)
		tails(func(n, off int) {
			x, _ := zoned[float32](n, off)
			finite(r, x)
			if n%4 == 1 {
				x[r.IntN(n)] = -inf
			}
			low, high := inf, -inf
			for _, v := range x {
				low, high = min(low, v), max(high, v)
			}
			if a, b := ReduceMin(x), ReduceMax(x); a != low || b != high {
				t.Fatalf("n=%d: [%g, %g], want [%g, %g]", n, a, b, low, high)
			}
			if n > 0 {
				x[r.IntN(n)] = nan
				if a, b := ReduceMin(x), ReduceMax(x); a == a || b == b {
					t.Fatalf("n=%d with NaN: [%g, %g]", n, a, b)
				}
			}
		})
		if s, q := ReduceSum([]float32{1, 2, -7}), ReduceSumSquares([]float32{1, 2, -7}); s != -4 || q != 54 {
			t.Errorf("sum %g, squares %g", s, q)
		}
	})
}

// rows tests f, which stores its result for x in dst, against the portable
// level for identity and against want for accuracy.
func rows(t *testing.T, tolerance float64, f func(dst, x []float32), want func(x []float64) []float64) {
	eachLevel(t, func(t *testing.T) {
		r := random(5)
		tails(func(n, off int) {
			if n == 0 {
				return
			}
			x, _ := zoned[float32](n, off)
			finite(r, x)
			wide := make([]float64, n)
			for i := range x {
				x[i] = x[i]*10 + 3
				wide[i] = float64(x[i])
			}
			dst, check := zoned[float32](n, (off+1)%4)
			f(dst, x)
			check(t)
			for i, w := range want(wide) {
				if math.Abs(float64(dst[i])-w) > tolerance*max(1, math.Abs(w)) {
					t.Fatalf("n=%d: element %d of %g is %g, want %g", n, i, x[i], dst[i], w)
				}
			}
			portable := make([]float32, n)
			l := level
			level = Generic
			f(portable, x)
			level = l
			wantSame(t, "portable", dst, portable, x)
			f(x, x)
			wantSame(t, "in place", x, portable)
		})
	})
}

func softmax64(x []float64) []float64 {
	top, sum := slices.Max(x), 0.0
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = math.Exp(v - top)
		sum += y[i]
	}
	for i := range y {
		y[i] /= sum
	}
	return y
}

func TestSoftmax(t *testing.T) { rows(t, 2e-7, Softmax, softmax64) }

func TestLogSoftmax(t *testing.T) {
	rows(t, 5e-7, LogSoftmax, func(x []float64) []float64 {
		top, sum := slices.Max(x), 0.0
		for _, v := range x {
			sum += math.Exp(v - top)
		}
		y := make([]float64, len(x))
		for i, v := range x {
			y[i] = v - top - math.Log(sum)
		}
		return y
	})
}

// TestSoftmaxRows compares rows in one call with single rows of the portable
// form.
func TestSoftmaxRows(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := random(11)
		tails(func(n, off int) {
			if n == 0 {
				return
			}
			const count = 3
			src, _ := zoned[float32](count*n, off)
			for i := range src {
				src[i] = r.Float32()*40 - 20
				if r.IntN(30) == 0 {
					src[i] = float32(math.Inf(-1))
				}
			}
			src[2*n] = float32(math.NaN())
			dst, check := zoned[float32](count*n, (off+1)%4)
			SoftmaxRows(dst, src, n)
			check(t)
			want := make([]float32, n)
			for i := range count {
				l := level
				level = Generic
				Softmax(want, src[i*n:][:n])
				level = l
				for k, w := range want {
					if got := dst[i*n+k]; !same(got, w) {
						t.Fatalf("n=%d: element %d of row %d is %g, want %g", n, k, i, got, w)
					}
				}
			}
			SoftmaxRows(src, src, n)
			for k := range src {
				if !same(src[k], dst[k]) {
					t.Fatalf("n=%d: element %d is %g in place, want %g", n, k, src[k], dst[k])
				}
			}
		})
	})
}

func TestSoftmaxSpecials(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		for n := 2; n < 70; n++ {
			x := make([]float32, n)
			for i := range x {
				x[i] = -inf
			}
			x[n/2] = 5
			Softmax(x, x)
			for i, v := range x {
				if want := float32(0); i == n/2 && v != 1 || i != n/2 && v != want {
					t.Fatalf("n=%d: masked softmax %v", n, x)
				}
			}
		}
	})
}

// norm64 returns (x-mean)/sqrt(variance+eps)*gamma + beta, mean 0 where centre is
// false.
func norm64(x []float64, centre bool, eps float64, gamma, beta []float32) []float64 {
	n, mean, variance := float64(len(x)), 0.0, 0.0
	if centre {
		for _, v := range x {
			mean += v / n
		}
	}
	for _, v := range x {
		variance += (v - mean) * (v - mean) / n
	}
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = (v-mean)/math.Sqrt(variance+eps)*float64(gamma[i]) + float64(beta[i])
	}
	return y
}

func TestNorms(t *testing.T) {
	const eps = 1e-5
	gamma, beta, zero := make([]float32, 5000), make([]float32, 5000), make([]float32, 5000)
	finite(random(8), gamma)
	finite(random(9), beta)
	for _, c := range []struct {
		name string
		f    func(dst, x []float32)
		want func(x []float64) []float64
	}{
		{"LayerNorm", func(dst, x []float32) { LayerNorm(dst, x, gamma, beta, eps) },
			func(x []float64) []float64 { return norm64(x, true, eps, gamma, beta) }},
		{"LayerNorm without bias", func(dst, x []float32) { LayerNorm(dst, x, gamma, nil, eps) },
			func(x []float64) []float64 { return norm64(x, true, eps, gamma, zero) }},
		{"RMSNorm", func(dst, x []float32) { RMSNorm(dst, x, gamma, eps) },
			func(x []float64) []float64 { return norm64(x, false, eps, gamma, zero) }},
	} {
		// A row of one element is cancelled down to the rounding of its mean.
		t.Run(c.name, func(t *testing.T) { rows(t, 2e-6, c.f, c.want) })
	}
	if mean, inverse := LayerNorm(make([]float32, 4), []float32{1, 2, 3, 4}, gamma, beta, 0); mean != 2.5 || inverse != 0.8944272 {
		t.Errorf("mean %g, inverse %g", mean, inverse)
	}
}

func BenchmarkVec(b *testing.B) {
	const n = 1 << 14
	x, y, z := make([]float32, n), make([]float32, n), make([]float32, n)
	finite(random(1), x)
	finite(random(2), y)
	bench := func(name string, bytes int, f func()) {
		b.Run(name, func(b *testing.B) {
			benchLevels(b, func(b *testing.B) {
				b.SetBytes(int64(bytes))
				for b.Loop() {
					f()
				}
			})
		})
	}
	for op, name := range unaryNames {
		bench(name, 8*n, func() { Unary(UnaryOp(op), z, x) })
	}
	for op, name := range binaryNames {
		bench(name, 12*n, func() { Binary(BinaryOp(op), z, x, y) })
	}
	for _, l := range []int{10, 128, 1000} {
		bench(fmt.Sprint("Softmax/", l), 8*l, func() { Softmax(z[:l], x[:l]) })
		bench(fmt.Sprint("LayerNorm/", l), 8*l, func() { LayerNorm(z[:l], x[:l], y, y, 1e-5) })
	}
}

func TestKernelsDoNotAllocate(t *testing.T) {
	x, y, z := make([]float32, 333), make([]float32, 333), make([]float32, 333)
	u, h, counts := make([]uint8, 333), make([]uint16, 333), make([]uint64, 8)
	eachLevel(t, func(t *testing.T) {
		s := float32(2)
		if n := testing.AllocsPerRun(20, func() {
			for op := range unaryOps {
				Unary(op, y, x)
			}
			Binary(Add, z, x, y)
			Binary(Mul, z, x, []float32{s})
			Binary(Sub, z, []float32{s}, x)
			LeakyRelu(z, x, s)
			Softmax(z, x)
			LogSoftmax(z, x)
			LayerNorm(z, x, y, y, 1)
			RMSNorm(z, x, y, 1)
			MaxRow(z[:100], x, 3, 1, 2)
			Transpose(z, 20, x, 11, 20, 11)
			QuantizeU8(u, x, s, 3)
			DequantizeU8(z, u, s, 3)
			Float32ToFloat16(h, x)
			MinMaxChannels(y[:3], z[:3], x, 37)
			Moments(x)
			Histogram(counts, x, 0, -4)
		}); n > 0 {
			t.Errorf("%v allocations", n)
		}
	})
}
