package exec

import (
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

const msDomain = "com.microsoft"

// integerForm returns m, or a copy in which every group of DequantizeLinear,
// operator and QuantizeLinear that ONNX Runtime's CPU provider replaces by an
// integer kernel is replaced by the same kernel, so that running it gives what
// that runtime computes. The conditions are those of the runtime's selectors
// (core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc). IDs of
// nodes and values stay those of m.
func integerForm(m *graph.Model) *graph.Model {
	quantized := false
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			quantized = quantized || isDQ(n)
		}
	}
	if !quantized {
		return m
	}
	c := m.Clone()
	for g := range c.Scopes() {
		if g.Function() != nil {
			continue
		}
		for n := range g.Nodes() {
			fuseGroup(n)
		}
	}
	for g := range c.Scopes() {
		for n := g.Last(); n != nil; {
			prev := n.Prev()
			if isDQ(n) && len(n.Output(0).Uses()) == 0 {
				g.Remove(n)
			}
			n = prev
		}
	}
	return c
}

func isDQ(n *graph.Node) bool { return isStandard(n, "DequantizeLinear") && n.Output(0) != nil }

func isQ(n *graph.Node) bool { return isStandard(n, "QuantizeLinear") && n.Output(0) != nil }

func isStandard(n *graph.Node, op string) bool {
	return n != nil && n.Op.Domain == graph.OnnxDomain && n.Op.Type == op
}

// codes is what a DequantizeLinear reads.
type codes struct {
	data, scale, zero *graph.Value
	dtype             tensor.DType
}

// codesOf returns what the DequantizeLinear that makes v reads, if all of it
// is of a kind that integer kernels take: 8 bits (32 for a bias), constant
// scales, constant zero points.
func codesOf(v *graph.Value) (codes, bool) {
	if v == nil || !isDQ(v.DefNode()) || v.DefNode().Int("block_size", 0) != 0 {
		return codes{}, false
	}
	n := v.DefNode()
	c := codes{data: n.Input(0), scale: n.Input(1), zero: n.Input(2)}
	if c.data == nil || c.scale == nil || !c.scale.IsConst() || c.scale.Const.DType() != tensor.Float32 || c.zero != nil && !c.zero.IsConst() {
		return codes{}, false
	}
	switch {
	case c.zero != nil:
		c.dtype = c.zero.Const.DType()
	case c.data.IsConst():
		c.dtype = c.data.Const.DType()
	default:
		c.dtype = c.data.Type.Elem
	}
	return c, true
}

func (c codes) perTensor() bool { return c.scale.Const.Len() == 1 }

// activation reports whether c is per tensor with 8 bits and a zero point.
func (c codes) activation() bool {
	return c.perTensor() && c.zero != nil && (c.dtype == tensor.Uint8 || c.dtype == tensor.Int8)
}

// quantizer returns the QuantizeLinear that alone reads the output of n, or
// that reads it through a Relu or Clip which the clamp of the quantizer makes
// redundant; the second result is that node.
func quantizer(n *graph.Node) (q, clamp *graph.Node) {
	y := n.Output(0)
	if y == nil {
		return nil, nil
	}
	next := y.OnlyUse()
	if next == nil || next.Graph() != n.Graph() {
		return nil, nil
	}
	if isStandard(next, "Relu") || isStandard(next, "Clip") {
		q := next.Output(0).OnlyUse()
		if !isQ(q) || q.Input(0) != next.Output(0) || q.Graph() != n.Graph() || next.Input(0) != y || !redundant(next, q) {
			return nil, nil
		}
		return q, next
	}
	if isQ(next) && next.Input(0) == y {
		return next, nil
	}
	return nil, nil
}

// redundant reports whether a Relu or Clip changes nothing that q lets through.
func redundant(n, q *graph.Node) bool {
	s, z := q.Input(1), q.Input(2)
	if !s.IsConst() || s.Const.Len() != 1 || z == nil || !z.IsConst() {
		return false
	}
	qmin, qmax, ok := z.Const.DType().IntRange()
	zero, err := tensor.Int64s(z.Const)
	if !ok || err != nil {
		return false
	}
	scale := float64(tensor.As[float32](s.Const)[0])
	lo, hi := float64(qmin-zero[0])*scale, float64(qmax-zero[0])*scale
	below, above, ok := ops.ClampBounds(n)
	return ok && lo >= below && hi <= above
}

