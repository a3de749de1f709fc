package kernels

import (
	"encoding/binary"
	"math"
	"sync"

	"github.com/onnxq/onnxq/internal/par"
)

// QMatrix is a Matrix of 8-bit integers.
type QMatrix struct {
	Data   []byte
	Signed bool // whether Data holds int8 rather than uint8
	Ld     int
	Trans  bool
}

func (q QMatrix) flip() byte {
	if q.Signed {
		return 0x80
	}
	return 0
}

// value returns the integer that a byte of the matrix stands for.
func (q QMatrix) value(b byte) int32 {
	if q.Signed {
		return int32(int8(b))
	}
	return int32(b)
}

// PackedQB is the right-hand matrix of integer products in the layout that the
// kernels read, with its zero points. It never changes, so goroutines may
// share it.
type PackedQB struct {
	k, n       int
	level      Level
	saturating bool
	panels     []byte  // panel p: columns p*nr and on, as [units][nr][unit], zeros past k and n
	sums       []int32 // of each column, as stored: int8
	zero       []int32 // of each column, as stored
	sumsRows   bool    // whether any zero is not 0
}

// qUnit is the number of consecutive factors that a kernel takes at once, and
// the bytes that each takes in a packed matrix.
func qUnit(l Level, saturating bool) (unit, size int) {
	switch {
	case saturating || l != AVX2 && l != AVX512:
		return 4, 1
	case l == AVX2:
		return 2, 1
	}
	return 2, 2
}

// qWideWords is the most words that a block of A is widened to.
const qWideWords = 96 << 10

// qWide is the number of bytes that a kernel reads for each byte of A: AVX2
// multiplies words only, and making them once for all panels of B saves the
// kernel half of its instructions. Those of B it makes itself, once for six rows.
func qWide(l Level, saturating bool) int {
	if l == AVX2 && !saturating {
		return 2
	}
	return 1
}

// qSign is 0x80 where the kernels of a level take the bytes of A as int8, else 0:
// less 128, as their zero point, which leaves every difference as it is.
func qSign(l Level) byte {
	if l == NEON || l == NEONDot {
		return 0x80
	}
	return 0
}

// PackQB packs the k×n matrix b for QGemm with its zero points: one value, n
// values, or nil for 0.
//
// Where saturate is set and b is signed, products with unsigned bytes are those
// of ONNX Runtime on x86 processors without VNNI, whose instruction VPMADDUBSW
// adds the products of factors 2i and 2i+1, as stored, in 16 bits that saturate.
// All other products are exact, there as well.
func PackQB(k, n int, b QMatrix, zero []int32, saturate bool) *PackedQB {
	l := level
	if saturate = saturate && b.Signed; saturate {
		l = saturatingLevel(level)
	}
	nr := panelWidth(l)
	unit, size := qUnit(l, saturate)
	units, cols := (k+unit-1)/unit, (n+nr-1)/nr*nr
	p := &PackedQB{
		k: k, n: n, level: l, saturating: saturate, panels: make([]byte, units*unit*size*cols),
		sums: make([]int32, cols), zero: make([]int32, cols),
	}
	// Stored values are int8: unsigned ones lose 128, and so do their zero
	// points, which leaves every difference as it is.
	shift := int32(0)
	if !b.Signed {
		shift = 128
	}
	stored := byte(0x80) ^ b.flip()
	rows := make([][]byte, unit)
	for j0 := 0; j0 < n && k > 0; j0 += nr {
		panel := p.panels[j0*units*unit*size:][:nr*units*unit*size]
		w := min(nr, n-j0)
		if b.Trans {
			for j := range w {
				row := b.Data[(j0+j)*b.Ld:][:k]
				p.sums[j0+j] = byteSum(l, row, b.flip()) - 128*int32(k)
				packUnits(panel[j*unit*size:], nr*unit*size, row, stored, unit, size)
			}
			continue
		}
		sums := p.sums[j0:][:w]
		for u := range units {
			// Rows past k count as zeros.
			for r := range rows {
				rows[r] = nil
				if i := u*unit + r; i < k {
					rows[r] = b.Data[i*b.Ld+j0:][:w]
				}
			}
			packRowUnit(panel[u*nr*unit*size:], rows, sums, stored, size)
		}
	}
	for j := range n {
		switch len(zero) {
		case 0:
			p.zero[j] = -shift
		case 1:
			p.zero[j] = zero[0] - shift
		default:
			p.zero[j] = zero[j] - shift
		}
		p.sumsRows = p.sumsRows || p.zero[j] != 0
	}
	return p
}

