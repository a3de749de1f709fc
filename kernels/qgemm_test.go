package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/onnxq/onnxq/internal/fuzztest"
	"github.com/onnxq/onnxq/internal/par"
)

func TestQTileLayout(t *testing.T) {
	var x qTile
	for i, got := range []uintptr{
		unsafe.Offsetof(x.a), unsafe.Offsetof(x.b), unsafe.Offsetof(x.c), unsafe.Offsetof(x.init), unsafe.Offsetof(x.rowSum),
		unsafe.Offsetof(x.zb), unsafe.Offsetof(x.scale), unsafe.Offsetof(x.bias), unsafe.Offsetof(x.lda), unsafe.Offsetof(x.ldc),
		unsafe.Offsetof(x.rows), unsafe.Offsetof(x.columns), unsafe.Offsetof(x.per), unsafe.Offsetof(x.mode), unsafe.Offsetof(x.lo),
		unsafe.Offsetof(x.hi), unsafe.Offsetof(x.zero), unsafe.Offsetof(x.flip), unsafe.Offsetof(x.work), unsafe.Offsetof(x.buf),
		unsafe.Offsetof(x.runs), unsafe.Offsetof(x.count),
	} {
		want := []uintptr{0, 24, 48, 72, 96, 120, 144, 168, 192, 200, 208, 216, 224, 232, 240, 244, 248, 256, 272, 304, 320, 344}[i]
		if unsafe.Sizeof(uintptr(0)) == 8 && got != want {
			t.Errorf("field %d lies at %d; the generator says %d", i, got, want)
		}
	}
}

func (q QMatrix) at(i, j int) int32 {
	if q.Trans {
		i, j = j, i
	}
	return q.value(q.Data[i*q.Ld+j])
}

// qRandom makes a matrix with many extreme values.
func qRandom(t testing.TB, r *rand.Rand, rows, cols int, signed, trans bool) QMatrix {
	if trans {
		rows, cols = cols, rows
	}
	ld := cols + r.IntN(3)
	d := guarded[byte](t, max(0, (rows-1)*ld+cols))
	for i := range d {
		switch r.IntN(4) {
		case 0:
			d[i] = []byte{0, 255, 127, 128}[r.IntN(4)]
		default:
			d[i] = byte(r.Uint32())
		}
	}
	return QMatrix{d, signed, ld, trans}
}

func qZeros(r *rand.Rand, n int, signed bool) []int32 {
	z := make([]int32, n)
	for i := range z {
		z[i] = int32(r.IntN(256))
		if signed {
			z[i] -= 128
		}
	}
	return z
}

// qSums is the definition of the integer product. Where it saturates, pairs of
// products of bytes as stored do; zero points come in behind.
func qSums(m, n, k int, a QMatrix, za int32, b QMatrix, zb []int32, saturate bool) []int32 {
	sums := make([]int32, m*n)
	for i := range m {
		for j := range n {
			z := int32(0)
			if len(zb) > 0 {
				z = zb[min(j, len(zb)-1)]
			}
			for p := range k {
				sums[i*n+j] += (a.at(i, p) - za) * (b.at(p, j) - z)
			}
			for p := 0; p < k-1 && saturate && !a.Signed && b.Signed; p += 2 {
				pair := a.at(i, p)*b.at(p, j) + a.at(i, p+1)*b.at(p+1, j)
				sums[i*n+j] += min(max(pair, -32768), 32767) - pair
			}
		}
	}
	return sums
}