// group is a node between its dequantizers and its quantizer.
type group struct {
	node     *graph.Node
	in       []codes
	q, clamp *graph.Node
}

// fuseGroup replaces n by an integer kernel where the runtime would.
func fuseGroup(n *graph.Node) {
	if n.Op.Domain != graph.OnnxDomain || n.Output(0) == nil {
		return
	}
	f, ok := fusions[n.Op.Type]
	if !ok {
		return
	}
	k := group{node: n}
	for i, v := range n.Inputs() {
		c, ok := codesOf(v)
		if !ok {
			if i == 0 || !f.moves {
				return
			}
			break // sizes, indices
		}
		k.in = append(k.in, c)
	}
	if len(k.in) == 0 || !k.in[0].activation() {
		return
	}
	k.q, k.clamp = quantizer(n)
	if k.q != nil {
		if z := k.q.Input(2); z == nil || !z.IsConst() || z.Const.DType() != k.in[0].dtype || !k.q.Input(1).IsConst() || k.q.Input(1).Const.Len() != 1 {
			return
		}
	}
	f.build(&k)
}

type fusion struct {
	// moves says that only the first input holds codes.
	moves bool
	build func(*group)
}

var fusions = map[string]fusion{
	"Conv": {build: func(k *group) {
		if k.q == nil || len(k.in) < 2 || !k.weight(1) {
			return
		}
		w, x := k.in[1], k.in[0]
		in := []*graph.Value{x.data, x.scale, x.zero, w.data, w.scale, k.zeros(w), k.q.Input(1), k.q.Input(2)}
		if len(k.in) == 3 {
			if k.in[2].dtype != tensor.Int32 {
				return
			}
			in = append(in, k.in[2].data)
		}
		k.replace(graph.OpKey{Type: "QLinearConv"}, in, k.node.Attrs...)
	}},
	"MatMul": {build: func(k *group) {
		if len(k.in) != 2 || !k.weight(1) {
			return
		}
		a, b := k.in[0], k.in[1]
		if k.q != nil {
			k.replace(graph.OpKey{Type: "QLinearMatMul"}, []*graph.Value{a.data, a.scale, a.zero, b.data, b.scale, k.zeros(b), k.q.Input(1), k.q.Input(2)})
			return
		}
		if k.node.Output(0).OnlyUse() != nil && isQ(k.node.Output(0).OnlyUse()) || anyQ(k.node.Output(0)) {
			return
		}
		k.replace(graph.OpKey{Domain: msDomain, Type: "MatMulIntegerToFloat"}, []*graph.Value{a.data, b.data, a.scale, b.scale, a.zero, k.zeros(b)})
	}},
	"Gemm": {build: func(k *group) {
		if len(k.in) < 2 || !k.weight(1) || k.node.Float("beta", 1) != 1 && len(k.in) == 3 {
			return
		}
		a, b := k.in[0], k.in[1]
		in := []*graph.Value{a.data, a.scale, a.zero, b.data, b.scale, k.zeros(b), nil}
		if len(k.in) == 3 {
			if k.in[2].dtype != tensor.Int32 {
				return
			}
			in[6] = k.in[2].data
		}
		if k.q == nil && anyQ(k.node.Output(0)) {
			return
		}
		if k.q != nil {
			in = append(in, k.q.Input(1), k.q.Input(2))
		}
		attrs := slices.DeleteFunc(slices.Clone(k.node.Attrs), func(a *graph.Attr) bool { return a.Name == "beta" })
		k.replace(graph.OpKey{Domain: msDomain, Type: "QGemm"}, in, attrs...)
	}},
	"Add":               {build: qlinear2("QLinearAdd")},
	"Mul":               {build: qlinear2("QLinearMul")},
	"AveragePool":       {build: qlinear1("QLinearAveragePool")},
	"GlobalAveragePool": {build: qlinear1("QLinearGlobalAveragePool")},
	"LeakyRelu":         {build: qlinear1("QLinearLeakyRelu")},
	"Sigmoid":           {build: qlinear1("QLinearSigmoid")},
	"Concat": {build: func(k *group) {
		if k.q == nil || k.clamp != nil {
			return
		}
		in := []*graph.Value{k.q.Input(1), k.q.Input(2)}
		for _, c := range k.in {
			if !c.activation() || c.dtype != k.in[0].dtype {
				return
			}
			in = append(in, c.data, c.scale, c.zero)
		}
		k.replace(graph.OpKey{Domain: msDomain, Type: "QLinearConcat"}, in, k.node.Attrs...)
	}},
	"MaxPool":   {moves: true, build: carry},
	"Reshape":   {moves: true, build: carry},
	"Flatten":   {moves: true, build: carry},
	"Squeeze":   {moves: true, build: carry},
	"Unsqueeze": {moves: true, build: carry},
	"Transpose": {moves: true, build: carry},
	"Resize":    {moves: true, build: carry},
	"Slice":     {moves: true, build: carry},
	"Gather":    {moves: true, build: carry},
	"Expand":    {moves: true, build: carry},
	"Tile":      {moves: true, build: carry},
}

