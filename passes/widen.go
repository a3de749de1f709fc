package passes

import (
	"math"
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

// halvesFrom is the number of elements from which a Cast takes less in a file than
// their other halves.
const halvesFrom = 200

// StoreHalves stores constants of float32 whose elements are all numbers of
// float16 as such, behind a Cast that runtimes compute once. It undoes for what
// has stayed float what Options.Widen does to the size of a model, and returns the
// number of constants. Those that operators on codes, or of other domains, read
// stay as they are.
func StoreHalves(m *graph.Model) int {
	count := 0
	for g := range m.Scopes() {
		if g.Function() != nil {
			continue
		}
		for _, v := range slices.Clone(g.Initializers()) {
			if v.Const == nil || v.Const.DType() != tensor.Float32 || v.Const.Len() < halvesFrom || v.IsInput() || len(v.Uses()) == 0 {
				continue
			}
			if slices.ContainsFunc(v.Uses(), func(u graph.Use) bool {
				return u.Node == nil || u.Node.Op.Domain != graph.OnnxDomain || isQuantization(u.Node.Op.Type)
			}) {
				continue
			}
			half, ok := halves(v.Const)
			if !ok {
				continue
			}
			name := v.Name()
			h := g.NewInitializer(name+"_f16", half)
			w := g.NewValue(m.UniqueName(name+"_f32"), v.Type)
			v.ReplaceUses(w)
			g.InsertAfter(g.NewNode(graph.OpKey{Type: "Cast"}, m.UniqueNodeName(name+"_f32"), []*graph.Value{h}, []*graph.Value{w}, graph.Int("to", int64(tensor.Float32))), nil)
			g.RemoveInitializers(func(x *graph.Value) bool { return x == v })
			count++
		}
	}
	return count
}

// halves returns the elements of t in float16; ok is false if one is no number of
// that type.
func halves(t *tensor.Tensor) (half *tensor.Tensor, ok bool) {
	const piece = 1 << 16
	x := tensor.As[float32](t)
	half = tensor.New(tensor.Float16, t.Shape()...)
	back := make([]float32, min(piece, len(x)))
	for at := 0; at < len(x); at += piece {
		part := x[at:min(at+piece, len(x))]
		tensor.Write(half, at, part)
		tensor.Read(half, at, back[:len(part)])
		for i, v := range part {
			if math.Float32bits(v) != math.Float32bits(back[i]) {
				return nil, false
			}
		}
	}
	return half, true
}
