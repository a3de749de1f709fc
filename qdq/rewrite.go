package qdq

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
	"github.com/onnxq/onnxq/validate"
)

// Rewrite edits m as the plan says, with parameters from Resolve. It returns
// what the user should know about.
func Rewrite(m *graph.Model, p *Plan, params []quant.Params) (notices []string, err error) {
	return RewriteContext(context.Background(), m, p, params, 0)
}

// RewriteContext is Rewrite for a model that is written under ctx: the weights
// in blocks are encoded only then, by the given number of threads (0: one per
// processor).
func RewriteContext(ctx context.Context, m *graph.Model, p *Plan, params []quant.Params, threads int) (notices []string, err error) {
	w, err := newRewriter(ctx, m, p, params, threads)
	if err != nil {
		return nil, err
	}
	nodes, dynamic, half, err := w.planned()
	if err != nil {
		return nil, err
	}
	biases, err := w.biases(nodes)
	if err != nil {
		return nil, err
	}
	for i, v := range w.b.values {
		switch {
		case p.Tensors[i].Form != "":
			if err := w.formed(v, &p.Tensors[i], &params[i]); err != nil {
				return nil, graph.ValueError("rewrite", v, err)
			}
		case p.Tensors[i].AtLoad:
			if err := w.store(v, &p.Tensors[i], &params[i]); err != nil {
				return nil, err
			}
		case p.Tensors[i].Kind == Activation:
			w.activation(v, w.params[v.ID], &p.Tensors[i])
		}
	}
	for i, n := range nodes {
		if err := w.constants(n, biases[i]); err != nil {
			return nil, graph.NodeError("rewrite", n, err)
		}
	}
	for _, n := range dynamic {
		if err := w.dynamicNode(n); err != nil {
			return nil, graph.NodeError("rewrite", n, err)
		}
	}
	for _, n := range half {
		if err := w.halfNode(n, w.b.nodes[n.ID].How.elem()); err != nil {
			return nil, graph.NodeError("rewrite", n, err)
		}
	}
	for i, v := range w.b.values {
		if p.Tensors[i].Decoded && slices.ContainsFunc(v.Uses(), func(u graph.Use) bool { return u.Node != nil }) {
			codes, err := w.codes(v, w.params[v.ID])
			if err == nil {
				err = w.decode(v, codes, w.params[v.ID])
			}
			if err != nil {
				return nil, graph.ValueError("rewrite", v, err)
			}
		}
	}
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if e := w.plan(n); e != nil && e.Guard && !e.Quantized {
				guard(n)
			}
		}
	}
	if w.raised > 0 {
		notices = append(notices, raisedNote(w.raised))
	}
	return notices, nil
}

func raisedNote(n int) string {
	return fmt.Sprintf("%d weight channels got a larger scale, since their bias would overflow int32", n)
}

func newRewriter(ctx context.Context, m *graph.Model, p *Plan, params []quant.Params, threads int) (*rewriter, error) {
	b, err := p.bind(m)
	if err != nil {
		return nil, err
	}
	if len(params) != len(p.Tensors) {
		return nil, fmt.Errorf("plan: %d parameters for %d tensors", len(params), len(p.Tensors))
	}
	w := &rewriter{m: m, b: b, params: make([]*quant.Params, m.NumValues()), dq: map[dqKey]*graph.Value{}, transposed: map[dqKey]*graph.Value{}, dynamic: map[dqKey]quantized{}, rows: map[dqKey]quantized{},
		half: map[halfKey]*graph.Value{}, coder: &coder{ctx: ctx, pool: par.New(threads)}}
	for i, v := range b.values {
		if !p.Tensors[i].AtLoad {
			w.params[v.ID] = &params[i]
		}
	}
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if v := n.Output(0); isDequantizer(n) && w.params[v.ID] == nil {
				if p, ok := given(v); ok {
					w.params[v.ID] = &p
				}
			}
		}
	}
	return w, nil
}

