package kernels

import (
	"cmp"
	"math"
	"sync"

	"github.com/onnxq/onnxq/internal/par"
)

//go:generate go run -C _gen ./gemm -out ../gemm_amd64.s -stubs ../gemm_stub_amd64.go -pkg kernels
//go:generate go run -C _gen ./gemmneon -out ../gemm_arm64.s

// Matrix is a row-major matrix inside Data whose rows start Ld elements apart.
// With Trans set, Data holds the transposed matrix: element (i, j) is
// Data[j*Ld+i] instead of Data[i*Ld+j].
type Matrix struct {
	Data  []float32
	Ld    int
	Trans bool
}

// Epilogue is what happens to a matrix product P before it is stored:
// y = min(max(P + bias + residual, Min), Max), where a NaN stays one. The zero
// Epilogue stores P.
type Epilogue struct {
	RowBias  []float32 // one value per row of P, or nil
	ColBias  []float32 // one value per column of P, or nil
	Residual []float32 // a row-major matrix of P's shape apart from the output, or nil
	LdRes    int       // distance of the rows of Residual
	Clip     bool      // whether Min and Max apply
	Min, Max float32
}

func (e *Epilogue) bounds() (lo, hi float32) {
	if e == nil || !e.Clip {
		return float32(math.Inf(-1)), float32(math.Inf(1))
	}
	return e.Min, e.Max
}

// PackedB is the right-hand matrix of products in the layout that the kernels
// read. It never changes, so goroutines may share it.
type PackedB struct {
	k, n   int
	level  Level
	panels []float32 // panel p: columns p*nr and on, as [k][nr], zeros past n
}

// Sizes of the blocks that a product is divided into. They depend on the shape
// alone, never on the number of threads.
const (
	gemmKC   = 256     // depth of a block, as in ONNX Runtime's: a panel of B then fits the first cache
	gemmMC   = 192     // rows of a block: a multiple of every kernel's row count
	gemmNC   = 512     // most columns of a block
	gemmWork = 1 << 22 // multiplications that make a block worth its own task
	// Rows of A from which on copying a block of B into panels pays.
	gemmPackRows = 25
	// Panels that the kernel for few rows takes at once.
	gemmWide = 4
)

// taskWork is the number of multiplications that make a task: a few microseconds.
func taskWork(l Level) int {
	if l == AVX2 {
		return gemmWork / 32
	}
	return gemmWork / 16
}

// share is how many of so many multiplications a task should have at most, so that
// each thread gets several. Where work is cut may depend on it, results must not.
func share(pool *par.Pool, l Level, work int) int {
	if t := pool.Threads(); t > 1 {
		return max(taskWork(l), work/(4*t))
	}
	return max(work, 1)
}

// roundUp is the least multiple of unit that is at least n.
func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

// panelWidth is the number of columns in a panel of B.
func panelWidth(l Level) int {
	if l >= AVX512 {
		return 32
	}
	return 16
}

// wideRows is the number of rows up to which the kernel for few rows serves.
func wideRows(l Level) int {
	switch {
	case l >= AVX512:
		return 3
	case l == AVX2:
		return 1
	}
	return 0
}

// halfColumns is the number of columns up to which the kernel for few columns
// serves, which reads B where it lies.
func halfColumns(l Level) int {
	if l >= AVX512 {
		return 16
	}
	return 0
}

// gemmTile is a piece of a product over one panel of B (gemmWide panels for
// the kernels for few rows): C[m,n] (+)= A[m,k]·B[k,n] and then the epilogue.
// Assembly reads it by offset, and slices by their first word. The rows of b
// hold a full panel even where n is less, but those of formHalf.
type gemmTile struct {
	a, b, c, res, rowBias, colBias                    []float32
	lda, bstep, pstep, ldc, ldr, rows, columns, depth int
	lo, hi                                            float32
	acc                                               int // 1: add to C
	work                                              [5]uintptr
}

// tileForm chooses between the kernels of a level.
type tileForm uint8

const (
	formRows tileForm = iota // any number of rows, one panel
	formWide                 // up to wideRows rows, gemmWide panels
	formHalf                 // any number of rows, up to halfColumns columns
)

