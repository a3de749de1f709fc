package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// unary is an element-wise function of one operand in the types that it is
// defined for. Without f32, float32 is computed as float64 and rounded.
type unary struct {
	f32   func(dst, src []float32) // dst may be src
	f64   func(x float64) float64
	i64   func(x int64) int64
	u64   func(x uint64) uint64
	cheap bool
}

// unaryOp is an entry of the table of functions of one operand.
type unaryOp struct {
	name   string
	since  int
	flow   Flow
	lo, hi float32 // range of a Fixed operator
	attrs  []AttrSpec
	build  func(s *Site) unary
}

// rows returns the float32 loop of a vectorized function.
func rows(op kernels.UnaryOp) func(dst, src []float32) {
	return func(dst, src []float32) { kernels.Unary(op, dst, src) }
}

// expLinear returns the float32 loop of kernels.ExpLinear.
func expLinear(positive, negative, rate float32) func(dst, src []float32) {
	return func(dst, src []float32) { kernels.ExpLinear(dst, src, positive, negative, rate) }
}

// real64 returns a function that is defined for floating point only.
func real64(f func(float64) float64) func(*Site) unary {
	return func(*Site) unary { return unary{f64: f} }
}

func floatAttrs(names ...string) []AttrSpec {
	specs := make([]AttrSpec, len(names))
	for i, n := range names {
		specs[i] = AttrSpec{Name: n, Kind: graph.AttrFloat}
	}
	return specs
}

