package quant

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync/atomic"

	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// Fit is how the scale and zero point of a block follow from its elements.
type Fit string

// Fits.
const (
	// Cover takes the range of the elements.
	Cover Fit = ""
	// Clip takes the scale of the least squared error, which may leave out the
	// largest elements.
	Clip Fit = "clip"
	// HQQ lowers the 0.7-norm of the error, so that few large ones count less,
	// by half-quadratic splitting (H. Badri and A. Shaji, "Half-Quadratic
	// Quantization", 2023).
	HQQ Fit = "hqq"
	// KQuant tries scales around that of the range and solves for scale and zero
	// point by weighted least squares at each, as the K-quants of llama.cpp.
	KQuant Fit = "kquant"
)

// Blocks is a scheme for weights whose lines are quantized in blocks.
type Blocks struct {
	Storage
	Zero Zeros // of an Integer; "" is Symmetric
	// Size is the number of elements of a block; the last one of a line may be
	// short. 0 is the whole line.
	Size int
	// ScaleType is how scales are stored; Undefined is float32. The codes are
	// those for the stored scales.
	ScaleType  tensor.DType
	PowerOfTwo bool // rounds scales up to a power of two
	Fit        Fit
}

// Complete returns b with the block size and scale type that belong to its
// storage type, or an error if b asks for others.
func (b Blocks) Complete() (Blocks, error) {
	if b.Zero == "" {
		b.Zero = Symmetric
	}
	if b.Storage.Block > 0 {
		if b.Size != 0 && b.Size != b.Storage.Block {
			return b, fmt.Errorf("%s has blocks of %d, not %d", b.Name, b.Storage.Block, b.Size)
		}
		if b.ScaleType != tensor.Undefined && b.ScaleType != tensor.Float32 && b.ScaleType != b.Scale {
			return b, fmt.Errorf("%s has scales of %v, not %v", b.Name, b.Scale, b.ScaleType)
		}
		b.Size, b.ScaleType = b.Storage.Block, b.Scale
	}
	if b.ScaleType == tensor.Undefined {
		b.ScaleType = tensor.Float32
	}
	if !b.scaled() {
		b.Size = 0
	}
	if b.Size < 0 || b.Size > 1<<30 {
		return b, fmt.Errorf("block size %d", b.Size)
	}
	if b.Zero == Asymmetric && b.Kind != Integer {
		return b, fmt.Errorf("%s has no zero points", b.Name)
	}
	return b, nil
}

// scaled reports whether codes have scales.
func (b *Blocks) scaled() bool {
	return b.Kind == Integer || b.Kind == Real || b.Kind == Codebook && b.Levels == 0
}

// blocks returns the number of blocks of a line of k elements.
func (b *Blocks) blocks(k int) int {
	if b.Size == 0 {
		return 1
	}
	return (k + b.Size - 1) / b.Size
}

// BitsPerWeight returns the bits that lines of k elements take on average:
// codes, scales and zero points, but not what the codebook or the scale of the
// whole tensor takes. Codes count with the bits that they are stored in, or
// with their information where exact is set.
func (b *Blocks) BitsPerWeight(k int, exact bool) float64 {
	bits := float64(b.DType.Bits())
	if exact {
		bits = float64(b.Bits)
	}
	if !b.scaled() || k == 0 {
		return bits
	}
	each := float64(b.ScaleType.Bits())
	if b.Zero == Asymmetric {
		each += float64(b.DType.Bits())
	}
	return bits + each*float64(b.blocks(k))/float64(k)
}

// Coded holds lines of codes with their parameters.
type Coded struct {
	Blocks
	Lines, K int
	// Codes has a byte for each element, line by line: an integer in two's
	// complement, the bits of a Real, or an index into Grid. 16-bit types have
	// two bytes.
	Codes []byte
	// Scale and Zero have one element for each block, line by line. Scale holds
	// the values of the stored scales; Zero is nil unless Asymmetric.
	Scale []float32
	Zero  []int32
	// Grid is the codebook.
	Grid []float32
	// Global is the scale of the whole tensor that those of nvfp4 are relative
	// to; 1 for others.
	Global float32
}

// Slice returns the lines [from, to), which share memory with c.
func (c *Coded) Slice(from, to int) *Coded {
	s := *c
	width := 1
	if c.Kind == Cast {
		width = 2
	}
	n := c.blocks(c.K)
	s.Lines, s.Codes = to-from, c.Codes[from*c.K*width:to*c.K*width]
	if c.Scale != nil {
		s.Scale = c.Scale[from*n : to*n]
	}
	if c.Zero != nil {
		s.Zero = c.Zero[from*n : to*n]
	}
	return &s
}

