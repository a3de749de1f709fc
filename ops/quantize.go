package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// quantizeSpecs returns the operators between real values and codes. Their
// flow is Opaque: what they connect is quantized already.
func quantizeSpecs() []Spec {
	var specs []Spec
	for _, domain := range []string{graph.OnnxDomain, msDomain} {
		attrs := []AttrSpec{{Name: "axis", Kind: graph.AttrInt}, {Name: "block_size", Kind: graph.AttrInt}, {Name: "output_dtype", Kind: graph.AttrInt}}
		specs = append(specs, Spec{
			Domain: domain, Type: "QuantizeLinear", Since: 10, Flow: Opaque, Pure: true,
			In:    []Port{{Name: "x", Role: Activation}, {Name: "y_scale"}, {Name: "y_zero_point", Optional: true}},
			Out:   []Port{{Name: "y"}},
			Attrs: append(attrs[:3:3], AttrSpec{Name: "precision", Kind: graph.AttrInt}, AttrSpec{Name: "saturate", Kind: graph.AttrInt}),
			Infer: inferQuantize, Compile: compileQuantize,
		}, Spec{
			Domain: domain, Type: "DequantizeLinear", Since: 10, Flow: Opaque, Pure: true,
			In:    []Port{{Name: "x"}, {Name: "x_scale"}, {Name: "x_zero_point", Optional: true}},
			Out:   []Port{{Name: "y", Role: Activation}},
			Attrs: attrs, Infer: inferDequantize, Compile: compileDequantize,
		})
	}
	return append(specs, Spec{
		Type: "DynamicQuantizeLinear", Since: 11, Flow: Opaque, Pure: true,
		In:    []Port{{Name: "x", Role: Activation}},
		Out:   []Port{{Name: "y"}, {Name: "y_scale"}, {Name: "y_zero_point"}},
		Infer: inferDynamicQuantize, Compile: compileDynamicQuantize,
	})
}

// granularity says which of the scales belongs to which element of a tensor
// [outer, channels, inner]. See QuantizeLinear in the ONNX operator
// specification for per-tensor, per-axis and blocked quantization.
type granularity struct {
	outer, channels, inner int
	blocks, block          int // per outer index; 0 blocks: not blocked
	perTensor              bool
}

// segment is a run of elements whose scales start at index scale and are the
// same (step 0) or consecutive (step 1).
type segment struct{ from, n, scale, step int }

// newGranularity finds the granularity for a tensor of shape s with scales of
// shape ss.
func newGranularity(s, ss []int, axis, block int64) (granularity, error) {
	total, _ := tensor.NumElements(s)
	scales, _ := tensor.NumElements(ss)
	if len(ss) == 0 || len(ss) == 1 && ss[0] == 1 {
		return granularity{outer: 1, channels: 1, inner: total, perTensor: true}, nil
	}
	bad := fmt.Errorf("scale of shape %v for a tensor of shape %v, axis %d, block size %d", ss, s, axis, block)
	a, err := NormalAxis(axis, len(s))
	if err != nil {
		return granularity{}, err
	}
	g := granularity{outer: 1, channels: s[a], inner: 1}
	for i, d := range s {
		if i < a {
			g.outer *= d
		} else if i > a {
			g.inner *= d
		}
	}
	if len(ss) == 1 && block == 0 {
		if scales != g.channels {
			return g, bad
		}
		return g, nil
	}
	if len(ss) != len(s) || block < 0 {
		return g, bad
	}
	for i, d := range s {
		if i != a && ss[i] != d {
			return g, bad
		}
	}
	g.blocks, g.block = ss[a], int(min(block, int64(max(g.channels, 1))))
	if g.block == 0 && g.blocks > 0 { // the smallest size that gives so many blocks
		g.block = (g.channels + g.blocks - 1) / g.blocks
	}
	if g.block == 0 || (g.channels+g.block-1)/g.block != g.blocks {
		return g, bad
	}
	return g, nil
}

// perTensorRun is the length of a segment where one scale serves all.
const perTensorRun = 1 << 14

// segments returns their number.
func (g *granularity) segments() int {
	switch {
	case g.perTensor:
		return (g.inner + perTensorRun - 1) / perTensorRun
	case g.blocks == 0 && g.inner == 1:
		return g.outer
	case g.blocks > 0 && g.inner == 1:
		return g.outer * g.blocks
	}
	return g.outer * g.channels
}