// planned lists the nodes that the plan changes: those on integers with known scales,
// those that quantize their inputs as they come, and those in 16-bit floats.
func (w *rewriter) planned() (nodes, dynamic, half []*graph.Node, err error) {
	for g := range w.m.Scopes() {
		for n := range g.Nodes() {
			e := w.b.nodes[n.ID]
			if err := w.check(n, e); err != nil {
				return nil, nil, nil, graph.NodeError("rewrite", n, err)
			}
			switch {
			case e.Quantized && e.How.IsDynamic():
				dynamic = append(dynamic, n)
			case e.Quantized && e.How.elem() != tensor.Undefined:
				half = append(half, n)
			case e.Quantized && e.How != Absorbed && e.How != Kept:
				nodes = append(nodes, n)
			}
		}
	}
	return nodes, dynamic, half, nil
}

// FitBiases raises the scales of the weight channels whose bias would overflow int32
// in params, those of Resolve, in place: before anything is found for these scales.
// It returns what the user should know about.
func (p *Plan) FitBiases(m *graph.Model, params []quant.Params) (notices []string, err error) {
	w, err := newRewriter(context.Background(), m, p, params, 1)
	if err != nil {
		return nil, err
	}
	nodes, _, _, err := w.planned()
	if err != nil {
		return nil, err
	}
	if _, err := w.biases(nodes); err != nil || w.raised == 0 {
		return nil, err
	}
	return []string{raisedNote(w.raised)}, nil
}

// biases finds the codes of the biases of nodes. One that would overflow raises the
// scale of its weights, which other biases may depend on: once all scales are raised,
// the second round changes none.
func (w *rewriter) biases(nodes []*graph.Node) ([]biasCodes, error) {
	list := make([]biasCodes, len(nodes))
	for range 2 {
		for i, n := range nodes {
			var err error
			if list[i], err = w.bias(n); err != nil {
				return nil, graph.NodeError("rewrite", n, err)
			}
		}
	}
	return list, nil
}

type dqKey struct {
	value *graph.Value
	graph *graph.Graph
}

type rewriter struct {
	m      *graph.Model
	b      *bound
	params []*quant.Params // by value ID
	dq     map[dqKey]*graph.Value
	// transposed holds codes of weights whose matrices are transposed, dynamic
	// what DynamicQuantizeLinear gives, rows codes with a scale for each row.
	transposed map[dqKey]*graph.Value
	dynamic    map[dqKey]quantized
	rows       map[dqKey]quantized
	half       map[halfKey]*graph.Value // values in 16-bit floats
	coder      *coder
	raised     int // channels whose weight scale a bias raised
}

// maxBase is the length of a value's name up to which names derived from it
// repeat it whole. Names take space, and some exporters join whole paths.
const maxBase = 40

// base returns what names derived from a value's name start with: the name, or
// the end of a long one from a separator on.
func base(name string) string {
	if len(name) <= maxBase {
		return name
	}
	name = name[len(name)-maxBase:]
	if i := strings.IndexAny(name, "/;:. "); i >= 0 && i < len(name)-8 {
		name = name[i+1:]
	}
	return strings.ToValidUTF8(name, "")
}

// quantizeOps returns the operators between real values of g and codes of type
// t: those of the domain com.microsoft where the standard ones do not have it.
func (w *rewriter) quantizeOps(g *graph.Graph, t tensor.DType) (q, dq graph.OpKey) {
	q, dq = op("QuantizeLinear"), op("DequantizeLinear")
	if t.Bits() != 8 && t.Bits() != 32 && g.Opset(graph.OnnxDomain) < wideOpset {
		q.Domain, dq.Domain = msDomain, msDomain
		w.m.SetOpset(msDomain, 1)
	}
	return q, dq
}

// wideOpset is the operator set from which QuantizeLinear has 16 and 4 bits.
const wideOpset = 21

func op(name string) graph.OpKey { return graph.OpKey{Type: name} }

// plan returns the decision about n, nil for nodes that Rewrite added.
func (w *rewriter) plan(n *graph.Node) *NodePlan {
	if n == nil || n.ID >= len(w.b.nodes) {
		return nil
	}
	return w.b.nodes[n.ID]
}