func TestQGemm(t *testing.T) {
	pool := par.New(2)
	pool.Begin()
	defer pool.End()
	var cases []gemmCase
	for m := 1; m <= 26; m++ {
		cases = append(cases, gemmCase{m, 19, 9})
	}
	for n := 1; n <= 4*16+3; n++ {
		cases = append(cases, gemmCase{2, n, 6}, gemmCase{13, n, 4})
	}
	for k := 0; k <= 35; k++ {
		cases = append(cases, gemmCase{7, 18, k})
	}
	cases = append(cases, gemmCase{210, 40, 130}, gemmCase{3, 1100, 64}, gemmCase{400, 600, 16})
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(21, 22))
		for _, c := range cases {
			for mode := range 16 {
				sa, sb, saturate := mode&1 != 0, mode&2 != 0, mode&8 != 0
				a := qRandom(t, r, c.m, c.k, sa, r.IntN(4) == 0)
				b := qRandom(t, r, c.k, c.n, sb, r.IntN(2) == 0)
				za := qZeros(r, 1, sa)[0]
				zb := qZeros(r, []int{0, 1, c.n}[r.IntN(3)], sb)
				var init []int32
				if r.IntN(2) == 0 {
					init = make([]int32, c.n)
					for i := range init {
						init[i] = int32(r.Uint32() >> 8)
					}
				}
				sums := qSums(c.m, c.n, c.k, a, za, b, zb, saturate)
				for i := range sums {
					sums[i] += int32(pickInt(init, i%c.n))
				}
				p := PackQB(c.k, c.n, b, zb, saturate)
				ld := c.n + r.IntN(3)
				size := (c.m-1)*ld + c.n

				words := guarded[int32](t, size)
				QGemm(pool, c.m, a, za, p, &QOut{Ld: ld, Init: init, Words: words})
				scale := make([]float32, []int{1, c.n}[r.IntN(2)])
				for i := range scale {
					scale[i] = float32(math.Exp(r.NormFloat64()*3 - 6))
				}
				bias := make([]float32, c.n)
				for i := range bias {
					bias[i] = float32(r.NormFloat64())
				}
				floats := guarded[float32](t, size)
				QGemm(pool, c.m, a, za, p, &QOut{Ld: ld, Init: init, Floats: floats, Scale: scale, Bias: bias})
				signed := r.IntN(2) == 0
				o := QOut{Ld: ld, Init: init, Bytes: guarded[byte](t, size), Scale: scale, Signed: signed, Zero: qZeros(r, 1, signed)[0]}
				lo, hi := int32(0), int32(255)
				if signed {
					lo, hi = -128, 127
				}
				if r.IntN(2) == 0 {
					o.Min, o.Max = 3, 100
					lo, hi = 3, 100
				}
				QGemm(pool, c.m, a, za, p, &o)
				for i := range c.m {
					for j := range c.n {
						v, at := sums[i*c.n+j], i*ld+j
						s := scale[min(j, len(scale)-1)]
						f := float32(float32(v)*s) + bias[j]
						q := math.RoundToEven(float64(float32(v)*s)) + float64(o.Zero)
						q = min(max(q, float64(lo)), float64(hi))
						got := QMatrix{Signed: signed}.value(o.Bytes[at])
						if words[at] != v || floats[at] != f || float64(got) != q {
							t.Fatalf("%+v signs %v %v at [%d,%d]: %d %v %d, want %d %v %v", c, sa, sb, i, j, words[at], floats[at], got, v, f, q)
						}
					}
					for at := i*ld + c.n; at < min((i+1)*ld, size); at++ {
						if words[at] != 0 || floats[at] != 0 || o.Bytes[at] != 0 {
							t.Fatalf("%+v: wrote between the rows", c)
						}
					}
				}
			}
		}
	})
}

func pickInt(s []int32, i int) int32 {
	if s == nil {
		return 0
	}
	return s[i]
}

// Ties, saturation and a scale that is no number, at every level.
func TestRequantize(t *testing.T) {
	nan := float32(math.NaN())
	eachLevel(t, func(t *testing.T) {
		a := QMatrix{Data: []byte{1}, Ld: 1}
		init := []int32{1, 3, 5, -1, -3, 511, 600, -600, math.MaxInt32, math.MinInt32, 7}
		scale := []float32{.5, .5, .5, .5, .5, .5, .5, .5, 1, 1, nan}
		n := len(init)
		p := PackQB(1, n, QMatrix{Data: make([]byte, n), Ld: n, Signed: true}, nil, false)
		for _, c := range []struct {
			signed bool
			zero   int32
			want   []int32
		}{
			{false, 0, []int32{0, 2, 2, 0, 0, 255, 255, 0, 255, 0, 0}},
			{false, 10, []int32{10, 12, 12, 10, 8, 255, 255, 0, 255, 0, 0}},
			{true, -3, []int32{-3, -1, -1, -3, -5, 127, 127, -128, 127, -128, -128}},
		} {
			out := make([]byte, n)
			QGemm(nil, 1, a, 0, p, &QOut{Ld: n, Init: init, Bytes: out, Scale: scale, Signed: c.signed, Zero: c.zero})
			for i, b := range out {
				if got := (QMatrix{Signed: c.signed}).value(b); got != c.want[i] {
					t.Errorf("signed %v zero %d: element %d is %d, want %d", c.signed, c.zero, i, got, c.want[i])
				}
			}
		}
	})
}

