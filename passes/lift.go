package passes

import (
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// lowestLift and highestLift bound the operator sets between which the tables
// of adapt.go know every change of a definition.
const (
	lowestLift  = 7
	highestLift = 25
)

// irOf is the IR version of the ONNX release that brought operator set
// lowestLift + i (ONNX Versioning.md, "Released Versions").
var irOf = [...]int64{3, 3, 4, 5, 6, 7, 7, 7, 8, 8, 8, 8, 9, 9, 10, 10, 11, 12, 13}

func liftOpset(s *State) error {
	to := s.Options.MinOpset
	if err := s.lift(mainGraphs(s.Model), s.Model.Opsets, to, func(v int) { s.Model.SetOpset(graph.OnnxDomain, v) }); err != nil {
		return err
	}
	for _, f := range s.Model.Functions {
		if err := s.liftFunction(f, to); err != nil {
			return err
		}
	}
	return nil
}

func (s *State) liftFunction(f *graph.Function, to int) error {
	return s.lift(nested(f.Body), f.Opsets, to, func(v int) {
		for i, o := range f.Opsets {
			if graph.NormalDomain(o.Domain) == graph.OnnxDomain {
				f.Opsets[i].Version = int64(v)
			}
		}
	})
}

// mainGraphs returns the main graph of m and all that is nested in it.
func mainGraphs(m *graph.Model) []*graph.Graph { return nested(m.Graph) }

// nested returns g and all graphs nested in it, each after the one around it.
func nested(g *graph.Graph) []*graph.Graph {
	all := []*graph.Graph{g}
	for i := 0; i < len(all); i++ {
		for n := range all[i].Nodes() {
			for _, a := range n.Attrs {
				all = append(all, a.Subgraphs()...)
			}
		}
	}
	return all
}

// lift raises the default domain of graphs that import the given operator
// sets, one version at a time; set stores the version reached.
func (s *State) lift(graphs []*graph.Graph, imports []graph.Opset, to int, set func(int)) error {
	from := 0
	for _, o := range imports {
		if graph.NormalDomain(o.Domain) == graph.OnnxDomain {
			from = int(o.Version)
		}
	}
	switch {
	case from == 0 || from >= to:
		return nil
	case from < lowestLift:
		return fmt.Errorf("opset %d cannot be lifted to %d: definitions before opset %d are not known", from, to, lowestLift)
	case to > highestLift:
		return fmt.Errorf("opset %d cannot be lifted to %d: definitions behind opset %d are not known", from, to, highestLift)
	}
	local := map[graph.OpKey]bool{}
	for _, f := range s.Model.Functions {
		local[graph.OpKey{Domain: graph.NormalDomain(f.Domain), Type: f.Name, Overload: f.Overload}] = true
	}
	l := &lifter{enlarging: map[int]bool{}}
	for l.to = from + 1; l.to <= to; l.to++ {
		for i := 0; i < len(graphs); i++ {
			for n := range graphs[i].Nodes() {
				if n.Op.Domain != graph.OnnxDomain || local[n.Op] {
					continue
				}
				adapt := adapters[change{n.Op.Type, l.to}]
				if adapt == nil {
					continue
				}
				if err := adapt(l, n); err != nil {
					return graph.NodeError("lift", n, fmt.Errorf("%s to opset %d: %w", n.Op.Type, l.to, err))
				}
				s.Changes++
			}
		}
		graphs = append(graphs, l.added...)
		l.added = nil
		set(l.to)
	}
	s.Changes++
	s.raiseIR(irOf[to-lowestLift])
	return nil
}

// raiseIR lifts the IR version. From version 4 on a caller can override an
// initializer that is listed as an input, so those that could not be before
// leave the inputs.
func (s *State) raiseIR(version int64) {
	if s.Model.IRVersion >= version {
		return
	}
	if s.Model.IRVersion < 4 {
		for _, g := range mainGraphs(s.Model) {
			g.RemoveInputs((*graph.Value).IsInitializer)
		}
	}
	s.Model.IRVersion = version
	s.Changes++
}

// sealWeights takes initializers out of the inputs of a graph that lists most of
// the bytes of its weights there.
func sealWeights(s *State) error {
	g := s.Model.Graph
	weight := func(v *graph.Value) bool {
		return slices.ContainsFunc(v.Uses(), func(u graph.Use) bool {
			if u.Node == nil {
				return false
			}
			spec := ops.Lookup(u.Node)
			if spec == nil {
				return false
			}
			port, _ := spec.InPort(u.Index)
			return port.Role == ops.Weight
		})
	}
	listed, bytes, all := 0, 0, 0
	for _, v := range g.Initializers() {
		size := 0
		if v.Const != nil && weight(v) {
			size = v.Const.Size()
		}
		all += size
		if v.IsInput() {
			listed++
			bytes += size
		}
	}
	if 2*bytes > all {
		s.Changes += listed
		g.RemoveInputs((*graph.Value).IsInitializer)
	}
	return nil
}

// lifter is what the adapters of one lift share.
type lifter struct {
	to int // the operator set that the nodes are adapted to
	// enlarging holds the IDs of Resize nodes that were Upsample, which
	// shrinks nothing.
	enlarging map[int]bool
	added     []*graph.Graph // graphs that adapters made
}

// constant returns a value that n can read and that holds t: an initializer,
// or, in a local function, which has none, the output of a Constant node.
func constant(n *graph.Node, name string, t *tensor.Tensor) *graph.Value {
	g := n.Graph()
	if rootOf(g).Function() == nil {
		return g.NewInitializer(name, t)
	}
	return insert(n, "Constant", name, nil, graph.TypeOf(t), graph.TensorAttr("value", t))
}

func rootOf(g *graph.Graph) *graph.Graph {
	for g.Outer() != nil {
		g = g.Outer()
	}
	return g
}

// insert puts a node of the default domain before n and returns its output.
func insert(n *graph.Node, op, name string, in []*graph.Value, t graph.Type, attrs ...*graph.Attr) *graph.Value {
	g := n.Graph()
	m := g.Model()
	v := g.NewValue(m.UniqueName(name), t)
	g.InsertBefore(g.NewNode(graph.OpKey{Type: op}, m.UniqueNodeName(v.Name()), in, []*graph.Value{v}, attrs...), n)
	return v
}

// divert gives n a new output i and returns it; what read the old one reads
// from a node that the caller puts behind n with finish.
func divert(n *graph.Node, i int, name string) (old, fresh *graph.Value) {
	g := n.Graph()
	old = n.Output(i)
	fresh = g.NewValue(g.Model().UniqueName(name), graph.Type{})
	n.SetOutput(i, fresh)
	return old, fresh
}

// emit puts a node behind n that defines the existing value out.
func emit(n *graph.Node, op string, in []*graph.Value, out *graph.Value, attrs ...*graph.Attr) {
	g := n.Graph()
	g.InsertAfter(g.NewNode(graph.OpKey{Type: op}, g.Model().UniqueNodeName(out.Name()+"_"+op), in, []*graph.Value{out}, attrs...), n)
}

// constOf returns the constant that v holds, or nil.
func constOf(v *graph.Value) *tensor.Tensor {
	if v == nil {
		return nil
	}
	if v.IsConst() {
		return v.Const
	}
	if n := v.DefNode(); isOp(n, "Constant") {
		return constantOf(n)
	}
	return nil
}

// anyUsed reports whether something reads one of the outputs of n from i on.
func anyUsed(n *graph.Node, i int) bool {
	return len(n.Outputs()) > i && slices.ContainsFunc(n.Outputs()[i:], func(v *graph.Value) bool { return v != nil && len(v.Uses()) > 0 })
}
