package qdq

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
)

// microsoft is the domain of MatMulNBits and GatherBlockQuantized.
const microsoft = "com.microsoft"

// coder encodes weights when their tensors are asked for. It holds the last
// result, since codes, scales and zero points of a weight are written one
// behind the other.
type coder struct {
	ctx  context.Context
	pool *par.Pool
	mu   sync.Mutex
	last *coding
	made *encoded
	held int // bytes of codes that are ready, see codes
}

// coding is one weight on its way to constants.
type coding struct {
	coder  *coder
	b      quant.Blocks
	l      quant.Lines
	shared quant.Shared
	ready  *quant.Coded // chosen before; nil: encoded when asked for
	form   targets.FormName
	tight  bool // packed without the padding of blocks
	pad    int  // elements by which Load fills up the last block of a line
}

// encoded holds the bytes of the constants of a weight.
type encoded struct{ codes, scales, zeros []byte }

// chunk is the number of elements that are encoded together at most.
const chunk = 1 << 22

// lines calls f with consecutive lines of codes.
func (c *coding) lines(f func(from int, part *quant.Coded)) {
	n := c.l.N()
	if c.ready != nil {
		f(0, c.ready)
		return
	}
	step := max(1, min(n, chunk/max(c.l.K, 1)))
	if c.form != targets.Packed {
		step = n
	}
	for from := 0; from < n; from += step {
		to := min(from+step, n)
		part, err := c.b.Encode(c.coder.ctx, c.coder.pool, c.l, c.shared, from, to, nil)
		if err != nil {
			return // the context ended, which the writer notices; values were checked before
		}
		f(from, part)
	}
}

// encode returns the bytes of all constants.
func (c *coding) encode() *encoded {
	k := c.coder
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last == c {
		return k.made
	}
	k.last, k.made = nil, nil
	k.pool.Begin()
	defer k.pool.End()
	n := c.l.N()
	out := &encoded{}
	if c.form != targets.Packed {
		c.lines(func(_ int, all *quant.Coded) { out = c.whole(all) })
	} else {
		line, zline := c.b.PackedBytes(c.l.K)
		if c.tight {
			line = (c.l.K*c.b.DType.Bits() + 7) / 8
		}
		blocks := (c.l.K + c.b.Size - 1) / c.b.Size
		sline := blocks * c.b.ScaleType.Bits() / 8
		out.codes, out.scales = tensor.AlignedBytes(n*line), tensor.AlignedBytes(n*sline)
		if c.b.Zero == quant.Asymmetric {
			out.zeros = tensor.AlignedBytes(n * zline)
		}
		c.lines(func(from int, part *quant.Coded) {
			step := max(1, (part.Lines+63)/64)
			k.pool.For(part.Lines, step, func(lo, hi int) {
				p := part.Slice(lo, hi)
				if at := from + lo; c.tight {
					p.PackCodes(out.codes[at*line:])
				} else {
					p.PackBlocks(out.codes[at*line:])
				}
				p.PackScales(out.scales[(from+lo)*sline : (from+hi)*sline])
				if out.zeros != nil {
					p.PackZeros(out.zeros[(from+lo)*zline:])
				}
			})
		})
	}
	k.last, k.made = c, out
	return out
}

// ready is the number of bytes of codes that a rewritten model holds; those of
// further weights are made each time that they are asked for.
const ready = 64 << 20

// many is the number of elements from which waking other threads pays.
const many = 1 << 19

// codes returns the codes of a weight as a file has them.
func (k *coder) codes(t *tensor.Tensor, p *quant.Params) (*tensor.Tensor, error) {
	if err := p.Check(t); err != nil {
		return nil, err
	}
	if p.Codes != nil {
		return p.Type.Pack(p.Codes), nil
	}
	own := *p
	own.Scale, own.Zero = slices.Clone(p.Scale), slices.Clone(p.Zero)
	encode := func() *tensor.Tensor {
		var pool *par.Pool
		if t.Len() >= many {
			k.mu.Lock()
			defer k.mu.Unlock()
			pool = k.pool
			pool.Begin()
			defer pool.End()
		}
		out, err := own.Quantize(pool, t)
		if err != nil {
			panic(err) // checked before
		}
		return own.Type.Pack(out)
	}
	if size := p.Type.DType.Bytes(t.Len()); k.held+size <= ready {
		k.held += size
		return encode(), nil
	}
	return tensor.Deferred(p.Type.DType, t.Shape(), func() []byte { return encode().Bytes() }), nil
}