// unaryOps lists the functions of one operand; the formulas are those of the
// ONNX operators of the same names.
var unaryOps = []unaryOp{
	{name: "Abs", since: 6, flow: Compute, build: func(*Site) unary {
		return unary{f32: rows(kernels.Abs), f64: math.Abs, i64: absInt, u64: itself[uint64], cheap: true}
	}},
	{name: "Neg", since: 6, flow: Compute, build: func(*Site) unary {
		return unary{f32: rows(kernels.Neg), f64: func(x float64) float64 { return -x }, i64: func(x int64) int64 { return -x }, cheap: true}
	}},
	{name: "Sign", since: 9, flow: Fixed, lo: -1, hi: 1, build: func(*Site) unary {
		return unary{f64: sign[float64], i64: sign[int64], u64: sign[uint64]}
	}},
	{name: "Floor", since: 6, flow: Compute, build: func(*Site) unary { return unary{f32: rows(kernels.Floor), f64: math.Floor, cheap: true} }},
	{name: "Ceil", since: 6, flow: Compute, build: func(*Site) unary { return unary{f32: rows(kernels.Ceil), f64: math.Ceil, cheap: true} }},
	{name: "Round", since: 11, flow: Compute, build: func(*Site) unary { return unary{f32: rows(kernels.Round), f64: math.RoundToEven, cheap: true} }},
	{name: "Reciprocal", since: 6, flow: Compute, build: func(*Site) unary {
		return unary{f32: rows(kernels.Reciprocal), f64: func(x float64) float64 { return 1 / x }, cheap: true}
	}},
	{name: "Sqrt", since: 6, flow: Compute, build: func(*Site) unary {
		return unary{f32: rows(kernels.Sqrt), f64: math.Sqrt, cheap: true}
	}},
	{name: "Exp", since: 6, flow: Compute, build: func(*Site) unary { return unary{f32: rows(kernels.Exp), f64: math.Exp} }},
	{name: "Log", since: 6, flow: Compute, build: func(*Site) unary { return unary{f32: rows(kernels.Log), f64: math.Log} }},
	{name: "Sin", since: 7, flow: Fixed, lo: -1, hi: 1, build: func(*Site) unary {
		return unary{f64: math.Sin, f32: func(dst, src []float32) { circleRow(dst, src, 0) }}
	}},
	{name: "Cos", since: 7, flow: Fixed, lo: -1, hi: 1, build: func(*Site) unary {
		return unary{f64: math.Cos, f32: func(dst, src []float32) { circleRow(dst, src, 1) }}
	}},
	{name: "Tan", since: 7, flow: Compute, build: real64(math.Tan)},
	{name: "Asin", since: 7, flow: Fixed, lo: -math.Pi / 2, hi: math.Pi / 2, build: real64(math.Asin)},
	{name: "Acos", since: 7, flow: Fixed, lo: 0, hi: math.Pi, build: real64(math.Acos)},
	{name: "Atan", since: 7, flow: Fixed, lo: -math.Pi / 2, hi: math.Pi / 2, build: real64(math.Atan)},
	{name: "Sinh", since: 9, flow: Compute, build: real64(math.Sinh)},
	{name: "Cosh", since: 9, flow: Compute, build: real64(math.Cosh)},
	{name: "Asinh", since: 9, flow: Compute, build: real64(math.Asinh)},
	{name: "Acosh", since: 9, flow: Compute, build: real64(math.Acosh)},
	{name: "Atanh", since: 9, flow: Compute, build: real64(math.Atanh)},
	{name: "Erf", since: 9, flow: Fixed, lo: -1, hi: 1, build: func(*Site) unary {
		return unary{f32: rows(kernels.Erf), f64: math.Erf,
			i64: func(x int64) int64 { return int64(math.Erf(float64(x))) },
			u64: func(x uint64) uint64 { return uint64(math.Erf(float64(x))) }}
	}},
	{name: "Sigmoid", since: 6, flow: Fixed, lo: 0, hi: 1, build: func(s *Site) unary {
		if s.Fused != nil && s.Fused.Inner {
			return unary{f32: rows(kernels.SigmoidRatio), f64: sigmoid}
		}
		return unary{f32: rows(kernels.Sigmoid), f64: sigmoid}
	}},
	{name: "Tanh", since: 6, flow: Fixed, lo: -1, hi: 1, build: func(s *Site) unary {
		if s.Fused != nil && s.Fused.Inner {
			return unary{f32: rows(kernels.TanhRatio), f64: math.Tanh}
		}
		return unary{f32: rows(kernels.Tanh), f64: math.Tanh}
	}},
	{name: "Softsign", since: 1, flow: Fixed, lo: -1, hi: 1, build: func(*Site) unary {
		return unary{f32: softsignRow, f64: softsign, cheap: true}
	}},
	{name: "Softplus", since: 1, flow: Compute, build: func(*Site) unary { return unary{f32: rows(kernels.Softplus), f64: softplus} }},
	{name: "Relu", since: 6, flow: Compute, build: func(*Site) unary {
		return unary{f32: rows(kernels.Relu), f64: relu[float64], i64: relu[int64], cheap: true}
	}},
	{name: "LeakyRelu", since: 6, flow: Compute, attrs: floatAttrs("alpha"), build: func(s *Site) unary {
		alpha := s.Node.Float("alpha", 0.01)
		return unary{cheap: true, f64: func(x float64) float64 {
			if x < 0 {
				return x * float64(alpha)
			}
			return x
		}, f32: func(dst, src []float32) { kernels.LeakyRelu(dst, src, alpha) }}
	}},
	{name: "ThresholdedRelu", since: 10, flow: Compute, attrs: floatAttrs("alpha"), build: func(s *Site) unary {
		alpha := float64(s.Node.Float("alpha", 1))
		low := float32(alpha)
		return unary{cheap: true, f32: func(dst, src []float32) { thresholdRow(dst, src, low) }, f64: func(x float64) float64 {
			if x > alpha || x != x {
				return x
			}
			return 0
		}}
	}},
	{name: "Elu", since: 6, flow: Compute, attrs: floatAttrs("alpha"), build: func(s *Site) unary {
		a := s.Node.Float("alpha", 1)
		alpha := float64(a)
		return unary{f32: expLinear(1, a, 1), f64: func(x float64) float64 {
			if x < 0 {
				return alpha * math.Expm1(x)
			}
			return x
		}}
	}},
	{name: "Celu", since: 12, flow: Compute, attrs: floatAttrs("alpha"), build: func(s *Site) unary {
		a := s.Node.Float("alpha", 1)
		alpha := float64(a)
		u := unary{f64: func(x float64) float64 { return max(x, 0) + min(alpha*math.Expm1(x/alpha), 0) }}
		if a > 0 {
			u.f32 = expLinear(1, a, a)
		}
		return u
	}},
	{name: "Selu", since: 6, flow: Compute, attrs: floatAttrs("alpha", "gamma"), build: func(s *Site) unary {
		alpha := float64(s.Node.Float("alpha", 1.67326319217681884765625))
		gamma := float64(s.Node.Float("gamma", 1.05070102214813232421875))
		return unary{f32: expLinear(float32(gamma), float32(gamma*alpha), 1), f64: func(x float64) float64 {
			if x < 0 {
				return gamma * alpha * math.Expm1(x)
			}
			return gamma * x
		}}
	}},
	{name: "HardSigmoid", since: 6, flow: Fixed, lo: 0, hi: 1, attrs: floatAttrs("alpha", "beta"), build: func(s *Site) unary {
		alpha, beta := s.Node.Float("alpha", 0.2), s.Node.Float("beta", 0.5)
		return unary{cheap: true,
			f64: func(x float64) float64 { return min(max(float64(alpha)*x+float64(beta), 0), 1) },
			f32: func(dst, src []float32) { kernels.HardSigmoid(dst, src, alpha, beta) }}
	}},
	{name: "HardSwish", since: 14, flow: Compute, build: func(*Site) unary {
		return unary{f32: rows(kernels.HardSwish), cheap: true,
			f64: func(x float64) float64 { return x * min(max(x/6+0.5, 0), 1) }}
	}},
	{name: "Mish", since: 18, flow: Compute, build: func(*Site) unary {
		return unary{f32: rows(kernels.Mish), f64: func(x float64) float64 {
			if math.IsInf(x, -1) {
				return 0
			}
			return x * math.Tanh(softplus(x))
		}}
	}},
	{name: "Swish", since: 24, flow: Compute, attrs: floatAttrs("alpha"), build: func(s *Site) unary {
		return swish(s.Node.Float("alpha", 1))
	}},
	{name: "Gelu", since: 20, flow: Compute, attrs: []AttrSpec{{Name: "approximate", Kind: graph.AttrString}}, build: func(s *Site) unary {
		if s.Node.String("approximate", "none") == "tanh" {
			return geluTanh
		}
		return geluErf
	}},
	{name: "Shrink", since: 9, flow: Compute, attrs: floatAttrs("bias", "lambd"), build: func(s *Site) unary {
		bias, lambd := float64(s.Node.Float("bias", 0)), float64(s.Node.Float("lambd", 0.5))
		shrink := func(x float64) float64 {
			switch {
			case x < -lambd:
				return x + bias
			case x > lambd:
				return x - bias
			case x != x:
				return x
			}
			return 0
		}
		return unary{f64: shrink,
			i64: func(x int64) int64 { return int64(shrink(float64(x))) },
			u64: func(x uint64) uint64 { return uint64(max(shrink(float64(x)), 0)) }}
	}},
	{name: "BitwiseNot", since: 18, flow: Integers, build: func(*Site) unary {
		return unary{i64: func(x int64) int64 { return ^x }, u64: func(x uint64) uint64 { return ^x }, cheap: true}
	}},
}

