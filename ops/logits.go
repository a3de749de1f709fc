package ops

import (
	"slices"

	"github.com/onnxq/onnxq/graph"
)

// Certain is the magnitude from which logits count as certain: a probability of
// 0.993 or 0.007.
const Certain = 5

// combines lists operators that give probabilities where they read some.
var combines = []string{"Mul", "Max", "Min", "ReduceMax", "TopK", "Sqrt", "Pow"}

// Logits tells by value ID which values of m are logits: values that, moved about
// alone, reach a Sigmoid whose probabilities are outputs of their graph, by
// themselves, moved about, multiplied or compared. What samples happen to show of
// such values says little of how certain a model can be of others.
func Logits(m *graph.Model) []bool {
	out := make([]bool, m.NumValues())
	moves := func(n *graph.Node) bool {
		spec := Lookup(n)
		return spec != nil && (spec.FlowAt(n) == Pass || spec.FlowAt(n) == Join)
	}
	// back marks v and what leads to it through nodes that are passed.
	back := func(marks []bool, v *graph.Value, passed func(*graph.Node) bool) {
		for stack := []*graph.Value{v}; len(stack) > 0; {
			v := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if v == nil || marks[v.ID] {
				continue
			}
			marks[v.ID] = true
			if n := v.DefNode(); n != nil && passed(n) {
				stack = append(stack, n.Inputs()...)
			}
		}
	}
	leave := make([]bool, m.NumValues())
	for g := range m.Scopes() {
		for _, v := range g.Outputs() {
			back(leave, v, func(n *graph.Node) bool {
				return moves(n) || n.Op.Domain == graph.OnnxDomain && slices.Contains(combines, n.Op.Type)
			})
		}
	}
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if n.Op == (graph.OpKey{Type: "Sigmoid"}) && n.Output(0) != nil && leave[n.Output(0).ID] {
				back(out, n.Input(0), moves)
			}
		}
	}
	return out
}