// segment returns segment i; they follow each other without gaps.
func (g *granularity) segment(i int) segment {
	switch {
	case g.perTensor:
		from := i * perTensorRun
		return segment{from, min(perTensorRun, g.inner-from), 0, 0}
	case g.blocks == 0 && g.inner == 1:
		return segment{i * g.channels, g.channels, 0, 1}
	case g.blocks == 0:
		return segment{i * g.inner, g.inner, i % g.channels, 0}
	case g.inner == 1:
		at := i % g.blocks * g.block
		return segment{i/g.blocks*g.channels + at, min(g.block, g.channels-at), i, 0}
	}
	return segment{i * g.inner, g.inner, (i/g.channels*g.blocks + i%g.channels/g.block) * g.inner, 1}
}

// each runs f over all segments, in parallel.
func (g *granularity) each(c *Call, f func(s segment)) error {
	n := g.segments()
	if n == 0 {
		return nil
	}
	return c.For(n, max(1, perTensorRun*n/max(1, g.outer*g.channels*g.inner)), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			f(g.segment(i))
		}
	})
}

// scales holds the parameters of a node in the form that kernels take.
type scales struct {
	scale []float32
	zero  []int32 // as many as scales
}

// readScales converts scale and zero point tensors. Zero points of float types
// have no meaning and count as 0.
func readScales(scale, zero *tensor.Tensor) (*scales, error) {
	s, err := tensor.Float32s(scale)
	if err != nil {
		return nil, err
	}
	out := &scales{scale: s, zero: make([]int32, len(s))}
	if zero == nil || !zero.DType().IsInt() {
		return out, nil
	}
	if zero.Len() != len(s) {
		return nil, fmt.Errorf("zero point %v for scale %v", zero, scale)
	}
	z, err := tensor.Int64s(zero)
	if err != nil {
		return nil, err
	}
	for i, v := range z {
		out.zero[i] = int32(v)
	}
	return out, nil
}

// constScales returns the parameters in inputs i and i+1 of s if they are
// constant, else nil.
func constScales(s *Site, i int) (*scales, error) {
	scale, zero := s.Const(i), s.Const(i+1)
	if scale == nil || s.Has(i+1) && zero == nil {
		return nil, nil
	}
	p, err := readScales(scale, zero)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	return p, nil
}

// scalesAt returns ready, or else the parameters in inputs i and i+1 of c.
func scalesAt(c *Call, i int, ready *scales) (*scales, error) {
	if ready != nil {
		return ready, nil
	}
	if c.In(i) == nil {
		return nil, fmt.Errorf("input %d is missing", i)
	}
	return readScales(c.In(i), c.In(i+1))
}

// codeType returns the output type of a QuantizeLinear.
func codeType(n *graph.Node, zero tensor.DType) (tensor.DType, error) {
	t := tensor.Uint8
	if a := n.Int("output_dtype", 0); a != 0 {
		if t = tensor.DType(a); a < 0 || a > math.MaxUint8 {
			return 0, fmt.Errorf("output_dtype is %d", a)
		}
		if zero != tensor.Undefined && zero != t {
			return 0, fmt.Errorf("output_dtype is %v, the zero point is %v", t, zero)
		}
	} else if zero != tensor.Undefined {
		t = zero
	}
	switch t {
	case tensor.Uint8, tensor.Int8, tensor.Uint16, tensor.Int16, tensor.Uint4, tensor.Int4, tensor.Uint2, tensor.Int2,
		tensor.Float8E4M3FN, tensor.Float8E4M3FNUZ, tensor.Float8E5M2, tensor.Float8E5M2FNUZ, tensor.Float4E2M1:
		return t, nil
	}
	return 0, fmt.Errorf("quantization to %v", t)
}

func inferQuantize(c *Inference) error {
	t, err := codeType(c.Node, c.Elem(2))
	if err != nil {
		return c.Errorf("%w", err)
	}
	if c.Node.Input(2) != nil && c.Elem(2) == tensor.Undefined && c.Node.Int("output_dtype", 0) == 0 {
		t = tensor.Undefined
	}
	c.Tensor(0, t, c.Shape(0))
	return nil
}

// quantizer is a QuantizeLinear bound to its attributes and constants.
type quantizer struct {
	node        *graph.Node
	axis, block int64
	precision   tensor.DType // of the division; Undefined for the scale's
	noSaturate  bool
	params      *scales
}

