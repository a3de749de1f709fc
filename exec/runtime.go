package exec

import (
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// asRuntime makes n and its neighbours what ONNX Runtime makes of them, where
// that rounds in another way: the steps of a Gelu become one node, a Sigmoid or
// Tanh that only nodes read has the runtime's arithmetic, a factor 1/x becomes a
// division, and a product of activations takes in scalar factors
// (core/optimizer: gelu_fusion.cc, div_mul_fusion.cc, matmul_scale_fusion.cc).
func (c *compiler) asRuntime(n *graph.Node) {
	y := n.Output(0)
	if n.Op.Domain != graph.OnnxDomain || y == nil || len(n.Outputs()) != 1 {
		return
	}
	switch n.Op.Type {
	case "Sigmoid", "Tanh":
		if !y.IsOutput() {
			c.fused[n] = &ops.Fusion{Inner: true}
		}
	case "Erf":
		c.gelu(n)
	case "Div":
		c.division(n)
	case "MatMul":
		c.scaledProduct(n)
	}
}

// division makes y/x of 1/x·y, of which the node given is 1/x.
func (c *compiler) division(n *graph.Node) {
	if !isNear(n.Input(0), 1) || tensor.As[float32](n.Input(0).Const)[0] != 1 {
		return
	}
	product := c.next(n, "Mul")
	if product == nil {
		return
	}
	if y := otherThan(product, n.Output(0)); y != nil {
		c.replace(graph.OpKey{Type: "Div"}, []*graph.Value{y, n.Input(1)}, []*graph.Node{product, n})
	}
}

// scaledProduct takes factors and divisors of the operands and of the result
// of a product, constant scalars, into it.
func (c *compiler) scaledProduct(n *graph.Node) {
	in := []*graph.Value{n.Input(0), n.Input(1)}
	if in[0] == nil || in[1] == nil || in[0].IsConst() || in[1].IsConst() || n.Output(0).Type.Elem != tensor.Float32 {
		return
	}
	alpha, old := float32(1), []*graph.Node{n}
	for i, v := range in {
		if d := v.DefNode(); d != nil && d.Graph() == n.Graph() && !c.tapped(v) {
			if x, f := scaleOf(d); x != nil {
				in[i] = x
				alpha *= f
				old = append(old, d)
			}
		}
	}
	if y := n.Output(0); y.OnlyUse() != nil && !c.tapped(y) {
		if d := y.OnlyUse(); d.Graph() == n.Graph() && d.Output(0) != nil {
			if x, f := scaleOf(d); x == y {
				alpha *= f
				old = append([]*graph.Node{d}, old...)
			}
		}
	}
	if len(old) > 1 {
		c.replace(graph.OpKey{Domain: msDomain, Type: "FusedMatMul"}, in, old, graph.Float("alpha", alpha))
	}
}

// scaleOf returns x and f where n computes x·f with a constant scalar f that
// does not raise the rank, or x/(1/f).
func scaleOf(n *graph.Node) (x *graph.Value, f float32) {
	if n.Op.Domain != graph.OnnxDomain || n.Op.Type != "Mul" && n.Op.Type != "Div" || len(n.Outputs()) != 1 {
		return nil, 0
	}
	for i := 1; i >= 0; i-- {
		v, x := n.Input(i), n.Input(1-i)
		if v != nil && x != nil && !x.IsConst() && v.IsConst() && v.Const.DType() == tensor.Float32 && v.Const.Len() == 1 &&
			len(x.Type.Shape) >= max(1, v.Const.Rank()) {
			f := tensor.As[float32](v.Const)[0]
			if n.Op.Type == "Div" {
				f = 1 / f
			}
			return x, f
		}
		if n.Op.Type == "Div" {
			break
		}
	}
	return nil, 0
}

// replace puts a node in the place of the first of old, the output of which it
// takes over, and removes all of old that nothing reads any more.
func (c *compiler) replace(op graph.OpKey, in []*graph.Value, old []*graph.Node, attrs ...*graph.Attr) {
	last := old[0]
	g, out := last.Graph(), last.Output(0)
	n := g.NewNode(op, last.Name, in, []*graph.Value{nil}, attrs...)
	if op.Domain != graph.OnnxDomain && g.Opset(op.Domain) == 0 {
		g.Model().SetOpset(op.Domain, 1)
	}
	g.InsertBefore(n, last)
	last.SetOutput(0, nil)
	n.SetOutput(0, out)
	for _, o := range old {
		if o.Graph() != nil && (o == last || len(o.Output(0).Uses()) == 0 && !o.Output(0).IsOutput()) {
			g.Remove(o)
		}
	}
}

// gelu replaces x/2·(1 + erf(x/√2)), where erf is the node given, in the orders
// (x·(1+erf))·½ and (x·½)·(1+erf), by one node.
func (c *compiler) gelu(erf *graph.Node) {
	scaled := c.inner(erf.Input(0))
	if scaled == nil {
		return
	}
	var x *graph.Value
	switch scaled.Op.Type {
	case "Div":
		if isNear(scaled.Input(1), math.Sqrt2) {
			x = scaled.Input(0)
		}
	case "Mul":
		x = besides(scaled, math.Sqrt2/2)
	}
	if x == nil || x.Type.Elem != tensor.Float32 {
		return
	}
	sum := c.next(erf, "Add")
	if sum == nil || besides(sum, 1) != erf.Output(0) {
		return
	}
	product := c.next(sum, "Mul")
	if product == nil {
		return
	}
	last, half := product, (*graph.Node)(nil)
	switch other := otherThan(product, sum.Output(0)); {
	case other == x:
		if last = c.next(product, "Mul"); last == nil || besides(last, 0.5) != product.Output(0) {
			return
		}
	default:
		if half = c.inner(other); half == nil || half.Op.Type != "Mul" || besides(half, 0.5) != x {
			return
		}
	}
	old := []*graph.Node{last, product, sum, erf, scaled}
	if last == product {
		old = old[1:]
	}
	if half != nil {
		old = append(old, half)
	}
	for _, o := range old {
		if o.Graph() != erf.Graph() {
			return
		}
	}
	c.replace(graph.OpKey{Domain: msDomain, Type: "Gelu"}, []*graph.Value{x}, old)
}

// inner returns the standard node that defines v where one node alone reads v.
func (c *compiler) inner(v *graph.Value) *graph.Node {
	if v == nil || v.DefNode() == nil || v.OnlyUse() == nil || c.tapped(v) {
		return nil
	}
	if n := v.DefNode(); n.Op.Domain == graph.OnnxDomain && len(n.Outputs()) == 1 {
		return n
	}
	return nil
}

// next returns the node of type op that alone reads the output of n.
func (c *compiler) next(n *graph.Node, op string) *graph.Node {
	y := n.Output(0)
	if m := y.OnlyUse(); m != nil && isStandard(m, op) && m.Graph() == n.Graph() && m.Output(0) != nil && !c.tapped(y) {
		return m
	}
	return nil
}

// otherThan returns the input of the binary node n that is not v, nil if both
// are.
func otherThan(n *graph.Node, v *graph.Value) *graph.Value {
	for i := range 2 {
		if n.Input(i) == v && n.Input(1-i) != v {
			return n.Input(1 - i)
		}
	}
	return nil
}

// besides returns the input of the binary node n whose other input is the
// constant k, or nil.
func besides(n *graph.Node, k float64) *graph.Value {
	for i := range 2 {
		if isNear(n.Input(i), k) {
			return n.Input(1 - i)
		}
	}
	return nil
}

// isNear reports whether v is one constant element within 1e-5 of k.
func isNear(v *graph.Value, k float64) bool {
	return v != nil && v.IsConst() && v.Const.DType() == tensor.Float32 && v.Const.Len() == 1 && v.Const.Rank() <= 1 &&
		math.Abs(float64(tensor.As[float32](v.Const)[0])-k) < 1e-5
}
