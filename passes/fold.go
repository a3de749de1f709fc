package passes

import (
	"errors"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// editable yields the graphs that may hold initializers: all but the bodies of
// local functions and what is nested in these.
func (s *State) editable(yield func(*graph.Graph) bool) {
	for g := range s.Model.Scopes() {
		in := g
		for in.Outer() != nil {
			in = in.Outer()
		}
		if in.Function() == nil && !yield(g) {
			return
		}
	}
}

// becomeConst makes every use of v, an output of a node that is about to go,
// read an initializer of the same name. The caller removes the node.
func becomeConst(v *graph.Value, t *tensor.Tensor) *graph.Value {
	c := v.Graph().NewInitializer(v.Name(), t)
	v.ReplaceUses(c)
	return c
}

// removeFolded removes n and gives the initializers that took the place of
// its outputs their names.
func removeFolded(n *graph.Node, consts []*graph.Value) {
	names := make([]string, len(consts))
	for i, v := range n.Outputs() {
		if v != nil {
			names[i] = v.Name()
		}
	}
	n.Graph().Remove(n)
	for i, c := range consts {
		if c != nil {
			c.Rename(names[i])
		}
	}
}

func liftConstants(s *State) error {
	for g := range s.editable {
		for n := range g.Nodes() {
			if n.Op != (graph.OpKey{Type: "Constant"}) || n.Output(0) == nil || n.Output(0).IsOutput() {
				continue
			}
			t := constantOf(n)
			if t == nil {
				continue
			}
			removeFolded(n, []*graph.Value{becomeConst(n.Output(0), t)})
			s.Changes++
		}
	}
	return nil
}

// constantOf returns the tensor that a Constant node stands for, or nil for
// sparse ones and references to function attributes.
func constantOf(n *graph.Node) *tensor.Tensor {
	if len(n.Attrs) != 1 || n.Attrs[0].RefName != "" {
		return nil
	}
	switch a := n.Attrs[0]; a.Name {
	case "value":
		return a.T
	case "value_float":
		return tensor.Scalar(a.F)
	case "value_int":
		return tensor.Scalar(a.I)
	case "value_floats":
		return tensor.Of(append([]float32{}, a.Floats...))
	case "value_ints":
		return tensor.Of(append([]int64{}, a.Ints...))
	case "value_string":
		return tensor.FromStrings([]int{}, []string{a.S})
	case "value_strings":
		return tensor.FromStrings([]int{len(a.Strings)}, a.Strings)
	}
	return nil
}

// foldLimit bounds the memory that folding a single node may take.
const foldLimit = 1 << 30

func foldConstants(s *State) error {
	for g := range s.editable {
		known := map[string][]*graph.Value{} // what equal nodes became, which weights stay shared by
		for n := range g.Nodes() {
			if x := n.Input(0); x != nil && x.IsConst() && removeIdentity(n) {
				s.Changes++
				continue
			}
			key := keyOf(n)
			if out := known[key]; key != "" && out != nil {
				removeEqual(n, out)
				s.Changes++
				continue
			}
			consts, err := s.fold(n)
			if err != nil {
				return err
			}
			if consts == nil {
				continue
			}
			out := make([]*graph.Value, len(consts))
			for i, t := range consts {
				if t != nil {
					out[i] = becomeConst(n.Output(i), t)
				}
			}
			removeFolded(n, out)
			known[key] = out
			s.Changes++
		}
	}
	return nil
}

// fold returns the constant outputs of n, or nil if it does not fold.
func (s *State) fold(n *graph.Node) ([]*tensor.Tensor, error) {
	spec := ops.Lookup(n)
	if spec == nil || !spec.Pure || isQuantization(n.Op.Type) && n.Op.Type != "QuantizeLinear" || len(n.Outputs()) == 0 {
		return nil, nil
	}
	for _, v := range n.Outputs() {
		if v != nil && v.IsOutput() {
			return nil, nil
		}
	}
	for _, a := range n.Attrs {
		if len(a.Subgraphs()) > 0 {
			return nil, nil
		}
	}
	size := int64(0)
	for _, v := range n.Inputs() {
		switch {
		case v == nil:
		case !v.IsConst():
			return s.known(n), nil
		default:
			size += int64(len(v.Const.Bytes()))
		}
	}
	if spec.Compile == nil {
		return nil, nil
	}
	out, err := exec.Evaluate(s.Ctx, n, foldLimit)
	switch {
	case s.Ctx.Err() != nil:
		return nil, s.Ctx.Err()
	case errors.Is(err, exec.ErrBudget), err != nil:
		return nil, nil // left for the runtime, which may know better
	}
	grown := int64(0)
	for _, t := range out {
		if t != nil {
			grown += int64(len(t.Bytes()))
		}
	}
	if grown > size+s.Options.FoldBudget {
		return nil, nil
	}
	return out, nil
}

// known returns the value of a node whose single integer output follows from
// shapes, or nil.
func (s *State) known(n *graph.Node) []*tensor.Tensor {
	v := n.Output(0)
	if len(n.Outputs()) != 1 || v == nil || v.Type.Shape == nil || len(v.Type.Shape) > 1 {
		return nil
	}
	dims, ok := s.Types.Dims(v)
	if !ok {
		return nil
	}
	ints := make([]int64, len(dims))
	for i, d := range dims {
		if !d.Known {
			return nil
		}
		ints[i] = d.Size
	}
	shape := []int{len(ints)}
	if len(v.Type.Shape) == 0 {
		if len(ints) != 1 {
			return nil
		}
		shape = []int{}
	}
	switch v.Type.Elem {
	case tensor.Int64:
		return []*tensor.Tensor{tensor.Of(ints, shape...)}
	case tensor.Int32:
		small := make([]int32, len(ints))
		for i, x := range ints {
			small[i] = int32(x)
		}
		return []*tensor.Tensor{tensor.Of(small, shape...)}
	}
	return nil
}

func isQuantization(op string) bool {
	return op == "QuantizeLinear" || op == "DequantizeLinear" || op == "DynamicQuantizeLinear"
}

func simplifyReshapes(s *State) error {
	for g := range s.editable {
		for n := range g.Nodes() {
			if n.Op != (graph.OpKey{Type: "Reshape"}) || n.Input(1) == nil || n.Input(1).IsConst() || n.Int("allowzero", 0) != 0 {
				continue
			}
			dims, ok := s.Types.Dims(n.Input(1))
			if !ok {
				continue
			}
			in := n.Input(0).Type.Shape
			shape, free := make([]int64, len(dims)), 0
			for i, d := range dims {
				switch {
				case d.Known && d.Size > 0:
					shape[i] = d.Size
				case d.Known && d.Size == -1, !d.Known && !(i < len(in) && d.Same(in[i])):
					shape[i] = -1
					free++
				case d.Known:
					free = 2 // an explicit 0 says what it copies already
				}
			}
			if free > 1 {
				continue
			}
			n.SetInput(1, g.NewInitializer(n.Output(0).Name()+"_shape", tensor.Of(shape)))
			s.Changes++
		}
	}
	return nil
}