var (
	geluErf  = unary{f32: rows(kernels.Gelu), f64: gelu64}
	geluTanh = unary{f32: rows(kernels.GeluTanh), f64: geluTanh64}
)

func gelu64(x float64) float64 {
	if math.IsInf(x, -1) {
		return 0
	}
	return 0.5 * x * (1 + math.Erf(x/math.Sqrt2))
}

func geluTanh64(x float64) float64 {
	if math.IsInf(x, -1) {
		return 0
	}
	return 0.5 * x * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
}

// swish is x·sigmoid(alpha·x); QuickGelu of com.microsoft is the same function
// with another default.
func swish(alpha float32) unary {
	u := unary{f64: func(x float64) float64 {
		t := float64(alpha) * x
		if math.IsInf(t, -1) {
			return 0
		}
		return x * sigmoid(t)
	}}
	u.f32 = func(dst, src []float32) { kernels.Swish(dst, src, alpha) }
	return u
}

func sigmoid(x float64) float64 {
	if x < 0 {
		e := math.Exp(x)
		return e / (1 + e)
	}
	return 1 / (1 + math.Exp(-x))
}

func softplus(x float64) float64 { return max(x, 0) + math.Log1p(math.Exp(-math.Abs(x))) }

func itself[T any](x T) T { return x }