// whole lays codes and parameters out as the tensor lies.
func (c *coding) whole(all *quant.Coded) *encoded {
	out := &encoded{}
	if c.pad > 0 {
		l := c.l
		padded := *all
		padded.K = l.K + c.pad
		padded.Codes = make([]byte, 0, padded.K*all.Lines)
		for i := range all.Lines {
			padded.Codes = append(padded.Codes, all.Codes[i*l.K:][:l.K]...)
			padded.Codes = append(padded.Codes, make([]byte, c.pad)...)
		}
		l.K = padded.K
		l.T = tensor.Deferred(tensor.Float32, []int{l.Outer, l.K, l.Inner}, nil) // for its shape
		out.codes = padded.Tensor(l).Bytes()
	} else {
		out.codes = all.Tensor(c.l).Bytes()
	}
	if all.Scale != nil {
		out.scales = all.Scales(c.l).Bytes()
	}
	if all.Zero != nil {
		out.zeros = all.Zeros(c.l).Bytes()
	}
	return out
}

// constant makes an initializer of g whose bytes pick takes from the result.
func (c *coding) constant(g *graph.Graph, name string, d tensor.DType, shape []int, pick func(*encoded) []byte) *graph.Value {
	t := tensor.Deferred(d, shape, func() []byte {
		if b := pick(c.encode()); b != nil {
			return b
		}
		return tensor.AlignedBytes(tensor.Deferred(d, shape, nil).Size())
	})
	return g.NewInitializer(name, t)
}

func codesOf(e *encoded) []byte  { return e.codes }
func scalesOf(e *encoded) []byte { return e.scales }
func zerosOf(e *encoded) []byte  { return e.zeros }

// formed stores the weight v in the form that e says.
func (w *rewriter) formed(v *graph.Value, e *TensorPlan, p *quant.Params) error {
	b, err := e.Blocks()
	if err != nil {
		return err
	}
	l, err := e.Lines(v.Const)
	if err != nil {
		return err
	}
	c := &coding{coder: w.coder, b: b, l: l, ready: p.Coded, form: e.Form, shared: quant.Shared{Global: 1, Grid: b.Grid}}
	if c.ready != nil {
		c.shared = quant.Shared{Global: c.ready.Global, Grid: c.ready.Grid}
	} else if c.shared, err = b.Share(w.coder.pool, l); err != nil {
		return err
	}
	for _, d := range []tensor.DType{b.DType, b.ScaleType} {
		if e.Form != targets.Packed {
			w.m.IRVersion = max(w.m.IRVersion, elementIR[d])
		}
	}
	if e.Form == targets.Packed {
		return w.packed(v, c)
	}
	var out *graph.Value
	if e.Form == targets.Dequantize {
		out = w.dequantized(v, c)
	} else {
		out = w.loaded(v, c)
	}
	for _, u := range slices.Clone(v.Uses()) {
		if u.Node != nil {
			u.Node.SetInput(u.Index, out)
		}
	}
	return nil
}

// chain adds nodes one behind the other at the start of a graph.
type chain struct {
	w    *rewriter
	home *graph.Graph
	base string
	last *graph.Node
}

func (c *chain) add(suffix string, o graph.OpKey, t graph.Type, in []*graph.Value, attrs ...*graph.Attr) *graph.Value {
	out := c.home.NewValue(c.w.m.UniqueName(c.base+suffix), t)
	n := c.home.NewNode(o, "", in, []*graph.Value{out}, attrs...)
	c.home.InsertAfter(n, c.last)
	c.last = n
	return out
}

func (c *chain) cast(suffix string, x *graph.Value, to tensor.DType) *graph.Value {
	if x.Type.Elem == to {
		return x
	}
	return c.add(suffix, op("Cast"), graph.TensorType(to, x.Type.Shape), []*graph.Value{x}, graph.Int("to", int64(to)))
}

func (c *chain) ints(suffix string, values ...int64) *graph.Value {
	return c.home.NewInitializer(c.base+suffix, tensor.Of(values))
}

func (c *chain) reshape(suffix string, x *graph.Value, shape []int) *graph.Value {
	dims := make([]int64, len(shape))
	for i, d := range shape {
		dims[i] = int64(d)
	}
	return c.add(suffix, op("Reshape"), graph.TensorType(x.Type.Elem, graph.ShapeOf(shape...)), []*graph.Value{x, c.ints(suffix+"_shape", dims...)})
}

