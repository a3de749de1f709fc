package passes

import (
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// fuseHardSigmoid looks for y = x · Clip(x + c, 0, h), with c and h constant
// scalars, and for Clip(x + c, 0, h) / h: HardSwish and HardSigmoid as exporters
// write them out.
func fuseHardSigmoid(s *State) error {
	for g := range s.editable {
		for n := range g.Nodes() {
			if hardSigmoid(g, n) {
				s.Changes++
			}
		}
	}
	return nil
}

// operandScalar returns the constant float32 tensor of one element among the two
// inputs of n, if broadcasting it adds no axis, and the other input.
func operandScalar(n *graph.Node) (x *graph.Value, c float64, ok bool) {
	for i := range 2 {
		v := n.Input(i)
		x := n.Input(1 - i)
		if f, ok := constFloat(v); ok && x != nil && v.Const.Rank() <= max(1, len(x.Type.Shape)) {
			return x, float64(f), true
		}
	}
	return nil, 0, false
}

// hardSigmoid replaces the Clip n, and the operators around it, by
// HardSigmoid(x; 1/h, c/h), which is Clip(x + c, 0, h) / h.
func hardSigmoid(g *graph.Graph, n *graph.Node) bool {
	if !isOp(n, "Clip") || n.Input(0) == nil || n.Output(0) == nil {
		return false
	}
	_, lo, hi, ok := boundsOf(n)
	if !ok || lo != 0 || !(hi > 0) || math.IsInf(float64(hi), 0) {
		return false
	}
	add := n.Input(0).DefNode()
	if !isOp(add, "Add") || add.Graph() != g || add.Output(0).OnlyUse() != n {
		return false
	}
	x, c, ok := operandScalar(add)
	if !ok || x.Type.Elem != tensor.Float32 {
		return false
	}
	next := n.Output(0).OnlyUse()
	if next == nil || next.Graph() != g {
		return false
	}
	h := float64(hi)
	y := next // what takes the place of h · HardSigmoid
	factor := h
	switch {
	case isOp(next, "Mul") && (next.Input(0) == x || next.Input(1) == x):
	case isOp(next, "Div") && next.Input(0) == n.Output(0), isOp(next, "Mul"):
		v, k, ok := operandScalar(next)
		if !ok || v != n.Output(0) || k == 0 {
			return false
		}
		if isOp(next, "Div") {
			k = 1 / k
		}
		if math.Abs(k*h-1) > 1e-6 {
			return false
		}
		factor = 1
	default:
		return false
	}
	m := g.Model()
	soft := g.NewValue(m.UniqueName(n.Output(0).Name()+"_hardsigmoid"), n.Output(0).Type)
	hs := g.NewNode(graph.OpKey{Type: "HardSigmoid"}, m.UniqueNodeName(n.Label()+"_hardsigmoid"), []*graph.Value{x}, []*graph.Value{soft},
		graph.Float("alpha", float32(1/h)), graph.Float("beta", float32(c/h)))
	g.InsertBefore(hs, n)
	if factor == 1 {
		if !next.Output(0).ReplaceWith(soft) {
			g.Remove(hs)
			return false
		}
		g.Remove(next)
		g.Remove(n)
		g.Remove(add)
		return true
	}
	// y = x · soft · h: the factor joins a constant one behind, if there is one.
	for i := range 2 {
		if y.Input(i) == n.Output(0) {
			y.SetInput(i, soft)
		}
	}
	g.Remove(n)
	g.Remove(add)
	out := y.Output(0)
	if scale := out.OnlyUse(); scale != nil && scale.Graph() == g && isOp(scale, "Mul", "Div") {
		if v, k, ok := operandScalar(scale); ok && v == out && (isOp(scale, "Mul") || scale.Input(0) == out) && k != 0 {
			if isOp(scale, "Div") {
				k = 1 / k
			}
			if math.Abs(k*h-1) <= 1e-6 {
				if scale.Output(0).ReplaceWith(out) {
					g.Remove(scale)
					return true
				}
			}
			scale.Op.Type = "Mul"
			scale.SetInput(0, out)
			scale.SetInput(1, g.NewInitializer(scale.Output(0).Name()+"_scale", tensor.Scalar(float32(k*h))))
			return true
		}
	}
	scaled := g.NewValue(m.UniqueName(out.Name()+"_scaled"), out.Type)
	mul := g.NewNode(graph.OpKey{Type: "Mul"}, m.UniqueNodeName(y.Label()+"_scale"), []*graph.Value{nil, g.NewInitializer(out.Name()+"_scale", tensor.Scalar(float32(h)))}, []*graph.Value{scaled})
	g.InsertAfter(mul, y)
	if !out.ReplaceWith(scaled) {
		g.Remove(mul)
		return false
	}
	mul.SetInput(0, out)
	return true
}

// fuseTanhGate looks for (1 + tanh(s·q)) · ½, the gate of a GELU by tanh as
// exporters write it out, and for (1 + tanh(s·q)) · (x · ½): the gate is
// sigmoid(2s·q).
func fuseTanhGate(s *State) error {
	for g := range s.editable {
		for n := range g.Nodes() {
			if tanhGate(g, n) {
				s.Changes++
			}
		}
	}
	return nil
}

// scaledBy reports whether n, a Mul, multiplies by the constant k, and the
// other input.
func scaledBy(n *graph.Node, k float64) (*graph.Value, bool) {
	if !isOp(n, "Mul") {
		return nil, false
	}
	x, c, ok := operandScalar(n)
	return x, ok && c == k
}

func tanhGate(g *graph.Graph, n *graph.Node) bool {
	if !isOp(n, "Tanh") || n.Input(0) == nil || n.Output(0) == nil || n.Output(0).Type.Elem != tensor.Float32 {
		return false
	}
	arg, add := n.Input(0).DefNode(), n.Output(0).OnlyUse()
	if !isOp(arg, "Mul") || !isOp(add, "Add") || arg.Graph() != g || add.Graph() != g || n.Input(0).OnlyUse() != n {
		return false
	}
	q, k, ok := operandScalar(arg)
	t, one, ok2 := operandScalar(add)
	gate := add.Output(0).OnlyUse()
	if !ok || !ok2 || t != n.Output(0) || one != 1 || gate == nil || gate.Graph() != g || !isOp(gate, "Mul") {
		return false
	}
	half := gate // the Mul by one half
	if x, ok := scaledBy(gate, 0.5); !ok || x != add.Output(0) {
		other := gate.Input(0)
		if other == add.Output(0) {
			other = gate.Input(1)
		}
		if other == add.Output(0) || other == nil || other.OnlyUse() != gate || other.DefNode() == nil || other.Graph() != g {
			return false
		}
		half = other.DefNode()
		x, ok := scaledBy(half, 0.5)
		if !ok || !half.Output(0).ReplaceWith(x) && len(half.Output(0).Uses()) > 0 {
			return false
		}
	}
	arg.SetInput(0, q)
	arg.SetInput(1, g.NewInitializer(arg.Output(0).Name()+"_factor", tensor.Scalar(float32(2*k))))
	n.Op.Type = "Sigmoid"
	if half == gate {
		if !gate.Output(0).ReplaceWith(n.Output(0)) {
			return false
		}
		g.Remove(gate)
	} else {
		g.Remove(half)
		add.Output(0).ReplaceUses(n.Output(0))
	}
	g.Remove(add)
	return true
}