// computes reports whether n reads codes.
func (w *rewriter) computes(n *graph.Node) bool {
	e := w.plan(n)
	return e != nil && e.Quantized && (e.How == Integer || e.How == FloatOutput)
}

// check returns why n cannot become what the plan says, which may have been
// edited.
func (w *rewriter) check(n *graph.Node, e *NodePlan) error {
	if !e.Quantized {
		return nil
	}
	planned := func(i int) bool { return i < n.NumInputs() && n.Input(i) != nil && w.params[n.Input(i).ID] != nil }
	switch e.How {
	case Kept:
		if !isQuantizer(n) && !isDequantizer(n) {
			return fmt.Errorf("only QuantizeLinear and DequantizeLinear of the model can be kept")
		}
		return nil
	case Absorbed:
		if _, _, ok := ops.ClampBounds(n); !ok {
			return fmt.Errorf("only Relu, and Clip with constant bounds, can be absorbed")
		}
		return nil
	case Lookup:
		if n.Op != op("Gather") || !planned(0) || !n.Input(0).IsConst() || n.Output(0) == nil {
			return fmt.Errorf("only a Gather from a planned constant can look up codes")
		}
		if why := w.few(n.Input(0)); why != "" {
			return errors.New(why)
		}
		return w.checkAxis(n, 0)
	case Half, Brain:
		if _, _, err := validate.Narrow(n, e.How.elem()); err != nil {
			return err
		}
		return nil
	case Dynamic, DynamicRows:
		if n.Op.Domain != graph.OnnxDomain || !slices.Contains(dynamicOps, n.Op.Type) {
			return fmt.Errorf("there is no kernel for this operator that quantizes inputs as they come")
		}
		spec := ops.Lookup(n)
		if why := fitsDynamic(n, spec); why != "" {
			return errors.New(why)
		}
		if e.How == DynamicRows && !hasRows(n) {
			return fmt.Errorf("its input has no rows that could have scales of their own")
		}
		for i := range n.Inputs() {
			if port, _ := spec.InPort(i); port.Role != ops.Weight {
				continue
			}
			if !planned(i) {
				return fmt.Errorf("the plan quantizes the node but not its weight %q", n.Input(i).Name())
			}
			if err := w.checkAxis(n, i); err != nil {
				return err
			}
			if why := w.few(n.Input(i)); why != "" {
				return errors.New(why)
			}
		}
		return nil
	case Integer, FloatOutput:
		if n.Op.Domain != graph.OnnxDomain || ops.Lookup(n) == nil || n.Output(0) == nil {
			return fmt.Errorf("there is no integer kernel for this operator")
		}
		_, weight, _ := ports(n)
		act := slices.IndexFunc(n.Inputs(), func(v *graph.Value) bool { return v != nil && !v.IsConst() && w.params[v.ID] != nil })
		if act < 0 || weight > 0 && n.Input(weight).IsConst() && !planned(weight) {
			return fmt.Errorf("the plan quantizes the node but not its inputs")
		}
		if e.How == Integer && w.params[n.Output(0).ID] == nil && !w.absorbed(n.Output(0)) && !quantizedBehind(n.Output(0)) {
			return fmt.Errorf("the plan quantizes the node but not its output %q", n.Output(0).Name())
		}
		for i, v := range n.Inputs() {
			if port, _ := ops.Lookup(n).InPort(i); v != nil && port.Role == ops.Activation && v.Type.Elem == tensor.Float32 && w.params[v.ID] == nil {
				return fmt.Errorf("the plan quantizes the node but not its input %q", v.Name())
			}
		}
		return w.checkAxis(n, weight)
	}
	return fmt.Errorf("the plan does not say how the node is quantized: %q is none of %s, %s, %s, %s, %s, %s, %s, %s", e.How, Integer, FloatOutput, Absorbed, Lookup, Dynamic, DynamicRows, Half, Brain)
}