// Shared holds what all lines of a tensor have in common: it is found before
// they are encoded.
type Shared struct {
	Global float32
	Grid   []float32
}

// Share finds what the lines have in common. pool may be nil.
func (b *Blocks) Share(pool *par.Pool, l Lines) (Shared, error) {
	s := Shared{Global: 1, Grid: b.Grid}
	switch {
	case b.Kind == Codebook && b.Levels > 0:
		var err error
		s.Grid, err = lloyd(l, b.Levels)
		return s, err
	case b.Kind == Real && b.ScaleType == tensor.Float8E4M3FN:
		e := l.Extrema(pool)
		if bound := max(-e.Min, e.Max); bound > 0 && e.NaN+e.Inf == 0 {
			s.Global = max(float32(float64(bound)/(6*448)), smallestScale)
		}
	}
	return s, nil
}

// Encode quantizes the lines [from, to). importance, if given, has a weight
// for each of the K elements of a line that the fits but Cover heed. b is
// complete. The error says so if an element is NaN or infinite, or names the
// context. pool may be nil.
func (b *Blocks) Encode(ctx context.Context, pool *par.Pool, l Lines, shared Shared, from, to int, importance []float32) (*Coded, error) {
	c := b.empty(to-from, l.K, shared)
	var bad atomic.Bool
	lines := func(lo, hi int, x []float32) {
		if ctx.Err() != nil {
			return
		}
		w := worker{b: b, c: c, importance: importance}
		for i := lo; i < hi; i++ {
			if !w.line(i-from, x[(i-lo)*l.K:][:l.K]) {
				bad.Store(true)
				return
			}
		}
	}
	if l.Inner > 1 && b.Kind == Integer && b.Fit == Cover && b.Name != "ternary" {
		pool.For(to-from, abreast, func(lo, hi int) {
			if ctx.Err() != nil {
				return
			}
			w := worker{b: b, c: c}
			if !w.columns(l, from, from+lo, from+hi) {
				bad.Store(true)
			}
		})
	} else {
		l.each(pool, from, to, lines)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if bad.Load() {
		return nil, l.Finite(nil)
	}
	return c, nil
}

// empty returns Coded lines to be filled in.
func (b *Blocks) empty(lines, k int, shared Shared) *Coded {
	c := &Coded{Blocks: *b, Lines: lines, K: k, Grid: shared.Grid, Global: shared.Global}
	width := 1
	if b.Kind == Cast {
		width = 2
	}
	c.Codes = make([]byte, lines*k*width)
	if b.scaled() {
		c.Scale = make([]float32, lines*b.blocks(k))
		if b.Zero == Asymmetric {
			c.Zero = make([]int32, lines*b.blocks(k))
		}
	}
	return c
}

// codeRange returns the codes that an Integer uses and the one that stands for
// 0 where blocks have no zero point of their own.
func (b *Blocks) codeRange() (lo, hi, base int32) {
	lo, hi = b.Min, b.Max
	if b.Signed() {
		if b.Zero == Symmetric && -lo > hi {
			lo = -hi
		}
		return lo, hi, 0
	}
	return lo, hi, (hi - lo + 1) / 2
}

// worker encodes lines.
type worker struct {
	b          *Blocks
	c          *Coded
	importance []float32
	real       *tensor.Tensor // of the storage type, for one block
	scaled     []float32
	weights    []float32
	try        []float32
	middles    []float32
}

// line encodes a line, and reports whether it is finite.
func (w *worker) line(at int, x []float32) bool {
	b, c := w.b, w.c
	k := len(x)
	if !b.scaled() {
		if e := kernels.MinMax(x); e.NaN+e.Inf > 0 {
			return false
		}
		if b.Kind == Cast {
			t, _ := tensor.FromBytes(b.DType, []int{k}, c.Codes[at*2*k:][:2*k])
			tensor.Write(t, 0, x)
		} else {
			w.nearest(c.Codes[at*k:][:k], x, 1)
		}
		return true
	}
	codes := c.Codes[at*k:][:k]
	n := b.blocks(k)
	size := b.Size
	if size == 0 {
		size = k
	}
	for i := range n {
		block := x[i*size : min((i+1)*size, k)]
		e := kernels.MinMax(block)
		if e.NaN+e.Inf > 0 {
			return false
		}
		var importance []float32
		if w.importance != nil {
			importance = w.importance[i*size:][:len(block)]
		}
		scale, zero := w.fit(block, importance, e)
		c.Scale[at*n+i] = scale
		if c.Zero != nil {
			c.Zero[at*n+i] = zero
		}
		w.quantize(codes[i*size:][:len(block)], block, scale, zero)
	}
	return true
}

// abreast is the number of lines whose elements are read together where those
// of a line lie apart, and slab how many of each at a time: what they take
// stays in the nearest cache.
const (
	abreast = 256
	slab    = 32
)

// columns encodes the lines [from, to), the first being line `first` of the
// result, as line does for integers whose scales cover their range: row by row
// of the matrix that the lines are columns of. It reports whether all is finite.
func (w *worker) columns(l Lines, first, from, to int) bool {
	b, c, k := w.b, w.c, l.K
	n := b.blocks(k)
	size := b.Size
	if size == 0 {
		size = k
	}
	width := min(abreast, l.Inner)
	x, codes := make([]float32, slab*width), make([]byte, slab*width)
	lows, highs := make([]float32, width), make([]float32, width)
	low, high := make([]float32, width), make([]float32, width)
	scales, zeros := make([]float32, width), make([]int32, width)
	qlo, qhi, base := b.codeRange()
	for from < to {
		m := min(to-from, l.Inner-from%l.Inner, width)
		read := func(k, rows int) []float32 {
			at := from/l.Inner*l.K*l.Inner + k*l.Inner + from%l.Inner
			for r := range rows {
				l.elements(x[r*m:][:m], at+r*l.Inner)
			}
			return x[:rows*m]
		}
		at := from - first
		for i := range n {
			start, end := i*size, min((i+1)*size, k)
			for r := start; r < end; r += slab {
				nans, infs := kernels.MinMaxChannels(low[:m], high[:m], read(r, min(slab, end-r)), 1)
				if nans+infs > 0 {
					return false
				}
				if r == start {
					copy(lows, low[:m])
					copy(highs, high[:m])
					continue
				}
				for j := range m {
					lows[j], highs[j] = min(lows[j], low[j]), max(highs[j], high[j])
				}
			}
			for j := range m {
				lo, hi := float64(min(lows[j], 0)), float64(max(highs[j], 0))
				scales[j], zeros[j] = 1, base
				if lo != 0 || hi != 0 {
					scales[j], zeros[j] = w.cover(lo, hi, nil)
				}
				c.Scale[(at+j)*n+i] = scales[j]
				if c.Zero != nil {
					c.Zero[(at+j)*n+i] = zeros[j]
				}
			}
			for r := start; r < end; r += slab {
				rows := min(slab, end-r)
				if end-start > slab {
					read(r, rows)
				}
				for j := range rows {
					row := x[j*m:][:m]
					if b.Signed() {
						kernels.QuantizeColumns(asInt8(codes[j*m:][:m]), row, scales, zeros, int8(qlo), int8(qhi))
					} else {
						kernels.QuantizeColumns(codes[j*m:][:m], row, scales, zeros, uint8(qlo), uint8(qhi))
					}
				}
				kernels.Transpose(c.Codes[at*k+r:], k, codes, m, rows, m)
			}
		}
		from += m
	}
	return true
}

// quantize stores the codes of a block.
func (w *worker) quantize(codes []byte, x []float32, scale float32, zero int32) {
	b := w.b
	switch b.Kind {
	case Integer:
		lo, hi, _ := b.codeRange()
		if b.Signed() {
			kernels.QuantizeRangeI8(asInt8(codes), x, scale, int8(zero), int8(lo), int8(hi))
		} else {
			kernels.QuantizeRangeU8(codes, x, scale, uint8(zero), uint8(lo), uint8(hi))
		}
	case Real:
		if w.real == nil || w.real.Len() < len(x) {
			w.real = tensor.New(b.DType, len(x)+len(x)%2)
		}
		w.scaled = slices.Grow(w.scaled[:0], len(x))[:len(x)]
		for i, v := range x {
			w.scaled[i] = v / scale
		}
		tensor.Write(w.real, 0, w.scaled)
		if b.DType.Bits() == 4 {
			kernels.Unpack4(codes, w.real.Bytes())
		} else {
			copy(codes, w.real.Bytes())
		}
	case Codebook:
		w.nearest(codes, x, scale)
	}
}

// nearest stores the index of the value of the grid that is nearest to
// x/scale, the lower one of two.
func (w *worker) nearest(codes []byte, x []float32, scale float32) {
	if w.middles == nil {
		grid := w.c.Grid
		for i := range len(grid) - 1 {
			w.middles = append(w.middles, float32((float64(grid[i])+float64(grid[i+1]))/2))
		}
	}
	if len(w.middles) > 16 {
		for i, v := range x {
			at, _ := slices.BinarySearch(w.middles, v/scale)
			codes[i] = byte(at)
		}
		return
	}
	for i, v := range x {
		v /= scale
		var q byte
		for _, m := range w.middles {
			if v > m {
				q++
			}
		}
		codes[i] = q
	}
}

// store rounds a scale to the type that scales are stored in. It keeps the
// sign, and what would round to 0 becomes the smallest value of the type that
// is normal.
func (w *worker) store(scale float64) float32 {
	b := w.b
	sign := float32(1)
	if scale < 0 {
		sign, scale = -1, -scale
	}
	if b.PowerOfTwo && scale > 0 {
		scale = math.Exp2(math.Ceil(math.Log2(scale)))
	}
	scale = min(scale, math.MaxFloat32)
	f := float32(scale)
	switch b.ScaleType {
	case tensor.Float32:
		f = max(f, smallestScale)
	case tensor.Float16:
		f = max(tensor.Float16ToFloat32(tensor.Float16FromFloat32(min(f, 65504))), 0x1p-24)
	case tensor.BFloat16:
		f = max(tensor.BFloat16ToFloat32(tensor.BFloat16FromFloat32(min(f, 0x1.fep127))), smallestScale)
	case tensor.Float8E8M0:
		f = float32(math.Exp2(math.Max(-126, math.Min(127, math.Floor(math.Log2(scale))))))
	case tensor.Float8E4M3FN:
		var code [1]byte
		t, _ := tensor.FromBytes(tensor.Float8E4M3FN, []int{1}, code[:])
		tensor.Write(t, 0, []float64{scale / float64(w.c.Global)})
		var v [1]float32
		tensor.Read(t, 0, v[:])
		f = max(v[0], 0x1p-9) * w.c.Global
	}
	return sign * f
}

// fit returns the stored scale and the zero point of a block with the extrema
// e.
func (w *worker) fit(x, importance []float32, e kernels.Extrema) (float32, int32) {
	lo, hi := float64(min(e.Min, 0)), float64(max(e.Max, 0))
	b := w.b
	if b.Kind != Integer {
		return w.fitGrid(x, importance, max(-lo, hi))
	}
	_, _, base := b.codeRange()
	if lo == 0 && hi == 0 {
		return 1, base
	}
	scale, zero := w.cover(lo, hi, x)
	if b.Fit == Cover {
		return scale, zero
	}
	return w.search(x, importance, lo, hi, scale, zero)
}

// cover returns the parameters for a range that contains 0; only ternary codes
// need the elements x.
func (w *worker) cover(lo, hi float64, x []float32) (float32, int32) {
	b := w.b
	qlo, qhi, base := b.codeRange()
	switch {
	case b.Zero == Asymmetric:
		scale := w.store((hi - lo) / float64(qhi-qlo))
		z := math.RoundToEven(float64(qlo) - lo/float64(scale))
		return scale, int32(max(float64(qlo), min(float64(qhi), z)))
	case b.Name == "ternary":
		return w.store(ternaryScale(x)), base
	case b.Zero == Full && b.Min < -b.Max || b.Zero == Full && !b.Signed():
		extreme := lo
		if hi > -lo {
			extreme = hi
		}
		return w.store(extreme / float64(qlo-base)), base
	}
	return w.store(max(-lo, hi) / float64(qhi-base)), base
}

// ternaryScale returns the scale s of the least Σ (x - s·q)² with q of -1, 0
// and 1: the mean magnitude of the n largest elements, n chosen so that
// (Σ|x|)²/n is greatest (F. Li et al., "Ternary Weight Networks", 2016).
func ternaryScale(x []float32) float64 {
	a := make([]float64, len(x))
	for i, v := range x {
		a[i] = math.Abs(float64(v))
	}
	slices.SortFunc(a, func(p, q float64) int {
		switch {
		case p > q:
			return -1
		case p < q:
			return 1
		}
		return 0
	})
	sum, best, scale := 0.0, 0.0, 0.0
	for i, v := range a {
		sum += v
		if gain := sum * sum / float64(i+1); gain > best {
			best, scale = gain, sum/float64(i+1)
		}
	}
	return scale
}

// fitGrid returns the scale of a block of real numbers or of a codebook.
func (w *worker) fitGrid(x, importance []float32, bound float64) (float32, int32) {
	b := w.b
	if bound == 0 {
		return w.store(1), 0
	}
	if len(w.c.Grid) == 2 { // -1 and 1: the mean magnitude is nearest
		sum := 0.0
		for _, v := range x {
			sum += math.Abs(float64(v))
		}
		return w.store(sum / float64(len(x))), 0
	}
	scale := w.store(bound / b.limit())
	if b.ScaleType == tensor.Float8E8M0 {
		// The largest power of two in the block becomes that of the type.
		scale = w.store(math.Exp2(math.Floor(math.Log2(bound)) - math.Floor(math.Log2(b.limit()))))
	}
	if b.Fit == Cover {
		return scale, 0
	}
	codes := make([]byte, len(x))
	value := w.values()
	best, least := scale, math.Inf(1)
	for i := range 24 {
		s := w.store(float64(scale) * (1.2 - float64(0.025*float64(i))))
		if b.ScaleType == tensor.Float8E8M0 {
			if s = w.store(float64(scale) * math.Exp2(float64(1-i))); i > 2 {
				break
			}
		}
		w.quantize(codes, x, s, 0)
		sum := 0.0
		for j, v := range x {
			d := float64(v) - float64(value[codes[j]]*s)
			d *= d
			if importance != nil {
				d *= float64(importance[j])
			}
			sum += float64(d) // without fused operations, alike everywhere
		}
		if sum < least {
			best, least = s, sum
		}
	}
	return best, 0
}

// values returns what the codes of a grid stand for before they are scaled.
func (w *worker) values() []float32 { return w.c.values() }

func (c *Coded) values() []float32 {
	if c.Kind == Codebook {
		return c.Grid
	}
	n := 1 << c.DType.Bits()
	raw := make([]byte, n)
	for i := range raw {
		raw[i] = byte(i)
	}
	packed := raw
	if c.DType.Bits() == 4 {
		packed = make([]byte, n/2)
		kernels.Pack4(packed, raw, 0)
	}
	t, _ := tensor.FromBytes(c.DType, []int{n}, packed)
	out := make([]float32, n)
	tensor.Read(t, 0, out)
	return out
}

// Decode stores the values of line i in dst, as DequantizeLinear computes
// them.
func (c *Coded) Decode(dst []float32, i int) {
	k := c.K
	if c.Kind == Cast {
		t, _ := tensor.FromBytes(c.DType, []int{k}, c.Codes[i*2*k:][:2*k])
		tensor.Read(t, 0, dst[:k])
		return
	}
	codes := c.Codes[i*k:][:k]
	size := c.Size
	if size == 0 {
		size = max(k, 1)
	}
	n := c.blocks(k)
	var values []float32
	if c.Kind != Integer {
		values = c.values()
	}
	_, _, base := c.codeRange()
	for j := 0; j < k; j += size {
		end := min(j+size, k)
		scale, zero := float32(1), base
		if c.Scale != nil {
			scale = c.Scale[i*n+j/size]
		}
		if c.Zero != nil {
			zero = c.Zero[i*n+j/size]
		}
		switch {
		case c.Kind != Integer:
			for m := j; m < end; m++ {
				dst[m] = values[codes[m]] * scale
			}
		case c.Signed():
			kernels.DequantizeI8(dst[j:end], asInt8(codes[j:end]), scale, int8(zero))
		default:
			kernels.DequantizeU8(dst[j:end], codes[j:end], scale, uint8(zero))
		}
	}
}

// Codes returns the lowest and highest code that an Integer uses.
func (b *Blocks) Codes() (lo, hi int32) {
	lo, hi, _ = b.codeRange()
	return lo, hi
}

// Middle returns the code that stands for 0 in an Integer without zero points
// of its own.
func (b *Blocks) Middle() int32 {
	if b.Kind != Integer {
		return 0
	}
	_, _, base := b.codeRange()
	return base
}

// String describes a scheme, such as "i4 symmetric, blocks of 32, f16 scales".
func (b Blocks) String() string {
	s := b.Name
	if b.Kind == Integer {
		s += " " + string(b.Zero)
	}
	if !b.scaled() {
		return s
	}
	if b.Size > 0 {
		s += fmt.Sprintf(", blocks of %d", b.Size)
	}
	s += ", " + ScaleName(b.ScaleType) + " scales"
	if b.Fit != Cover {
		s += ", " + string(b.Fit)
	}
	return s
}

// Code returns code i as a number: an integer, the bits of a small float, or an
// index into Grid.
func (c *Coded) Code(i int) int {
	switch {
	case c.Kind == Cast:
		return int(c.Codes[2*i]) | int(c.Codes[2*i+1])<<8
	case c.Kind == Integer && c.Signed():
		return int(int8(c.Codes[i]))
	}
	return int(c.Codes[i])
}