// saturatingLevel is the level of saturating kernels at level l.
func saturatingLevel(l Level) Level {
	switch {
	case l >= AVX512:
		return AVX512
	case l == AVX2:
		return AVX2
	}
	return Generic
}

// packUnits writes the int8 values of row, each byte exclusive-ored with flip,
// in units of unit factors, of size bytes each, that lie step bytes apart.
func packUnits(dst []byte, step int, row []byte, flip byte, unit, size int) {
	i, at := 0, 0
	if unit == 4 {
		mask := uint32(flip) * 0x01010101
		for ; i+4 <= len(row); i += 4 {
			binary.LittleEndian.PutUint32(dst[at:], binary.LittleEndian.Uint32(row[i:])^mask)
			at += step
		}
		for r := 0; i < len(row); i, r = i+1, r+1 {
			dst[at+r] = row[i] ^ flip
		}
		return
	}
	for ; i < len(row) && size == 1; i += 2 {
		dst[at] = row[i] ^ flip
		if i+1 < len(row) {
			dst[at+1] = row[i+1] ^ flip
		}
		at += step
	}
	for ; i < len(row); i += 2 {
		binary.LittleEndian.PutUint16(dst[at:], uint16(int8(row[i]^flip)))
		if i+1 < len(row) {
			binary.LittleEndian.PutUint16(dst[at+2:], uint16(int8(row[i+1]^flip)))
		}
		at += step
	}
}

// packRowUnit writes one unit of each column, one factor of size bytes from each
// of rows, and adds the values to sums. A nil row is zeros.
func packRowUnit(dst []byte, rows [][]byte, sums []int32, flip byte, size int) {
	for r, row := range rows {
		if row == nil {
			continue
		}
		row = row[:len(sums)]
		if size == 1 {
			unit := len(rows)
			for j := range sums {
				v := row[j] ^ flip
				dst[unit*j+r] = v
				sums[j] += int32(int8(v))
			}
			continue
		}
		for j := range sums {
			v := int8(row[j] ^ flip)
			binary.LittleEndian.PutUint16(dst[4*j+2*r:], uint16(v))
			sums[j] += int32(v)
		}
	}
}

// QOut says where an integer product goes, and how. Of Words, Floats and Bytes
// one is set; its rows are Ld elements apart.
type QOut struct {
	Ld   int
	Init []int32 // added to each column's sums, or nil

	Words []int32 // the sums

	// Sums times scale plus bias, two float32 operations.
	Floats []float32
	Bias   []float32 // of each column, or nil

	// Sums times scale in float32, rounded half to even, plus Zero, saturated:
	// what QLinearMatMul and QLinearConv of ONNX Runtime compute.
	Bytes  []byte
	Signed bool // whether Bytes are int8
	Zero   int32
	// Of Bytes the saturation bounds, as when an activation is fused; none
	// where both are 0.
	Min, Max int32

	Scale []float32 // one value or one for each column, for Floats and Bytes
}

