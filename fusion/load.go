package fusion

import (
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// Load edits m as the runtime does before it looks for groups, as far as that
// decides what becomes of them. Equal QuantizeLinear nodes become one, products
// and Adds of a bias become Gemm, and
// QuantizeLinear and DequantizeLinear are repeated beyond operators that only
// move elements. The result is for Find, not to be run; nodes that are left keep
// their IDs.
//
// The steps are those of core/optimizer: common_subexpression_elimination.cc,
// matmul_add_fusion.cc and qdq_transformer/qdq_propagation.cc.
func Load(m *graph.Model) {
	for g := range m.Scopes() {
		if g.Function() != nil {
			continue
		}
		for n := range g.Nodes() {
			merge(n)
			addBias(n)
		}
		var q, dq []*graph.Node
		for n := range g.Nodes() {
			switch {
			case IsQ(n):
				q = append(q, n)
			case IsDQ(n):
				dq = append(dq, n)
			}
		}
		for _, n := range q {
			backward(n)
		}
		for _, n := range dq {
			forward(n)
		}
	}
}

// merge lets the readers of n, a QuantizeLinear, read an earlier one that gives
// the same codes.
func merge(n *graph.Node) {
	if !IsQ(n) || n.Output(0).IsOutput() {
		return
	}
	for _, u := range n.Input(0).Uses() {
		if q := u.Node; u.Index == 0 && IsQ(q) && q != n && q.Graph() == n.Graph() && q.ID < n.ID && q.Op == n.Op && sameInput(q.Input(1), n.Input(1)) && sameInput(q.Input(2), n.Input(2)) {
			n.Output(0).ReplaceWith(q.Output(0))
			n.Graph().Remove(n)
			return
		}
	}
}

func sameInput(a, b *graph.Value) bool {
	return a == b || a != nil && b != nil && a.IsConst() && b.IsConst() && a.Const.Equal(b.Const)
}

// addBias turns a product of matrices whose only reader adds a bias into Gemm.
func addBias(n *graph.Node) {
	if n.Op != standard("MatMul") || n.Output(0) == nil {
		return
	}
	a, b, y := n.Input(0), n.Input(1), n.Output(0)
	add := y.OnlyUse()
	if add == nil || add.Graph() != n.Graph() || add.Op != standard("Add") || a == nil || b == nil || a.Type.Elem != tensor.Float32 {
		return
	}
	bias := add.Input(0)
	if bias == y {
		bias = add.Input(1)
	}
	x, w := a.Type.Shape, shapeOf(b)
	if bias == nil || bias == y || x == nil || len(w) != 2 {
		return
	}
	if len(x) != 2 {
		for _, d := range x {
			if !d.Known {
				return
			}
		}
		if !w[0].Known || !w[1].Known || attends(n) {
			return
		}
	}
	c := shapeOf(bias)
	same := func(a, b graph.Dim) bool {
		return a.Known && b.Known && a.Size == b.Size || !a.Known && !b.Known && a.Sym != "" && a.Sym == b.Sym
	}
	one := func(d graph.Dim) bool { return d.Known && d.Size == 1 }
	switch {
	case len(c) == 1 && same(c[0], w[1]):
	case len(x) == 2 && len(c) == 2 && one(c[0]) && same(c[1], w[1]):
	case len(x) == 2 && len(c) == 2 && same(c[0], x[0]) && (one(c[1]) || same(c[1], w[1])):
	default:
		return
	}
	out := add.Output(0)
	if out == nil || !out.ReplaceWith(y) {
		return
	}
	n.Op = standard("Gemm")
	n.AddInput(bias)
	add.Graph().Remove(add)
}

// attends reports whether n looks like the projection behind attention, which
// the runtime fuses otherwise.
func attends(n *graph.Node) bool {
	reshape := n.Input(0).DefNode()
	if reshape == nil || reshape.Op != standard("Reshape") {
		return false
	}
	transpose := defOf(reshape)
	if transpose == nil || transpose.Op != standard("Transpose") {
		return false
	}
	product := defOf(transpose)
	if product == nil || product.Op != standard("MatMul") {
		return false
	}
	softmax := defOf(product)
	return softmax != nil && softmax.Op == standard("Softmax")
}

func defOf(n *graph.Node) *graph.Node {
	if n.Input(0) == nil {
		return nil
	}
	return n.Input(0).DefNode()
}

func shapeOf(v *graph.Value) graph.Shape {
	if v.Const == nil {
		return v.Type.Shape
	}
	s := graph.Shape{}
	for _, d := range v.Const.Shape() {
		s = append(s, graph.Dim{Known: true, Size: int64(d)})
	}
	return s
}

// moves reports whether the runtime repeats QuantizeLinear and
// DequantizeLinear beyond n.
func moves(n *graph.Node) bool {
	if n == nil || n.Op.Domain != graph.OnnxDomain || n.Output(0) == nil || n.Input(0) == nil {
		return false
	}
	switch n.Op.Type {
	case "MaxPool":
		return n.Opset() >= 12
	case "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice":
		return true
	}
	return false
}

// scalar reports whether all codes of q or dq have one constant scale and zero
// point.
func scalar(n *graph.Node) bool {
	s, z := n.Input(1), n.Input(2)
	return s.IsConst() && isScalar(s) && (z == nil || z.IsConst() && isScalar(z))
}

// pair puts a QuantizeLinear behind v and a DequantizeLinear before each of
// these readers, nodes and outputs of the graph, with the parameters of like.
func pair(v *graph.Value, readers []graph.Use, like *graph.Node) []*graph.Node {
	g := like.Graph()
	m := g.Model()
	insert := func(n, after *graph.Node) *graph.Node {
		g.InsertAfter(n, after)
		return n
	}
	params := like.Inputs()[1:]
	codes := g.NewValue(m.UniqueName(v.Name()+"_q"), graph.TensorType(codesType(like), v.Type.Shape))
	if IsDQ(like) {
		codes.Type.Elem = codesOf(like.Output(0), like.Graph()).DType
	}
	def := v.DefNode()
	if def != nil && def.Graph() != g {
		def = nil
	}
	last := insert(g.NewNode(graph.OpKey{Domain: like.Op.Domain, Type: "QuantizeLinear"}, "", append([]*graph.Value{v}, params...), []*graph.Value{codes}), def)
	var made []*graph.Node
	for _, u := range readers {
		out := g.NewValue(m.UniqueName(v.Name()+"_dq"), v.Type)
		last = insert(g.NewNode(graph.OpKey{Domain: like.Op.Domain, Type: "DequantizeLinear"}, "", append([]*graph.Value{codes}, params...), []*graph.Value{out}), last)
		if u.Node == nil {
			g.SetOutput(u.Index, out)
		} else {
			u.Node.SetInput(u.Index, out)
		}
		made = append(made, last)
	}
	return made
}

// backward repeats q before the operators that move elements in front of it.
func backward(q *graph.Node) {
	if !scalar(q) {
		return
	}
	for at := q; ; {
		v := at.Input(0)
		n := v.DefNode()
		if !moves(n) || n.Graph() != q.Graph() || v.OnlyUse() != at {
			return
		}
		in := n.Input(0)
		from := in.DefNode()
		if IsDQ(from) || from != nil && (from.Graph() != q.Graph() || in.OnlyUse() != n) {
			return
		}
		pair(in, []graph.Use{{Node: n, Index: 0}}, q)
		if from == nil {
			return
		}
		at = n.Input(0).DefNode().Input(0).DefNode() // the new QuantizeLinear
	}
}

// forward repeats dq behind the operators that move elements behind it.
func forward(dq *graph.Node) {
	if !scalar(dq) {
		return
	}
	for _, u := range append([]graph.Use(nil), dq.Output(0).Uses()...) {
		if u.Node == nil || u.Node.Graph() != dq.Graph() || !moves(u.Node) {
			continue
		}
		y := u.Node.Output(0)
		var readers []graph.Use
		for _, r := range y.Uses() {
			if r.Node == nil && r.Graph == dq.Graph() || r.Node != nil && !IsQ(r.Node) && r.Node.Graph() == dq.Graph() {
				readers = append(readers, r)
			}
		}
		if len(readers) == 0 {
			continue
		}
		for _, next := range pair(y, readers, dq) {
			forward(next)
		}
	}
}