func absInt(x int64) int64 {
	if x < 0 {
		return -x
	}
	return x
}

// circleRow stores the sine of x + turn·π/2. The argument is reduced to an octant
// either side of 0 by a multiple of π/2 in two parts, the first of which has so
// few bits that its multiples are exact; there the Taylor polynomials are closer
// than float32 shows.
func circleRow(dst, src []float32, turn int64) {
	const (
		most = 1 << 20
		high = 0x1.921fb544p+0       // 33 bits of π/2
		low  = 0x1.0b4611a626331p-34 // the rest
	)
	dst = dst[:len(src)]
	for i, x := range src {
		r, k := float64(x), 0.0
		if !(r > -most && r < most) {
			if turn == 0 {
				dst[i] = float32(math.Sin(r))
			} else {
				dst[i] = float32(math.Cos(r))
			}
			continue
		}
		if k = math.RoundToEven(r * (2 / math.Pi)); k != 0 { // a zero keeps its sign
			r -= float64(k * high)
			r -= float64(k * low)
		}
		z := float64(r * r)
		s := float64(z*(-1./39916800)) + 1./362880
		s = float64(z*s) - 1./5040
		s = float64(z*s) + 1./120
		s = float64(z*s) - 1./6
		s = r * (float64(z*s) + 1)
		c := float64(z*(-1./3628800)) + 1./40320
		c = float64(z*c) - 1./720
		c = float64(z*c) + 1./24
		c = float64(z*c) - 1./2
		c = float64(z*c) + 1
		q := int64(k) + turn
		bits := [2]uint64{math.Float64bits(s), math.Float64bits(c)}[q&1]
		dst[i] = float32(math.Float64frombits(bits ^ uint64(q&2)<<62))
	}
}

func softsign(x float64) float64 {
	if math.IsInf(x, 0) {
		return math.Copysign(1, x)
	}
	return x / (1 + math.Abs(x))
}

func softsignRow(dst, src []float32) {
	dst = dst[:len(src)]
	for i, x := range src {
		a := math.Float32frombits(math.Float32bits(x) &^ (1 << 31))
		if a > math.MaxFloat32 {
			dst[i] = float32(math.Copysign(1, float64(x)))
		} else {
			dst[i] = x / (1 + a)
		}
	}
}

// thresholdRow stores x where it is above low or NaN, else 0.
func thresholdRow(dst, src []float32, low float32) {
	dst = dst[:len(src)]
	for i, x := range src {
		mask := uint32(truth(x <= low)) - 1
		dst[i] = math.Float32frombits(math.Float32bits(x) & mask)
	}
}

func sign[T tensor.Real](x T) T {
	switch {
	case x > 0:
		return 1
	case x < 0:
		var zero T
		return zero - 1
	}
	return x // zero or NaN
}

func relu[T tensor.Real](x T) T {
	if x < 0 {
		return 0
	}
	return x
}

func (op *unaryOp) spec() Spec {
	role := Activation
	if op.flow == Integers {
		role = Index
	}
	s := Spec{
		Type: op.name, Since: op.since, Flow: op.flow, Pure: true, Attrs: op.attrs,
		In:    []Port{{Name: "X", Role: role}},
		Out:   []Port{{Name: "Y", Role: role}},
		Infer: inferUnary,
		Compile: func(s *Site) (Kernel, error) {
			return op.build(s).kernel(), nil
		},
	}
	if op.flow == Fixed {
		s.Range = func(*graph.Node) (float32, float32) { return op.lo, op.hi }
	}
	return s
}

