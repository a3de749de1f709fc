// Package quant is the arithmetic of quantization: which scale and zero point
// a range gives, and what codes and real values follow from them. Nothing else
// in this module computes a scale.
//
// The affine rule is that of ONNX QuantizeLinear:
//
//	q = clamp(roundHalfEven(x / scale) + zero),   x ≈ (q - zero) · scale
package quant

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// Type is a storage type of integers together with the codes that are used, or one
// of small floats, for which Min and Max bound what is stored.
type Type struct {
	Name     string
	DType    tensor.DType
	Min, Max int32
}

// Integer types.
var (
	U8  = Type{"u8", tensor.Uint8, 0, 255}
	I8  = Type{"i8", tensor.Int8, -128, 127}
	U16 = Type{"u16", tensor.Uint16, 0, 65535}
	I16 = Type{"i16", tensor.Int16, -32768, 32767}
	I4  = Type{"i4", tensor.Int4, -8, 7}
)

// F8E4M3 is float8e4m3fn, which has no infinities.
var F8E4M3 = Type{"f8e4m3", tensor.Float8E4M3FN, -448, 448}

// Real reports whether codes are small floats, whose steps grow with the value.
func (t Type) Real() bool { return t.DType.IsFloat() }

// Narrow returns the type without the lowest code of a signed one, so that the
// range is symmetric about 0.
func (t Type) Narrow() Type {
	if t.Min < -t.Max {
		t.Min = -t.Max
	}
	return t
}

// Held returns the element type that codes have in memory: DType, or the one of 8
// bits for codes of fewer, which Pack packs.
func (t Type) Held() tensor.DType {
	if t.DType == tensor.Int4 {
		return tensor.Int8
	}
	return t.DType
}

// Pack returns codes of element type Held as a file has them, of type DType.
func (t Type) Pack(codes *tensor.Tensor) *tensor.Tensor {
	if codes.DType() == t.DType {
		return codes
	}
	out := tensor.New(t.DType, codes.Shape()...)
	pack(out.Bytes(), codes.Bytes(), t.DType.Bits(), 0)
	return out
}

// Reduced returns the type with one bit less of range, for kernels whose
// 16-bit sums of products saturate.
func (t Type) Reduced() Type {
	t.Min, t.Max = t.Min/2, t.Max/2
	return t
}

// Scheme says how a tensor is quantized.
type Scheme struct {
	Type Type
	// Symmetric makes the zero point the middle of the codes: 0 for signed
	// types.
	Symmetric bool
	// Axis is the axis whose slices have parameters of their own; -1 means one
	// set for the whole tensor.
	Axis int
	// PowerOfTwo rounds scales up to a power of two.
	PowerOfTwo bool
}

// Watch says how an activation has to be observed to choose its parameters and
// those of the weights that it meets.
type Watch struct {
	Observe bool
	// Channels asks for statistics along Axis, which may count from the end. Without
	// Observe they are of use, but not needed.
	Channels bool
	Axis     int
}

// Range is an interval of real values.
type Range struct{ Min, Max float64 }

// Params are scales and zero points of a tensor: one of each, or one per slice
// of Axis. Scales are finite, positive and normal float32 values; zero points
// lie within the codes of Type.
type Params struct {
	Type  Type
	Axis  int // -1: per tensor
	Scale []float32
	Zero  []int32
	// PowerOfTwo says that scales are powers of two, and have to remain so.
	PowerOfTwo bool
	// Codes are those that Quantize gives, in place of the nearest ones.
	Codes *tensor.Tensor
	// Coded are the codes and parameters of a weight in blocks, in place of
	// everything else; nil for those that are encoded when they are written.
	Coded *Coded
}

// smallestScale is the smallest normal float32.
const smallestScale = 0x1p-126