// gemmTileGo is the specification of the tile kernels. Each sum runs over k in
// order, one product at a time, from 0, and then adds C if the tile says so.
// Assembly fuses each multiplication with its addition; here they round
// separately.
func gemmTileGo(t *gemmTile) {
	for i := range t.rows {
		a := t.a[i*t.lda:][:t.depth]
		c := t.c[i*t.ldc:][:t.columns]
		for j := 0; j < t.columns; j += 8 {
			var s0, s1, s2, s3, s4, s5, s6, s7 float32
			at := j
			for _, x := range a {
				b := t.b[at : at+8 : at+8]
				s0 += float32(x * b[0])
				s1 += float32(x * b[1])
				s2 += float32(x * b[2])
				s3 += float32(x * b[3])
				s4 += float32(x * b[4])
				s5 += float32(x * b[5])
				s6 += float32(x * b[6])
				s7 += float32(x * b[7])
				at += t.bstep
			}
			s := [8]float32{s0, s1, s2, s3, s4, s5, s6, s7}
			if t.acc == 0 {
				copy(c[j:], s[:])
				continue
			}
			for k := range c[j:min(j+8, t.columns)] {
				c[j+k] += s[k]
			}
		}
		gemmEpilogue(t, i)
	}
}

// gemmEpilogue applies the epilogue of t to row i.
func gemmEpilogue(t *gemmTile, i int) {
	c := t.c[i*t.ldc:][:t.columns]
	if t.colBias != nil {
		for j := range c {
			c[j] += t.colBias[j]
		}
	}
	if t.res != nil {
		for j, x := range t.res[i*t.ldr:][:t.columns] {
			c[j] += x
		}
	}
	if t.rowBias != nil {
		for j := range c {
			c[j] += t.rowBias[i]
		}
	}
	for j, x := range c {
		c[j] = clamp32(x, t.lo, t.hi)
	}
}

// clamp32 keeps x in [lo, hi]; a NaN stays one.
func clamp32(x, lo, hi float32) float32 {
	if x < lo {
		x = lo
	}
	if x > hi {
		x = hi
	}
	return x
}

// PackB packs the k×n matrix b for Gemm.
func PackB(k, n int, b Matrix) *PackedB {
	nr := panelWidth(level)
	p := &PackedB{k: k, n: n, level: level, panels: make([]float32, (n+nr-1)/nr*nr*k)}
	for j := 0; j < n; j += nr {
		packPanel(level, p.panels[j*k:], nr, k, min(nr, n-j), b, 0, j)
	}
	return p
}

// packPanel writes rows k0 to k0+k and columns j0 to j0+n of b to dst as
// [k][nr], with zeros in the columns from n on.
func packPanel(l Level, dst []float32, nr, k, n int, b Matrix, k0, j0 int) {
	dst = dst[:k*nr]
	if k == 0 {
		return
	}
	if b.Trans {
		if n < nr {
			clear(dst)
		}
		transpose(l, dst, nr, b.Data[j0*b.Ld+k0:], b.Ld, k, n)
		return
	}
	src := b.Data[k0*b.Ld+j0:]
	_ = src[(k-1)*b.Ld+n-1]
	packRows(l, dst, src, b.Ld, k, n, nr)
}

func packRowsGo(dst, src []float32, ld, k, n, nr int) {
	for i := range k {
		row := dst[i*nr : (i+1)*nr]
		copy(row[:n], src[i*ld:])
		clear(row[n:])
	}
}

// gemmJob is one call of Gemm: batch products of the same shape.
type gemmJob struct {
	level          Level
	m, n, k        int
	batch          int
	a, b           Matrix
	packed         *PackedB // instead of b
	im             *im2col  // instead of b
	groups         int      // matrices A and row biases, which the batch goes round
	c              []float32
	ldc            int
	sa, sb, sc     int // elements between the matrices of a batch
	ep             Epilogue
	lo, hi         float32
	mc, nc         int
	depth          int // of a block, 0: gemmKC
	mBlocks, nBlks int
}

