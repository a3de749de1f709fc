package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// qelementSpecs returns com.microsoft's operators on 8-bit codes that are no
// products of matrices.
func qelementSpecs() []Spec {
	spec := func(name string, infer func(*Inference) error, compile func(*Site) (Kernel, error), names ...string) Spec {
		s := Spec{Domain: msDomain, Type: name, Flow: Opaque, Pure: true, Out: []Port{{Name: "Y"}}, Infer: infer, Compile: compile}
		for _, n := range names {
			optional := n[0] == '?'
			if optional {
				n = n[1:]
			}
			s.In = append(s.In, Port{Name: n, Optional: optional})
		}
		return s
	}
	two := []string{"A", "A_scale", "?A_zero_point", "B", "B_scale", "?B_zero_point", "C_scale", "?C_zero_point"}
	one := []string{"X", "X_scale", "?X_zero_point", "Y_scale", "?Y_zero_point"}
	concat := spec("QLinearConcat", inferQConcat, compileQConcat, "Y_scale", "Y_zero_point", "inputs")
	concat.In[2].Variadic = true
	return []Spec{
		spec("QLinearAdd", inferQBinary, compileQBinary, two...),
		spec("QLinearMul", inferQBinary, compileQBinary, two...),
		spec("QLinearSigmoid", (*Inference).Same, compileQUnary, one...),
		spec("QLinearLeakyRelu", (*Inference).Same, compileQUnary, one...),
		spec("QLinearSoftmax", (*Inference).Same, compileQSoftmax, one...),
		spec("QLinearAveragePool", inferQPool, compileQPool, one...),
		spec("QLinearGlobalAveragePool", inferQGlobalPool, compileQGlobalPool, one...),
		spec("QLinearWhere", inferQWhere, compileQWhere, "condition", "X", "x_scale", "x_zero_point", "Y", "y_scale", "y_zero_point", "z_scale", "z_zero_point"),
		concat,
	}
}

// codeParams are the parameters of one tensor of 8-bit codes.
type codeParams struct {
	scale float32
	zero  int32
}

// params8 reads the scalar parameters in inputs i and i+1.
func params8(c *Call, i int) (codeParams, error) {
	s, err := scalesAt(c, i, nil)
	if err != nil {
		return codeParams{}, err
	}
	if len(s.scale) != 1 {
		return codeParams{}, fmt.Errorf("input %d: %d scales, one is needed", i, len(s.scale))
	}
	return codeParams{s.scale[0], s.zero[0]}, nil
}

// reals returns the real value of each of the 256 bytes.
func (p codeParams) reals(t tensor.DType) *[256]float32 {
	var bytes [256]byte
	for i := range bytes {
		bytes[i] = byte(i)
	}
	var out [256]float32
	p.values(t, out[:], bytes[:])
	return &out
}

// values stores the real values of the codes x in y.
func (p codeParams) values(t tensor.DType, y []float32, x []byte) {
	if t == tensor.Int8 {
		kernels.DequantizeI8(y, signedBytes(x), p.scale, int8(p.zero))
	} else {
		kernels.DequantizeU8(y, x, p.scale, uint8(p.zero))
	}
}

// same reports whether each code stands for a value whose code in q it is too.
func (p codeParams) same(q codeParams, t tensor.DType) bool {
	var table [256]byte
	q.codes(t, table[:], p.reals(t)[:])
	for i, b := range table {
		if b != byte(i) {
			return false
		}
	}
	return true
}

// codes stores the codes of x in y.
func (p codeParams) codes(t tensor.DType, y []byte, x []float32) {
	if t == tensor.Int8 {
		kernels.QuantizeI8(signedBytes(y), x, p.scale, int8(p.zero))
	} else {
		kernels.QuantizeU8(y, x, p.scale, uint8(p.zero))
	}
}

// mapBytes stores table[x] in y.
func mapBytes(c *Call, y, x []byte, table *[256]byte) error {
	return c.For(len(x), perTensorRun, func(lo, hi int) {
		for i, v := range x[lo:hi] {
			y[lo+i] = table[v]
		}
	})
}

