package passes

import (
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// widenHalves makes what a model computes in float16 float32, between casts of
// its inputs and outputs. Models that hold quantization, or operators that
// choose float16 by an attribute other than Cast's, are left as they are.
func widenHalves(s *State) error {
	if !s.Options.Widen {
		return nil
	}
	found := false
	for g := range s.Model.Scopes() {
		if g.Function() != nil {
			return nil
		}
		for _, v := range slices.Concat(g.Inputs(), g.Initializers()) {
			if v.Sparse != nil || v.Type.Elem == tensor.Float16 && !v.Type.IsTensor() {
				return nil
			}
			found = found || v.Type.Elem == tensor.Float16
		}
		for n := range g.Nodes() {
			if isQuantization(n.Op.Type) || n.Op.Domain != graph.OnnxDomain || n.Int("dtype", 0) == int64(tensor.Float16) {
				return nil
			}
			for _, v := range n.Outputs() {
				if v != nil && v.Type.Elem == tensor.Float16 && !v.Type.IsTensor() {
					return nil
				}
				found = found || v != nil && v.Type.Elem == tensor.Float16
			}
		}
	}
	if !found {
		return nil
	}
	var outputs []*graph.Value
	for _, v := range s.Model.Graph.Outputs() {
		if v.Type.Elem == tensor.Float16 && v.DefNode() != nil && !slices.Contains(outputs, v) {
			outputs = append(outputs, v)
		}
	}
	wide := func(t *tensor.Tensor) (*tensor.Tensor, error) {
		out := tensor.New(tensor.Float32, t.Shape()...)
		return out, tensor.Convert(out, t, 0, t.Len(), tensor.ConvertOptions{})
	}
	for g := range s.Model.Scopes() {
		main := g == s.Model.Graph
		for _, v := range g.Initializers() {
			if v.Const == nil || v.Const.DType() != tensor.Float16 || v.IsInput() {
				continue
			}
			t, err := wide(v.Const)
			if err != nil {
				return err
			}
			v.Const, v.Type = t, graph.TypeOf(t)
			s.Changes++
		}
		for n := range g.Nodes() {
			if n.Op.Type == "Cast" && n.Int("to", 0) == int64(tensor.Float16) {
				n.SetAttr(graph.Int("to", int64(tensor.Float32)))
			}
			for _, a := range n.Attrs {
				if a.T != nil && a.T.DType() == tensor.Float16 {
					t, err := wide(a.T)
					if err != nil {
						return err
					}
					a.T = t
				}
			}
			for _, v := range n.Outputs() {
				if v != nil && v.Type.Elem == tensor.Float16 {
					v.Type.Elem = tensor.Float32
				}
			}
		}
		for _, v := range g.Inputs() {
			switch {
			case v.Type.Elem != tensor.Float16:
			case !main:
				v.Type.Elem = tensor.Float32
			default:
				uses := slices.Clone(v.Uses())
				w := g.NewValue(s.Model.UniqueName(v.Name()+"_f32"), graph.TensorType(tensor.Float32, v.Type.Shape))
				g.InsertAfter(g.NewNode(graph.OpKey{Type: "Cast"}, "", []*graph.Value{v}, []*graph.Value{w}, graph.Int("to", int64(tensor.Float32))), nil)
				for _, u := range uses {
					if u.Node != nil {
						u.Node.SetInput(u.Index, w)
					}
				}
				s.Changes++
			}
		}
	}
	for _, v := range outputs {
		g, n := v.Graph(), v.DefNode()
		w := g.NewValue(s.Model.UniqueName(v.Name()+"_f32"), v.Type)
		n.SetOutput(slices.Index(n.Outputs(), v), w)
		v.ReplaceUses(w)
		v.Type.Elem = tensor.Float16
		g.InsertAfter(g.NewNode(graph.OpKey{Type: "Cast"}, "", []*graph.Value{w}, []*graph.Value{v}, graph.Int("to", int64(tensor.Float16))), n)
		s.Changes++
	}
	return nil
}
