package exec

import (
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// activations makes n and its neighbours what ONNX Runtime makes of them: the
// steps of a Gelu become one node, and a Sigmoid or Tanh that only nodes read
// has the runtime's arithmetic.
func (c *compiler) activations(n *graph.Node) {
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
	g, out := erf.Graph(), last.Output(0)
	if last.Graph() != g || g.Function() != nil {
		return
	}
	n := g.NewNode(graph.OpKey{Domain: msDomain, Type: "Gelu"}, erf.Name, []*graph.Value{x}, []*graph.Value{nil})
	if g.Opset(msDomain) == 0 {
		g.Model().SetOpset(msDomain, 1)
	}
	g.InsertBefore(n, last)
	last.SetOutput(0, nil)
	n.SetOutput(0, out)
	for _, old := range []*graph.Node{last, product, sum, erf, scaled, half} {
		if old != nil && old.Graph() != nil && (old == last || len(old.Output(0).Uses()) == 0) {
			g.Remove(old)
		}
	}
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