// few returns why kernels that read integers of 8 bits do not take the planned
// constant v, or "".
func (w *rewriter) few(v *graph.Value) string {
	if p := w.params[v.ID]; v.IsConst() && (p.Type.DType.Bits() < 8 || p.Type.Real()) {
		return fmt.Sprintf("the plan has %q in %s, the kernel reads integers of 8 bits", v.Name(), p.Type.Name)
	}
	return ""
}

// checkAxis returns why the scales of constant input i of n do not run along
// its output channels.
func (w *rewriter) checkAxis(n *graph.Node, i int) error {
	if i < 0 || !n.Input(i).IsConst() {
		return nil
	}
	v := n.Input(i)
	if axis, want := w.params[v.ID].Axis, channelAxis(n, i, v.Const.Rank()); axis >= 0 && axis != want {
		return fmt.Errorf("the plan has scales along axis %d of %q, the integer kernel wants axis %d or one scale", axis, v.Name(), want)
	}
	return nil
}

// absorbed reports whether v is read by an absorbed activation alone.
func (w *rewriter) absorbed(v *graph.Value) bool {
	e := w.plan(v.OnlyUse())
	return e != nil && e.Quantized && e.How == Absorbed
}

// activation puts a QuantizeLinear and a DequantizeLinear behind v. If an
// integer kernel makes v, every reader gets the dequantized value, otherwise
// only integer kernels do.
func (w *rewriter) activation(v *graph.Value, p *quant.Params, e *TensorPlan) {
	g := v.Graph()
	def := v.DefNode()
	made, absorb := false, false
	if e := w.plan(def); e != nil && e.Quantized {
		made = e.How == Integer || e.How == Absorbed && w.computes(def.Input(0).DefNode())
		absorb = made && e.How == Absorbed && clampImplied(def, p)
	}
	src := v
	if absorb {
		src = def.Input(0)
	}
	scale := g.NewInitializer(base(v.Name())+"_scale", p.ScaleTensor())
	zero := g.NewInitializer(base(v.Name())+"_zero_point", p.ZeroTensor())
	w.m.IRVersion = max(w.m.IRVersion, elementIR[p.Type.DType])
	insert := func(in *graph.Graph, n, after *graph.Node) *graph.Node {
		in.InsertAfter(n, after)
		return n
	}
	pair := func(in *graph.Graph, after *graph.Node) (q *graph.Node, out *graph.Value) {
		codes := in.NewValue(w.m.UniqueName(base(v.Name())+"_q"), graph.TensorType(p.Type.DType, v.Type.Shape))
		out = in.NewValue(w.m.UniqueName(base(v.Name())+"_dq"), graph.TensorType(tensor.Float32, v.Type.Shape))
		quantize, dequantize := w.quantizeOps(in, p.Type.DType)
		q = in.NewNode(quantize, "", []*graph.Value{nil, scale, zero}, []*graph.Value{codes})
		dq := in.NewNode(dequantize, "", []*graph.Value{codes, scale, zero}, []*graph.Value{out})
		insert(in, dq, insert(in, q, after))
		return q, out
	}
	if made {
		q, out := pair(g, def)
		v.ReplaceWith(out)
		q.SetInput(0, src)
		if absorb {
			g.Remove(def)
		}
		if e.Each {
			w.each(out)
		}
		return
	}
	uses := append([]graph.Use{}, v.Uses()...)
	for _, u := range uses {
		if u.Node == nil || !w.computes(u.Node) {
			continue
		}
		in := u.Node.Graph()
		key := dqKey{v, in}
		if w.dq[key] == nil {
			after := def
			if in != g {
				after = nil
			}
			q, out := pair(in, after)
			q.SetInput(0, v)
			if e.Pin && in.Opset(graph.OnnxDomain) >= pinOpset {
				w.pin(q, p)
			}
			if castCodes(v, p.Type.DType) && p.Scale[0] == 1 && p.Zero[0] == 0 {
				codesOfCast(q, def.Input(0))
			}
			w.dq[key] = out
		}
		u.Node.SetInput(u.Index, w.dq[key])
	}
}

// perAxisOpset is the operator set from which DequantizeLinear has scales along an
// axis.
const perAxisOpset = 13