// qTile is a piece of an integer product over one panel: rows of a, bytes,
// times b as packed. Assembly reads it by offset, and slices by their first
// word. Per-column slices hold a full panel even where columns is less.
type qTile struct {
	a, b, c       []byte // a: words, to which flip is applied, where qWide says so
	init          []int32
	rowSum, zb    []int32 // rowSum[i]*zb[j] is subtracted, unless rowSum is nil
	scale, bias   []float32
	lda, ldc      int // in bytes
	rows, columns int
	per           int // rows to compute at once
	mode          int // qWords, qBytes or qFloats
	lo, hi        float32
	zero          int32
	_             int32
	flip          [4]uint32 // every byte is exclusive-ored with it
	work          [4]uintptr
	buf           [16]byte
	runs          []run // of a row's bytes: place in bytes, length in units
	count         int   // of runs
	saturates     bool  // whether pairs of products are added in 16 bits; assembly has kernels for it
	width         int   // of a panel in columns; kernels know theirs
}

// tileRows returns how many of m rows of a panel of the given width to compute at
// once: as many as the micro-kernels of the level take, or less where that leaves
// no small rest.
func tileRows(l Level, width, m int) int {
	most := 12
	if l == AVX2 && width > BlockSize/2 {
		most = 6
	}
	tiles := max(1, (m+most-1)/most)
	return max(1, (m+tiles-1)/tiles)
}

const (
	qWords = iota
	qBytes
	qFloats
)

// qTileGo is the specification of the integer tile kernels, for units of four
// bytes. All integer arithmetic is modulo 2³².
func qTileGo(t *qTile, words []int32, floats []float32) {
	flip := byte(t.flip[0])
	for i := range t.rows {
		var sums [32]int32
		nr, b := t.width, t.b
		s := sums[:nr]
		for _, r := range t.runs[:t.count] {
			a := t.a[i*t.lda+r.off:]
			for range r.n {
				a0, a1, a2, a3 := int32(a[0]^flip), int32(a[1]^flip), int32(a[2]^flip), int32(a[3]^flip)
				row := b[:4*nr]
				for j := range s {
					w := row[4*j : 4*j+4 : 4*j+4]
					if t.saturates {
						s[j] += saturate16(a0*int32(int8(w[0]))+a1*int32(int8(w[1]))) + saturate16(a2*int32(int8(w[2]))+a3*int32(int8(w[3])))
						continue
					}
					s[j] += a0*int32(int8(w[0])) + a1*int32(int8(w[1])) + a2*int32(int8(w[2])) + a3*int32(int8(w[3]))
				}
				a, b = a[4:], b[4*nr:]
			}
		}
		for j := range t.columns {
			v := s[j] + t.init[j]
			if t.rowSum != nil {
				v -= t.rowSum[i] * t.zb[j]
			}
			switch t.mode {
			case qWords:
				words[i*t.ldc/4+j] = v
			case qBytes:
				t.c[i*t.ldc+j] = byte(requantize(v, t.scale[j], t.lo, t.hi, t.zero))
			case qFloats:
				floats[i*t.ldc/4+j] = float32(float32(v)*t.scale[j]) + t.bias[j]
			}
		}
	}
}

func saturate16(v int32) int32 { return min(max(v, math.MinInt16), math.MaxInt16) }

// requantize is float32(v)*scale, clamped to [lo, hi] (a NaN becomes lo),
// rounded half to even, plus zero.
func requantize(v int32, scale, lo, hi float32, zero int32) int32 {
	x := float32(v) * scale
	if !(x > lo) {
		x = lo
	}
	if x > hi {
		x = hi
	}
	return int32(math.RoundToEven(float64(x))) + zero
}

// qJob is one call of QGemm.
type qJob struct {
	m       int
	a       QMatrix
	im      *qIm2row // instead of a
	b       *PackedQB
	out     *QOut
	zero    int32 // of a's bytes once flipped
	mode    int
	lo, hi  float32
	mc, nc  int
	nBlocks int
	columns *qColumns
}

// qColumns are the per-column vectors of a call, padded to full panels.
type qColumns struct {
	init        []int32
	scale, bias []float32
	init4       []int32 // in the order of the depthwise kernel for whole blocks
	scale4      []float32
}

var qColumnsPool = sync.Pool{New: func() any { return new(qColumns) }}

type qScratch struct {
	a, wide []byte
	sums    []int32
}