// Scalar returns the scale and zero point that cover r, which is first
// extended to contain 0, so that 0 is a code exactly. An empty range, [0, 0],
// gets scale 1. The error says so if a bound is NaN or infinite, or the bounds
// are in the wrong order.
func (s Scheme) Scalar(r Range) (scale float32, zero int32, err error) {
	if math.IsNaN(r.Min) || math.IsNaN(r.Max) || math.IsInf(r.Min, 0) || math.IsInf(r.Max, 0) || r.Min > r.Max {
		return 0, 0, fmt.Errorf("range [%v, %v] is not a finite interval", r.Min, r.Max)
	}
	lo, hi := math.Min(r.Min, 0), math.Max(r.Max, 0)
	qmin, qmax := float64(s.Type.Min), float64(s.Type.Max)
	var step, base float64
	if s.Symmetric {
		bound := math.Max(-lo, hi)
		base = math.Round((qmin + qmax) / 2)
		if qmin < 0 {
			base = 0
		}
		step = bound / (qmax - base)
	} else {
		step = hi/(qmax-qmin) - lo/(qmax-qmin)
	}
	if s.PowerOfTwo && step > 0 {
		step = math.Exp2(math.Ceil(math.Log2(step)))
	}
	f := float32(step)
	switch {
	case lo == 0 && hi == 0:
		f = 1
	case f < smallestScale:
		f = smallestScale
	case math.IsInf(float64(f), 0):
		return 0, 0, fmt.Errorf("range [%v, %v] is too wide for a float32 scale", r.Min, r.Max)
	}
	if s.Symmetric {
		return f, int32(base), nil
	}
	z := math.RoundToEven(qmin - lo/float64(f))
	return f, int32(math.Max(qmin, math.Min(qmax, z))), nil
}

// Tensor returns per-tensor parameters that cover r.
func (s Scheme) Tensor(r Range) (Params, error) {
	scale, zero, err := s.Scalar(r)
	return Params{Type: s.Type, Axis: -1, Scale: []float32{scale}, Zero: []int32{zero}, PowerOfTwo: s.PowerOfTwo}, err
}

// Lo returns the real value of the lowest code of slice c.
func (p Params) Lo(c int) float64 {
	return float64(p.Type.Min-p.Zero[c]) * float64(p.Scale[c])
}

// Hi returns the real value of the highest code of slice c.
func (p Params) Hi(c int) float64 {
	return float64(p.Type.Max-p.Zero[c]) * float64(p.Scale[c])
}

// Equal reports whether p and q give every value the same code.
func (p Params) Equal(q Params) bool {
	if p.Type.DType != q.Type.DType || p.Axis != q.Axis || len(p.Scale) != len(q.Scale) {
		return false
	}
	for i := range p.Scale {
		if p.Scale[i] != q.Scale[i] || p.Zero[i] != q.Zero[i] {
			return false
		}
	}
	return true
}

// ErrNotFinite is wrapped by errors about tensors that hold NaN or Inf.
var ErrNotFinite = errors.New("holds NaN or Inf")

// split returns the sizes around the axis of a tensor of the given shape.
func split(shape []int, axis int) (outer, channels, inner int) {
	outer, channels, inner = 1, 1, 1
	for i, d := range shape {
		switch {
		case axis < 0 || i > axis:
			inner *= d
		case i == axis:
			channels = d
		default:
			outer *= d
		}
	}
	return outer, channels, inner
}

// Ranges returns the range of each slice of a float32 tensor along axis (-1:
// one range for all).
func Ranges(t *tensor.Tensor, axis int) ([]Range, error) {
	outer, channels, inner := split(t.Shape(), axis)
	all := make([]kernels.Extrema, channels)
	for c := range all {
		all[c] = kernels.NoExtrema()
	}
	bad, r := 0, reader{t: t}
	if inner == 1 && channels > 1 {
		lows, highs := make([]float32, channels), make([]float32, channels)
		rows := max(1, panel/channels)
		for o := 0; o < outer; o += rows {
			nans, infs := kernels.MinMaxChannels(lows, highs, r.floats(o*channels, min(rows, outer-o)*channels), 1)
			bad += nans + infs
			for c := range all {
				all[c].Min, all[c].Max = min(all[c].Min, lows[c]), max(all[c].Max, highs[c])
			}
		}
	} else {
		for i := range outer * channels {
			for at := 0; at < inner; at += panel {
				e := kernels.MinMax(r.floats(i*inner+at, min(panel, inner-at)))
				all[i%channels], bad = all[i%channels].Merge(e), bad+e.NaN+e.Inf
			}
		}
	}
	if bad > 0 {
		return nil, fmt.Errorf("%w (%d of %d elements)", ErrNotFinite, bad, t.Len())
	}
	out := make([]Range, channels)
	for c, e := range all {
		out[c] = Range{Min: min(0, float64(e.Min)), Max: max(0, float64(e.Max))}
	}
	return out, nil
}