func compileQUnary(s *Site) (Kernel, error) {
	act, err := newActivation(map[string]string{"QLinearSigmoid": "Sigmoid", "QLinearLeakyRelu": "LeakyRelu"}[s.Node.Op.Type], nil)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	if act.params > 0 {
		act.alpha = float64(s.Node.Float("alpha", 0.01))
	}
	return func(c *Call) error {
		x := c.In(0)
		if !isByte(x.DType()) {
			return fmt.Errorf("input of type %v", x.DType())
		}
		in, err := params8(c, 1)
		if err != nil {
			return err
		}
		out, err := params8(c, 3)
		if err != nil {
			return err
		}
		y, err := c.OutLike(0, 0, x.DType(), x.Shape()...)
		if err != nil {
			return err
		}
		values := in.reals(x.DType())
		activate(act, values[:])
		var table [256]byte
		out.codes(x.DType(), table[:], values[:])
		return mapBytes(c, y.Bytes(), x.Bytes(), &table)
	}, nil
}

func inferQBinary(c *Inference) error {
	s, err := BroadcastShapes(c.Shape(0), c.Shape(3))
	if err != nil {
		return c.Errorf("%w", err)
	}
	c.Tensor(0, c.Elem(0), s)
	return nil
}

// compileQBinary computes with the ratios of the scales, as ONNX Runtime does.
func compileQBinary(s *Site) (Kernel, error) {
	mul := s.Node.Op.Type == "QLinearMul"
	return func(c *Call) error {
		a, b := c.In(0), c.In(3)
		if !isByte(a.DType()) || a.DType() != b.DType() {
			return fmt.Errorf("operands %v and %v", a, b)
		}
		var p [3]codeParams
		for i := range p {
			var err error
			if p[i], err = params8(c, [...]int{1, 4, 6}[i]); err != nil {
				return err
			}
		}
		shape, err := BroadcastDims(a.Shape(), b.Shape())
		if err != nil {
			return err
		}
		y, err := c.Out(0, a.DType(), shape...)
		if err != nil || y.Len() == 0 {
			return err
		}
		lo, hi, _ := a.DType().IntRange()
		flip := int32(0)
		if a.DType() == tensor.Int8 {
			flip = 128
		}
		value := func(b byte) int32 { return int32(b^byte(flip)) - flip }
		ra, rb := p[0].scale/p[2].scale, p[1].scale/p[2].scale
		// Of the fused operations that the runtime's kernel is compiled to.
		fixed := float32(p[2].zero) - kernels.FMA(ra, float32(p[0].zero), float32(rb*float32(p[1].zero)))
		product := p[0].scale * p[1].scale / p[2].scale
		one := func(x, w byte) byte {
			if mul {
				v := float32((value(x)-p[0].zero)*(value(w)-p[1].zero)) * product
				return byte(codeOf(v, p[2].zero, int32(lo), int32(hi)))
			}
			v := kernels.FMA(ra, float32(value(x)), kernels.FMA(rb, float32(value(w)), fixed))
			return byte(codeOf(v, 0, int32(lo), int32(hi)))
		}
		if equalInts(a.Shape(), b.Shape()) {
			// The same steps as in one, a vector at a time.
			x, w, out := a.Bytes(), b.Bytes(), y.Bytes()
			return c.For(len(out), 1<<14, func(lo, hi int) {
				var u, v [512]float32
				for n := 0; lo < hi; lo += n {
					n = min(len(u), hi-lo)
					s, t := u[:n], v[:n]
					switch {
					case mul:
						codeParams{1, p[0].zero}.values(a.DType(), s, x[lo:lo+n])
						codeParams{1, p[1].zero}.values(a.DType(), t, w[lo:lo+n])
						kernels.Binary(kernels.Mul, s, s, t)
						kernels.Binary(kernels.Mul, s, s, []float32{product})
						codeParams{1, p[2].zero}.codes(a.DType(), out[lo:lo+n], s)
						continue
					case a.DType() == tensor.Int8:
						kernels.CodeSum(s, tensor.As[int8](a)[lo:lo+n], tensor.As[int8](b)[lo:lo+n], ra, rb, fixed)
					default:
						kernels.CodeSum(s, x[lo:lo+n], w[lo:lo+n], ra, rb, fixed)
					}
					codeParams{1, 0}.codes(a.DType(), out[lo:lo+n], s)
				}
			})
		}
		rank := len(shape)
		sa, sb := steps(a.Shape(), rank), steps(b.Shape(), rank)
		inner, ia, ib := 1, 0, 0
		if rank > 0 {
			inner, ia, ib = shape[rank-1], sa[rank-1], sb[rank-1]
		}
		x, w, out := a.Bytes(), b.Bytes(), y.Bytes()
		return c.For(len(out)/inner, max(1, 1<<13/inner), func(lo, hi int) {
			for r := lo; r < hi; r++ {
				oa, ob, rest := 0, 0, r
				for d := rank - 2; d >= 0; d-- {
					k := rest % shape[d]
					rest /= shape[d]
					oa += k * sa[d]
					ob += k * sb[d]
				}
				for i := range inner {
					out[r*inner+i] = one(x[oa+i*ia], w[ob+i*ib])
				}
			}
		})
	}, nil
}