// packed makes the readers of v MatMulNBits and GatherBlockQuantized nodes.
func (w *rewriter) packed(v *graph.Value, c *coding) error {
	if w.m.Opset(microsoft) == 0 {
		w.m.SetOpset(microsoft, 1)
	}
	home, name := v.Graph(), base(v.Name())
	at := &chain{w: w, home: home, base: name}
	n, k := c.l.N(), c.l.K
	bits := c.b.DType.Bits()
	blocks := (k + c.b.Size - 1) / c.b.Size
	line, zline := c.b.PackedBytes(k)
	gathers, products := false, false
	for _, u := range v.Uses() {
		if u.Node.Op == op("Gather") {
			gathers = true
		} else {
			products = true
		}
	}
	c.tight = gathers && !products
	var codes *graph.Value
	if c.tight {
		codes = c.constant(home, name+"_q", tensor.Uint8, []int{n, (k*bits + 7) / 8}, codesOf)
	} else {
		codes = c.constant(home, name+"_q", tensor.Uint8, []int{n, blocks, c.b.Size * bits / 8}, codesOf)
	}
	scales := c.constant(home, name+"_scale", c.b.ScaleType, []int{n, blocks}, scalesOf)
	params := []*graph.Value{at.cast("_scale_cast", scales, v.Const.DType())}
	if c.b.Zero == quant.Asymmetric {
		params = append(params, c.constant(home, name+"_zero_point", tensor.Uint8, []int{n, zline}, zerosOf))
	}
	rows := codes
	if gathers && products {
		rows = at.reshape("_rows", codes, []int{n, line})
	}
	attrs := func(extra ...*graph.Attr) []*graph.Attr {
		return append([]*graph.Attr{graph.Int("bits", int64(bits)), graph.Int("block_size", int64(c.b.Size))}, extra...)
	}
	for _, u := range slices.Clone(v.Uses()) {
		node := u.Node
		if node.Op == op("Gather") {
			in := append([]*graph.Value{rows, node.Input(1)}, params...)
			become(node, graph.OpKey{Domain: microsoft, Type: "GatherBlockQuantized"}, in, attrs(graph.Int("gather_axis", 0), graph.Int("quantize_axis", 1)))
			continue
		}
		readers := []*graph.Node{node}
		if t := Transposed(node, v); t != nil {
			readers = nil
			for _, r := range t.Uses() {
				readers = append(readers, r.Node)
			}
		}
		for _, r := range readers {
			in := append([]*graph.Value{r.Input(0), codes}, params...)
			w.product(r, in, n, attrs(graph.Int("K", int64(k)), graph.Int("N", int64(n))))
		}
	}
	return nil
}

// become makes n a node of another operator with other inputs and attributes.
func become(n *graph.Node, o graph.OpKey, in []*graph.Value, attrs []*graph.Attr) {
	n.Op, n.DomainAlias = o, false
	n.TruncateInputs(0)
	for _, v := range in {
		n.AddInput(v)
	}
	n.Attrs = attrs
}

// product makes a MatMul or Gemm a MatMulNBits; what is added to its rows is the
// bias, anything else an Add behind it.
func (w *rewriter) product(n *graph.Node, in []*graph.Value, columns int, attrs []*graph.Attr) {
	o := graph.OpKey{Domain: microsoft, Type: "MatMulNBits"}
	c := n.Input(2) // of a Gemm
	if c == nil {
		become(n, o, in, attrs)
		return
	}
	if s := c.Type.Shape; len(s) == 1 && s[0].Known && s[0].Size == int64(columns) {
		for len(in) < 5 {
			in = append(in, nil)
		}
		become(n, o, append(in, c), attrs)
		return
	}
	become(n, o, in, attrs)
	g, y := n.Graph(), n.Output(0)
	sum := g.NewValue(w.m.UniqueName(base(y.Name())+"_sum"), y.Type)
	add := g.NewNode(op("Add"), "", []*graph.Value{nil, c}, []*graph.Value{sum})
	g.InsertAfter(add, n)
	y.ReplaceWith(sum)
	add.SetInput(0, y)
}