func TestByteSum(t *testing.T) {
	r := rand.New(rand.NewPCG(23, 24))
	eachLevel(t, func(t *testing.T) {
		for n := range 4*32 + 4 {
			p := qRandom(t, r, 1, n, false, false).Data
			for _, flip := range []byte{0, 0x80} {
				if got, want := byteSum(level, p, flip), byteSumGo(p, flip); got != want {
					t.Fatalf("n=%d: %d, want %d", n, got, want)
				}
			}
		}
	})
}

func TestWiden(t *testing.T) {
	r := rand.New(rand.NewPCG(27, 28))
	eachLevel(t, func(t *testing.T) {
		for n := range 4*64 + 20 {
			src := qRandom(t, r, 1, n, false, false).Data
			for _, flip := range []byte{0, 0x80} {
				got := guarded[byte](t, 2*n)
				widen(level, got, src, flip)
				for i, b := range src {
					if got[2*i] != b^flip || got[2*i+1] != 0 {
						t.Fatalf("n=%d: element %d is %x, want %x", n, i, got[2*i:2*i+2], b^flip)
					}
				}
			}
		}
	})
}

// Any shape and any bytes give the defined sums at every level.
func FuzzQGemm(f *testing.F) {
	f.Add([]byte{1, 2, 3, 255, 128, 127, 0}, uint8(3), uint8(5), uint8(7), uint8(1), int8(-5))
	f.Add([]byte{255}, uint8(13), uint8(33), uint8(9), uint8(6), int8(127))
	f.Add([]byte{255, 127, 128}, uint8(13), uint8(33), uint8(9), uint8(10), int8(0))
	f.Fuzz(func(t *testing.T, data []byte, m8, n8, k8, mode uint8, z int8) {
		fuzztest.Bound(t)
		m, n, k := int(m8%40)+1, int(n8%70)+1, int(k8%50)
		bytes := func(size, from int) []byte {
			d := make([]byte, size)
			for i := range d {
				if len(data) > 0 {
					d[i] = data[(i+from)%len(data)] + byte(i/max(1, len(data)))
				}
			}
			return d
		}
		a := QMatrix{Data: bytes(m*k, 0), Ld: k, Signed: mode&1 != 0}
		b := QMatrix{Data: bytes(n*k, 3), Ld: n, Signed: mode&2 != 0}
		if mode&4 != 0 {
			b.Trans, b.Ld = true, k
		}
		zb := []int32{int32(z) / 2}
		want := qSums(m, n, k, a, int32(z), b, zb, mode&8 != 0)
		defer func(l Level) { level = l }(level)
		for _, l := range levels() {
			level = l
			got := make([]int32, m*n)
			QGemm(nil, m, a, int32(z), PackQB(k, n, b, zb, mode&8 != 0), &QOut{Ld: n, Words: got})
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("%v: element %d of %dx%dx%d is %d, want %d", l, i, m, n, k, got[i], want[i])
				}
			}
		}
	})
}

func BenchmarkQGemm(b *testing.B) {
	r := rand.New(rand.NewPCG(25, 26))
	for _, c := range []gemmCase{{1024, 1024, 1024}, {3136, 64, 64}, {128, 384, 384}, {1, 1024, 1024}} {
		b.Run(fmt.Sprintf("%dx%dx%d", c.m, c.n, c.k), func(b *testing.B) {
			benchLevels(b, func(b *testing.B) {
				x := QMatrix{Data: qRandom(b, r, c.m, c.k+3, false, false).Data, Ld: c.k}
				p := PackQB(c.k, c.n, qRandom(b, r, c.k, c.n, true, false), nil, false)
				o := &QOut{Ld: c.n, Bytes: make([]byte, c.m*c.n), Scale: []float32{1e-3}, Zero: 128}
				for b.Loop() {
					QGemm(nil, c.m, x, 128, p, o)
				}
				b.ReportMetric(2e-9*float64(c.m)*float64(c.n)*float64(c.k)*float64(b.N)/b.Elapsed().Seconds(), "GOPS")
			})
		})
	}
}