func inferUnary(c *Inference) error {
	c.Tensor(0, c.Elem(0), bare(c.Shape(0)))
	if c.Node.Op.Type == "Neg" {
		if dims, ok := c.Dims(0); ok {
			c.SetDims(0, mapDims(dims, func(d int64) int64 { return -d }))
		}
	}
	return nil
}

// kernel returns the kernel that applies u to input 0.
func (u unary) kernel() Kernel {
	if u.f32 == nil && u.f64 != nil {
		f := u.f64
		u.f32 = func(dst, src []float32) {
			for i, x := range src {
				dst[i] = float32(f(float64(x)))
			}
		}
	}
	chunk := costlyChunk
	if u.cheap {
		chunk = cheapChunk
	}
	return func(c *Call) error {
		x, err := c.tensor(0)
		if err != nil {
			return err
		}
		switch k := carrierOf(x.DType()); {
		case k == carryF32 && u.f32 != nil:
			return mapTensor(c, x, chunk, u.f32)
		case k == carryF64 && u.f64 != nil:
			return mapTensor(c, x, chunk, rowOf(u.f64))
		case k == carryI64 && u.u64 != nil && !x.DType().IsSigned():
			return mapTensor(c, x, chunk, rowOf(u.u64))
		case k == carryI64 && u.i64 != nil:
			return mapTensor(c, x, chunk, rowOf(u.i64))
		case k == carryU64 && u.u64 != nil:
			return mapTensor(c, x, chunk, rowOf(u.u64))
		}
		return fmt.Errorf("not defined for %v", x.DType())
	}
}

func rowOf[T tensor.Real](f func(T) T) func(dst, src []T) {
	return func(dst, src []T) {
		for i, x := range src {
			dst[i] = f(x)
		}
	}
}

// mapTensor computes output 0 from x, input 0, by rows.
func mapTensor[T tensor.Real](c *Call, x *tensor.Tensor, chunk int, row func(dst, src []T)) error {
	src, err := load[T](c, x)
	if err != nil {
		return err
	}
	out, err := newOutput[T](c, 0, 0, x.DType(), x.Shape())
	if err != nil {
		return err
	}
	if len(src) <= smallLoop {
		row(out.data, src)
		return out.store(c)
	}
	dst := out.data
	if err := c.For(len(src), chunk, func(lo, hi int) { row(dst[lo:hi], src[lo:hi]) }); err != nil {
		return err
	}
	return out.store(c)
}

// tensor returns input i, or an error if it is omitted or no tensor.
func (c *Call) tensor(i int) (*tensor.Tensor, error) {
	t := c.In(i)
	if t == nil {
		return nil, fmt.Errorf("input %d is not a tensor", i)
	}
	return t, nil
}

// predicate is a test of every element of a floating-point tensor.
type predicate struct {
	name  string
	since int
	attrs []AttrSpec
	// build returns the test and the loop for float32.
	build func(s *Site) (func(x float64) bool, func(dst []uint8, src []float32))
}

var predicates = []predicate{
	{name: "IsNaN", since: 9, build: func(*Site) (func(float64) bool, func([]uint8, []float32)) { return math.IsNaN, nanRow }},
	{name: "IsInf", since: 10,
		attrs: []AttrSpec{{Name: "detect_negative", Kind: graph.AttrInt}, {Name: "detect_positive", Kind: graph.AttrInt}},
		build: func(s *Site) (func(float64) bool, func([]uint8, []float32)) {
			neg, pos := s.Node.Int("detect_negative", 1) != 0, s.Node.Int("detect_positive", 1) != 0
			test := func(x float64) bool { return pos && math.IsInf(x, 1) || neg && math.IsInf(x, -1) }
			return test, func(dst []uint8, src []float32) { infRow(dst, src, neg, pos) }
		}},
}