// Weights returns parameters that cover the whole range of a float32 tensor,
// slice by slice of s.Axis.
func (s Scheme) Weights(t *tensor.Tensor) (Params, error) {
	ranges, err := Ranges(t, s.Axis)
	if err != nil {
		return Params{}, err
	}
	p := Params{Type: s.Type, Axis: s.Axis, Scale: make([]float32, len(ranges)), Zero: make([]int32, len(ranges)), PowerOfTwo: s.PowerOfTwo}
	for c, r := range ranges {
		if p.Scale[c], p.Zero[c], err = s.Scalar(r); err != nil {
			return Params{}, err
		}
	}
	return p, nil
}

// Noise estimates the mean square of the rounding error of a float32 tensor,
// relative to its mean square, when each slice of s.Axis gets parameters that
// cover its range: a twelfth of the squared scale (Widrow and Kollár,
// Quantization Noise, 2008, section 1.1). A tensor of zeros has none.
func (s Scheme) Noise(t *tensor.Tensor) (float64, error) {
	ranges, err := Ranges(t, s.Axis)
	if err != nil || t.Len() == 0 {
		return 0, err
	}
	var signal, noise float64
	for at, read := 0, (reader{t: t}); at < t.Len(); at += panel {
		signal += kernels.ReduceSumSquares(read.floats(at, min(panel, t.Len()-at)))
	}
	if signal == 0 {
		return 0, nil
	}
	for _, r := range ranges {
		if r.Min == r.Max {
			continue
		}
		scale, _, err := s.Scalar(r)
		if err != nil {
			return 0, err
		}
		noise += float64(scale) * float64(scale) / 12
	}
	return noise * float64(t.Len()/len(ranges)) / signal, nil
}

// Check returns why Quantize does not serve the tensor t.
func (p Params) Check(t *tensor.Tensor) error {
	held := p.Type.Held()
	if bits := held.Bits(); t.DType() != tensor.Float32 || bits != 8 && (bits != 16 || p.Axis >= 0) {
		return fmt.Errorf("cannot quantize %v to %v", t.DType(), p.Type.DType)
	}
	if p.Codes != nil {
		if !slices.Equal(p.Codes.Shape(), t.Shape()) || p.Codes.DType() != held {
			return fmt.Errorf("codes %v for a tensor %v of type %s", p.Codes, t, p.Type.Name)
		}
		return nil
	}
	if _, channels, _ := split(t.Shape(), p.Axis); channels != len(p.Scale) {
		return fmt.Errorf("%d scales for %d slices of %v", len(p.Scale), channels, t)
	}
	return nil
}

// Quantize returns the codes of a float32 tensor, of type p.Type.Held(), which
// must have 8 or, per tensor, 16 bits: the nearest ones, the lowest for NaN, or
// p.Codes. The error is that of Check. pool may be nil.
func (p Params) Quantize(pool *par.Pool, t *tensor.Tensor) (*tensor.Tensor, error) {
	if err := p.Check(t); err != nil {
		return nil, err
	}
	if p.Codes != nil {
		return p.Codes, nil
	}
	out := tensor.New(p.Type.Held(), t.Shape()...)
	outer, channels, inner := split(t.Shape(), p.Axis)
	if inner == 1 && channels > 1 {
		pool.For(outer, max(1, panel/channels), func(lo, hi int) {
			r := reader{t: t}
			for i := lo; i < hi; i++ {
				p.columns(out, i*channels, r.floats(i*channels, channels))
			}
		})
		return out, nil
	}
	pool.For(t.Len(), panel, func(lo, hi int) {
		r := reader{t: t}
		for lo < hi {
			end := min(hi, (lo/inner+1)*inner)
			c := lo / inner % channels
			p.run(out, lo, r.floats(lo, end-lo), p.Scale[c], p.Zero[c])
			lo = end
		}
	})
	return out, nil
}