var qScratches = sync.Pool{New: func() any { return new(qScratch) }}

func growTo[T any](s *[]T, n int) []T {
	if cap(*s) < n {
		*s = make([]T, n)
	}
	return (*s)[:n]
}

// QGemm computes the m×n matrix of the sums over k of
// (a[i,k]-zero)·(b[k,j]-zb[j]) modulo 2³², zb being b's zero points, and writes
// it as out says. Slices shorter than the shapes ask for cause a panic.
func QGemm(pool *par.Pool, m int, a QMatrix, zero int32, b *PackedQB, out *QOut) {
	q := qJob{m: m, a: a, b: b, out: out, zero: zero + int32(a.flip())}
	q.run(pool)
}

func (q *qJob) run(pool *par.Pool) {
	n, k := q.b.n, q.b.k
	if q.m <= 0 || n <= 0 {
		return
	}
	cols := q.prepare()
	q.columns = cols
	unit, _ := qUnit(q.b.level, q.b.saturating)
	q.mc = min(q.m, gemmMC)
	q.nc = n
	least := 128
	most := share(pool, q.b.level, q.m*n*max(k, 1))
	if qWide(q.b.level, q.b.saturating) > 1 {
		// The words of a block stay in the second cache, and serve many columns.
		q.mc, least = min(q.m, max(24, min(gemmMC, qWideWords/max(k, 1))/24*24)), 256
	}
	q.mc = min(q.mc, roundUp(max(1, most/(n*max(k, 1))), 24))
	if q.im == nil && !q.a.Trans && k%unit == 0 {
		q.nc = min(n, min(max(4*gemmWork/(q.mc*max(k, 1)), least), 2*gemmNC)&^127)
		q.nc = min(q.nc, roundUp(max(1, most/(q.mc*max(k, 1))), 128))
	}
	q.nBlocks = (n + q.nc - 1) / q.nc
	tasks := (q.m + q.mc - 1) / q.mc * q.nBlocks
	if pool.Threads() == 1 || tasks == 1 {
		q.tasks(0, tasks)
	} else {
		job := *q
		pool.For(tasks, max(1, taskWork(q.b.level)/(q.mc*q.nc*max(k, 1))), job.tasks)
	}
	qColumnsPool.Put(cols)
}

// prepare sets the mode and the bounds and returns the per-column vectors of
// the call.
func (q *qJob) prepare() *qColumns {
	out := q.out
	cols := qColumnsPool.Get().(*qColumns)
	padded := len(q.b.sums)
	cols.init = growTo(&cols.init, padded)
	zero := q.zero - int32(qSign(q.b.level))
	for j := range cols.init {
		cols.init[j] = -zero * q.b.sums[j]
	}
	for j, v := range out.Init {
		cols.init[j] += v
	}
	switch {
	case out.Words != nil:
		q.mode = qWords
	case out.Floats != nil:
		q.mode = qFloats
	default:
		q.mode = qBytes
		lo, hi := int32(0), int32(255)
		if out.Signed {
			lo, hi = -128, 127
		}
		if out.Min != 0 || out.Max != 0 {
			lo, hi = max(lo, out.Min), min(hi, out.Max)
		}
		q.lo, q.hi = float32(lo-out.Zero), float32(hi-out.Zero)
	}
	if q.mode != qWords {
		cols.scale, cols.bias = growTo(&cols.scale, padded), growTo(&cols.bias, padded)
		for j := range q.b.n {
			cols.scale[j] = out.Scale[min(j, len(out.Scale)-1)]
		}
		clear(cols.bias)
		copy(cols.bias, out.Bias)
	}
	return cols
}

// tasks computes the blocks [lo, hi) of the output, numbered by rows, columns.
func (q *qJob) tasks(lo, hi int) {
	s := qScratches.Get().(*qScratch)
	for i := lo; i < hi; i++ {
		m0, n0 := i/q.nBlocks*q.mc, i%q.nBlocks*q.nc
		q.block(s, m0, min(q.mc, q.m-m0), n0, min(q.nc, q.b.n-n0))
	}
	qScratches.Put(s)
}