func nanRow(dst []uint8, src []float32) {
	kernels.Compare(kernels.Equal, dst, src, src)
	invert(dst, dst)
}

func infRow(dst []uint8, src []float32, neg, pos bool) {
	dst = dst[:len(src)]
	for i, x := range src {
		dst[i] = truth(pos && x > math.MaxFloat32 || neg && x < -math.MaxFloat32)
	}
}

func (p *predicate) spec() Spec {
	return Spec{
		Type: p.name, Since: p.since, Flow: Integers, Pure: true, Attrs: p.attrs,
		In:  []Port{{Name: "X"}},
		Out: []Port{{Name: "Y"}},
		Infer: func(c *Inference) error {
			c.Tensor(0, tensor.Bool, bare(c.Shape(0)))
			return nil
		},
		Compile: func(s *Site) (Kernel, error) {
			test, row := p.build(s)
			return func(c *Call) error {
				x, err := c.tensor(0)
				if err != nil {
					return err
				}
				if !x.DType().IsFloat() {
					return fmt.Errorf("not defined for %v", x.DType())
				}
				out, err := c.Out(0, tensor.Bool, x.Shape()...)
				if err != nil {
					return err
				}
				dst := tensor.As[uint8](out)
				if x.DType() == tensor.Float32 {
					src := tensor.As[float32](x)
					return c.For(len(dst), cheapChunk, func(lo, hi int) { row(dst[lo:hi], src[lo:hi]) })
				}
				return c.For(len(dst), cheapChunk, func(lo, hi int) {
					var buf [256]float64
					for lo < hi {
						b := buf[:min(len(buf), hi-lo)]
						tensor.Read(x, lo, b)
						for i, v := range b {
							dst[lo+i] = truth(test(v))
						}
						lo += len(b)
					}
				})
			}, nil
		},
	}
}