// guard gives n, which multiplies floats with a weight, a DequantizeLinear of its own
// with a scale for each channel, if its input comes from one with a single scale and
// its output goes to a QuantizeLinear.
func guard(n *graph.Node) {
	x, weight := n.Input(0), n.Input(1)
	if x == nil || weight == nil || isDequantizer(weight.DefNode()) || !isDequantizer(x.DefNode()) || n.Opset() < perAxisOpset || !beforeQuantizer(n) {
		return
	}
	shape, axis, channels := weight.Type.Shape, 1, 0
	if weight.IsConst() {
		shape = graph.ShapeOf(weight.Const.Shape()...)
	}
	known := func(i int) int {
		if i >= len(shape) || !shape[i].Known {
			return 0
		}
		return int(shape[i].Size)
	}
	switch n.Op.Type {
	case "Conv":
		channels = known(1) * int(n.Int("group", 1))
	case "ConvTranspose":
		channels = known(0)
	case "Gemm":
		channels = known(int(n.Int("transB", 0)))
		axis -= int(n.Int("transA", 0))
	}
	if y := forEach(x.DefNode(), axis, channels); y != nil {
		n.SetInput(0, y)
	}
}

// each gives the nodes that stay float and read x, which a DequantizeLinear makes, one
// with a scale for each channel, along an axis whose size is known.
func (w *rewriter) each(x *graph.Value) {
	var y *graph.Value
	for _, u := range slices.Clone(x.Uses()) {
		if u.Node == nil || w.computes(u.Node) || u.Node.Graph() != x.Graph() || u.Node.Opset() < perAxisOpset {
			continue
		}
		for axis, d := range x.Type.Shape {
			if y == nil && d.Known && d.Size > 1 {
				y = forEach(x.DefNode(), axis, int(d.Size))
			}
		}
		if y != nil {
			u.Node.SetInput(u.Index, y)
		}
	}
}

// forEach puts a node like dq, a DequantizeLinear with one constant scale, beside it,
// with that scale for each of the channels along an axis, and returns its output; nil
// if that cannot be.
func forEach(dq *graph.Node, axis, channels int) *graph.Value {
	g, x := dq.Graph(), dq.Output(0)
	in := []*graph.Value{dq.Input(0)}
	for _, v := range dq.Inputs()[1:] {
		if v == nil || !v.IsConst() || v.Const.Len() != 1 || channels <= 0 {
			return nil
		}
		each := tensor.New(v.Const.DType(), channels)
		for b := each.Bytes(); len(b) > 0; {
			b = b[copy(b, v.Const.Bytes()):]
		}
		in = append(in, g.NewInitializer(v.Name()+"_each", each))
	}
	y := g.NewValue(g.Model().UniqueName(base(x.Name())+"_each"), x.Type)
	g.InsertAfter(g.NewNode(dq.Op, "", in, []*graph.Value{y}, graph.Int("axis", int64(axis))), dq)
	return y
}

// beforeQuantizer reports whether the output of n goes, over clamps at most, to a
// QuantizeLinear alone.
func beforeQuantizer(n *graph.Node) bool {
	for {
		if n.Output(0) == nil {
			return false
		}
		u := n.Output(0).OnlyUse()
		if u == nil || isQuantizer(u) {
			return u != nil
		}
		if u.Op != op("Relu") && u.Op != op("Clip") {
			return false
		}
		n = u
	}
}

// pinOpset is the operator set from which runtimes move a QuantizeLinear before a
// MaxPool.
const pinOpset = 12

// pin puts a Clip before q, a QuantizeLinear, that changes no code.
func (w *rewriter) pin(q *graph.Node, p *quant.Params) {
	v, g := q.Input(0), q.Graph()
	in := []*graph.Value{v}
	for k, bound := range []float64{p.Lo(0), p.Hi(0)} {
		in = append(in, g.NewInitializer(base(v.Name())+[]string{"_low", "_high"}[k], tensor.Of([]float32{float32(bound)}, []int{}...)))
	}
	out := g.NewValue(w.m.UniqueName(base(v.Name())+"_pinned"), v.Type)
	g.InsertBefore(g.NewNode(op("Clip"), "", in, []*graph.Value{out}), q)
	q.SetInput(0, out)
}