func (q *qJob) block(s *qScratch, m0, mc, n0, nc int) {
	b, k := q.b, q.b.k
	unit, _ := qUnit(b.level, b.saturating)
	units := (k + unit - 1) / unit
	flip := uint32(q.a.flip()^qSign(b.level)) * 0x01010101
	whole := [1]run{{0, units}}
	t := qTile{
		rows: mc, per: tileRows(b.level, panelWidth(b.level), mc), runs: whole[:], count: 1, mode: q.mode, lo: q.lo, hi: q.hi, zero: q.out.Zero,
		flip: [4]uint32{flip, flip, flip, flip},
	}
	// The rows as bytes, where they lie or copied.
	var rows []byte
	ld, wide := units*unit, qWide(b.level, b.saturating)
	switch {
	case q.im == nil && !q.a.Trans && (wide > 1 || k%unit == 0):
		ld = q.a.Ld
		rows = q.a.Data[m0*ld:]
		_ = rows[:(mc-1)*ld+k]
	default:
		rows = growTo(&s.a, mc*ld)
		switch {
		case q.im != nil:
			q.im.pack(rows, ld, m0, mc)
		case q.a.Trans:
			for i := range k {
				for j, v := range q.a.Data[i*q.a.Ld+m0:][:mc] {
					rows[j*ld+i] = v
				}
			}
		default:
			for i := range mc {
				copy(rows[i*ld:][:k], q.a.Data[(m0+i)*q.a.Ld:])
			}
		}
	}
	if b.sumsRows {
		t.rowSum = growTo(&s.sums, mc)
		for i := range t.rowSum {
			t.rowSum[i] = byteSum(b.level, rows[i*ld:][:k], q.a.flip()) - int32(k)*q.zero
		}
	}
	t.a, t.lda = rows, ld
	if wide > 1 {
		// What an odd k leaves of a unit meets zeros in B.
		t.lda = 2 * units * unit
		t.a = growTo(&s.wide, mc*t.lda)
		if ld == k && 2*k == t.lda {
			widen(b.level, t.a, rows[:mc*k], byte(flip))
		} else {
			for i := range mc {
				widen(b.level, t.a[i*t.lda:], rows[i*ld:][:k], byte(flip))
			}
		}
	}
	q.panels(&t, m0, n0, nc)
}

// panels computes the rows that t says, the first of which is row m0 of the
// output, times the panels from column n0 on.
func (q *qJob) panels(t *qTile, m0, n0, nc int) {
	nr, ld, b := panelWidth(q.b.level), q.out.Ld, q.b
	lv := b.level
	if t.saturates = b.saturating && !q.a.Signed; b.saturating && q.a.Signed {
		lv = Generic // exact, of the layout for saturating kernels
	}
	t.width = nr
	for j := n0; j < n0+nc; j += nr {
		t.columns = min(nr, n0+nc-j)
		t.b = b.panels[j*(len(b.panels)/len(b.sums)):]
		t.init, t.zb = q.columns.init[j:], b.zero[j:]
		first, end := m0*ld+j, (m0+t.rows-1)*ld+j+t.columns
		var words []int32
		var floats []float32
		switch q.mode {
		case qWords:
			words, t.ldc = q.out.Words[first:end], 4*ld
		case qFloats:
			floats, t.ldc = q.out.Floats[first:end], 4*ld
			t.scale, t.bias = q.columns.scale[j:], q.columns.bias[j:]
		case qBytes:
			t.c, t.ldc = q.out.Bytes[first:end], ld
			t.scale = q.columns.scale[j:]
		}
		qKernel(lv, t, words, floats)
	}
}

func widenGo(dst, src []byte, flip byte) {
	for i, b := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], uint16(b^flip))
	}
}

func byteSumGo(p []byte, flip byte) int32 {
	s := int32(0)
	for _, b := range p {
		s += int32(b ^ flip)
	}
	return s
}
