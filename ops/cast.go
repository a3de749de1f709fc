package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

var castAttrs = []AttrSpec{{Name: "saturate", Kind: graph.AttrInt}, {Name: "round_mode", Kind: graph.AttrString}}

var castSpec = Spec{
	Type: "Cast", Since: 6, Flow: Opaque, Pure: true,
	In:    []Port{{Name: "input"}},
	Out:   []Port{{Name: "output"}},
	Attrs: append([]AttrSpec{{Name: "to", Kind: graph.AttrInt, Required: true}}, castAttrs...),
	Infer: func(c *Inference) error {
		to, err := castTarget(c.Node)
		if err != nil {
			return err
		}
		inferCast(c, to)
		return nil
	},
	Compile: func(s *Site) (Kernel, error) {
		to, err := castTarget(s.Node)
		if err != nil {
			return nil, err
		}
		o, err := castOptions(s.Node)
		if err != nil {
			return nil, err
		}
		return func(c *Call) error { return cast(c, to, o) }, nil
	},
}

var castLikeSpec = Spec{
	Type: "CastLike", Since: 15, Flow: Opaque, Pure: true,
	In:    []Port{{Name: "input"}, {Name: "target_type"}},
	Out:   []Port{{Name: "output"}},
	Attrs: castAttrs,
	Infer: func(c *Inference) error {
		inferCast(c, c.Elem(1))
		return nil
	},
	Compile: func(s *Site) (Kernel, error) {
		o, err := castOptions(s.Node)
		if err != nil {
			return nil, err
		}
		return func(c *Call) error {
			like, err := c.tensor(1)
			if err != nil {
				return err
			}
			return cast(c, like.DType(), o)
		}, nil
	},
}

// bitCastSpec reads the bits of each element as another type of the same
// width.
var bitCastSpec = Spec{
	Type: "BitCast", Since: 26, Flow: Opaque, Pure: true,
	In:    []Port{{Name: "input"}},
	Out:   []Port{{Name: "output"}},
	Attrs: []AttrSpec{{Name: "to", Kind: graph.AttrInt, Required: true}},
	Infer: func(c *Inference) error {
		to, err := castTarget(c.Node)
		if err != nil {
			return err
		}
		c.Tensor(0, to, bare(c.Shape(0)))
		return nil
	},
	Compile: func(s *Site) (Kernel, error) {
		to, err := castTarget(s.Node)
		if err != nil {
			return nil, err
		}
		return func(c *Call) error {
			x, err := c.tensor(0)
			if err != nil {
				return err
			}
			if to == tensor.String || x.DType() == tensor.String || to.Bits() != x.DType().Bits() {
				return fmt.Errorf("%v cannot be read as %v", x.DType(), to)
			}
			out, err := tensor.FromBytes(to, x.Shape(), x.Bytes())
			if err != nil {
				return err
			}
			c.SetOut(0, out)
			return nil
		}, nil
	},
}

func castTarget(n *graph.Node) (tensor.DType, error) {
	to := n.Int("to", 0)
	if to <= 0 || to > math.MaxUint8 || !tensor.DType(to).Valid() {
		return 0, n.Errorf("compile", "attribute to: %d is no element type", to)
	}
	return tensor.DType(to), nil
}

func castOptions(n *graph.Node) (tensor.ConvertOptions, error) {
	o := tensor.ConvertOptions{NoSaturate: n.Int("saturate", 1) == 0}
	switch mode := n.String("round_mode", "up"); mode {
	case "up":
	case "down":
		o.Round = tensor.RoundDown
	case "nearest":
		o.Round = tensor.RoundNearest
	default:
		return o, n.Errorf("compile", "round_mode %q is unknown", mode)
	}
	return o, nil
}

func inferCast(c *Inference, to tensor.DType) {
	c.Tensor(0, to, bare(c.Shape(0)))
	dims, ok := c.Dims(0)
	switch {
	case !ok:
	case to == tensor.Bool:
		c.SetDims(0, mapDims(dims, func(d int64) int64 { return int64(truth(d != 0)) }))
	case to == tensor.Int32:
		c.SetDims(0, keepDims(dims, func(d int64) bool { return d == int64(int32(d)) }))
	case to == tensor.Int64:
		c.SetDims(0, dims)
	}
}