// codesOfCast makes q, a QuantizeLinear behind a Cast of x, a Cast of x to the
// type of the codes, which are the values themselves.
func codesOfCast(q *graph.Node, x *graph.Value) {
	q.Op.Type = "Cast"
	q.TruncateInputs(1)
	q.SetInput(0, x)
	q.SetAttr(graph.Int("to", int64(q.Output(0).Type.Elem)))
}

// clampImplied reports whether quantizing with p clamps at least as tightly as
// n, a Relu or Clip, to within half a step.
func clampImplied(n *graph.Node, p *quant.Params) bool {
	lo, hi, ok := ops.ClampBounds(n)
	half := float64(p.Scale[0]) / 2
	return ok && p.Lo(0) >= lo-half && p.Hi(0) <= hi+half
}

type biasCodes struct {
	port  int // 0: none
	codes []int32
	scale []float32
}

// ports returns the first activation, weight and bias ports of n, or -1.
func ports(n *graph.Node) (act, weight, bias int) {
	act, weight, bias = -1, -1, -1
	spec := ops.Lookup(n)
	for i := n.NumInputs() - 1; i >= 0; i-- {
		if n.Input(i) == nil {
			continue
		}
		port, _ := spec.InPort(i)
		switch port.Role {
		case ops.Activation:
			act = i
		case ops.Weight:
			weight = i
		case ops.Bias:
			bias = i
		}
	}
	return act, weight, bias
}

func (w *rewriter) bias(n *graph.Node) (biasCodes, error) {
	act, weight, bias := ports(n)
	if act < 0 || weight < 0 || bias < 0 || w.b.tensors[n.Input(bias).ID] == nil {
		return biasCodes{}, nil
	}
	x, wt, b := w.params[n.Input(act).ID], w.params[n.Input(weight).ID], n.Input(bias)
	if x == nil || wt == nil {
		return biasCodes{}, fmt.Errorf("the plan quantizes the node but not its inputs")
	}
	if isGiven(n.Input(weight)) {
		own := *wt // the codes of the model stay as they are, and so do their scales
		own.Scale = slices.Clone(wt.Scale)
		codes, scale, raised, err := own.Bias(tensor.As[float32](b.Const), x.Scale[0])
		if err != nil || len(raised) > 0 {
			return biasCodes{}, err
		}
		return biasCodes{port: bias, codes: codes, scale: scale}, nil
	}
	codes, scale, raised, err := wt.Bias(tensor.As[float32](b.Const), x.Scale[0])
	if err != nil {
		return biasCodes{}, err
	}
	if len(raised) > 0 && wt.Codes != nil { // the codes of these channels were for the old scale
		if wt.Codes, err = wt.Recode(n.Input(weight).Const, raised); err != nil {
			return biasCodes{}, err
		}
	}
	w.raised += len(raised)
	return biasCodes{port: bias, codes: codes, scale: scale}, nil
}

