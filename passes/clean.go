package passes

import (
	"bytes"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

func removeIdentities(s *State) error {
	for g := range s.Model.Scopes() {
		for n := range g.Nodes() {
			if removeIdentity(n) {
				s.Changes++
			}
		}
	}
	return nil
}

// removeIdentity removes n if its output 0 is its input 0 and nothing else of it is
// used, and reports whether it did.
func removeIdentity(n *graph.Node) bool {
	x, y := n.Input(0), n.Output(0)
	if x == nil || y == nil || !changesNothing(n) || anyUsed(n, 1) || !y.ReplaceWith(x) {
		return false
	}
	n.Graph().Remove(n)
	return true
}

// changesNothing reports whether output 0 of n is its input 0, whatever that
// is.
func changesNothing(n *graph.Node) bool {
	if n.Op.Domain != graph.OnnxDomain {
		return false
	}
	x, y := n.Input(0), n.Output(0)
	switch n.Op.Type {
	case "Identity":
		return true
	case "Dropout":
		mode := n.Input(2)
		if n.Opset() < 7 && n.Int("is_test", 0) == 0 {
			return false
		}
		return n.Opset() < 12 || mode == nil || mode.IsConst() && mode.Const.DType() == tensor.Bool && mode.Const.Len() == 1 && mode.Const.Bytes()[0] == 0
	case "Cast":
		return x.Type.IsTensor() && x.Type.Elem != tensor.Undefined && int64(x.Type.Elem) == n.Int("to", 0)
	case "Concat":
		return n.NumInputs() == 1
	case "Transpose":
		perm := n.Ints("perm")
		for i, p := range perm {
			if p != int64(i) {
				return false
			}
		}
		return len(perm) > 0
	case "Slice":
		return takesAll(n)
	case "Reshape", "Expand":
		a, ok := x.Type.Shape.Dims()
		b, ok2 := y.Type.Shape.Dims()
		return ok && ok2 && slices.Equal(a, b)
	case "Pad":
		pads := ops.ZeroPads(n)
		return pads != nil && !slices.ContainsFunc(pads, func(p int64) bool { return p != 0 })
	}
	return false
}

// takesAll reports whether a Slice selects everything in order: its steps are
// positive and no size changes.
func takesAll(n *graph.Node) bool {
	if steps := n.Input(4); steps != nil && n.Opset() >= 10 {
		if !steps.IsConst() {
			return false
		}
		list, err := tensor.Int64s(steps.Const)
		if err != nil || slices.ContainsFunc(list, func(x int64) bool { return x <= 0 }) {
			return false
		}
	}
	a, ok := n.Input(0).Type.Shape.Dims()
	b, ok2 := n.Output(0).Type.Shape.Dims()
	return ok && ok2 && slices.Equal(a, b)
}

// removeDead works from the innermost graphs outwards, since a node that goes
// may free what it captured.
func removeDead(s *State) error {
	scopes := slices.Collect(s.Model.Scopes())
	for _, g := range slices.Backward(scopes) {
		for n := g.Last(); n != nil; {
			prev := n.Prev()
			if !slices.ContainsFunc(n.Outputs(), func(v *graph.Value) bool { return v != nil && len(v.Uses()) > 0 }) {
				g.Remove(n)
				s.Changes++
			}
			n = prev
		}
	}
	// Removing a node that holds graphs frees captures of the graphs around it,
	// whose turn comes later; initializers come last for the same reason.
	for _, g := range slices.Backward(scopes) {
		g.RemoveInputs(func(v *graph.Value) bool { // listed only because old files had to
			return len(v.Uses()) == 0 && v.IsConst()
		})
		g.RemoveInitializers(func(v *graph.Value) bool {
			if len(v.Uses()) > 0 || v.IsInput() {
				return false
			}
			s.Changes++
			return true
		})
	}
	return nil
}

// shareLimit is the size in bytes up to which equal initializers are looked
// for.
const shareLimit = 1 << 16

func shareConstants(s *State) error {
	for g := range s.Model.Scopes() {
		first := map[string]*graph.Value{}
		gone := map[*graph.Value]bool{}
		for _, v := range g.Initializers() {
			if v.Const == nil || v.IsInput() || v.IsOutput() || v.Const.DType() == tensor.String || v.Const.Size() > shareLimit {
				continue
			}
			key := v.Const.String() + string(v.Const.Bytes())
			w := first[key]
			if w == nil {
				first[key] = v
				continue
			}
			v.ReplaceUses(w)
			gone[v] = true
			s.Changes++
		}
		g.RemoveInitializers(func(v *graph.Value) bool { return gone[v] })
	}
	return nil
}

// nestedLimit is the size in bytes from which equal constants of different
// graphs are looked for.
const nestedLimit = 1 << 10

// shareNestedConstants moves constants that several branches hold to the
// innermost graph around them.
func shareNestedConstants(s *State) error {
	graphs := mainGraphs(s.Model)
	if len(graphs) == 1 {
		return nil
	}
	type kind struct {
		dtype tensor.DType
		shape string
	}
	alike := map[kind][]*graph.Value{}
	var order []kind
	gone := map[*graph.Value]bool{}
	for _, g := range graphs {
		for _, v := range g.Initializers() {
			if !v.IsConst() || v.IsInput() || v.IsOutput() || v.Const.Size() < nestedLimit {
				continue
			}
			k := kind{v.Const.DType(), tensor.ShapeString(v.Const.Shape())}
			if alike[k] == nil {
				order = append(order, k)
			}
			alike[k] = append(alike[k], v)
		}
	}
	for _, k := range order {
		var shared []*graph.Value
		if len(alike[k]) == 1 {
			continue
		}
	next:
		for _, v := range alike[k] {
			for i, w := range shared {
				if v.Graph() == w.Graph() || !bytes.Equal(v.Const.Bytes(), w.Const.Bytes()) {
					continue
				}
				around := commonGraph(v.Graph(), w.Graph())
				if around == nil {
					continue
				}
				if w.Graph() != around {
					shared[i] = around.NewInitializer(w.Name(), w.Const)
					w.ReplaceUses(shared[i])
					gone[w] = true
				}
				v.ReplaceUses(shared[i])
				gone[v] = true
				s.Changes++
				continue next
			}
			shared = append(shared, v)
		}
	}
	if len(gone) > 0 {
		for _, g := range graphs {
			g.RemoveInitializers(func(v *graph.Value) bool { return gone[v] })
		}
	}
	return nil
}

// commonGraph returns the innermost graph that a and b both are or lie in.
func commonGraph(a, b *graph.Graph) *graph.Graph {
	for ; a != nil; a = a.Outer() {
		for c := b; c != nil; c = c.Outer() {
			if a == c {
				return a
			}
		}
	}
	return nil
}

// freeDimensions takes sizes below 1 in declared types for unknown: producers
// write them for sizes that they do not know.
func freeDimensions(s *State) error {
	g := s.Model.Graph
	for _, list := range [][]*graph.Value{g.Inputs(), g.Outputs(), g.ValueInfo} {
		for _, v := range list {
			if v.IsInitializer() || !slices.ContainsFunc(v.Type.Shape, func(d graph.Dim) bool { return d.Known && d.Size < 1 }) {
				continue
			}
			shape := slices.Clone(v.Type.Shape)
			for i, d := range shape {
				if d.Known && d.Size < 1 {
					shape[i] = graph.Dim{Extra: d.Extra}
				}
			}
			v.Type.Shape = shape
			s.Changes++
		}
	}
	return nil
}