func truth(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// invert stores 1 where src is 0, else 0.
func invert(dst, src []uint8) {
	dst = dst[:len(src)]
	const low = 0x7f7f7f7f7f7f7f7f
	for ; len(src) >= 8 && len(dst) >= 8; dst, src = dst[8:], src[8:] {
		v := word.Uint64(src) // the highest bit of a byte of t says that the byte of v is not 0
		t := v&low + low | v
		word.PutUint64(dst, ^t>>7&0x0101010101010101)
	}
	for i, v := range src {
		dst[i] = truth(v == 0)
	}
}

var notSpec = Spec{
	Type: "Not", Since: 1, Flow: Integers, Pure: true,
	In:  []Port{{Name: "X", Role: Index}},
	Out: []Port{{Name: "Y", Role: Index}},
	Infer: func(c *Inference) error {
		c.Tensor(0, tensor.Bool, bare(c.Shape(0)))
		if dims, ok := c.Dims(0); ok {
			c.SetDims(0, mapDims(dims, func(d int64) int64 { return int64(truth(d == 0)) }))
		}
		return nil
	},
	Compile: func(*Site) (Kernel, error) {
		return func(c *Call) error {
			x, err := c.tensor(0)
			if err != nil {
				return err
			}
			if x.DType() != tensor.Bool {
				return fmt.Errorf("not defined for %v", x.DType())
			}
			out, err := c.OutLike(0, 0, tensor.Bool, x.Shape()...)
			if err != nil {
				return err
			}
			src, dst := tensor.As[uint8](x), tensor.As[uint8](out)
			return c.For(len(dst), cheapChunk, func(lo, hi int) {
				invert(dst[lo:hi], src[lo:hi])
			})
		}, nil
	},
}

// ClampBounds returns the bounds of n, a Relu or a Clip of the standard domain
// with one constant float for each bound it has. A bound is infinite where it
// is absent or the largest float32, which exporters write for that. ok is false
// for any other node, and where the lower bound is above the upper.
func ClampBounds(n *graph.Node) (lo, hi float64, ok bool) {
	lo, hi = math.Inf(-1), math.Inf(1)
	switch n.Op {
	case graph.OpKey{Type: "Relu"}:
		return 0, hi, true
	case graph.OpKey{Type: "Clip"}:
	default:
		return 0, 0, false
	}
	for i, b := range []struct {
		bound *float64
		attr  string
	}{{&lo, "min"}, {&hi, "max"}} {
		v := n.Input(i + 1)
		switch {
		case n.Opset() < 11:
			*b.bound = float64(n.Float(b.attr, float32(*b.bound)))
		case v != nil:
			if !v.IsConst() || !v.Const.DType().IsFloat() || v.Const.Len() != 1 {
				return 0, 0, false
			}
			x, err := tensor.Float64s(v.Const)
			if err != nil {
				return 0, 0, false
			}
			*b.bound = x[0]
		}
		if math.Abs(*b.bound) == math.MaxFloat32 {
			*b.bound = math.Copysign(math.Inf(1), *b.bound)
		}
	}
	return lo, hi, lo <= hi
}

var clipSpec = Spec{
	Type: "Clip", Since: 6, Flow: Compute, Pure: true,
	In:    []Port{{Name: "input", Role: Activation}, {Name: "min", Optional: true}, {Name: "max", Optional: true}},
	Out:   []Port{{Name: "output", Role: Activation}},
	Attrs: floatAttrs("min", "max"),
	Infer: inferUnary,
	Compile: func(s *Site) (Kernel, error) {
		lo, hi := float32(math.Inf(-1)), float32(math.Inf(1))
		fromAttrs := s.Opset < 11
		if fromAttrs {
			lo, hi = s.Node.Float("min", lo), s.Node.Float("max", hi)
		}
		return func(c *Call) error {
			x, err := c.tensor(0)
			if err != nil {
				return err
			}
			if !fromAttrs {
				for i := 1; i <= 2; i++ {
					if t := c.In(i); t != nil && (t.Len() != 1 || t.DType() != x.DType()) {
						return fmt.Errorf("bound %v does not fit the input %v", t, x)
					}
				}
			}
			if fromAttrs && !x.DType().IsFloat() {
				return fmt.Errorf("not defined for %v", x.DType())
			}
			switch carrierOf(x.DType()) {
			case carryF32:
				lo, hi := bounds(c, !fromAttrs, lo, hi)
				return mapTensor(c, x, cheapChunk, func(dst, src []float32) { kernels.Clip(dst, src, lo, hi) })
			case carryF64:
				lo, hi := bounds(c, !fromAttrs, float64(lo), float64(hi))
				return mapTensor(c, x, cheapChunk, func(dst, src []float64) { clamp(dst, src, lo, hi) })
			case carryI64:
				lo, hi := bounds[int64](c, !fromAttrs, math.MinInt64, math.MaxInt64)
				return mapTensor(c, x, cheapChunk, func(dst, src []int64) { clamp(dst, src, lo, hi) })
			case carryU64:
				lo, hi := bounds[uint64](c, !fromAttrs, 0, math.MaxUint64)
				return mapTensor(c, x, cheapChunk, func(dst, src []uint64) { clamp(dst, src, lo, hi) })
			}
			return fmt.Errorf("not defined for %v", x.DType())
		}, nil
	},
}

// bounds returns inputs 1 and 2 of Clip where they are given and count.
func bounds[T tensor.Real](c *Call, inputs bool, lo, hi T) (T, T) {
	if !inputs {
		return lo, hi
	}
	var v [1]T
	if t := c.In(1); t != nil {
		tensor.Read(t, 0, v[:])
		lo = v[0]
	}
	if t := c.In(2); t != nil {
		tensor.Read(t, 0, v[:])
		hi = v[0]
	}
	return lo, hi
}

// clamp keeps NaN; where lo > hi, the result is hi.
func clamp[T tensor.Real](dst, src []T, lo, hi T) {
	for i, x := range src {
		if x < lo {
			x = lo
		}
		if x > hi {
			x = hi
		}
		dst[i] = x
	}
}