// Gemm computes C = A·B for the m×k matrix a and the k×n matrix b, applies ep
// (which may be nil) and writes the m×n result to c, whose rows are ldc
// elements apart. Slices shorter than the shapes ask for cause a panic.
func Gemm(pool *par.Pool, m, n, k int, a, b Matrix, c []float32, ldc int, ep *Epilogue) {
	j := gemmJob{level: level, m: m, n: n, k: k, batch: 1, a: a, b: b, c: c, ldc: ldc}
	j.run(pool, ep)
}

// GemmPacked is Gemm with a packed right-hand matrix.
func GemmPacked(pool *par.Pool, m int, a Matrix, b *PackedB, c []float32, ldc int, ep *Epilogue) {
	j := gemmJob{level: b.level, m: m, n: b.n, k: b.k, batch: 1, a: a, packed: b, c: c, ldc: ldc}
	j.run(pool, ep)
}

// GemmBatch computes batch products like Gemm: product i reads a.Data from
// element i*strideA and b.Data from i*strideB, a stride of 0 sharing the
// matrix, and writes to c from i*strideC.
func GemmBatch(pool *par.Pool, batch, m, n, k int, a Matrix, strideA int, b Matrix, strideB int, c []float32, ldc, strideC int) {
	j := gemmJob{
		level: level, m: m, n: n, k: k, batch: batch, a: a, b: b, c: c, ldc: ldc,
		sa: strideA, sb: strideB, sc: strideC,
	}
	j.run(pool, nil)
}

func (g *gemmJob) run(pool *par.Pool, ep *Epilogue) {
	if g.m <= 0 || g.n <= 0 || g.batch <= 0 {
		return
	}
	g.lo, g.hi = ep.bounds()
	if ep != nil {
		g.ep = *ep
	}
	if g.groups == 0 {
		g.groups = g.batch
	}
	g.mc = min(g.m, gemmMC)
	g.nc = min(max(gemmWork/(g.mc*max(g.k, 1)), 128), gemmNC) &^ 127
	g.mBlocks = (g.m + g.mc - 1) / g.mc
	// Whole panels, of which the kernel for few rows takes several. The rows of a
	// block stay: sums depend on them.
	unit := panelWidth(g.level)
	if g.mc <= wideRows(g.level) {
		unit *= gemmWide
	}
	column := g.mc * max(g.k, 1)
	g.nc = min(g.nc, roundUp(max(1, share(pool, g.level, g.batch*g.m*g.n*max(g.k, 1))/column), unit))
	g.nBlks = (g.n + g.nc - 1) / g.nc
	tasks := g.batch * g.mBlocks * g.nBlks
	if pool.Threads() == 1 || tasks == 1 {
		g.tasks(0, tasks)
		return
	}
	job := *g
	each := min(g.n, g.nc) * g.mc * max(g.k, 1)
	pool.For(tasks, max(1, taskWork(g.level)/each), job.tasks)
}

// gemmScratch is room for what a task packs or reorders.
type gemmScratch struct{ a, b, c []float32 }

var gemmScratches = sync.Pool{New: func() any { return new(gemmScratch) }}

// convScratches serves callers that run products inside.
var convScratches spares[gemmScratch]

func grow(s *[]float32, n int) []float32 {
	if cap(*s) < n {
		*s = make([]float32, n)
	}
	return (*s)[:n]
}

// tasks computes the blocks [lo, hi) of C, numbered by batch, rows, columns.
func (g *gemmJob) tasks(lo, hi int) {
	var scratch *gemmScratch
	for i := lo; i < hi; i++ {
		per := g.mBlocks * g.nBlks
		batch, block := i/per, i%per
		m0, n0 := block/g.nBlks*g.mc, block%g.nBlks*g.nc
		g.block(&scratch, batch, m0, min(g.mc, g.m-m0), n0, min(g.nc, g.n-n0))
	}
	if scratch != nil {
		gemmScratches.Put(scratch)
	}
}