// steps returns the distance of elements along each of rank axes that a
// tensor of shape s is broadcast to.
func steps(s []int, rank int) []int {
	out := make([]int, rank)
	n := 1
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] > 1 {
			out[rank-len(s)+i] = n
		}
		n *= s[i]
	}
	return out
}

func compileQSoftmax(s *Site) (Kernel, error) {
	opset, axis := s.Node.Int("opset", 13), s.Node.Int("axis", -1)
	return func(c *Call) error {
		x := c.In(0)
		if !isByte(x.DType()) {
			return fmt.Errorf("input of type %v", x.DType())
		}
		in, err := params8(c, 1)
		if err != nil {
			return err
		}
		out, err := params8(c, 3)
		if err != nil {
			return err
		}
		a, err := NormalAxis(axis, x.Rank())
		if err != nil {
			return err
		}
		y, err := c.Out(0, x.DType(), x.Shape()...)
		if err != nil {
			return err
		}
		size, inner := 1, 1
		for i, d := range x.Shape() {
			switch {
			case i == a, i > a && opset < 13:
				size *= d
			case i > a:
				inner *= d
			}
		}
		if size == 0 || inner == 0 || x.Len() == 0 {
			return nil
		}
		values := in.reals(x.DType())
		return c.For(x.Len()/size, max(1, 1<<12/size), func(lo, hi int) {
			row, codes := make([]float32, size), make([]byte, size)
			for r := lo; r < hi; r++ {
				at := r/inner*size*inner + r%inner
				top := float32(math.Inf(-1))
				for i := range row {
					row[i] = values[x.Bytes()[at+i*inner]]
					top = max(top, row[i])
				}
				var sum float64
				for i, v := range row {
					e := math.Exp(float64(v - top))
					row[i] = float32(e)
					sum += e
				}
				for i, v := range row {
					row[i] = float32(float64(v) / sum)
				}
				out.codes(x.DType(), codes, row)
				for i, q := range codes {
					y.Bytes()[at+i*inner] = q
				}
			}
		})
	}, nil
}

func inferQPool(c *Inference) error {
	if c.Node.Int("channels_last", 0) != 0 {
		if x := c.Shape(0); x != nil {
			c.Tensor(0, c.Elem(0), graph.UnknownShape(len(x)))
		}
		return nil
	}
	return inferPool(c)
}

// compileQPool averages real values, in float32, between two conversions.
func compileQPool(s *Site) (Kernel, error) {
	w, err := newWindow(s.Node)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	pad := s.Node.Int("count_include_pad", 0) != 0
	last := s.Node.Int("channels_last", 0) != 0
	return func(c *Call) error {
		x := c.In(0)
		if !isByte(x.DType()) || x.Rank() < 3 {
			return fmt.Errorf("input %v", x)
		}
		in, err := params8(c, 1)
		if err != nil {
			return err
		}
		out, err := params8(c, 3)
		if err != nil {
			return err
		}
		shape, bytes := x.Shape(), x.Bytes()
		if last {
			if bytes, err = c.Mem.Scratch(len(bytes)); err != nil {
				return err
			}
			shape = append([]int{shape[0], shape[len(shape)-1]}, shape[1:len(shape)-1]...)
			swapChannels(bytes, x.Bytes(), shape[0], x.Len()/max(shape[0]*shape[1], 1), shape[1])
		}
		real, err := c.Floats(x.Len())
		if err != nil {
			return err
		}
		table := in.reals(x.DType())
		if err := c.For(len(bytes), perTensorRun, func(lo, hi int) {
			for i, b := range bytes[lo:hi] {
				real[lo+i] = table[b]
			}
		}); err != nil {
			return err
		}
		sub := *c
		sub.Mem = freshMemory{c.Mem}
		sub.Ins, sub.Outs = []Data{tensor.Of(real, shape...)}, make([]Data, 1)
		if err := averagePool[float32](&sub, w, pad); err != nil {
			return err
		}
		mean := sub.Outs[0].(*tensor.Tensor)
		ys := append([]int{}, mean.Shape()...)
		if last {
			ys = append(append([]int{ys[0]}, ys[2:]...), ys[1])
		}
		y, err := c.Out(0, x.DType(), ys...)
		if err != nil {
			return err
		}
		codes := y.Bytes()
		if last {
			if codes, err = c.Mem.Scratch(y.Len()); err != nil {
				return err
			}
		}
		v := tensor.As[float32](mean)
		if err := c.For(len(v), perTensorRun, func(lo, hi int) { out.codes(x.DType(), codes[lo:hi], v[lo:hi]) }); err != nil {
			return err
		}
		if last {
			swapChannels(y.Bytes(), codes, shape[0], shape[1], y.Len()/max(shape[0]*shape[1], 1))
		}
		return nil
	}, nil
}