func compileQuantize(s *Site) (Kernel, error) {
	n := s.Node
	q := &quantizer{node: n, axis: n.Int("axis", 1), block: n.Int("block_size", 0), noSaturate: n.Int("saturate", 1) == 0}
	switch p := n.Int("precision", 0); tensor.DType(p) {
	case tensor.Undefined, tensor.Float32, tensor.Float16, tensor.BFloat16:
		q.precision = tensor.DType(p)
	default:
		return nil, s.Errorf("precision is %d", p)
	}
	var err error
	if q.params, err = constScales(s, 1); err != nil {
		return nil, err
	}
	return q.run, nil
}

func (q *quantizer) run(c *Call) error {
	x, scale := c.In(0), c.In(1)
	zero := tensor.Undefined
	if z := c.In(2); z != nil {
		zero = z.DType()
	}
	t, err := codeType(q.node, zero)
	if err != nil {
		return err
	}
	p, err := scalesAt(c, 1, q.params)
	if err != nil {
		return err
	}
	g, err := newGranularity(x.Shape(), scale.Shape(), q.axis, q.block)
	if err != nil {
		return err
	}
	y, err := c.Out(0, t, x.Shape()...)
	if err != nil {
		return err
	}
	precision := q.precision
	if precision == tensor.Undefined {
		if precision = scale.DType(); !isHalf(precision) {
			precision = tensor.Float32
		}
	}
	if !x.DType().Convertible() {
		return fmt.Errorf("quantization of %v", x.DType())
	}
	if x.DType() == tensor.Float32 && precision == tensor.Float32 && t.IsInt() {
		return quantizeTo(c, &g, p, tensor.As[float32](x), y)
	}
	// What is left divides into a buffer first, rounded to the precision.
	v, err := c.Floats(x.Len())
	if err != nil {
		return err
	}
	if err := g.each(c, func(s segment) {
		part := v[s.from:][:s.n]
		tensor.Read(x, s.from, part)
		for i := range part {
			part[i] = round16(round16(part[i], precision)/p.scale[s.scale+i*s.step], precision)
		}
	}); err != nil {
		return err
	}
	if t.IsInt() {
		one := &scales{scale: fillNew(len(p.scale), float32(1)), zero: p.zero}
		return quantizeTo(c, &g, one, v, y)
	}
	return tensor.Convert(y, tensor.Of(v, x.Shape()...), 0, x.Len(), tensor.ConvertOptions{NoSaturate: q.noSaturate})
}

func fillNew[T any](n int, v T) []T {
	s := make([]T, n)
	fill(s, v)
	return s
}

// round16 rounds v to a 16-bit type; for Float32 it returns v.
func round16(v float32, d tensor.DType) float32 {
	switch d {
	case tensor.Float16:
		return tensor.Float16ToFloat32(tensor.Float16FromFloat32(v))
	case tensor.BFloat16:
		return tensor.BFloat16ToFloat32(tensor.BFloat16FromFloat32(v))
	}
	return v
}

// quantizeTo stores the codes of x in y, a tensor of integers.
func quantizeTo(c *Call, g *granularity, p *scales, x []float32, y *tensor.Tensor) error {
	t := y.DType()
	lo, hi, _ := t.IntRange()
	switch {
	case t == tensor.Uint8:
		return quantizeAs(c, g, p, x, tensor.As[uint8](y), 0, 255, kernels.QuantizeRangeU8)
	case t == tensor.Int8:
		return quantizeAs(c, g, p, x, tensor.As[int8](y), -128, 127, kernels.QuantizeRangeI8)
	case t == tensor.Uint16:
		return quantizeAs(c, g, p, x, tensor.As[uint16](y), 0, 65535, kernels.QuantizeRangeU16)
	case t == tensor.Int16:
		return quantizeAs(c, g, p, x, tensor.As[int16](y), -32768, 32767, kernels.QuantizeRangeI16)
	}
	codes, err := c.Mem.Scratch(len(x))
	if err != nil {
		return err
	}
	if t.IsSigned() {
		signed := signedBytes(codes)
		err = quantizeAs(c, g, p, x, signed, int8(lo), int8(hi), kernels.QuantizeRangeI8)
	} else {
		err = quantizeAs(c, g, p, x, codes, uint8(lo), uint8(hi), kernels.QuantizeRangeU8)
	}
	if err != nil {
		return err
	}
	if t.Bits() == 4 {
		kernels.Pack4(y.Bytes(), codes, 0)
	} else {
		kernels.Pack2(y.Bytes(), codes, 0)
	}
	return nil
}

