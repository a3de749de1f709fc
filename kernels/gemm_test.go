package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/onnxq/onnxq/internal/par"
)

func TestGemmTileLayout(t *testing.T) {
	var x gemmTile
	for i, got := range []uintptr{
		unsafe.Offsetof(x.a), unsafe.Offsetof(x.b), unsafe.Offsetof(x.c), unsafe.Offsetof(x.res),
		unsafe.Offsetof(x.rowBias), unsafe.Offsetof(x.colBias), unsafe.Offsetof(x.lda), unsafe.Offsetof(x.bstep),
		unsafe.Offsetof(x.pstep), unsafe.Offsetof(x.ldc), unsafe.Offsetof(x.ldr), unsafe.Offsetof(x.rows),
		unsafe.Offsetof(x.columns), unsafe.Offsetof(x.depth), unsafe.Offsetof(x.lo), unsafe.Offsetof(x.hi),
		unsafe.Offsetof(x.acc), unsafe.Offsetof(x.work),
	} {
		want := []uintptr{0, 24, 48, 72, 96, 120, 144, 152, 160, 168, 176, 184, 192, 200, 208, 212, 216, 224}[i]
		if unsafe.Sizeof(uintptr(0)) == 8 && got != want {
			t.Errorf("field %d lies at %d; the generator says %d", i, got, want)
		}
	}
}

// randoms fills a guarded slice with values of mixed size and sign.
func randoms(t testing.TB, r *rand.Rand, n int) []float32 {
	x := guarded[float32](t, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

func (m Matrix) at(i, j int) float32 {
	if m.Trans {
		return m.Data[j*m.Ld+i]
	}
	return m.Data[i*m.Ld+j]
}

// checkGemm compares c with the product in float64. A chain of k rounded
// multiply-adds errs by at most (k+4)·2⁻²³ of the sum of absolute products.
func checkGemm(t *testing.T, m, n, k int, a, b Matrix, c []float32, ldc int, ep *Epilogue) {
	t.Helper()
	for i := range m {
		for j := range n {
			var sum, size float64
			for p := range k {
				x := float64(a.at(i, p)) * float64(b.at(p, j))
				sum += x
				size += math.Abs(x)
			}
			if ep != nil {
				for _, x := range []float64{pick(ep.RowBias, i), pick(ep.ColBias, j), pick(ep.Residual, i*ep.LdRes+j)} {
					sum += x
					size += math.Abs(x)
				}
				if ep.Clip {
					sum = min(max(sum, float64(ep.Min)), float64(ep.Max))
				}
			}
			if got := float64(c[i*ldc+j]); !(math.Abs(got-sum) <= float64(k+4)*0x1p-23*size) {
				t.Fatalf("m=%d n=%d k=%d ta=%v tb=%v: C[%d,%d] = %v, want %v", m, n, k, a.Trans, b.Trans, i, j, got, sum)
			}
		}
	}
}

func pick(s []float32, i int) float64 {
	if s == nil {
		return 0
	}
	return float64(s[i])
}

type gemmCase struct{ m, n, k int }

func gemmCases() []gemmCase {
	var cases []gemmCase
	for m := 1; m <= 27; m++ {
		cases = append(cases, gemmCase{m, 33, 5})
	}
	for n := 1; n <= 4*32+3; n++ {
		cases = append(cases, gemmCase{1, n, 7}, gemmCase{3, n, 6}, gemmCase{13, n, 3})
	}
	for k := 0; k <= 19; k++ {
		cases = append(cases, gemmCase{2, 130, k}, gemmCase{14, 17, k})
	}
	return append(cases, gemmCase{1, 515, 600}, gemmCase{3, 131, 257}, gemmCase{200, 70, 513}, gemmCase{30, 600, 256})
}

// gemmFixture makes the operands of a case, with rows further apart than
// their length, and an output between guard zones.
func gemmFixture(t testing.TB, r *rand.Rand, c gemmCase, ta, tb bool) (a, b Matrix, out []float32, ldc int, ep *Epilogue) {
	mat := func(rows, cols int, trans bool) Matrix {
		if trans {
			rows, cols = cols, rows
		}
		ld := cols + r.IntN(4)
		return Matrix{randoms(t, r, max(0, (rows-1)*ld+cols)), ld, trans}
	}
	ldc = c.n + r.IntN(3)
	ep = &Epilogue{LdRes: c.n + r.IntN(3)}
	if r.IntN(2) == 0 {
		ep.RowBias = randoms(t, r, c.m)
	}
	if r.IntN(2) == 0 {
		ep.ColBias = randoms(t, r, c.n)
	}
	if r.IntN(2) == 0 {
		ep.Residual = randoms(t, r, (c.m-1)*ep.LdRes+c.n)
	}
	if r.IntN(2) == 0 {
		ep.Clip, ep.Min, ep.Max = true, -1, 1.5
	}
	out = guarded[float32](t, (c.m-1)*ldc+c.n)
	for i := range out {
		out[i] = -77
	}
	return mat(c.m, c.k, ta), mat(c.k, c.n, tb), out, ldc, ep
}

func TestGemm(t *testing.T) {
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		for _, c := range gemmCases() {
			for mode := range 5 {
				ta, tb := mode == 1, mode == 2 || mode == 4
				a, b, out, ldc, ep := gemmFixture(t, r, c, ta, tb)
				if mode >= 3 {
					GemmPacked(nil, c.m, a, PackB(c.k, c.n, b), out, ldc, ep)
				} else {
					Gemm(nil, c.m, c.n, c.k, a, b, out, ldc, ep)
				}
				checkGemm(t, c.m, c.n, c.k, a, b, out, ldc, ep)
				for i := range out {
					if i%ldc >= c.n && out[i] != -77 {
						t.Fatalf("%+v: wrote between the rows", c)
					}
				}
			}
		}
	})
}

