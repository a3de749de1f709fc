package ops

import (
	"fmt"
	"sync/atomic"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// qlinearSpecs returns the products of integer codes. Their flow is Opaque:
// they are quantized already.
func qlinearSpecs() []Spec {
	code := func(names ...string) (ports []Port) {
		for _, n := range names {
			optional := n[0] == '?'
			if optional {
				n = n[1:]
			}
			ports = append(ports, Port{Name: n, Optional: optional})
		}
		return ports
	}
	conv := []AttrSpec{
		{Name: "auto_pad", Kind: graph.AttrString}, {Name: "dilations", Kind: graph.AttrInts},
		{Name: "group", Kind: graph.AttrInt}, {Name: "kernel_shape", Kind: graph.AttrInts},
		{Name: "pads", Kind: graph.AttrInts}, {Name: "strides", Kind: graph.AttrInts},
	}
	qconv := code("x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "y_scale", "y_zero_point", "?B")
	spec := func(domain, name string, in []Port, infer func(*Inference) error, compile func(*Site) (Kernel, error), attrs ...AttrSpec) Spec {
		return Spec{
			Domain: domain, Type: name, Since: 10, Flow: Opaque, Pure: true, In: in, Out: code("Y"),
			Attrs: attrs, Infer: infer, Compile: compile,
		}
	}
	return []Spec{
		spec("", "MatMulInteger", code("A", "B", "?a_zero_point", "?b_zero_point"), inferIntMatMul, compileIntMatMul),
		spec("", "QLinearMatMul", code("a", "a_scale", "a_zero_point", "b", "b_scale", "b_zero_point", "y_scale", "y_zero_point"), inferIntMatMul, compileIntMatMul),
		spec(msDomain, "MatMulIntegerToFloat", code("A", "B", "a_scale", "b_scale", "?a_zero_point", "?b_zero_point", "?bias"), inferIntMatMul, compileIntMatMul),
		spec(msDomain, "DynamicQuantizeMatMul", code("A", "B", "b_scale", "?b_zero_point", "?bias"), inferIntMatMul, compileIntMatMul),
		spec(msDomain, "QGemm", code("A", "a_scale", "a_zero_point", "B", "b_scale", "b_zero_point", "?C", "?y_scale", "?y_zero_point"), inferIntMatMul, compileIntMatMul,
			AttrSpec{Name: "alpha", Kind: graph.AttrFloat}, AttrSpec{Name: "transA", Kind: graph.AttrInt}, AttrSpec{Name: "transB", Kind: graph.AttrInt}),
		spec("", "ConvInteger", code("x", "w", "?x_zero_point", "?w_zero_point"), inferIntConv, compileIntConv, conv...),
		spec("", "QLinearConv", qconv, inferIntConv, compileIntConv, conv...),
		spec(msDomain, "QLinearConv", qconv, inferIntConv, compileIntConv, append(conv[:6:6], AttrSpec{Name: "channels_last", Kind: graph.AttrInt})...),
	}
}

// ports holds the indices of an integer product's inputs; -1 where the
// operator has none.
type intPorts struct {
	a, aScale, aZero, b, bScale, bZero int
	yScale, yZero                      int
	bias                               int // int32 (QGemm, QLinearConv) or float32
	dynamic                            bool
}

func intPortsOf(op string) intPorts {
	switch op {
	case "MatMulInteger", "ConvInteger":
		return intPorts{a: 0, b: 1, aZero: 2, bZero: 3, aScale: -1, bScale: -1, yScale: -1, yZero: -1, bias: -1}
	case "MatMulIntegerToFloat":
		return intPorts{a: 0, b: 1, aScale: 2, bScale: 3, aZero: 4, bZero: 5, bias: 6, yScale: -1, yZero: -1}
	case "DynamicQuantizeMatMul":
		return intPorts{a: 0, b: 1, bScale: 2, bZero: 3, bias: 4, aScale: -1, aZero: -1, yScale: -1, yZero: -1, dynamic: true}
	case "QAttention":
		return intPorts{a: 0, b: 1, bias: 2, aScale: 3, bScale: 4, aZero: 6, bZero: 7, yScale: -1, yZero: -1}
	case "QGemm":
		return intPorts{a: 0, aScale: 1, aZero: 2, b: 3, bScale: 4, bZero: 5, bias: 6, yScale: 7, yZero: 8}
	}
	p := intPorts{a: 0, aScale: 1, aZero: 2, b: 3, bScale: 4, bZero: 5, yScale: 6, yZero: 7, bias: -1}
	if op == "QLinearConv" {
		p.bias = 8
	}
	return p
}

// resultType returns the element type of the product, Undefined if it is not
// known.
func (p *intPorts) resultType(op string, elem func(i int) tensor.DType, has func(i int) bool) tensor.DType {
	switch {
	case op == "MatMulInteger" || op == "ConvInteger":
		return tensor.Int32
	case op == "MatMulIntegerToFloat" || op == "DynamicQuantizeMatMul" || op == "QAttention":
		return tensor.Float32
	case op == "QGemm" && !has(p.yScale):
		return tensor.Float32
	case has(p.yZero):
		return elem(p.yZero)
	}
	return elem(p.a)
}

func inferIntMatMul(c *Inference) error {
	op := c.Node.Op.Type
	p := intPortsOf(op)
	oa, ob := orders(c.Node)
	out, err := matmulShape(permuteShape(oa, c.Shape(p.a)), permuteShape(ob, c.Shape(p.b)))
	if err != nil {
		return c.Errorf("%w", err)
	}
	c.Tensor(0, p.resultType(op, c.Elem, func(i int) bool { return c.Node.Input(i) != nil }), out)
	return nil
}

// integers returns the elements of t, or nil where t is.
func integers(t *tensor.Tensor) ([]int32, error) {
	if t == nil {
		return nil, nil
	}
	if !t.DType().IsInt() || t.DType().Bits() > 32 {
		return nil, fmt.Errorf("zero point of type %v", t.DType())
	}
	v, err := tensor.Int64s(t)
	if err != nil {
		return nil, err
	}
	out := make([]int32, len(v))
	for i, x := range v {
		out[i] = int32(x)
	}
	return out, nil
}

// isByte reports whether d is an 8-bit integer type.
func isByte(d tensor.DType) bool { return d == tensor.Uint8 || d == tensor.Int8 }

// intMatMul is an integer matrix product bound to its attributes and
// constants.
type intMatMul struct {
	op     string
	ports  intPorts
	a, b   operandOrder
	alpha  float32
	packed *kernels.PackedQB // of a constant matrix B with constant zero points

	saturate bool
}

func compileIntMatMul(s *Site) (Kernel, error) {
	q := &intMatMul{op: s.Node.Op.Type, ports: intPortsOf(s.Node.Op.Type), alpha: s.Node.Float("alpha", 1), saturate: s.Saturate}
	q.a, q.b = orders(s.Node)
	if err := q.pack(s); err != nil {
		return nil, err
	}
	return q.run, nil
}

// pack packs the right operand if it is a constant matrix.
func (q *intMatMul) pack(s *Site) error {
	b, z := s.Const(q.ports.b), s.Const(q.ports.bZero)
	if b != nil && b.Rank() == 2 && isByte(b.DType()) && (z != nil || !s.Has(q.ports.bZero)) {
		zero, err := integers(z)
		if err != nil {
			return s.Errorf("%w", err)
		}
		o := newOperand(b.Shape(), q.b, false)
		if len(zero) > 1 && len(zero) != o.cols {
			return s.Errorf("zero point %v for %v", z, b)
		}
		q.packed = packCodes(b, 0, &o, zero, s.Saturate)
	}
	return nil
}

// packCodes packs the matrix of t that begins at element off.
func packCodes(t *tensor.Tensor, off int, o *operand, zero []int32, saturate bool) *kernels.PackedQB {
	return kernels.PackQB(o.rows, o.cols, kernels.QMatrix{
		Data: t.Bytes()[off:], Signed: t.DType() == tensor.Int8, Ld: o.ld, Trans: o.trans,
	}, zero, saturate)
}

// spread returns the n values that a parameter has for matrix i: one for all,
// n for all matrices, or n for each.
func spread[T any](v []T, i, n int) ([]T, error) {
	switch {
	case len(v) <= 1 || len(v) == n:
		return v, nil
	case n > 0 && len(v)%n == 0 && len(v) >= (i+1)*n:
		return v[i*n:][:n], nil
	}
	return nil, fmt.Errorf("%d scales or zero points for %d rows or columns", len(v), n)
}

func (q *intMatMul) run(c *Call) error {
	p := &q.ports
	ta, tb := c.In(p.a), c.In(p.b)
	aScale, aZero, err := q.left(c, &ta)
	if err != nil {
		return err
	}
	if !isByte(ta.DType()) || !isByte(tb.DType()) || ta.Rank() == 0 || tb.Rank() == 0 {
		return fmt.Errorf("product of %v and %v", ta, tb)
	}
	bZero, err := integers(c.In(p.bZero))
	if err != nil {
		return err
	}
	a, b := newOperand(ta.Shape(), q.a, true), newOperand(tb.Shape(), q.b, false)
	batch, err := BroadcastDims(a.batch, b.batch)
	if err != nil || a.cols != b.rows {
		return fmt.Errorf("product of %v and %v", ta, tb)
	}
	shape := append([]int{}, batch...)
	if ta.Rank() > 1 {
		shape = append(shape, a.rows)
	}
	if tb.Rank() > 1 {
		shape = append(shape, b.cols)
	}
	out, err := c.Out(0, p.resultType(q.op, func(i int) tensor.DType { return c.In(i).DType() }, func(i int) bool { return c.In(i) != nil }), shape...)
	if err != nil || out.Len() == 0 {
		return err
	}
	end, err := q.end(c, out, b.cols)
	if err != nil {
		return err
	}
	count, _ := tensor.NumElements(batch)
	rows := a.rows
	if len(b.batch) == 0 && !a.trans && len(aZero) <= 1 && len(aScale) <= 1 {
		rows, count, batch, a.batch = rows*count, 1, nil, nil
	}
	packed, at := q.packed, -1
	bMatrix := 0
	for i := range count {
		if err := c.Ctx.Err(); err != nil {
			return err
		}
		if off := b.offset(i, batch); q.packed == nil && off != at {
			at, bMatrix = off, off/max(b.rows*b.cols, 1)
			z, err := spread(bZero, bMatrix, b.cols)
			if err != nil {
				return err
			}
			packed = packCodes(tb, off, &b, z, q.saturate)
		}
		off := a.offset(i, batch)
		az, err := spread(aZero, off/max(a.rows*a.cols, 1), a.rows)
		if err != nil {
			return err
		}
		as, err := spread(aScale, off/max(a.rows*a.cols, 1), a.rows)
		if err != nil {
			return err
		}
		m := kernels.QMatrix{Data: ta.Bytes()[off:], Signed: ta.DType() == tensor.Int8, Ld: a.ld, Trans: a.trans}
		if len(az) <= 1 && len(as) <= 1 && end.full == nil {
			o, err := end.at(as, bMatrix, i*rows)
			if err != nil {
				return err
			}
			kernels.QGemm(c.Pool, rows, m, first(az), packed, o)
			continue
		}
		for r := range rows {
			row := m
			if a.trans {
				row.Data = m.Data[r:]
			} else {
				row.Data = m.Data[r*a.ld:]
			}
			var s []float32
			if len(as) > 0 {
				s = as[min(r, len(as)-1):][:1]
			}
			o, err := end.at(s, bMatrix, i*rows+r)
			if err != nil {
				return err
			}
			var z int32
			if len(az) > 0 {
				z = az[min(r, len(az)-1)]
			}
			kernels.QGemm(c.Pool, 1, row, z, packed, o)
		}
	}
	return c.Ctx.Err()
}

func first(v []int32) int32 {
	if len(v) == 0 {
		return 0
	}
	return v[0]
}

// left returns scale and zero point of the left operand, and quantizes it
// first where the operator says so.
func (q *intMatMul) left(c *Call, t **tensor.Tensor) (scale []float32, zero []int32, err error) {
	p := &q.ports
	if p.dynamic {
		x := *t
		if x.DType() != tensor.Float32 {
			return nil, nil, fmt.Errorf("input of type %v", x.DType())
		}
		codes, err := c.Mem.Scratch(x.Len())
		if err != nil {
			return nil, nil, err
		}
		s, z, err := dynamicQuantize(c, tensor.As[float32](x), codes)
		if err != nil {
			return nil, nil, err
		}
		*t = tensor.Of(codes, x.Shape()...)
		return []float32{s}, []int32{int32(z)}, nil
	}
	if p.aScale >= 0 {
		if scale, err = tensor.Float32s(c.In(p.aScale)); err != nil {
			return nil, nil, err
		}
	}
	zero, err = integers(c.In(p.aZero))
	return scale, zero, err
}

// intEnd is what happens to the sums of an integer product.
type intEnd struct {
	words  []int32
	floats []float32
	bytes  []byte
	signed bool
	zero   int32
	n      int // columns
	alpha  float32
	bScale []float32
	yScale float32   // 0: none
	init   []int32   // added to every row, per column
	full   []int32   // added, like the output: rows are computed one by one
	bias   []float32 // per column
}

func (q *intMatMul) end(c *Call, out *tensor.Tensor, n int) (*intEnd, error) {
	e, err := newIntEnd(c, &q.ports, out, n)
	if err != nil {
		return nil, err
	}
	e.alpha = q.alpha
	bias := c.In(q.ports.bias)
	switch {
	case bias == nil:
	case bias.DType() == tensor.Float32 && bias.Len() == n && q.op != "QGemm":
		e.bias = tensor.As[float32](bias)
	case bias.DType() == tensor.Int32 && q.op == "QGemm":
		s, err := BroadcastDims(bias.Shape(), out.Shape())
		if err != nil || len(s) != 2 || s[0] != out.Shape()[0] || s[1] != n {
			return nil, fmt.Errorf("input C is %v for an output %v", bias, out)
		}
		v := tensor.As[int32](bias)
		rows, cols := broadcastSteps(bias.Shape())
		if rows == 0 {
			e.init = make([]int32, n)
			for j := range e.init {
				e.init[j] = v[j*cols]
			}
			break
		}
		e.full = make([]int32, out.Len())
		for i := range e.full {
			e.full[i] = v[i/n*rows+i%n*cols]
		}
	default:
		return nil, fmt.Errorf("bias %v for %d columns", bias, n)
	}
	return e, nil
}

// newIntEnd reads the parameters of the right operand and the output.
func newIntEnd(c *Call, p *intPorts, out *tensor.Tensor, n int) (*intEnd, error) {
	e := &intEnd{n: n, alpha: 1}
	var err error
	if t := c.In(p.bScale); t != nil {
		if e.bScale, err = tensor.Float32s(t); err != nil {
			return nil, err
		}
	}
	switch {
	case out.DType() == tensor.Int32:
		e.words = tensor.As[int32](out)
		return e, nil
	case out.DType() == tensor.Float32:
		e.floats = tensor.As[float32](out)
		return e, nil
	case !isByte(out.DType()):
		return nil, fmt.Errorf("output of type %v", out.DType())
	}
	e.bytes, e.signed = out.Bytes(), out.DType() == tensor.Int8
	s, err := scalesAt(c, p.yScale, nil)
	if err != nil {
		return nil, err
	}
	if len(s.scale) != 1 || !(s.scale[0] > 0) {
		return nil, fmt.Errorf("output scale %v", s.scale)
	}
	e.yScale, e.zero = s.scale[0], s.zero[0]
	return e, nil
}

// at returns what the kernel does for the rows from row on with matrix b of
// the right operand; aScale is the scale of the left one.
func (e *intEnd) at(aScale []float32, b, row int) (*kernels.QOut, error) {
	o := &kernels.QOut{Ld: e.n, Init: e.init, Bias: e.bias, Signed: e.signed, Zero: e.zero}
	off := row * e.n
	if e.full != nil {
		o.Init = e.full[off:][:e.n]
	}
	switch {
	case e.words != nil:
		o.Words = e.words[off:]
		return o, nil
	case e.floats != nil:
		o.Floats = e.floats[off:]
	default:
		o.Bytes = e.bytes[off:]
	}
	bs, err := spread(e.bScale, b, e.n)
	if err != nil {
		return nil, err
	}
	if len(aScale) != 1 || len(bs) == 0 {
		return nil, fmt.Errorf("%d scales of A and %d of B", len(aScale), len(bs))
	}
	o.Scale = e.scales(aScale[0], bs)
	return o, nil
}

// scales returns the factor of each column, in the order of operations of ONNX
// Runtime.
func (e *intEnd) scales(a float32, b []float32) []float32 {
	s := make([]float32, len(b))
	for i, v := range b {
		s[i] = e.alpha * a * v
		if e.yScale != 0 {
			s[i] /= e.yScale
		}
	}
	return s
}

// intConv is a ConvInteger or QLinearConv bound to its attributes and
// constants.
type intConv struct {
	ports        intPorts
	window       *window
	group        int
	channelsLast bool
	constant     bool // weights and their zero points
	saturate     bool
	last         atomic.Pointer[intConvFor]
}

type intConvFor struct {
	conv       *kernels.QConv
	begin, end [3]int
	column     bool
}

// isColumn reports whether images are one column of pixels before and after a
// convolution, whose kernels work along rows: as one row they have the same
// layout.
func isColumn(g *geometry) bool {
	return g.rank == 2 && g.in[2] == 1 && g.out[2] == 1 && g.kernel[2] == 1 && g.begin[2] == 0 && g.end[2] == 0
}

func inferIntConv(c *Inference) error {
	w, err := newWindow(c.Node)
	if err != nil {
		return c.Errorf("%w", err)
	}
	op := c.Node.Op.Type
	p := intPortsOf(op)
	x, ws := c.Shape(p.a), c.Shape(p.b)
	last := c.Node.Int("channels_last", 0) != 0
	if last && len(x) > 2 {
		x = append(graph.Shape{x[0], x[len(x)-1]}, x[1:len(x)-1]...)
	}
	var channels graph.Dim
	var kernel graph.Shape
	if ws != nil {
		if len(ws) < 3 {
			return c.Errorf("weights of shape %v", ws)
		}
		channels, kernel = bareDim(ws[0]), ws[2:]
	}
	out, err := w.infer(x, channels, kernel)
	if err != nil {
		return c.Errorf("%w", err)
	}
	if last && len(out) > 2 {
		out = append(append(graph.Shape{out[0]}, out[2:]...), out[1])
	}
	c.Tensor(0, p.resultType(op, c.Elem, func(i int) bool { return c.Node.Input(i) != nil }), out)
	return nil
}

func compileIntConv(s *Site) (Kernel, error) {
	w, err := newWindow(s.Node)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	q := &intConv{
		// The runtime's ConvInteger has the weights on the left: int8 times uint8,
		// which it computes exactly.
		saturate: s.Saturate && s.Node.Op.Type == "QLinearConv",
		ports:    intPortsOf(s.Node.Op.Type), window: w, group: int(s.Node.Int("group", 1)),
		channelsLast: s.Node.Int("channels_last", 0) != 0,
	}
	if q.group < 1 {
		return nil, s.Errorf("group is %d", q.group)
	}
	q.constant = s.Const(q.ports.b) != nil && (s.Const(q.ports.bZero) != nil || !s.Has(q.ports.bZero))
	return func(c *Call) error { return q.run(c, s.Node.Op.Type) }, nil
}

func (q *intConv) run(c *Call, op string) error {
	p := &q.ports
	x, w := c.In(p.a), c.In(p.b)
	if !isByte(x.DType()) || !isByte(w.DType()) || x.Rank() < 3 {
		return fmt.Errorf("input %v, weights %v", x, w)
	}
	dims := x.Shape()
	if q.channelsLast {
		dims = append([]int{dims[0], dims[len(dims)-1]}, dims[1:len(dims)-1]...)
	}
	like, err := tensor.FromBytes(x.DType(), dims, x.Bytes())
	if err != nil {
		return err
	}
	n, ch, m, err := convShapes(like, w, nil, q.group)
	if err != nil {
		return err
	}
	g, err := q.window.over(dims[2:], w.Shape()[2:])
	if err != nil {
		return err
	}
	shape := g.shape(n, m)
	if q.channelsLast {
		shape = append(append([]int{n}, shape[2:]...), m)
	}
	out, err := c.Out(0, p.resultType(op, func(i int) tensor.DType { return c.In(i).DType() }, func(i int) bool { return c.In(i) != nil }), shape...)
	if err != nil || out.Len() == 0 {
		return err
	}
	conv, err := q.prepare(c, g, w, ch, m)
	if err != nil {
		return err
	}
	xZero, err := integers(c.In(p.aZero))
	if err != nil {
		return err
	}
	if len(xZero) > 1 {
		return fmt.Errorf("zero point %v of the input", c.In(p.aZero))
	}
	e, err := newIntEnd(c, p, out, m)
	if err != nil {
		return err
	}
	o := &kernels.QOut{Signed: e.signed, Zero: e.zero}
	if p.aScale >= 0 {
		s, err := tensor.Float32s(c.In(p.aScale))
		if err != nil || len(s) != 1 {
			return fmt.Errorf("input scale %v", c.In(p.aScale))
		}
		o.Scale = e.scales(s[0], e.bScale)
	}
	if b := c.In(p.bias); b != nil {
		if b.DType() != tensor.Int32 || b.Len() != m {
			return fmt.Errorf("bias %v for %d channels", b, m)
		}
		o.Init = tensor.As[int32](b)
	}
	src, in, size := x.Bytes(), g.inSize(), g.outSize()
	if !q.channelsLast {
		if src, err = c.Mem.Scratch(x.Len()); err != nil {
			return err
		}
		if err := c.For(n, 1, func(lo, hi int) {
			for i := lo; i < hi; i++ {
				kernels.Transpose8(src[i*ch*in:][:ch*in], x.Bytes()[i*ch*in:][:ch*in], ch, in)
			}
		}); err != nil {
			return err
		}
	}
	spatial := dims[2:]
	if isColumn(g) {
		spatial = []int{1, g.in[1]}
	}
	run := func() error { return conv.Run(c.Pool, src, x.DType() == tensor.Int8, first(xZero), n, spatial, o) }
	if e.words != nil {
		if o.Words, err = scratch[int32](c, n*m*size); err != nil {
			return err
		}
		if err := run(); err != nil {
			return err
		}
		return c.For(n, 1, func(lo, hi int) {
			for i := lo; i < hi; i++ {
				kernels.Transpose(e.words[i*m*size:], size, o.Words[i*m*size:], m, size, m)
			}
		})
	}
	o.Bytes = e.bytes
	if q.channelsLast {
		if err := run(); err != nil {
			return err
		}
		return c.Ctx.Err()
	}
	if o.Bytes, err = c.Mem.Scratch(n * m * size); err != nil {
		return err
	}
	if err := run(); err != nil {
		return err
	}
	return c.For(n, 1, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			kernels.Transpose8(e.bytes[i*m*size:][:m*size], o.Bytes[i*m*size:][:m*size], size, m)
		}
	})
}

// prepare returns the kernel for g.
func (q *intConv) prepare(c *Call, g *geometry, w *tensor.Tensor, ch, m int) (*kernels.QConv, error) {
	if l := q.last.Load(); l != nil && l.begin == g.begin && l.end == g.end && l.column == isColumn(g) {
		return l.conv, nil
	}
	zero, err := integers(c.In(q.ports.bZero))
	if err != nil {
		return nil, err
	}
	off := 3 - g.rank
	key := *g
	if isColumn(g) {
		turned := *g
		for _, a := range []*[3]int{&turned.kernel, &turned.stride, &turned.dilation, &turned.begin, &turned.end} {
			a[1], a[2] = a[2], a[1]
		}
		g = &turned
	}
	conv, err := kernels.NewQConv(kernels.ConvSpec{
		Cin: ch, Cout: m, Groups: q.group, Kernel: g.kernel[off:], Stride: g.stride[off:], Dilation: g.dilation[off:],
		PadBegin: g.begin[off:], PadEnd: g.end[off:],
	}, w.Bytes(), w.DType() == tensor.Int8, zero, q.saturate)
	if err == nil && q.constant {
		q.last.Store(&intConvFor{conv, key.begin, key.end, isColumn(&key)})
	}
	return conv, err
}