// constants stores the weight and bias of n as codes.
func (w *rewriter) constants(n *graph.Node, b biasCodes) error {
	g := n.Graph()
	if w.plan(n).How == Lookup {
		return w.lookup(n)
	}
	for i, v := range n.Inputs() {
		if v == nil || !v.IsConst() || w.params[v.ID] == nil {
			continue
		}
		if port, _ := ops.Lookup(n).InPort(i); port.Role != ops.Activation {
			continue
		}
		p := w.params[v.ID]
		key := dqKey{v, g}
		if w.dq[key] == nil {
			codes, err := w.codes(v, p)
			if err != nil {
				return err
			}
			w.dq[key] = w.dequantize(n, v, codes, p.ScaleTensor(), p.ZeroTensor(), p.Axis)
		}
		n.SetInput(i, w.dq[key])
	}
	_, weight, _ := ports(n)
	if weight < 0 || n.Input(weight).ID >= len(w.params) || w.params[n.Input(weight).ID] == nil || !n.Input(weight).IsConst() && !isGiven(n.Input(weight)) {
		return nil
	}
	v := n.Input(weight)
	p := w.params[v.ID]
	if v.IsConst() {
		key := dqKey{v, g}
		if w.dq[key] == nil {
			codes, err := w.codes(v, p)
			if err != nil {
				return err
			}
			w.dq[key] = w.dequantize(n, v, codes, p.ScaleTensor(), p.ZeroTensor(), p.Axis)
		}
		n.SetInput(weight, w.dq[key])
	}
	if b.port > 0 {
		v := n.Input(b.port)
		scale := tensor.Of(b.scale)
		axis := 0
		if p.Axis < 0 {
			scale, axis = tensor.Scalar(b.scale[0]), -1
		}
		codes := v.Graph().NewInitializer(base(v.Name())+"_q", tensor.Of(b.codes))
		n.SetInput(b.port, w.dequantize(n, v, codes, scale, nil, axis))
	}
	return nil
}

// store keeps the weight v as e says, decoded at the start of its graph.
func (w *rewriter) store(v *graph.Value, e *TensorPlan, p *quant.Params) error {
	if e.Type == Float16 {
		return w.decode(v, v.Graph().NewInitializer(base(v.Name())+"_f16", quant.Half(v.Const)), nil)
	}
	if !e.Symmetric {
		return graph.ValueError("rewrite", v, fmt.Errorf("the plan decodes it at load with a zero point, which only symmetric codes do without"))
	}
	codes, err := w.coder.codes(v.Const, p)
	if err != nil {
		return graph.ValueError("rewrite", v, err)
	}
	return w.decode(v, v.Graph().NewInitializer(base(v.Name())+"_q", codes), p)
}

// decode makes what reads the weight v read what it is stored as instead: codes with
// the scales of p or, if p is nil, 16-bit floats.
func (w *rewriter) decode(v, stored *graph.Value, p *quant.Params) error {
	home := v.Graph()
	var last *graph.Node
	add := func(suffix string, o graph.OpKey, in []*graph.Value, attrs ...*graph.Attr) *graph.Value {
		out := home.NewValue(w.m.UniqueName(base(v.Name())+suffix), graph.TensorType(tensor.Float32, v.Type.Shape))
		n := home.NewNode(o, "", in, []*graph.Value{out}, attrs...)
		home.InsertAfter(n, last)
		last = n
		return out
	}
	var scale *graph.Value
	if p != nil {
		s := p.ScaleTensor()
		if p.Axis >= 0 {
			shape := slices.Repeat([]int{1}, v.Const.Rank())
			shape[p.Axis] = len(p.Scale)
			var err error
			if s, err = s.Reshape(shape); err != nil {
				return graph.ValueError("rewrite", v, err)
			}
		}
		scale = home.NewInitializer(base(v.Name())+"_scale", s)
	}
	out := add("_f32", op("Cast"), []*graph.Value{stored}, graph.Int("to", int64(tensor.Float32)))
	if scale != nil {
		out = add("_dq", op("Mul"), []*graph.Value{out, scale})
	}
	for _, u := range slices.Clone(v.Uses()) {
		if u.Node != nil {
			u.Node.SetInput(u.Index, out)
		}
	}
	return nil
}

// codes returns the initializer that holds the codes of a weight; a weight
// that several graphs read is stored once.
func (w *rewriter) codes(v *graph.Value, p *quant.Params) (*graph.Value, error) {
	key := dqKey{v, nil}
	if w.dq[key] == nil {
		t, err := w.coder.codes(v.Const, p)
		if err != nil {
			return nil, err
		}
		w.dq[key] = v.Graph().NewInitializer(base(v.Name())+"_q", t)
		w.m.IRVersion = max(w.m.IRVersion, elementIR[p.Type.DType])
	}
	return w.dq[key], nil
}

