package qdq

import (
	"math"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
)

// scaling lists operators through which an error stays as large, relative to the
// greatest elements, as it was: sums, products, magnitudes and powers.
var scaling = []string{"Abs", "Add", "Clip", "Concat", "Div", "DFT", "Max", "Mul", "Neg", "Pad", "Pow", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "STFT", "Sqrt", "Sub"}

// logged finds the products whose results reach a Log through other products and
// scaling alone, and names that Log by the product's node ID: the spectra of
// signals, say. Rounding, of their inputs or their results, leaves the same error
// everywhere, which the logarithm of a small element magnifies without bound.
func (a *annotator) logged() map[int]*graph.Node {
	out := map[int]*graph.Node{}
	seen := make([]bool, a.m.NumNodes())
	for g := range a.m.Scopes() {
		for n := range g.Nodes() {
			if n.Op != op("Log") {
				continue
			}
			for stack := []*graph.Value{n.Input(0)}; len(stack) > 0; {
				v := stack[len(stack)-1]
				stack = stack[:len(stack)-1]
				d := (*graph.Node)(nil)
				if v != nil {
					d = v.DefNode()
				}
				if d == nil || seen[d.ID] {
					continue
				}
				seen[d.ID] = true
				spec := ops.Lookup(d)
				switch {
				case spec == nil || d.Op.Domain != graph.OnnxDomain:
					continue
				case slices.ContainsFunc(a.t.RulesFor(d), func(r *targets.Rule) bool { return r.Class == targets.Anchor }):
					out[d.ID] = n
				case spec.FlowAt(d) != ops.Pass && (!slices.Contains(scaling, d.Op.Type) || offset(d)):
					continue
				}
				stack = append(stack, d.Inputs()...)
			}
		}
	}
	return out
}

// offset reports whether n adds, or bounds from below by, a constant of 1 or more,
// so that the slope of a logarithm behind it is at most that of its argument.
func offset(n *graph.Node) bool {
	if n.Op.Type == "Clip" {
		lo, _, ok := ops.ClampBounds(n)
		return ok && lo >= 1
	}
	if n.Op.Type != "Add" && n.Op.Type != "Max" {
		return false
	}
	return slices.ContainsFunc(n.Inputs(), func(v *graph.Value) bool {
		return v != nil && v.IsConst() && v.Const.DType() == tensor.Float32 && slices.ContainsFunc(tensor.As[float32](v.Const), func(x float32) bool { return math.Abs(float64(x)) >= 1 })
	})
}