func anyQ(v *graph.Value) bool {
	return slices.ContainsFunc(v.Uses(), func(u graph.Use) bool { return isQ(u.Node) })
}

// weight reports whether input i is of 8 bits and goes with the activation.
func (k *group) weight(i int) bool {
	w := k.in[i]
	switch w.dtype {
	case tensor.Int8:
		return true
	case tensor.Uint8:
		return k.in[0].dtype == tensor.Uint8
	}
	return false
}

// zeros returns the zero point of c, or zeros of the shape of its scale.
func (k *group) zeros(c codes) *graph.Value {
	if c.zero != nil {
		return c.zero
	}
	return k.node.Graph().NewInitializer(c.data.Name()+"_zero_point", tensor.New(c.dtype, c.scale.Const.Shape()...))
}

// replace puts the integer kernel in the place of the group.
func (k *group) replace(op graph.OpKey, in []*graph.Value, attrs ...*graph.Attr) {
	g := k.node.Graph()
	out := k.node.Output(0)
	if k.q != nil {
		out = k.q.Output(0)
	}
	v := g.NewValue(g.Model().UniqueName(out.Name()), out.Type)
	n := g.NewNode(op, k.node.Name, in, []*graph.Value{v}, attrs...)
	if op.Domain != graph.OnnxDomain && g.Opset(op.Domain) == 0 {
		g.Model().SetOpset(op.Domain, 1)
	}
	if s := ops.Lookup(n); s == nil || s.Compile == nil {
		for i := range in {
			n.SetInput(i, nil)
		}
		return
	}
	g.InsertBefore(n, k.node)
	if !out.ReplaceWith(v) {
		for i := range in {
			n.SetInput(i, nil)
		}
		g.Remove(n)
		return
	}
	for _, old := range []*graph.Node{k.q, k.clamp, k.node} {
		if old != nil {
			g.Remove(old)
		}
	}
}

func qlinear1(op string) func(*group) {
	return func(k *group) {
		if k.q == nil || k.clamp != nil || len(k.in) != 1 {
			return
		}
		x := k.in[0]
		k.replace(graph.OpKey{Domain: msDomain, Type: op}, []*graph.Value{x.data, x.scale, x.zero, k.q.Input(1), k.q.Input(2)}, k.node.Attrs...)
	}
}

func qlinear2(op string) func(*group) {
	return func(k *group) {
		if k.q == nil || len(k.in) != 2 || !k.in[1].activation() || k.in[1].dtype != k.in[0].dtype {
			return
		}
		a, b := k.in[0], k.in[1]
		k.replace(graph.OpKey{Domain: msDomain, Type: op}, []*graph.Value{a.data, a.scale, a.zero, b.data, b.scale, b.zero, k.q.Input(1), k.q.Input(2)})
	}
}

// carry makes an operator that moves elements move codes instead, where the
// parameters on both sides are the same.
func carry(k *group) {
	if k.q == nil || k.clamp != nil || len(k.node.Outputs()) != 1 {
		return
	}
	x := k.in[0]
	same := func(a, b *graph.Value) bool { return a == b || a.Const.Equal(b.Const) }
	if !same(x.scale, k.q.Input(1)) || !same(x.zero, k.q.Input(2)) {
		return
	}
	k.replace(k.node.Op, append([]*graph.Value{x.data}, k.node.Inputs()[1:]...), k.node.Attrs...)
}