// dequantize puts a DequantizeLinear of constant codes before n. A nil zero
// leaves the zero point out, which means 0.
func (w *rewriter) dequantize(n *graph.Node, v, codes *graph.Value, scale, zero *tensor.Tensor, axis int) *graph.Value {
	g := n.Graph()
	in := []*graph.Value{codes, codes.Graph().NewInitializer(base(v.Name())+"_scale", scale)}
	_, dequantize := w.quantizeOps(g, codes.Type.Elem)
	if zero != nil {
		in = append(in, codes.Graph().NewInitializer(base(v.Name())+"_zero_point", zero))
	}
	var attrs []*graph.Attr
	if axis >= 0 {
		attrs = []*graph.Attr{graph.Int("axis", int64(axis))}
	}
	out := g.NewValue(w.m.UniqueName(base(v.Name())+"_dq"), graph.TensorType(tensor.Float32, v.Type.Shape))
	dq := g.NewNode(dequantize, "", in, []*graph.Value{out}, attrs...)
	g.InsertBefore(dq, n)
	return out
}

// lookup makes n gather codes and dequantizes what it gathered. The table has
// rank 2 and, unless per tensor, a scale for each column, which is the last
// axis of what is gathered. A Transpose that follows moves codes, and a Shape
// reads theirs: runtimes that move a Transpose before the dequantization add
// another pair to it, which is slow for a scale of each column.
func (w *rewriter) lookup(n *graph.Node) error {
	v, y, g := n.Input(0), n.Output(0), n.Graph()
	p := w.params[v.ID]
	if p == nil {
		return fmt.Errorf("the plan quantizes the node but not its table %q", v.Name())
	}
	codes, err := w.codes(v, p)
	if err != nil {
		return err
	}
	in := append([]*graph.Value{codes}, n.Inputs()[1:]...)
	rows := g.NewValue(w.m.UniqueName(base(y.Name())+"_q"), graph.TensorType(p.Type.DType, y.Type.Shape))
	gather := g.NewNode(n.Op, w.m.UniqueNodeName(n.Label()+"_q"), in, []*graph.Value{rows}, n.Attrs...)
	g.InsertBefore(gather, n)
	sc := v.Graph().NewInitializer(base(v.Name())+"_scale", p.ScaleTensor())
	zp := v.Graph().NewInitializer(base(v.Name())+"_zero_point", p.ZeroTensor())
	decode := func(rows, y *graph.Value, axis int, at *graph.Node) error {
		var attrs []*graph.Attr
		if p.Axis >= 0 {
			attrs = []*graph.Attr{graph.Int("axis", int64(axis))}
		}
		out := at.Graph().NewValue(w.m.UniqueName(base(y.Name())+"_dq"), graph.TensorType(tensor.Float32, y.Type.Shape))
		dq := at.Graph().NewNode(op("DequantizeLinear"), "", []*graph.Value{rows, sc, zp}, []*graph.Value{out}, attrs...)
		at.Graph().InsertBefore(dq, at)
		if !y.ReplaceWith(out) {
			return fmt.Errorf("cannot replace output %q", y.Name())
		}
		at.Graph().Remove(at)
		return nil
	}
	for _, u := range slices.Clone(y.Uses()) {
		t := u.Node
		switch e := w.plan(t); {
		case e == nil || e.Quantized:
		case t.Op == op("Shape"):
			t.SetInput(u.Index, rows)
		case t.Op == op("Transpose") && len(t.Ints("perm")) > 0 && t.Output(0) != nil:
			perm := t.Ints("perm")
			moved := t.Graph().NewValue(w.m.UniqueName(base(t.Output(0).Name())+"_q"), graph.TensorType(p.Type.DType, t.Output(0).Type.Shape))
			turn := t.Graph().NewNode(t.Op, w.m.UniqueNodeName(t.Label()+"_q"), []*graph.Value{rows}, []*graph.Value{moved}, t.Attrs...)
			t.Graph().InsertBefore(turn, t)
			if err := decode(moved, t.Output(0), slices.Index(perm, int64(len(perm)-1)), t); err != nil {
				return err
			}
		}
	}
	if len(y.Uses()) == 0 {
		g.Remove(n)
		return nil
	}
	return decode(rows, y, -1, n)
}