// swapChannels transposes each of n matrices of rows×cols bytes.
func swapChannels(dst, src []byte, n, rows, cols int) {
	for i := range n {
		at := i * rows * cols
		kernels.Transpose8(dst[at:][:rows*cols], src[at:][:rows*cols], rows, cols)
	}
}

func inferQGlobalPool(c *Inference) error {
	x := c.Shape(0)
	if x == nil || c.Node.Int("channels_last", 0) == 0 {
		return inferGlobalPool(c)
	}
	if len(x) < 2 {
		return c.Errorf("input of shape %v", x)
	}
	out := graph.Shape{bareDim(x[0])}
	for range x[2:] {
		out = append(out, graph.D(1))
	}
	c.Tensor(0, c.Elem(0), append(out, bareDim(x[len(x)-1])))
	return nil
}

// compileQGlobalPool scales integer sums once, as ONNX Runtime does.
func compileQGlobalPool(s *Site) (Kernel, error) {
	last := s.Node.Int("channels_last", 0) != 0
	return func(c *Call) error {
		x := c.In(0)
		if !isByte(x.DType()) || x.Rank() < 2 {
			return fmt.Errorf("input %v", x)
		}
		in, err := params8(c, 1)
		if err != nil {
			return err
		}
		out, err := params8(c, 3)
		if err != nil {
			return err
		}
		shape := append([]int{}, x.Shape()...)
		size := 1
		from, to := 2, len(shape)
		if last {
			from, to = 1, len(shape)-1
		}
		for i := from; i < to; i++ {
			size *= shape[i]
			shape[i] = 1
		}
		y, err := c.Out(0, x.DType(), shape...)
		if err != nil || y.Len() == 0 {
			return err
		}
		if size == 0 {
			return fmt.Errorf("input %v has no elements to pool", x)
		}
		channels := y.Len() / shape[0]
		step, plane := 1, size
		if last {
			step, plane = channels, 1
		}
		flip := int32(0)
		if x.DType() == tensor.Int8 {
			flip = 128
		}
		scale := in.scale / (out.scale * float32(size))
		lo32, hi32, _ := x.DType().IntRange()
		return c.For(y.Len(), max(1, 1<<14/size), func(lo, hi int) {
			for i := lo; i < hi; i++ {
				at := i/channels*channels*size + i%channels*plane
				sum := -int32(size) * (in.zero + flip)
				for range size {
					sum += int32(x.Bytes()[at] ^ byte(flip))
					at += step
				}
				y.Bytes()[i] = byte(codeOf(float32(sum)*scale, out.zero, int32(lo32), int32(hi32)))
			}
		})
	}, nil
}

func inferQConcat(c *Inference) error {
	n := (c.Node.NumInputs() - 2) / 3
	var out graph.Shape
	for i := range n {
		s := c.Shape(2 + 3*i)
		if s == nil {
			c.Tensor(0, c.Elem(1), nil)
			return nil
		}
		axis, err := NormalAxis(c.Node.Int("axis", 0), len(s))
		if err != nil {
			return c.Errorf("%w", err)
		}
		if i == 0 {
			for _, d := range s {
				out = append(out, bareDim(d))
			}
			continue
		}
		if len(s) != len(out) {
			return c.Errorf("inputs of shapes %v and %v", out, s)
		}
		if d := &out[axis]; d.Known && s[axis].Known {
			d.Size += s[axis].Size
		} else {
			*d = graph.Dim{}
		}
	}
	c.Tensor(0, c.Elem(1), out)
	return nil
}

