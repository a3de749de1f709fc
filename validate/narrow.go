package validate

import (
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// Narrow tells which float32 inputs and outputs of n can be of type t instead,
// all together, at the operator set that holds where n stands: those whose type
// the definition leaves open. The error says why none can.
func Narrow(n *graph.Node, t tensor.DType) (in, out []bool, err error) {
	s := find(n)
	if s == nil || s.deprecated {
		return nil, nil, fmt.Errorf("%s is not known at opset %d", n.Op, n.Opset())
	}
	in, out = make([]bool, n.NumInputs()), make([]bool, len(n.Outputs()))
	open := func(p *port, v *graph.Value) bool {
		return p != nil && v != nil && !p.mixed && v.Type.IsTensor() && v.Type.Elem == tensor.Float32 && s.vars[p.typ]["tensor("+t.String()+")"]
	}
	given := map[string]bool{}
	for i, v := range n.Inputs() {
		p := s.in.at(i)
		if in[i] = open(p, v); in[i] {
			given[p.typ] = true
		}
	}
	for i, v := range n.Outputs() {
		p := s.out.at(i)
		out[i] = open(p, v) && given[p.typ]
	}
	if !slices.Contains(in, true) || !slices.Contains(out, true) {
		return nil, nil, fmt.Errorf("%s takes no %v at opset %d", n.Op, t, n.Opset())
	}
	return in, out, nil
}