// signedBytes returns b as int8 values in the same memory.
func signedBytes(b []byte) []int8 {
	t, err := tensor.FromBytes(tensor.Int8, []int{len(b)}, b)
	if err != nil {
		panic(err) // the length is that of the slice
	}
	return tensor.As[int8](t)
}

func quantizeAs[T uint8 | int8 | uint16 | int16](c *Call, g *granularity, p *scales, x []float32, y []T, lo, hi T,
	quantize func(dst []T, src []float32, scale float32, zero, lo, hi T)) error {
	return g.each(c, func(s segment) {
		src, dst := x[s.from:][:s.n], y[s.from:][:s.n]
		if s.step == 0 {
			quantize(dst, src, p.scale[s.scale], T(p.zero[s.scale]), lo, hi)
			return
		}
		scale, zero := p.scale[s.scale:][:s.n], p.zero[s.scale:][:s.n]
		kernels.QuantizeColumns(dst, src, scale, zero, lo, hi)
	})
}

// codeOf returns clamp(roundHalfEven(v)+zero, lo, hi); for a NaN, lo.
func codeOf(v float32, zero, lo, hi int32) int32 {
	l, h := float32(lo-zero), float32(hi-zero)
	switch {
	case !(v > l):
		return lo
	case v >= h:
		return hi
	}
	return int32(math.RoundToEven(float64(v))) + zero
}

// dequantizedType returns the output type of a DequantizeLinear.
func dequantizedType(n *graph.Node, scale tensor.DType) (tensor.DType, error) {
	t := scale
	if a := n.Int("output_dtype", 0); a != 0 {
		if t = tensor.DType(a); a < 0 || a > math.MaxUint8 {
			t = tensor.Undefined
		}
	}
	if t == tensor.Float32 || isHalf(t) {
		return t, nil
	}
	return 0, fmt.Errorf("dequantization with a scale of type %v and output_dtype %d", scale, n.Int("output_dtype", 0))
}

func inferDequantize(c *Inference) error {
	if c.Elem(1) == tensor.Undefined && c.Node.Int("output_dtype", 0) == 0 {
		c.Tensor(0, tensor.Undefined, c.Shape(0))
		return nil
	}
	t, err := dequantizedType(c.Node, c.Elem(1))
	if err != nil {
		return c.Errorf("%w", err)
	}
	c.Tensor(0, t, c.Shape(0))
	return nil
}

// dequantizer is a DequantizeLinear bound to its attributes and constants.
type dequantizer struct {
	node        *graph.Node
	axis, block int64
	params      *scales
}

func compileDequantize(s *Site) (Kernel, error) {
	n := s.Node
	d := &dequantizer{node: n, axis: n.Int("axis", 1), block: n.Int("block_size", 0)}
	var err error
	if d.params, err = constScales(s, 1); err != nil {
		return nil, err
	}
	return d.run, nil
}

func (d *dequantizer) run(c *Call) error {
	x, scale := c.In(0), c.In(1)
	t, err := dequantizedType(d.node, scale.DType())
	if err != nil {
		return err
	}
	if z := c.In(2); z != nil && z.DType() != x.DType() {
		return fmt.Errorf("zero point of type %v for codes of type %v", z.DType(), x.DType())
	}
	p, err := scalesAt(c, 1, d.params)
	if err != nil {
		return err
	}
	g, err := newGranularity(x.Shape(), scale.Shape(), d.axis, d.block)
	if err != nil {
		return err
	}
	y, err := c.Out(0, t, x.Shape()...)
	if err != nil {
		return err
	}
	if t == tensor.Float32 {
		return dequantizeTo(c, &g, p, x, tensor.As[float32](y))
	}
	v, err := c.Floats(x.Len())
	if err != nil {
		return err
	}
	if err := dequantizeTo(c, &g, p, x, v); err != nil {
		return err
	}
	tensor.Write(y, 0, v)
	return nil
}