// Recode returns p.Codes, those of t, with the nearest ones in some slices, whose scales
// have changed. The error is that of Check.
func (p Params) Recode(t *tensor.Tensor, slices []int) (*tensor.Tensor, error) {
	out := p.Codes.Clone()
	p.Codes = nil
	near, err := p.Quantize(nil, t)
	if err != nil {
		return nil, err
	}
	outer, channels, inner := split(t.Shape(), p.Axis)
	inner *= out.DType().Bits() / 8
	for i := range outer {
		for _, c := range slices {
			at := (i*channels + c) * inner
			copy(out.Bytes()[at:at+inner], near.Bytes()[at:])
		}
	}
	return out, nil
}

// run stores the codes of elements with one scale in out from the place at on.
func (p Params) run(out *tensor.Tensor, at int, x []float32, scale float32, zero int32) {
	lo, hi := p.Type.Min, p.Type.Max
	switch out.DType() {
	case tensor.Uint16:
		kernels.QuantizeRangeU16(tensor.As[uint16](out)[at:], x, scale, uint16(zero), uint16(lo), uint16(hi))
	case tensor.Int16:
		kernels.QuantizeRangeI16(tensor.As[int16](out)[at:], x, scale, int16(zero), int16(lo), int16(hi))
	case tensor.Uint8:
		kernels.QuantizeRangeU8(tensor.As[uint8](out)[at:], x, scale, uint8(zero), uint8(lo), uint8(hi))
	case tensor.Float8E4M3FN:
		p.floats(out, at, x, func(int) float32 { return scale })
	default:
		kernels.QuantizeRangeI8(tensor.As[int8](out)[at:], x, scale, int8(zero), int8(lo), int8(hi))
	}
}

// columns stores the codes of a row with a scale for each element.
func (p Params) columns(out *tensor.Tensor, at int, row []float32) {
	if p.Type.Real() {
		p.floats(out, at, row, func(i int) float32 { return p.Scale[i] })
	} else if out.DType() == tensor.Int8 {
		kernels.QuantizeColumns(tensor.As[int8](out)[at:], row, p.Scale, p.Zero, int8(p.Type.Min), int8(p.Type.Max))
	} else {
		kernels.QuantizeColumns(tensor.As[uint8](out)[at:], row, p.Scale, p.Zero, uint8(p.Type.Min), uint8(p.Type.Max))
	}
}

// floats stores elements over their scales as small floats within the bounds of the
// type.
func (p Params) floats(out *tensor.Tensor, at int, x []float32, scale func(i int) float32) {
	lo, hi := float32(p.Type.Min), float32(p.Type.Max)
	over := make([]float32, len(x))
	for i, v := range x {
		over[i] = max(lo, min(hi, v/scale(i)))
	}
	tensor.Write(out, at, over)
}

// Code returns the code of x in slice c. NaN gets the code of 0.
func (p Params) Code(x float32, c int) int32 {
	if x != x {
		return p.Zero[c]
	}
	q := math.RoundToEven(float64(x/p.Scale[c])) + float64(p.Zero[c])
	return int32(math.Max(float64(p.Type.Min), math.Min(float64(p.Type.Max), q)))
}

// Value returns the real value of code q in slice c, as DequantizeLinear
// computes it.
func (p Params) Value(q int32, c int) float32 { return float32(q-p.Zero[c]) * p.Scale[c] }