// dequantized decodes v with DequantizeLinear.
func (w *rewriter) dequantized(v *graph.Value, c *coding) *graph.Value {
	home, name := v.Graph(), base(v.Name())
	at := &chain{w: w, home: home, base: name}
	shape := c.l.T.Shape()
	codes := c.constant(home, name+"_q", c.b.DType, shape, codesOf)
	axis := 0
	for p := 1; p < c.l.Outer; axis++ {
		p *= shape[axis]
	}
	for axis < len(shape)-1 && shape[axis] != c.l.K {
		axis++
	}
	blocks := c.b.Size
	var pshape []int
	switch {
	case c.l.N() == 1 && c.b.Size == 0:
		pshape = []int{}
	case c.b.Size == 0 && len(shape) == 2:
		pshape, axis = []int{shape[1-axis]}, 1-axis
	default:
		if blocks == 0 {
			blocks = c.l.K
		}
		pshape = slices.Clone(shape)
		pshape[axis] = (c.l.K + blocks - 1) / blocks
	}
	scale := c.constant(home, name+"_scale", c.b.ScaleType, pshape, scalesOf)
	out := graph.TensorType(tensor.Float32, graph.ShapeOf(shape...))
	var attrs []*graph.Attr
	if len(pshape) > 0 {
		attrs = append(attrs, graph.Int("axis", int64(axis)))
	}
	if len(pshape) > 1 {
		attrs = append(attrs, graph.Int("block_size", int64(blocks)))
	}
	switch c.b.ScaleType {
	case tensor.Float8E8M0:
		attrs = append(attrs, graph.Int("output_dtype", int64(tensor.Float32)))
	case tensor.Float8E4M3FN:
		global := home.NewInitializer(name+"_global_scale", tensor.Scalar(c.shared.Global))
		scale = at.add("_scale_dq", op("DequantizeLinear"), graph.TensorType(tensor.Float32, scale.Type.Shape), []*graph.Value{scale, global})
	default:
		scale = at.cast("_scale_cast", scale, tensor.Float32)
	}
	in := []*graph.Value{codes, scale}
	if zero := w.zero(home, name, c, pshape); zero != nil {
		in = append(in, zero)
	}
	x := at.add("_dq", op("DequantizeLinear"), out, in, attrs...)
	if !slices.Equal(shape, v.Const.Shape()) {
		x = at.reshape("_weight", x, v.Const.Shape())
	}
	return at.cast("_cast", x, v.Const.DType())
}

// zero returns the zero points in the storage type: those of the blocks, or of
// an unsigned type without any the middle of its codes; nil stands for 0.
func (w *rewriter) zero(home *graph.Graph, name string, c *coding, shape []int) *graph.Value {
	if c.b.Zero == quant.Asymmetric {
		return c.constant(home, name+"_zero_point", c.b.DType, shape, zerosOf)
	}
	middle := c.b.Middle()
	if middle == 0 {
		return nil
	}
	t := tensor.New(c.b.DType, shape...)
	switch plain, offset := make([]byte, t.Len()), byte(middle); c.b.DType.Bits() {
	case 2:
		kernels.Pack2(t.Bytes(), plain, offset)
	case 4:
		kernels.Pack4(t.Bytes(), plain, offset)
	default:
		kernels.Pack8(t.Bytes(), plain, offset)
	}
	return home.NewInitializer(name+"_zero_point", t)
}