// keepDims returns dims with the known entries that do not pass the test made
// unknown.
func keepDims(dims []graph.Dim, test func(int64) bool) []graph.Dim {
	out := make([]graph.Dim, len(dims))
	for i, d := range dims {
		if !d.Known || test(d.Size) {
			out[i] = d
		}
	}
	return out
}

func cast(c *Call, to tensor.DType, o tensor.ConvertOptions) error {
	x, err := c.tensor(0)
	if err != nil {
		return err
	}
	if x.DType() == to {
		c.SetOut(0, x)
		return nil
	}
	if x.DType() == tensor.Bool && (to == tensor.Uint8 || to == tensor.Int8) {
		y, err := tensor.FromBytes(to, x.Shape(), x.Bytes())
		if err == nil {
			c.SetOut(0, y)
		}
		return err
	}
	out, err := c.Out(0, to, x.Shape()...)
	if err != nil {
		return err
	}
	n := x.Len()
	if f := conversion(out, x); f != nil && o == (tensor.ConvertOptions{}) {
		return c.For(n, cheapChunk, f)
	}
	if n <= cheapChunk || to == tensor.String || x.DType() == tensor.String {
		return tensor.Convert(out, x, 0, n, o)
	}
	// Without strings, what fails fails for every element.
	if err := tensor.Convert(out, x, 0, 8, o); err != nil {
		return err
	}
	return c.For(n, cheapChunk, func(lo, hi int) { _ = tensor.Convert(out, x, lo, hi, o) })
}

// conversion returns a loop over elements [lo, hi) that converts as
// tensor.Convert does by default, nil for types that have none of their own.
func conversion(dst, src *tensor.Tensor) func(lo, hi int) {
	switch to, from := dst.DType(), src.DType(); {
	case to == tensor.Float32:
		return widening(tensor.As[float32](dst), src)
	case from == tensor.Float32:
		return narrowing(dst, tensor.As[float32](src))
	case to == tensor.Int64 && from == tensor.Int32:
		y, x := tensor.As[int64](dst), tensor.As[int32](src)
		return func(lo, hi int) { convertRow(y[lo:hi], x[lo:hi]) }
	case to == tensor.Int32 && from == tensor.Int64:
		y, x := tensor.As[int32](dst), tensor.As[int64](src)
		return func(lo, hi int) { convertRow(y[lo:hi], x[lo:hi]) }
	}
	return nil
}

// widening converts to float32: integers by a dequantization with the scale 1.
func widening(y []float32, src *tensor.Tensor) func(lo, hi int) {
	switch src.DType() {
	case tensor.Bool, tensor.Uint8:
		x := tensor.As[uint8](src)
		return func(lo, hi int) { kernels.DequantizeU8(y[lo:hi], x[lo:hi], 1, 0) }
	case tensor.Int8:
		x := tensor.As[int8](src)
		return func(lo, hi int) { kernels.DequantizeI8(y[lo:hi], x[lo:hi], 1, 0) }
	case tensor.Int32:
		x := tensor.As[int32](src)
		return func(lo, hi int) { kernels.DequantizeI32(y[lo:hi], x[lo:hi], 1) }
	case tensor.Float16:
		x := tensor.As[uint16](src)
		return func(lo, hi int) { kernels.Float16ToFloat32(y[lo:hi], x[lo:hi]) }
	case tensor.BFloat16:
		x := tensor.As[uint16](src)
		return func(lo, hi int) { kernels.BFloat16ToFloat32(y[lo:hi], x[lo:hi]) }
	}
	return nil
}

// narrowing converts from float32.
func narrowing(dst *tensor.Tensor, x []float32) func(lo, hi int) {
	switch dst.DType() {
	case tensor.Bool:
		y, zero := tensor.As[uint8](dst), []float32{0}
		return func(lo, hi int) {
			kernels.Compare(kernels.Equal, y[lo:hi], x[lo:hi], zero)
			invert(y[lo:hi], y[lo:hi])
		}
	case tensor.Int32:
		y := tensor.As[int32](dst)
		return func(lo, hi int) { kernels.Truncate(y[lo:hi], x[lo:hi]) }
	case tensor.Int64:
		y := tensor.As[int64](dst)
		return func(lo, hi int) { integerRow(y[lo:hi], x[lo:hi]) }
	case tensor.Float16:
		y := tensor.As[uint16](dst)
		return func(lo, hi int) { kernels.Float32ToFloat16(y[lo:hi], x[lo:hi]) }
	case tensor.BFloat16:
		y := tensor.As[uint16](dst)
		return func(lo, hi int) { kernels.Float32ToBFloat16(y[lo:hi], x[lo:hi]) }
	}
	return nil
}