// Dequantize returns the real values of codes that Quantize returned.
func (p Params) Dequantize(codes *tensor.Tensor) *tensor.Tensor {
	out := tensor.New(tensor.Float32, codes.Shape()...)
	dst := tensor.As[float32](out)
	_, channels, inner := split(codes.Shape(), p.Axis)
	if p.Type.Real() {
		tensor.Read(codes, 0, dst)
		for i := range dst {
			dst[i] *= p.Scale[i/inner%channels]
		}
		return out
	}
	switch codes.DType() {
	case tensor.Int8:
		dequantize(p, dst, tensor.As[int8](codes), channels, inner, kernels.DequantizeI8)
	case tensor.Uint8:
		dequantize(p, dst, tensor.As[uint8](codes), channels, inner, kernels.DequantizeU8)
	case tensor.Int16:
		dequantize(p, dst, tensor.As[int16](codes), channels, inner, kernels.DequantizeI16)
	case tensor.Uint16:
		dequantize(p, dst, tensor.As[uint16](codes), channels, inner, kernels.DequantizeU16)
	}
	return out
}

func dequantize[T int8 | uint8 | int16 | uint16](p Params, dst []float32, src []T, channels, inner int, run func(dst []float32, src []T, scale float32, zero T)) {
	if inner == 1 && channels > 1 {
		for ; len(src) > 0; dst, src = dst[channels:], src[channels:] {
			kernels.DequantizeColumns(dst, src[:channels], p.Scale, p.Zero)
		}
		return
	}
	for c := 0; len(src) > 0; dst, src = dst[inner:], src[inner:] {
		run(dst, src[:inner], p.Scale[c], T(p.Zero[c]))
		if c++; c == channels {
			c = 0
		}
	}
}

// ScaleTensor returns the scales as a tensor: a scalar per tensor, else a
// vector.
func (p Params) ScaleTensor() *tensor.Tensor {
	if p.Axis < 0 {
		return tensor.Scalar(p.Scale[0])
	}
	return tensor.Of(p.Scale)
}

// ZeroTensor returns the zero points as a tensor of the storage type: a scalar
// per tensor, else a vector.
func (p Params) ZeroTensor() *tensor.Tensor {
	shape := []int{}
	if p.Axis >= 0 {
		shape = []int{len(p.Zero)}
	}
	out := tensor.New(p.Type.Held(), shape...)
	width := p.Type.Held().Bits() / 8
	for i, z := range p.Zero {
		for b := range width {
			out.Bytes()[i*width+b] = byte(z >> (8 * b))
		}
	}
	return p.Type.Pack(out)
}

// Bias returns the int32 codes of a bias with scales sx·sw[c] and zero point
// 0, and the scales. A channel whose bias would overflow 30 bits gets a larger
// weight scale: then raised holds the channels and p.Scale is changed in
// place, so the weights have to be quantized after the bias.
func (p Params) Bias(b []float32, sx float32) (codes []int32, scale []float32, raised []int, err error) {
	const limit = 1 << 30 // leaves the accumulator a bit of room
	codes, scale = make([]int32, len(b)), make([]float32, len(b))
	for i, v := range b {
		c := min(i, len(p.Scale)-1)
		if v-v != 0 {
			return nil, nil, nil, fmt.Errorf("bias %w", ErrNotFinite)
		}
		need := math.Abs(float64(v)) / limit / float64(sx)
		if float64(p.Scale[c]) < need {
			if p.Axis < 0 && len(b) > 1 {
				// One scale serves all channels; earlier codes stay valid only if
				// it is settled first.
				for _, w := range b {
					need = math.Max(need, math.Abs(float64(w))/limit/float64(sx))
				}
			}
			p.Scale[c] = float32(need * (1 + 0x1p-20))
			if p.PowerOfTwo {
				p.Scale[c] = float32(math.Exp2(math.Ceil(math.Log2(need))))
			}
			raised = append(raised, c)
			if p.Axis < 0 && i > 0 {
				return p.Bias(b, sx)
			}
		}
		s := sx * p.Scale[c]
		if s < smallestScale {
			s = smallestScale
		}
		scale[i] = s
		codes[i] = int32(math.RoundToEven(float64(v) / float64(s)))
	}
	return codes, scale, raised, nil
}