// The sum of one element must not depend on the shape around it, on packing,
// on threads, nor on which of the fused levels computes it.
func TestGemmSameBits(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	c := gemmCase{230, 700, 300}
	a, b, out, ldc, ep := gemmFixture(t, r, c, false, false)
	pool := par.New(3)
	pool.Begin()
	defer pool.End()
	var fused []float32
	eachLevel(t, func(t *testing.T) {
		Gemm(nil, c.m, c.n, c.k, a, b, out, ldc, ep)
		want := append([]float32(nil), out...)
		if level >= AVX2 {
			if fused == nil {
				fused = want
			}
			for i := range want {
				if i%ldc < c.n && want[i] != fused[i] {
					t.Fatalf("element %d: %v at %v, %v at avx2", i, want[i], level, fused[i])
				}
			}
		}
		same := func(what string, got []float32, m, n int) {
			t.Helper()
			for i := range m {
				for j := range n {
					if got[i*ldc+j] != want[i*ldc+j] {
						t.Fatalf("%s: [%d,%d] = %v, want %v", what, i, j, got[i*ldc+j], want[i*ldc+j])
					}
				}
			}
		}
		got := make([]float32, len(out))
		Gemm(pool, c.m, c.n, c.k, a, b, got, ldc, ep)
		same("threads", got, c.m, c.n)
		p := PackB(c.k, c.n, b)
		for _, m := range []int{1, 2, 3, 5, 24, c.m} {
			clear(got)
			Gemm(pool, m, c.n, c.k, a, b, got, ldc, ep)
			same(fmt.Sprint("in place, rows ", m), got, m, c.n)
			clear(got)
			GemmPacked(pool, m, a, p, got, ldc, ep)
			same(fmt.Sprint("packed, rows ", m), got, m, c.n)
		}
	})
}

func TestGemmSpecials(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	eachLevel(t, func(t *testing.T) {
		for _, m := range []int{1, 3, 12, 14} {
			n := 140
			a, b := make([]float32, m*2), make([]float32, 2*n)
			for i := range a {
				a[i] = 1
			}
			b[3], b[n+5], b[70], b[n+71], b[139] = nan, inf, -inf, nan, nan
			c := make([]float32, m*n)
			Gemm(nil, m, n, 2, Matrix{Data: a, Ld: 2}, Matrix{Data: b, Ld: n}, c, n, &Epilogue{Clip: true, Min: 0, Max: 6})
			for i := range m {
				for j := range n {
					got, want := c[i*n+j], float32(0)
					switch j {
					case 3, 71, 139:
						want = nan
					case 5:
						want = 6
					}
					if got != want && !(got != got && want != want) {
						t.Fatalf("m=%d: C[%d,%d] = %v, want %v", m, i, j, got, want)
					}
				}
			}
		}
	})
}

func TestGemmBatch(t *testing.T) {
	pool := par.New(2)
	pool.Begin()
	defer pool.End()
	eachLevel(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 6))
		for _, c := range []gemmCase{{1, 9, 4}, {20, 64, 33}, {40, 40, 70}} {
			for _, share := range []bool{false, true} {
				const batch = 7
				sa, sb, sc := c.m*c.k+1, c.k*c.n+2, c.m*c.n
				if share {
					sb = 0
				}
				a, b := randoms(t, r, (batch-1)*sa+c.m*c.k), randoms(t, r, (batch-1)*sb+c.k*c.n)
				out := guarded[float32](t, batch*sc)
				for _, tb := range []bool{false, true} {
					ldb := c.n
					if tb {
						ldb = c.k
					}
					GemmBatch(pool, batch, c.m, c.n, c.k, Matrix{Data: a, Ld: c.k}, sa, Matrix{b, ldb, tb}, sb, out, c.n, sc)
					for i := range batch {
						checkGemm(t, c.m, c.n, c.k, Matrix{Data: a[i*sa:], Ld: c.k}, Matrix{b[i*sb:], ldb, tb}, out[i*sc:], c.n, nil)
					}
				}
			}
		}
	})
}

func TestGemmDoesNotAllocate(t *testing.T) {
	a, c := make([]float32, 40*40), make([]float32, 40*40)
	m := Matrix{Data: a, Ld: 40}
	ep := &Epilogue{ColBias: a[:40]}
	if n := testing.AllocsPerRun(10, func() { Gemm(nil, 40, 40, 40, m, m, c, 40, ep) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkGemm(b *testing.B) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, c := range []gemmCase{{1024, 1024, 1024}, {384, 384, 384}, {128, 64, 64}, {128, 128, 64}, {1, 4096, 1024}, {8, 1024, 1024}, {64, 3136, 64}} {
		b.Run(fmt.Sprintf("%dx%dx%d", c.m, c.n, c.k), func(b *testing.B) {
			benchLevels(b, func(b *testing.B) {
				x := Matrix{Data: randoms(b, r, c.m*c.k), Ld: c.k}
				y := Matrix{Data: randoms(b, r, c.k*c.n), Ld: c.n}
				out := make([]float32, c.m*c.n)
				p := PackB(c.k, c.n, y)
				for _, packed := range []bool{false, true} {
					b.Run(map[bool]string{false: "inplace", true: "packed"}[packed], func(b *testing.B) {
						for b.Loop() {
							if packed {
								GemmPacked(nil, c.m, x, p, out, c.n, nil)
							} else {
								Gemm(nil, c.m, c.n, c.k, x, y, out, c.n, nil)
							}
						}
						b.ReportMetric(2e-9*float64(c.m)*float64(c.n)*float64(c.k)*float64(b.N)/b.Elapsed().Seconds(), "GFLOPS")
					})
				}
			})
		})
	}
}