func convertRow[D, S int32 | int64](dst []D, src []S) {
	dst = dst[:len(src)]
	for i, x := range src {
		dst[i] = D(x)
	}
}

// integerRow truncates; what is out of range and NaN become the smallest int64.
func integerRow(dst []int64, src []float32) {
	dst = dst[:len(src)]
	for i, x := range src {
		v := int64(math.MinInt64)
		if x >= -1<<63 && x < 1<<63 {
			v = int64(x)
		}
		dst[i] = v
	}
}

var whereSpec = Spec{
	Type: "Where", Since: 9, Flow: Join, Pure: true,
	In:  []Port{{Name: "condition"}, {Name: "X", Role: Activation}, {Name: "Y", Role: Activation}},
	Out: []Port{{Name: "output", Role: Activation}},
	Infer: func(c *Inference) error {
		shape, err := BroadcastShapes(c.Shape(0), c.Shape(1), c.Shape(2))
		if err != nil {
			return err
		}
		elem := c.Elem(1)
		if elem == tensor.Undefined {
			elem = c.Elem(2)
		}
		c.Tensor(0, elem, shape)
		if shape == nil || len(shape) > 1 {
			return nil
		}
		cond, ok0 := c.Dims(0)
		x, ok1 := c.Dims(1)
		y, ok2 := c.Dims(2)
		if !ok0 || !ok1 || !ok2 {
			return nil
		}
		// Spread each operand over the length of all of them first.
		first := func(a, _ graph.Dim) graph.Dim { return a }
		xy, ok := zipDims(x, y, first)
		if !ok {
			return nil
		}
		all, ok := zipDims(xy, cond, first)
		if !ok {
			return nil
		}
		ys, ok1 := zipDims(y, all, first)
		cs, ok2 := zipDims(cond, all, first)
		if !ok1 || !ok2 {
			return nil
		}
		out := make([]graph.Dim, len(all))
		for i := range out {
			switch {
			case !cs[i].Known:
				if all[i].Same(ys[i]) {
					out[i] = all[i]
				}
			case cs[i].Size != 0:
				out[i] = all[i]
			default:
				out[i] = ys[i]
			}
		}
		c.SetDims(0, out)
		return nil
	},
	Compile: func(*Site) (Kernel, error) { return where, nil },
}

func where(c *Call) error {
	var in [3]*tensor.Tensor
	for i := range in {
		t, err := c.tensor(i)
		if err != nil {
			return err
		}
		in[i] = t
	}
	d := in[1].DType()
	if in[0].DType() != tensor.Bool || in[2].DType() != d {
		return fmt.Errorf("operands of type %v, %v and %v", in[0].DType(), d, in[2].DType())
	}
	shape, err := BroadcastDims(in[0].Shape(), in[1].Shape(), in[2].Shape())
	if err != nil {
		return err
	}
	n, _ := tensor.NumElements(shape)
	like := 1
	if in[2].Len() == n {
		like = 2
	}
	if in[1].Len() == n {
		like = 1
	}
	out, err := c.OutLike(0, like, d, shape...)
	if err != nil {
		return err
	}
	switch d.Bits() {
	case 0:
		return choose(c, out.Strings(), in[1].Strings(), in[2].Strings(), shape)
	case 8:
		return chooseAs[uint8](c, out, shape)
	case 16:
		return chooseAs[uint16](c, out, shape)
	case 32:
		return chooseAs[uint32](c, out, shape)
	case 64:
		return chooseAs[uint64](c, out, shape)
	case 128:
		return chooseAs[complex128](c, out, shape)
	}
	return fmt.Errorf("not defined for %v", d)
}

func chooseAs[T tensor.Number](c *Call, out *tensor.Tensor, shape []int) error {
	return choose(c, tensor.As[T](out), tensor.As[T](c.In(1)), tensor.As[T](c.In(2)), shape)
}

