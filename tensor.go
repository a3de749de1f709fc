package onnxq

import (
	"context"
	"fmt"
	"math"

	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// TensorScheme is what one scheme does to a tensor.
type TensorScheme struct {
	Scheme string  `json:"scheme"`
	Bits   float64 `json:"bits_per_weight"` // as stored
	SSE    float64 `json:"sse"`             // Σ (x - value)²
	SQNR   float64 `json:"sqnr_db"`         // 10 log10 Σx²/SSE; 1000 if exact
	Max    float64 `json:"max_error"`       // the greatest |x - value|
}

// TensorResult is one tensor under the scheme that was asked for, with others
// beside it. Its JSON form is that of `tensor --json`.
type TensorResult struct {
	DType  string       `json:"dtype"`
	Shape  []int        `json:"shape"`
	Axis   int          `json:"axis"` // that blocks run along
	Chosen TensorScheme `json:"chosen"`
	// Codes, Values and Errors have one row for each line along the axis; Scales
	// and Zeros one element for each block of a line.
	Codes  [][]int     `json:"codes"`
	Scales [][]float32 `json:"scales"`
	Zeros  [][]int32   `json:"zero_points"`
	Values [][]float32 `json:"values"`
	Errors [][]float32 `json:"errors"`
	Grid   []float32   `json:"codebook,omitempty"`
	// Offsets and Packed are of GridTensor: see quant.Gridded.
	Offsets [][]float32      `json:"offsets,omitempty"`
	Packed  [][]byte         `json:"packed,omitempty"`
	Others  []TensorScheme   `json:"schemes"`
	Counts  []HistogramCount `json:"histogram"`
}

// HistogramCount is the number of elements in the interval [From, To).
type HistogramCount struct {
	From  float64 `json:"from"`
	To    float64 `json:"to"`
	Count int     `json:"count"`
}

// exact is the SQNR that stands for no error at all.
const exact = 1000

// QuantizeTensor quantizes t along axis (counted from the end if negative) as
// the options on weights say, and as other schemes do. bits, if not 0, is the
// width of the integer type to take in place of Options.Weights: 2, 3, 4 or 8.
func QuantizeTensor(ctx context.Context, t *tensor.Tensor, axis, bits int, o Options) (*TensorResult, error) {
	if bits != 0 {
		if bits != 2 && bits != 3 && bits != 4 && bits != 8 {
			return nil, optionErrorf("there is no integer type of %d bits, only of 2, 3, 4 and 8", bits)
		}
		o.Weights = fmt.Sprintf("i%d", bits)
		if o.WeightZero == string(quant.Asymmetric) {
			o.Weights = fmt.Sprintf("u%d", bits)
		}
	}
	l, axis, err := o.lines(t, axis)
	if err != nil {
		return nil, err
	}
	b, err := o.scheme()
	if err != nil {
		return nil, &OptionError{err}
	}
	pool := par.New(o.Threads)
	pool.Begin()
	defer pool.End()
	r := &TensorResult{DType: t.DType().String(), Shape: l.T.Shape(), Axis: axis}
	c, s, err := tryScheme(ctx, pool, l, b)
	if err != nil {
		return nil, err
	}
	r.Chosen, r.Grid = s, c.Grid
	r.fill(l, c)
	r.Counts = histogram(l)
	for _, other := range otherSchemes(b) {
		_, s, err := tryScheme(ctx, pool, l, other)
		if err != nil {
			return nil, err
		}
		r.Others = append(r.Others, s)
	}
	for _, g := range quant.OfBits(b.Bits) {
		on, err := g.Apply(l, nil)
		if err != nil {
			return nil, &OptionError{err}
		}
		r.Others = append(r.Others, gridScheme(g, l, on))
	}
	return r, nil
}

// GridTensor puts t on a grid along axis (counted from the end if negative), with
// ranges as of quant.Grid, or nil. Of the options PerTensor counts.
func GridTensor(t *tensor.Tensor, axis int, g quant.Grid, ranges *tensor.Tensor, o Options) (*TensorResult, error) {
	l, axis, err := o.lines(t, axis)
	if err != nil {
		return nil, err
	}
	on, err := g.Apply(l, ranges)
	if err != nil {
		return nil, &OptionError{err}
	}
	r := &TensorResult{
		DType: t.DType().String(), Shape: l.T.Shape(), Axis: axis, Chosen: gridScheme(g, l, on),
		Codes: on.Codes, Values: on.Values, Scales: on.Scales, Offsets: on.Offsets, Zeros: [][]int32{}, Errors: [][]float32{},
		Others: []TensorScheme{}, Counts: histogram(l),
	}
	for _, other := range quant.OfBits(g.Bits) {
		if other != g {
			on, err := other.Apply(l, nil)
			if err != nil {
				return nil, &OptionError{err}
			}
			r.Others = append(r.Others, gridScheme(other, l, on))
		}
	}
	x := make([]float32, l.K)
	for i, values := range on.Values {
		l.Read(x, i, i+1)
		errs := make([]float32, l.K)
		for k, v := range x {
			errs[k] = v - values[k]
		}
		r.Errors = append(r.Errors, errs)
	}
	if g.Bits == 1 {
		r.Packed = on.PackSigns()
	}
	return r, nil
}

// gridScheme measures what a grid does to lines.
func gridScheme(g quant.Grid, l quant.Lines, on *quant.Gridded) TensorScheme {
	s := TensorScheme{Scheme: g.Name, Bits: on.Bits}
	s.measure(l, func(dst []float32, line int) { copy(dst, on.Values[line]) })
	return s
}

// lines takes t apart along an axis, which is counted from the end if negative,
// and returns that of the lines.
func (o *Options) lines(t *tensor.Tensor, axis int) (quant.Lines, int, error) {
	if t.Rank() == 0 || t.Len() == 0 {
		return quant.Lines{}, 0, optionErrorf("%v has no lines to quantize", t)
	}
	if axis < 0 {
		axis += t.Rank()
	}
	if axis < 0 || axis >= t.Rank() {
		return quant.Lines{}, 0, optionErrorf("the tensor %v has no axis %d", t, axis)
	}
	if o.PerTensor {
		var err error
		if t, err = t.Reshape([]int{1, t.Len()}); err != nil {
			return quant.Lines{}, 0, err
		}
		axis = 1
	}
	l, err := quant.LinesOf(t, axis)
	if err != nil {
		return quant.Lines{}, 0, &OptionError{err}
	}
	if err := l.Finite(nil); err != nil {
		return quant.Lines{}, 0, &OptionError{fmt.Errorf("the tensor %w", err)}
	}
	return l, axis, nil
}

// otherSchemes lists what a scheme is compared with: every type that takes its
// block size or has one of its own, and every kind of zero points.
func otherSchemes(b quant.Blocks) []quant.Blocks {
	var out []quant.Blocks
	for _, name := range quant.Storages() {
		if name == "kmeans:N" {
			name = "kmeans:16"
		}
		s, err := quant.ParseStorage(name)
		if err != nil {
			continue
		}
		zeros := []quant.Zeros{quant.Symmetric}
		if s.Kind == quant.Integer && !s.Signed() {
			zeros = []quant.Zeros{quant.Asymmetric}
		} else if s.Kind == quant.Integer && s.Name != "ternary" {
			zeros = append(zeros, quant.Full)
		}
		for _, z := range zeros {
			other := quant.Blocks{Storage: s, Zero: z, Size: b.Size, ScaleType: b.ScaleType, Fit: b.Fit}
			if s.Block > 0 {
				other.Size, other.ScaleType = 0, tensor.Undefined
			} else if b.Storage.Block > 0 {
				other.ScaleType = tensor.Float32
			}
			if other, err = other.Complete(); err == nil {
				out = append(out, other)
			}
		}
	}
	return out
}

// tryScheme quantizes all lines and measures the error.
func tryScheme(ctx context.Context, pool *par.Pool, l quant.Lines, b quant.Blocks) (*quant.Coded, TensorScheme, error) {
	s := TensorScheme{Scheme: b.String(), Bits: b.BitsPerWeight(l.K, false)}
	shared, err := b.Share(pool, l)
	if err != nil {
		return nil, s, err
	}
	c, err := b.Encode(ctx, pool, l, shared, 0, l.N(), nil)
	if err != nil {
		return nil, s, err
	}
	s.measure(l, c.Decode)
	return c, s, nil
}

// measure sets the errors of what decode gives for each line.
func (s *TensorScheme) measure(l quant.Lines, decode func(dst []float32, line int)) {
	x, back := make([]float32, l.K), make([]float32, l.K)
	power := 0.0
	for i := range l.N() {
		l.Read(x, i, i+1)
		decode(back, i)
		for k, v := range x {
			d := math.Abs(float64(v) - float64(back[k]))
			s.SSE += d * d
			s.Max = max(s.Max, d)
			power += float64(v) * float64(v)
		}
	}
	s.SQNR = exact
	if s.SSE > 0 {
		s.SQNR = 10 * math.Log10(power/s.SSE)
		if power == 0 {
			s.SQNR = -exact
		}
	}
}

// fill sets what r says about the elements.
func (r *TensorResult) fill(l quant.Lines, c *quant.Coded) {
	r.Scales, r.Zeros = [][]float32{}, [][]int32{}
	blocks := len(c.Scale) / l.N()
	x := make([]float32, l.K)
	for i := range l.N() {
		l.Read(x, i, i+1)
		values, errs, codes := make([]float32, l.K), make([]float32, l.K), make([]int, l.K)
		c.Decode(values, i)
		for k, v := range x {
			codes[k], errs[k] = c.Code(i*l.K+k), v-values[k]
		}
		r.Codes, r.Values, r.Errors = append(r.Codes, codes), append(r.Values, values), append(r.Errors, errs)
		if blocks > 0 {
			r.Scales = append(r.Scales, c.Scale[i*blocks:(i+1)*blocks])
		}
		if c.Zero != nil {
			r.Zeros = append(r.Zeros, c.Zero[i*blocks:(i+1)*blocks])
		}
	}
}

// bars is the number of intervals of a histogram.
const bars = 16

// histogram counts the elements in equal intervals of their range.
func histogram(l quant.Lines) []HistogramCount {
	e := l.Extrema(nil)
	lo, width := float64(e.Min), (float64(e.Max)-float64(e.Min))/bars
	out := make([]HistogramCount, bars)
	for i := range out {
		out[i].From, out[i].To = lo+width*float64(i), lo+width*float64(i+1)
	}
	x := make([]float32, l.K)
	for i := range l.N() {
		l.Read(x, i, i+1)
		for _, v := range x {
			at := 0
			if width > 0 {
				at = min(int((float64(v)-lo)/width), bars-1)
			}
			out[at].Count++
		}
	}
	return out
}