// dequantizeTo stores the real values of the codes x in y.
func dequantizeTo(c *Call, g *granularity, p *scales, x *tensor.Tensor, y []float32) error {
	switch t := x.DType(); t {
	case tensor.Uint8:
		return dequantizeAs(c, g, p, tensor.As[uint8](x), y, kernels.DequantizeU8)
	case tensor.Int8:
		return dequantizeAs(c, g, p, tensor.As[int8](x), y, kernels.DequantizeI8)
	case tensor.Uint16:
		return dequantizeAs(c, g, p, tensor.As[uint16](x), y, kernels.DequantizeU16)
	case tensor.Int16:
		return dequantizeAs(c, g, p, tensor.As[int16](x), y, kernels.DequantizeI16)
	case tensor.Int32:
		return dequantizeAs(c, g, p, tensor.As[int32](x), y, func(dst []float32, src []int32, scale float32, zero int32) {
			if zero == 0 {
				kernels.DequantizeI32(dst, src, scale)
				return
			}
			for i, q := range src {
				dst[i] = float32(q-zero) * scale
			}
		})
	case tensor.Uint4, tensor.Int4, tensor.Uint2, tensor.Int2:
		codes, err := c.Mem.Scratch(x.Len())
		if err != nil {
			return err
		}
		if !t.IsSigned() {
			if t.Bits() == 4 {
				kernels.Unpack4(codes, x.Bytes())
			} else {
				kernels.Unpack2(codes, x.Bytes())
			}
			return dequantizeAs(c, g, p, codes, y, kernels.DequantizeU8)
		}
		signed := signedBytes(codes)
		if t.Bits() == 4 {
			kernels.Unpack4(signed, x.Bytes())
		} else {
			kernels.Unpack2(signed, x.Bytes())
		}
		return dequantizeAs(c, g, p, signed, y, kernels.DequantizeI8)
	case tensor.Float8E4M3FN, tensor.Float8E4M3FNUZ, tensor.Float8E5M2, tensor.Float8E5M2FNUZ, tensor.Float4E2M1:
		return g.each(c, func(s segment) {
			dst := y[s.from:][:s.n]
			tensor.Read(x, s.from, dst)
			for i := range dst {
				dst[i] *= p.scale[s.scale+i*s.step]
			}
		})
	default:
		return fmt.Errorf("dequantization of %v", t)
	}
}

func dequantizeAs[T uint8 | int8 | uint16 | int16 | int32](c *Call, g *granularity, p *scales, x []T, y []float32,
	dequantize func(dst []float32, src []T, scale float32, zero T)) error {
	return g.each(c, func(s segment) {
		src, dst := x[s.from:][:s.n], y[s.from:][:s.n]
		if s.step == 0 {
			dequantize(dst, src, p.scale[s.scale], T(p.zero[s.scale]))
			return
		}
		scale, zero := p.scale[s.scale:][:s.n], p.zero[s.scale:][:s.n]
		kernels.DequantizeColumns(dst, src, scale, zero)
	})
}

func inferDynamicQuantize(c *Inference) error {
	c.Tensor(0, tensor.Uint8, c.Shape(0))
	c.Tensor(1, tensor.Float32, graph.Shape{})
	c.Tensor(2, tensor.Uint8, graph.Shape{})
	return nil
}

func compileDynamicQuantize(*Site) (Kernel, error) {
	return func(c *Call) error {
		x := c.In(0)
		if x.DType() != tensor.Float32 {
			return fmt.Errorf("input of type %v", x.DType())
		}
		y, err := c.Out(0, tensor.Uint8, x.Shape()...)
		if err != nil {
			return err
		}
		scale, zero, err := dynamicQuantize(c, tensor.As[float32](x), tensor.As[uint8](y))
		if err != nil {
			return err
		}
		if c.wants(1) {
			c.SetOut(1, tensor.Scalar(scale))
		}
		if c.wants(2) {
			c.SetOut(2, tensor.Scalar(zero))
		}
		return nil
	}, nil
}

// dynamicQuantize stores the codes of x in y and returns their parameters, by
// the formulas of DynamicQuantizeLinear in the ONNX operator specification;
// the scale is 1 where all of x is 0, as in ONNX Runtime.
func dynamicQuantize(c *Call, x []float32, y []uint8) (scale float32, zero uint8, err error) {
	scale, zero = dynamicParams(x)
	err = c.For(len(x), perTensorRun, func(lo, hi int) { kernels.QuantizeU8(y[lo:hi], x[lo:hi], scale, zero) })
	return scale, zero, err
}

func dynamicParams(x []float32) (scale float32, zero uint8) {
	e := kernels.MinMax(x)
	lo, hi := min(e.Min, 0), max(e.Max, 0)
	if scale = 1; hi > lo {
		scale = (hi - lo) / 255
	}
	return scale, uint8(math.RoundToEven(float64(min(max(-lo/scale, 0), 255))))
}