func compileQConcat(s *Site) (Kernel, error) {
	axisAttr := s.Node.Int("axis", 0)
	if n := s.Node.NumInputs(); n < 5 || n%3 != 2 {
		return nil, s.Errorf("%d inputs", n)
	}
	return func(c *Call) error {
		out, err := params8(c, 0)
		if err != nil {
			return err
		}
		var shape []int
		axis, t := 0, tensor.Undefined
		for i := 2; i < c.NumIn(); i += 3 {
			x := c.In(i)
			if x == nil || !isByte(x.DType()) || shape != nil && (x.Rank() != len(shape) || x.DType() != t) {
				return fmt.Errorf("input %v", x)
			}
			if shape == nil {
				if axis, err = NormalAxis(axisAttr, x.Rank()); err != nil {
					return err
				}
				shape, t = append([]int{}, x.Shape()...), x.DType()
				continue
			}
			for d, n := range x.Shape() {
				if d == axis {
					shape[d] += n
				} else if shape[d] != n {
					return fmt.Errorf("input %v, the first is of shape %v", x, c.In(2).Shape())
				}
			}
		}
		y, err := c.Out(0, t, shape...)
		if err != nil || y.Len() == 0 {
			return err
		}
		outer, inner := 1, 1
		for d, n := range shape {
			if d < axis {
				outer *= n
			} else if d > axis {
				inner *= n
			}
		}
		at, row := 0, shape[axis]*inner
		for i := 2; i < c.NumIn(); i += 3 {
			in, err := params8(c, i+1)
			if err != nil {
				return err
			}
			x := c.In(i)
			n := x.Shape()[axis] * inner
			src, dst := x.Bytes(), y.Bytes()
			if !in.same(out, t) {
				if src, err = c.Mem.Scratch(len(src)); err != nil {
					return err
				}
				if err := c.For(len(src), 1<<14, func(lo, hi int) {
					var v [512]float32
					for n := 0; lo < hi; lo += n {
						n = min(len(v), hi-lo)
						in.values(t, v[:n], x.Bytes()[lo:lo+n])
						out.codes(t, src[lo:lo+n], v[:n])
					}
				}); err != nil {
					return err
				}
			}
			for o := range outer {
				copy(dst[o*row+at:][:n], src[o*n:])
			}
			at += n
		}
		return c.Ctx.Err()
	}, nil
}

func inferQWhere(c *Inference) error {
	s, err := BroadcastShapes(c.Shape(0), c.Shape(1), c.Shape(4))
	if err != nil {
		return c.Errorf("%w", err)
	}
	c.Tensor(0, c.Elem(1), s)
	return nil
}

// compileQWhere compiles the choice between codes that are brought to the scale of the result.
func compileQWhere(*Site) (Kernel, error) {
	return func(c *Call) error {
		cond, x, y := c.In(0), c.In(1), c.In(4)
		if cond.DType() != tensor.Bool || !isByte(x.DType()) || x.DType() != y.DType() {
			return fmt.Errorf("operands %v, %v and %v", cond, x, y)
		}
		shape, err := BroadcastDims(cond.Shape(), x.Shape(), y.Shape())
		if err != nil {
			return err
		}
		out, err := params8(c, 7)
		if err != nil {
			return err
		}
		var tables [2][256]byte
		for i, at := range []int{5, 2} {
			p, err := params8(c, at)
			if err != nil {
				return err
			}
			out.codes(x.DType(), tables[i][:], p.reals(x.DType())[:])
		}
		z, err := c.Out(0, x.DType(), shape...)
		if err != nil || z.Len() == 0 {
			return err
		}
		rank := len(shape)
		sc, sx, sy := steps(cond.Shape(), rank), steps(x.Shape(), rank), steps(y.Shape(), rank)
		bits, xs, ys, zs := tensor.As[bool](cond), x.Bytes(), y.Bytes(), z.Bytes()
		return c.For(len(zs), cheapChunk, func(lo, hi int) {
			for i := lo; i < hi; i++ {
				oc, ox, oy, rest := 0, 0, 0, i
				for d := rank - 1; d >= 0; d-- {
					k := rest % shape[d]
					rest /= shape[d]
					oc, ox, oy = oc+k*sc[d], ox+k*sx[d], oy+k*sy[d]
				}
				if bits[oc] {
					zs[i] = tables[1][xs[ox]]
				} else {
					zs[i] = tables[0][ys[oy]]
				}
			}
		})
	}, nil
}