func choose[T any](c *Call, dst, x, y []T, shape []int) error {
	cond := tensor.As[uint8](c.In(0))
	n := len(dst)
	if n == 0 {
		return nil
	}
	if len(cond) == n && len(x) == n && len(y) == n {
		return c.For(n, cheapChunk, func(lo, hi int) {
			x, y := x[lo:hi], y[lo:hi]
			for i, b := range cond[lo:hi] {
				v := y[i]
				if b != 0 {
					v = x[i]
				}
				dst[lo+i] = v
			}
		})
	}
	w := newWalk(shape, c.In(0).Shape(), c.In(1).Shape(), c.In(2).Shape())
	return c.For(n, cheapChunk, func(lo, hi int) {
		w.visit(lo, hi, func(l *lanes) {
			for r := range l.rows {
				pc, px, py := l.at[0]+r*l.skip[0], l.at[1]+r*l.skip[1], l.at[2]+r*l.skip[2]
				d := dst[l.out+r*l.n:][:l.n]
				for k := range d {
					v := y[py]
					if cond[pc] != 0 {
						v = x[px]
					}
					d[k] = v
					pc += l.step[0]
					px += l.step[1]
					py += l.step[2]
				}
			}
		})
	})
}

var identitySpec = Spec{
	Type: "Identity", Since: 1, Flow: Pass, Pure: true,
	In:  []Port{{Name: "input", Role: Activation}},
	Out: []Port{{Name: "output", Role: Activation}},
	Infer: func(c *Inference) error {
		if dims, ok := c.Dims(0); ok {
			c.SetDims(0, dims)
		}
		return c.Same()
	},
	Compile: func(*Site) (Kernel, error) {
		return func(c *Call) error {
			c.Outs[0] = c.Ins[0]
			return nil
		}, nil
	},
}

// dropoutSpec copies its input. In training mode, which is an input since
// version 12, it drops elements at random and scales the others up.
var dropoutSpec = Spec{
	Type: "Dropout", Since: 7, Flow: Pass, Pure: true,
	In:    []Port{{Name: "data", Role: Activation}, {Name: "ratio", Optional: true}, {Name: "training_mode", Optional: true}},
	Out:   []Port{{Name: "output", Role: Activation}, {Name: "mask", Optional: true}},
	Attrs: []AttrSpec{{Name: "ratio", Kind: graph.AttrFloat}, {Name: "seed", Kind: graph.AttrInt}},
	Infer: func(c *Inference) error {
		mask := tensor.Bool
		if c.Opset < 10 {
			mask = c.Elem(0)
		}
		c.Tensor(1, mask, bare(c.Shape(0)))
		return c.Same()
	},
	Compile: func(s *Site) (Kernel, error) {
		version := s.Opset
		return func(c *Call) error {
			x, err := c.tensor(0)
			if err != nil {
				return err
			}
			if !x.DType().IsFloat() {
				return fmt.Errorf("not defined for %v", x.DType())
			}
			if ratio, err := dropRatio(c); err != nil || ratio != 0 {
				if err != nil {
					return err
				}
				return drop(c, s.Node, x, ratio)
			}
			c.SetOut(0, x)
			if len(c.Wanted) < 2 || !c.Wanted[1] {
				return nil
			}
			d := tensor.Bool
			if version < 10 {
				d = x.DType()
			}
			mask, err := c.Out(1, d, x.Shape()...)
			if err != nil {
				return err
			}
			// Before version 12 the mask is not specified; nothing is dropped.
			for i := range mask.Len() {
				tensor.Write(mask, i, []int64{1})
			}
			return nil
		}, nil
	},
}

// dropRatio returns the share of the elements that are dropped: 0 unless in
// training.
func dropRatio(c *Call) (float64, error) {
	mode, ratio := c.In(2), [1]float64{0.5}
	if mode == nil || mode.Len() != 1 || mode.DType() != tensor.Bool || tensor.As[uint8](mode)[0] == 0 {
		return 0, nil
	}
	if r := c.In(1); r != nil && r.Len() == 1 && r.DType().Convertible() {
		tensor.Read(r, 0, ratio[:])
	}
	if ratio[0] < 0 || ratio[0] >= 1 {
		return 0, fmt.Errorf("ratio %v is not in [0, 1)", ratio[0])
	}
	return ratio[0], nil
}