// loaded decodes v with elementary operators.
func (w *rewriter) loaded(v *graph.Value, c *coding) *graph.Value {
	home, name := v.Graph(), base(v.Name())
	at := &chain{w: w, home: home, base: name}
	full := v.Const.Shape()
	if c.b.Kind == quant.Cast {
		return at.cast("_f32", c.constant(home, name+"_"+c.b.Name, c.b.DType, full, codesOf), v.Const.DType())
	}
	// Scales are multiplied with blocks, which the codes have an axis for.
	shape, pshape := []int{c.l.Outer, c.l.K, c.l.Inner}, []int{c.l.Outer, 1, c.l.Inner}
	if c.b.Size > 0 && c.b.Size < c.l.K {
		n := (c.l.K + c.b.Size - 1) / c.b.Size
		c.pad = n*c.b.Size - c.l.K
		shape, pshape = []int{c.l.Outer, n, c.b.Size, c.l.Inner}, []int{c.l.Outer, n, 1, c.l.Inner}
	}
	if c.b.Levels > 0 {
		shape = full
	}
	codes := c.constant(home, name+"_q", c.b.DType, shape, codesOf)
	float := func(x *graph.Value, suffix string) *graph.Value { return at.cast(suffix, x, tensor.Float32) }
	var x *graph.Value
	if c.b.Kind == quant.Codebook {
		grid := home.NewInitializer(name+"_codebook", tensor.Of(c.shared.Grid))
		index := at.cast("_index", codes, tensor.Int32)
		x = at.add("_value", op("Gather"), graph.TensorType(tensor.Float32, index.Type.Shape), []*graph.Value{grid, index}, graph.Int("axis", 0))
	} else {
		x = float(codes, "_f32")
	}
	if c.b.Zero == quant.Asymmetric {
		zero := float(c.constant(home, name+"_zero_point", c.b.DType, pshape, zerosOf), "_zero_f32")
		x = at.add("_centered", op("Sub"), x.Type, []*graph.Value{x, zero})
	} else if m := c.b.Middle(); c.b.Kind == quant.Integer && m != 0 {
		x = at.add("_centered", op("Sub"), x.Type, []*graph.Value{x, home.NewInitializer(name+"_zero_point", tensor.Scalar(float32(m)))})
	}
	if c.b.Levels == 0 {
		scale := float(c.constant(home, name+"_scale", c.b.ScaleType, pshape, scalesOf), "_scale_cast")
		x = at.add("_dq", op("Mul"), x.Type, []*graph.Value{x, scale})
	}
	if c.pad > 0 {
		x = at.reshape("_padded", x, []int{c.l.Outer, c.l.K + c.pad, c.l.Inner})
		ends := []*graph.Value{at.ints("_from", 0), at.ints("_to", int64(c.l.K)), at.ints("_axis", 1)}
		x = at.add("_lines", op("Slice"), graph.TensorType(tensor.Float32, graph.ShapeOf(c.l.Outer, c.l.K, c.l.Inner)), append([]*graph.Value{x}, ends...))
	}
	if got, known := x.Type.Shape.Dims(); !known || !slices.Equal(got, full) {
		x = at.reshape("_weight", x, full)
	}
	return at.cast("_cast", x, v.Const.DType())
}

// checkForm returns why e cannot be what becomes of a weight in a form; it may
// have been edited.
func (e *TensorPlan) checkForm(v *graph.Value) error {
	if e.Kind != Weight || !e.AtLoad {
		return fmt.Errorf("form %q is for weights of nodes that stay float, at_load", e.Form)
	}
	b, err := e.Blocks()
	if err != nil {
		return err
	}
	l, err := e.Lines(v.Const)
	if err != nil {
		return err
	}
	switch e.Form {
	case targets.Packed:
		bad := !b.Plain() || b.Size < 1 || b.Size&(b.Size-1) != 0 || b.DType.Bits()*b.Size < 8 || v.Const.Rank() != 2 || e.Whole || e.Flat
		if bad {
			return fmt.Errorf("form packed is for matrices with integer codes in blocks of a power of two, not %s in blocks of %d", e.Type, e.Block)
		}
		return checkPacked(v, e.Axis, l.K%b.Size == 0)
	case targets.Dequantize:
		if b.Kind != quant.Integer && b.Kind != quant.Real {
			return fmt.Errorf("DequantizeLinear knows no %s", e.Type)
		}
	case targets.AtLoad:
		if b.Storage.Block > 0 {
			return fmt.Errorf("form load knows no %s", e.Type)
		}
	default:
		return fmt.Errorf("form %q is none of %s, %s, %s", e.Form, targets.Packed, targets.Dequantize, targets.AtLoad)
	}
	return nil
}

// checkPacked returns why the readers of v cannot read packed codes in blocks
// along axis.
func checkPacked(v *graph.Value, axis int, whole bool) error {
	gathers, products := false, false
	for _, u := range v.Uses() {
		if u.Node == nil {
			return fmt.Errorf("it is an output")
		}
		reads, want := []graph.Use{u}, axis
		if t := Transposed(u.Node, v); t != nil {
			reads, want = t.Uses(), 1-axis
		}
		for _, r := range reads {
			if r.Node == nil {
				return fmt.Errorf("it is an output")
			}
			m, known := readOf(r.Node, r.Index, v)
			if !known || m.why != "" || m.axis != want {
				return fmt.Errorf("form packed is not for the way in which node %q reads it", r.Node.Label())
			}
			gathers, products = gathers || m.gather, products || !m.gather
		}
	}
	if gathers && products && !whole {
		return fmt.Errorf("form packed serves products and look-ups together only where rows are whole blocks")
	}
	return nil
}
