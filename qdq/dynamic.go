package qdq

import (
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// msDomain is the domain of ONNX Runtime's own operators.
const msDomain = "com.microsoft"

// dynamicOpset is the operator set from which DynamicQuantizeLinear exists.
const dynamicOpset = 11

// dynamicOps are the operators that dynamicNode writes.
var dynamicOps = []string{"MatMul", "Gemm", "Conv", "LSTM"}

// fitsDynamic returns why n cannot multiply its input, quantized as it comes,
// with codes, or "".
func fitsDynamic(n *graph.Node, spec *ops.Spec) string {
	if v := n.Graph().Opset(graph.OnnxDomain); v < dynamicOpset {
		return fmt.Sprintf("quantizing inputs as they come needs opset %d, this is %d", dynamicOpset, v)
	}
	if n.Output(0) == nil && n.Op.Type != "LSTM" {
		return "its output is not used"
	}
	for i, v := range n.Inputs() {
		if v == nil {
			continue
		}
		port, _ := spec.InPort(i)
		switch port.Role {
		case ops.Activation:
			if v.Type.Elem != tensor.Float32 {
				return fmt.Sprintf("input %q is %v, not float", v.Name(), v.Type.Elem)
			}
			if v.IsConst() {
				return fmt.Sprintf("input %q is constant", v.Name())
			}
		case ops.Weight:
			low, high := 2, 2
			switch n.Op.Type {
			case "Conv":
				low, high = 3, 5
			case "LSTM":
				low, high = 3, 3
			}
			switch {
			case !v.IsConst():
				return fmt.Sprintf("weight %q is not constant", v.Name())
			case v.Const.DType() != tensor.Float32:
				return fmt.Sprintf("weight %q is %v, not float", v.Name(), v.Const.DType())
			case v.Const.Rank() < low || v.Const.Rank() > high:
				return fmt.Sprintf("weight %q has rank %d", v.Name(), v.Const.Rank())
			case v.Const.Len() == 0:
				return fmt.Sprintf("weight %q is empty", v.Name())
			}
		}
	}
	return ""
}

// matMulForm is how a Conv is a matrix product.
type matMulForm int

const (
	notMatMul matMulForm = iota
	pointwise            // kernel and strides of 1: channels are the rows of every place
	whole                // the kernel covers the whole image: channels and places together
)

// matMulOf returns how n, a Conv of a constant weight, is a matrix product.
func matMulOf(n *graph.Node) matMulForm {
	w, x := n.Input(1).Const.Shape(), n.Input(0).Type.Shape
	ones := func(name string) bool {
		return !slices.ContainsFunc(n.Ints(name), func(k int64) bool { return k != 1 })
	}
	if n.Int("group", 1) != 1 || slices.ContainsFunc(n.Ints("pads"), func(p int64) bool { return p != 0 }) {
		return notMatMul
	}
	covers, single := len(x) == len(w) && ones("dilations"), ones("strides")
	if a := n.String("auto_pad", "NOTSET"); a != "NOTSET" && a != "VALID" {
		covers = false
	}
	for i, k := range w[2:] {
		covers = covers && x[i+2].Known && x[i+2].Size == int64(k)
		single = single && k == 1
	}
	switch {
	case covers:
		return whole
	case single:
		return pointwise
	}
	return notMatMul
}

// hasRows reports whether n, a Dynamic node, multiplies rows with a matrix.
func hasRows(n *graph.Node) bool {
	return n.Op.Type == "MatMul" || n.Op.Type == "Gemm" || n.Op.Type == "Conv" && matMulOf(n) != notMatMul
}

// quantized is what DynamicQuantizeLinear gives.
type quantized struct{ codes, scale, zero *graph.Value }

// builder adds nodes before a node.
type builder struct {
	w  *rewriter
	at *graph.Node
}

// node adds an operator of one output that is named after base; a shape of nil
// is unknown.
func (b builder) node(name, base string, t tensor.DType, shape graph.Shape, in []*graph.Value, attrs ...*graph.Attr) *graph.Value {
	g := b.at.Graph()
	out := g.NewValue(b.w.m.UniqueName(base), graph.TensorType(t, shape))
	g.InsertBefore(g.NewNode(op(name), "", in, []*graph.Value{out}, attrs...), b.at)
	return out
}

// constant adds an initializer to the graph of the node.
func (b builder) constant(base string, t *tensor.Tensor) *graph.Value {
	return b.at.Graph().NewInitializer(base, t)
}

// quantize returns the codes of v, which the nodes of a graph share.
func (b builder) quantize(v *graph.Value) quantized {
	g := b.at.Graph()
	key := dqKey{v, g}
	if q, ok := b.w.dynamic[key]; ok {
		return q
	}
	name := base(v.Name())
	q := quantized{
		codes: g.NewValue(b.w.m.UniqueName(name+"_q"), graph.TensorType(tensor.Uint8, v.Type.Shape)),
		scale: g.NewValue(b.w.m.UniqueName(name+"_scale"), graph.TensorType(tensor.Float32, graph.Shape{})),
		zero:  g.NewValue(b.w.m.UniqueName(name+"_zero_point"), graph.TensorType(tensor.Uint8, graph.Shape{})),
	}
	n := g.NewNode(op("DynamicQuantizeLinear"), "", []*graph.Value{v}, []*graph.Value{q.codes, q.scale, q.zero})
	after := v.DefNode()
	if after != nil && after.Graph() != g {
		after = nil
	}
	g.InsertAfter(n, after)
	b.w.dynamic[key] = q
	return q
}

// Parameters of codes with a scale for each row: their zero point, and how many
// steps there are to either side.
const (
	rowZero  = 128
	rowSteps = 127
)

// quantizeRows returns codes of v with a scale for each of its rows, [..., 1], which
// the nodes of a graph share: the greatest magnitude of a row is rowSteps steps from
// rowZero. The runtime has no operator for that; those that there are cost a pass
// over v each.
func (b builder) quantizeRows(v *graph.Value) quantized {
	key := dqKey{v, b.at.Graph()}
	if q, ok := b.w.rows[key]; ok {
		return q
	}
	name := base(v.Name())
	scalar := func(suffix string, x float32) *graph.Value {
		return b.constant(name+suffix, tensor.Scalar(x))
	}
	magnitudes := b.node("Abs", name+"_abs", tensor.Float32, v.Type.Shape, []*graph.Value{v})
	in, attrs := []*graph.Value{magnitudes}, []*graph.Attr{graph.Ints("axes", -1)}
	if b.at.Graph().Opset(graph.OnnxDomain) >= axesInputOpset {
		in, attrs = append(in, b.constant(name+"_axis", tensor.Of([]int64{-1}))), nil
	}
	var rows graph.Shape
	if n := len(v.Type.Shape); n > 0 {
		rows = append(slices.Clone(v.Type.Shape[:n-1]), graph.Dim{Known: true, Size: 1})
	}
	top := b.node("ReduceMax", name+"_max", tensor.Float32, rows, in, attrs...)
	step := b.node("Mul", name+"_step", tensor.Float32, rows, []*graph.Value{top, scalar("_share", 1.0/rowSteps)})
	// A row of zeros has codes of zero, not 0/0.
	scale := b.node("Max", name+"_scale", tensor.Float32, rows, []*graph.Value{step, scalar("_least", 0x1p-126)})
	steps := b.node("Div", name+"_steps", tensor.Float32, v.Type.Shape, []*graph.Value{v, scale})
	zero := b.constant(name+"_zero_point", tensor.Of([]uint8{rowZero}, []int{}...))
	codes := b.node("QuantizeLinear", name+"_q", tensor.Uint8, v.Type.Shape, []*graph.Value{steps, scalar("_one", 1), zero})
	b.w.rows[key] = quantized{codes, scale, zero}
	return b.w.rows[key]
}

// axesInputOpset is the operator set from which ReduceMax has its axes as an input.
const axesInputOpset = 18

// dynamicNode makes n, a Dynamic or DynamicRows node, an integer product.
func (w *rewriter) dynamicNode(n *graph.Node) error {
	b := builder{w, n}
	y := n.Output(0)
	switch n.Op.Type {
	case "LSTM":
		return w.dynamicLSTM(n)
	case "Conv":
		return b.conv(matMulOf(n))
	case "Gemm":
		out, err := b.product(n.Input(0), n.Input(1), n.Int("transB", 0) != 0, n.Input(2), base(y.Name()), y.Type.Shape)
		if err != nil {
			return err
		}
		return b.finish(out)
	}
	// The runtime looks for a bias in the second place.
	if add := y.OnlyUse(); add != nil && add.Op == op("Add") && add.Input(1) == y && add.Input(0) != y && add.Input(0).IsConst() {
		c := add.Input(0)
		add.SetInput(0, y)
		add.SetInput(1, c)
	}
	out, err := b.product(n.Input(0), n.Input(1), false, nil, base(y.Name()), y.Type.Shape)
	if err != nil {
		return err
	}
	return b.finish(out)
}

// finish puts out in the place of the output of the node, which it removes.
func (b builder) finish(out *graph.Value) error {
	n := b.at
	if y := n.Output(0); !y.ReplaceWith(out) {
		return fmt.Errorf("cannot replace output %q", y.Name())
	}
	n.Graph().Remove(n)
	return nil
}

// product returns x·weight + bias; trans says that the weight is to be
// transposed, with all axes but its first as one; bias may be nil.
func (b builder) product(x, weight *graph.Value, trans bool, bias *graph.Value, name string, shape graph.Shape) (*graph.Value, error) {
	p := b.w.params[weight.ID]
	var codes *graph.Value
	var err error
	if trans {
		rows := weight.Const.Shape()[0]
		codes, err = b.w.transposedCodes(weight, p, []int{weight.Const.Len() / rows, rows})
	} else {
		codes, err = b.w.codes(weight, p)
	}
	if err != nil {
		return nil, err
	}
	perRow := b.w.plan(b.at).How == DynamicRows
	q := quantized{}
	if perRow {
		q = b.quantizeRows(x)
	} else {
		q = b.quantize(x)
	}
	in := []*graph.Value{q.codes, codes, q.zero}
	if slices.ContainsFunc(p.Zero, func(z int32) bool { return z != 0 }) {
		in = append(in, weight.Graph().NewInitializer(base(weight.Name())+"_zero_point", p.ZeroTensor()))
	}
	sums := b.node("MatMulInteger", name+"_i32", tensor.Int32, shape, in)
	scale := weight.Graph().NewInitializer(base(weight.Name())+"_scale", p.ScaleTensor())
	if perRow {
		return b.scaledRows(sums, q.scale, scale, bias, name, shape), nil
	}
	return b.scaled(sums, q.scale, scale, bias, name, shape), nil
}

// scaledRows returns sums·weight·x + bias for an x of each row. It keeps the scales
// apart: in the form of scaled, ONNX Runtime 1.32 takes the product for its
// MatMulIntegerToFloat and scales the bias by x as well.
func (b builder) scaledRows(sums, x, weight, bias *graph.Value, name string, shape graph.Shape) *graph.Value {
	out := b.node("Cast", name+"_f32", tensor.Float32, shape, []*graph.Value{sums}, graph.Int("to", int64(tensor.Float32)))
	out = b.node("Mul", name+"_columns", tensor.Float32, shape, []*graph.Value{out, weight})
	out = b.node("Mul", name+"_scaled", tensor.Float32, shape, []*graph.Value{out, x})
	if bias != nil {
		out = b.node("Add", name+"_sum", tensor.Float32, shape, []*graph.Value{out, bias})
	}
	return out
}

// scaled returns sums·(x·weight) + bias in the form that the runtime takes for
// one kernel together with the product.
func (b builder) scaled(sums, x, weight, bias *graph.Value, name string, shape graph.Shape) *graph.Value {
	scale := b.node("Mul", name+"_scale", tensor.Float32, weight.Type.Shape, []*graph.Value{x, weight})
	real := b.node("Cast", name+"_f32", tensor.Float32, shape, []*graph.Value{sums}, graph.Int("to", int64(tensor.Float32)))
	out := b.node("Mul", name+"_scaled", tensor.Float32, shape, []*graph.Value{real, scale})
	if bias != nil {
		out = b.node("Add", name+"_sum", tensor.Float32, shape, []*graph.Value{out, bias})
	}
	return out
}

// transposedCodes returns the initializer with the codes of v, its matrices
// transposed and then of the given shape.
func (w *rewriter) transposedCodes(v *graph.Value, p *quant.Params, shape []int) (*graph.Value, error) {
	key := dqKey{v, v.Graph()}
	if out := w.transposed[key]; out != nil {
		return out, nil
	}
	t, err := p.Quantize(nil, v.Const)
	if err != nil {
		return nil, err
	}
	out := tensor.New(t.DType(), shape...)
	cols, rows := shape[len(shape)-2], shape[len(shape)-1]
	src, dst := t.Bytes(), out.Bytes()
	for at := 0; at < len(src); at += rows * cols {
		for r := range rows {
			for c := range cols {
				dst[at+c*rows+r] = src[at+r*cols+c]
			}
		}
	}
	w.transposed[key] = v.Graph().NewInitializer(base(v.Name())+"_q", out)
	return w.transposed[key], nil
}

// conv makes a Conv a matrix product if it is one, else a ConvInteger.
func (b builder) conv(form matMulForm) error {
	n := b.at
	x, weight, bias, y := n.Input(0), n.Input(1), n.Input(2), n.Output(0)
	name, rank, outs := base(y.Name()), weight.Const.Rank(), weight.Const.Shape()[0]
	switch form {
	case whole:
		rows := b.node("Reshape", name+"_rows", tensor.Float32, nil, []*graph.Value{x, b.constant(name+"_flat", tensor.Of([]int64{0, -1}))})
		out, err := b.product(rows, weight, true, bias, name, nil)
		if err != nil {
			return err
		}
		shape := append([]int64{0, int64(outs)}, slices.Repeat([]int64{1}, rank-2)...)
		return b.finish(b.node("Reshape", name+"_image", tensor.Float32, y.Type.Shape, []*graph.Value{out, b.constant(name+"_shape", tensor.Of(shape))}))
	case pointwise:
		last, first := []int64{0}, []int64{0, int64(rank - 1)}
		for i := 2; i < rank; i++ {
			last, first = append(last, int64(i)), append(first, int64(i-1))
		}
		rows := b.node("Transpose", name+"_rows", tensor.Float32, nil, []*graph.Value{x}, graph.Ints("perm", append(last, 1)...))
		out, err := b.product(rows, weight, true, bias, name, nil)
		if err != nil {
			return err
		}
		return b.finish(b.node("Transpose", name+"_image", tensor.Float32, y.Type.Shape, []*graph.Value{out}, graph.Ints("perm", first...)))
	}
	p := b.w.params[weight.ID]
	codes, err := b.w.codes(weight, p)
	if err != nil {
		return err
	}
	// ConvInteger takes one zero point for all channels only.
	in := []*graph.Value{nil, codes, nil}
	if slices.ContainsFunc(p.Zero, func(z int32) bool { return z != p.Zero[0] }) {
		return fmt.Errorf("the runtime's ConvInteger takes one zero point for all channels of %q", weight.Name())
	}
	if p.Zero[0] != 0 {
		one := quant.Params{Type: p.Type, Axis: -1, Zero: p.Zero[:1]}
		in = append(in, weight.Graph().NewInitializer(base(weight.Name())+"_zero_point", one.ZeroTensor()))
	}
	q := b.quantize(x)
	in[0], in[2] = q.codes, q.zero
	sums := b.node("ConvInteger", name+"_i32", tensor.Int32, y.Type.Shape, in, n.Attrs...)
	channels := append([]int{1, outs}, slices.Repeat([]int{1}, rank-2)...)
	scale := p.ScaleTensor()
	if p.Axis >= 0 {
		if scale, err = scale.Reshape(channels); err != nil {
			return err
		}
	}
	if bias != nil {
		shape := make([]int64, rank)
		for i, d := range channels {
			shape[i] = int64(d)
		}
		bias = b.node("Reshape", base(bias.Name())+"_channels", tensor.Float32, nil, []*graph.Value{bias, b.constant(name+"_shape", tensor.Of(shape))})
	}
	return b.finish(b.scaled(sums, q.scale, weight.Graph().NewInitializer(base(weight.Name())+"_scale", scale), bias, name, y.Type.Shape))
}

// dynamicLSTM makes n, an LSTM, a DynamicQuantizeLSTM, whose weights are
// [directions, input, gates] and [directions, hidden, gates] with scales for
// each direction, or for each gate of it.
func (w *rewriter) dynamicLSTM(n *graph.Node) error {
	in := slices.Clone(n.Inputs())
	for len(in) < 8 {
		in = append(in, nil)
	}
	for _, i := range []int{1, 2} {
		v := in[i]
		p := w.params[v.ID]
		s := v.Const.Shape()
		codes, err := w.transposedCodes(v, p, []int{s[0], s[2], s[1]})
		if err != nil {
			return err
		}
		// The plan has one set of scales for all directions.
		all := quant.Params{Type: p.Type, Axis: 0}
		for range s[0] {
			all.Scale, all.Zero = append(all.Scale, p.Scale...), append(all.Zero, p.Zero...)
		}
		scale, zero := all.ScaleTensor(), all.ZeroTensor()
		if p.Axis >= 0 {
			if scale, err = scale.Reshape([]int{s[0], s[1]}); err != nil {
				return err
			}
			if zero, err = zero.Reshape([]int{s[0], s[1]}); err != nil {
				return err
			}
		}
		in[i] = codes
		in = append(in, v.Graph().NewInitializer(base(v.Name())+"_scale", scale), v.Graph().NewInitializer(base(v.Name())+"_zero_point", zero))
	}
	n.Op = graph.OpKey{Domain: msDomain, Type: "DynamicQuantizeLSTM"}
	for i, v := range in {
		if i < n.NumInputs() {
			n.SetInput(i, v)
		} else {
			n.AddInput(v)
		}
	}
	n.RemoveAttr("layout")
	w.m.SetOpset(msDomain, 1)
	return nil
}
