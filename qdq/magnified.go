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
// What scales on the way from the last of them is in near: floats of 16 bits hold
// small elements with fewer digits, and then not at all.
func (a *annotator) logged() (products, near map[int]*graph.Node) {
	products, near = map[int]*graph.Node{}, map[int]*graph.Node{}
	type place struct {
		node *graph.Node
		past bool // a product
	}
	seen := map[place]bool{}
	for g := range a.m.Scopes() {
		for n := range g.Nodes() {
			if n.Op != op("Log") {
				continue
			}
			var stack []place
			push := func(from []*graph.Value, past bool) {
				for _, v := range from {
					if v == nil || v.DefNode() == nil {
						continue
					}
					if at := (place{v.DefNode(), past}); !seen[at] {
						seen[at] = true
						stack = append(stack, at)
					}
				}
			}
			for push(n.Inputs(), false); len(stack) > 0; {
				at := stack[len(stack)-1]
				stack = stack[:len(stack)-1]
				d := at.node
				spec := ops.Lookup(d)
				switch {
				case spec == nil || d.Op.Domain != graph.OnnxDomain:
					continue
				case slices.ContainsFunc(a.t.RulesFor(d), func(r *targets.Rule) bool { return r.Class == targets.Anchor }):
					if products[d.ID] == nil {
						products[d.ID] = n
					}
					at.past = true
				case spec.FlowAt(d) != ops.Pass && (!slices.Contains(scaling, d.Op.Type) || offset(d)):
					continue
				case !at.past && near[d.ID] == nil:
					near[d.ID] = n
				}
				push(d.Inputs(), at.past)
			}
		}
	}
	return products, near
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