func drop(c *Call, n *graph.Node, x *tensor.Tensor, ratio float64) error {
	v, err := tensor.Float64s(x)
	if err != nil {
		return err
	}
	out, err := c.Out(0, x.DType(), x.Shape()...)
	if err != nil {
		return err
	}
	kept, mask := make([]float64, len(v)), make([]int64, len(v))
	g := newGenerator(n)
	for i, x := range v {
		if g.uniform() >= ratio {
			kept[i], mask[i] = x/(1-ratio), 1
		}
	}
	tensor.Write(out, 0, kept)
	if len(c.Wanted) < 2 || !c.Wanted[1] {
		return nil
	}
	m, err := c.Out(1, tensor.Bool, x.Shape()...)
	if err == nil {
		tensor.Write(m, 0, mask)
	}
	return err
}

var powSpec = Spec{
	Type: "Pow", Since: 7, Flow: Compute, Pure: true,
	In:  []Port{{Name: "X", Role: Activation}, {Name: "Y"}},
	Out: []Port{{Name: "Z", Role: Activation}},
	Infer: func(c *Inference) error {
		return inferBroadcast(c, c.Elem(0), nil)
	},
	Compile: func(*Site) (Kernel, error) { return pow, nil },
}

func pow(c *Call) error {
	x, err := c.tensor(0)
	if err != nil {
		return err
	}
	y, err := c.tensor(1)
	if err != nil {
		return err
	}
	d := x.DType()
	if carrierOf(y.DType()) == noCarrier {
		return fmt.Errorf("not defined for exponents of type %v", y.DType())
	}
	switch k := carrierOf(d); {
	case k == carryF32:
		op := pow32
		if y.Len() == 1 {
			var e [1]float64
			tensor.Read(y, 0, e[:])
			if fast := powRows[e[0]]; fast != nil {
				op = &binary[float32, float32]{f: op.f, vs: func(dst, a []float32, _ float32) { fast(dst, a) }}
			}
		}
		return powerOf(c, d, op)
	case k == carryF64:
		return powerOf(c, d, pow64)
	case k != noCarrier && y.DType().IsInt():
		return powerOf(c, d, powInt)
	case k != noCarrier:
		return powerOf(c, d, pow64)
	}
	return fmt.Errorf("not defined for %v", d)
}

var (
	pow32  = scalarOp(func(a, b float32) float32 { return float32(math.Pow(float64(a), float64(b))) })
	pow64  = scalarOp(math.Pow)
	powInt = scalarOp(intPow)
)

// powRows are the exponents that have a loop of their own.
var powRows = map[float64]func(dst, src []float32){
	1: func(dst, src []float32) { copy(dst, src) },
	2: func(dst, src []float32) {
		for i, x := range src {
			dst[i] = x * x
		}
	},
	3: func(dst, src []float32) {
		for i, x := range src {
			dst[i] = x * x * x
		}
	},
}

// intPow returns a^b modulo 2^64; for negative b the integer part of the real
// result, 0 for a = 0.
func intPow(a, b int64) int64 {
	if b < 0 {
		switch {
		case a == 1, a == -1 && b&1 == 0:
			return 1
		case a == -1:
			return -1
		}
		return 0
	}
	p := int64(1)
	for ; b > 0; b >>= 1 {
		if b&1 != 0 {
			p *= a
		}
		a *= a
	}
	return p
}

// powerOf computes output 0 of type d from inputs 0 and 1, which may differ in
// type, in T.
func powerOf[T tensor.Real](c *Call, d tensor.DType, op *binary[T, T]) error {
	x, y := c.In(0), c.In(1)
	shape, err := operandShape(c)
	if err != nil {
		return err
	}
	a, err := load[T](c, x)
	if err != nil {
		return err
	}
	b, err := load[T](c, y)
	if err != nil {
		return err
	}
	like := -1
	if x.Len() == len(a) && equalInts(x.Shape(), shape) {
		like = 0
	}
	out, err := newOutput[T](c, 0, like, d, shape)
	if err != nil {
		return err
	}
	if err := apply2(c, out.data, shape, a, b, x.Shape(), y.Shape(), op); err != nil {
		return err
	}
	return out.store(c)
}