// block computes the mc×nc block of C at (m0, n0).
func (g *gemmJob) block(scratch **gemmScratch, batch, m0, mc, n0, nc int) {
	nr := panelWidth(g.level)
	c := g.c[batch*g.sc+m0*g.ldc+n0:]
	_ = c[(mc-1)*g.ldc+nc-1]
	a, b, group := g.a, g.b, batch%g.groups
	a.Data, b.Data = a.Data[group*g.sa:], b.Data[min(batch*g.sb, len(b.Data)):]
	half := g.packed == nil && g.im == nil && !b.Trans && nc <= halfColumns(g.level)
	packs := g.packed == nil && !half && (g.im != nil || b.Trans || mc >= gemmPackRows)
	if (a.Trans || packs || g.packed == nil && !half && nc%nr != 0) && *scratch == nil {
		*scratch = gemmScratches.Get().(*gemmScratch)
	}
	var t gemmTile
	t.ldc, t.ldr, t.lo, t.hi = g.ldc, g.ep.LdRes, float32(math.Inf(-1)), float32(math.Inf(1))
	depth := cmp.Or(g.depth, gemmKC)
	for k0 := 0; k0 < max(g.k, 1); k0 += depth {
		kc := min(depth, g.k-k0)
		last := k0+kc == g.k
		if last {
			t.lo, t.hi = g.lo, g.hi
		}
		t.depth, t.rows = kc, mc
		if k0 > 0 {
			t.acc = 1
		}
		if a.Trans {
			t.lda = kc
			t.a = grow(&(*scratch).a, mc*kc)
			transpose(g.level, t.a, kc, a.Data[k0*a.Ld+m0:], a.Ld, mc, kc)
		} else if kc > 0 {
			t.lda = a.Ld
			t.a = a.Data[m0*a.Ld+k0 : (m0+mc-1)*a.Ld+k0+kc]
		}
		if last && g.ep.RowBias != nil {
			t.rowBias = g.ep.RowBias[group*g.m+m0:]
			_ = t.rowBias[mc-1]
		}
		for j := 0; j < nc; {
			w := min(nr, nc-j)
			form := formRows
			switch {
			case half:
				form = formHalf
			case mc <= wideRows(g.level) && nc-j >= gemmWide*nr:
				form, w = formWide, gemmWide*nr
			}
			switch {
			case g.packed != nil:
				t.bstep, t.pstep = nr, nr*g.k
				t.b = g.packed.panels[(n0+j)*g.k+k0*nr:]
			case packs || w < nr && !half:
				t.bstep, t.pstep = nr, nr*kc
				t.b = grow(&(*scratch).b, nr*gemmWide*kc)
				for p := 0; p < w; p += nr {
					if g.im != nil {
						g.im.pack(t.b[p*kc:], nr, kc, min(nr, w-p), b.Data, k0, n0+j+p)
					} else {
						packPanel(g.level, t.b[p*kc:], nr, kc, min(nr, w-p), b, k0, n0+j+p)
					}
				}
			default:
				t.bstep, t.pstep = b.Ld, nr
				if kc > 0 {
					t.b = b.Data[k0*b.Ld+n0+j:]
					_ = t.b[(kc-1)*b.Ld+w-1]
				}
			}
			t.c, t.columns = c[j:], w
			if last && g.ep.ColBias != nil {
				t.colBias = g.ep.ColBias[n0+j : n0+j+w]
			}
			if last && g.ep.Residual != nil {
				t.res = g.ep.Residual[batch*g.sc+m0*t.ldr+n0+j:]
				_ = t.res[(mc-1)*t.ldr+w-1]
			}
			gemmKernel(g.level, &t, form)
			j += w
		}
	}
}

// transpose writes the transposed k×m matrix src, rows lds apart, to dst as m
// rows of k, ldd apart.
func transpose(l Level, dst []float32, ldd int, src []float32, lds, m, k int) {
	if m <= 0 || k <= 0 {
		return
	}
	_, _ = dst[(m-1)*ldd+k-1], src[(k-1)*lds+m-1]
	i := 0
	for ; l >= AVX2 && m >= 8 && i+8 <= k; i += 8 {
		transpose8(dst[i:], ldd, 8*ldd, src[i*lds:], lds, 8, m/8)
		if m%8 != 0 {
			transpose8(dst[(m-8)*ldd+i:], ldd, 0, src[i*lds+m-8:], lds, 0, 1)
		}
	}
	for ; i < k; i++ {
		for j, x := range src[i*lds:][:m] {
			dst[j*ldd+i] = x
		}
	}
}
