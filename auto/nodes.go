package auto

import (
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/qdq"
)

// byNode gives by node ID what of says of the plan for a node.
func byNode[T any](m *graph.Model, plan *qdq.Plan, of func(*qdq.NodePlan) T) []T {
	out := make([]T, m.NumNodes())
	i := 0
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			out[n.ID] = of(&plan.Nodes[i])
			i++
		}
	}
	return out
}

// quantizedNodes tells by node ID what the plan quantizes.
func quantizedNodes(m *graph.Model, plan *qdq.Plan) []bool {
	return byNode(m, plan, func(e *qdq.NodePlan) bool { return e.Quantized })
}

// hows tells by node ID what the plan makes of a node.
func hows(m *graph.Model, plan *qdq.Plan) []qdq.How {
	return byNode(m, plan, func(e *qdq.NodePlan) qdq.How { return e.How })
}

func producers(n *graph.Node) []*graph.Node {
	var out []*graph.Node
	for _, v := range n.Inputs() {
		if v != nil && v.DefNode() != nil {
			out = append(out, v.DefNode())
		}
	}
	return out
}

func consumers(n *graph.Node) []*graph.Node {
	var out []*graph.Node
	for _, v := range n.Outputs() {
		if v != nil {
			out = append(out, readers(v)...)
		}
	}
	return out
}

func readers(v *graph.Value) []*graph.Node {
	var out []*graph.Node
	for _, u := range v.Uses() {
		if u.Node != nil {
			out = append(out, u.Node)
		}
	}
	return out
}

// reach returns the nodes that can be reached from n, itself excluded, sorted
// by ID.
func reach(n *graph.Node, next func(*graph.Node) []*graph.Node) []*graph.Node {
	seen := map[*graph.Node]bool{n: true}
	var out []*graph.Node
	for stack := []*graph.Node{n}; len(stack) > 0; {
		k := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, v := range next(k) {
			if !seen[v] {
				seen[v] = true
				out = append(out, v)
				stack = append(stack, v)
			}
		}
	}
	slices.SortFunc(out, func(a, b *graph.Node) int { return a.ID - b.ID })
	return out
}

// depth returns the multiply-adds of n for one element of its output, from its
// constant weight; 0 if it has none.
func depth(n *graph.Node) int {
	w := n.Input(1)
	if w == nil || !w.IsConst() || w.Const.Rank() < 2 || n.Output(0) == nil {
		return 0
	}
	spec := ops.Lookup(n)
	axis := spec.Axis(n, 1, w.Const.Rank())
	if axis < 0 || w.Const.Len() == 0 {
		return 0
	}
	return w.Const.Len() / w.Const.Shape()[axis]
}
