package passes

import (
	"slices"

	"github.com/onnxq/onnxq/graph"
)

// hoistInvariants looks for values that the body of a Loop hands on unchanged.
func hoistInvariants(s *State) error {
	for g := range s.Model.Scopes() {
		for n := range g.Nodes() {
			if isOp(n, "Loop") && hoist(n) {
				s.Changes++
			}
		}
	}
	return nil
}

// hoist makes the body of the Loop n read what it only hands on from around n, and
// reports whether there was any.
func hoist(n *graph.Node) bool {
	a := n.Attr("body")
	if a == nil || a.G == nil {
		return false
	}
	body := a.G
	in, out := slices.Clone(body.Inputs()), slices.Clone(body.Outputs())
	carried := len(in) - 2 // without the number of the step and the condition
	if carried < 1 || n.NumInputs() != len(in) || len(out) < 1+carried || len(n.Outputs()) > len(out)-1 {
		return false
	}
	drop := make([]bool, carried)
	for i := range drop {
		outer, y := n.Input(2+i), n.Output(i)
		drop[i] = outer != nil && handedOn(out[1+i]) == in[2+i] && (y == nil || !y.IsOutput())
	}
	if !slices.Contains(drop, true) {
		return false
	}
	var keepIn, keepOut, gone []*graph.Value
	for i, v := range n.Inputs() {
		if i < 2 || !drop[i-2] {
			keepIn = append(keepIn, v)
		}
	}
	for i, y := range n.Outputs() {
		switch {
		case i >= carried || !drop[i]:
			keepOut = append(keepOut, y)
		case y != nil:
			y.ReplaceUses(n.Input(2 + i))
			gone = append(gone, y)
		}
	}
	body.RemoveOutputs(func(i int) bool { return i > 0 && i <= carried && drop[i-1] })
	for i, v := range in[2:] {
		if drop[i] {
			v.ReplaceUses(n.Input(2 + i))
			body.RemoveInput(v)
		}
	}
	n.TruncateInputs(0)
	for _, v := range keepIn {
		n.AddInput(v)
	}
	for i := range n.Outputs() {
		n.SetOutput(i, nil)
	}
	for i, v := range slices.Concat(keepOut, gone) {
		n.SetOutput(i, v)
	}
	n.TruncateOutputs(len(keepOut))
	return true
}

// handedOn returns what v is behind any Identity.
func handedOn(v *graph.Value) *graph.Value {
	for v != nil && isOp(v.DefNode(), "Identity") {
		v = v.DefNode().Input(0)
	}
	return v
}
