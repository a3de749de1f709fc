package passes

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// adapter changes a node whose operator was defined anew in operator set To,
// so that it means there what it meant before.
type adapter struct {
	To    int
	Adapt func(s *State, n *graph.Node) error
}

// irFor is the lowest IR version that goes with an operator set (ONNX
// Versioning.md, table of released versions).
var irFor = []struct{ opset, ir int }{{24, 11}, {23, 11}, {21, 10}, {19, 9}, {15, 8}, {12, 7}, {11, 6}, {10, 5}, {9, 4}, {1, 3}}

func liftOpset(s *State) error {
	from, to := s.Model.Opset(graph.OnnxDomain), s.Options.MinOpset
	if from == 0 || from >= to {
		return nil
	}
	for version := from + 1; version <= to; version++ {
		for g := range s.Model.Scopes() {
			if g.Function() != nil {
				continue
			}
			for n := range g.Nodes() {
				if n.Op.Domain != graph.OnnxDomain {
					continue
				}
				for _, a := range adapters[n.Op.Type] {
					if a.To != version {
						continue
					}
					if err := a.Adapt(s, n); err != nil {
						return graph.NodeError("lift", n, fmt.Errorf("to opset %d: %w", version, err))
					}
				}
			}
		}
		s.Model.SetOpset(graph.OnnxDomain, version)
	}
	s.Changes++
	for _, e := range irFor {
		if to >= e.opset {
			s.raiseIR(int64(e.ir))
			break
		}
	}
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
		for g := range s.Model.Scopes() {
			for _, v := range g.Initializers() {
				if v.IsInput() {
					g.RemoveInput(v)
				}
			}
		}
	}
	s.Model.IRVersion = version
}

// toInput moves an integer list attribute into input i.
func toInput(attr string, i int) func(*State, *graph.Node) error {
	return func(_ *State, n *graph.Node) error {
		if list := n.Ints(attr); list != nil {
			n.SetInput(i, n.Graph().NewInitializer(n.Label()+"_"+attr, tensor.Of(append([]int64{}, list...))))
		}
		n.RemoveAttr(attr)
		return nil
	}
}

func scalarInput(n *graph.Node, attr string, i int, t *tensor.Tensor) {
	n.SetInput(i, n.Graph().NewInitializer(n.Label()+"_"+attr, t))
	n.RemoveAttr(attr)
}

// adapters lists, by operator, the definitions that need a change.
var adapters = map[string][]adapter{
	"Clip": {{11, func(_ *State, n *graph.Node) error {
		lo, hi := n.Float("min", -math.MaxFloat32), n.Float("max", math.MaxFloat32)
		n.RemoveAttr("min")
		n.RemoveAttr("max")
		t := n.Input(0).Type.Elem
		if t != tensor.Float32 && t != tensor.Undefined {
			return fmt.Errorf("bounds of element type %v cannot be written", t)
		}
		if lo != -math.MaxFloat32 {
			scalarInput(n, "min", 1, tensor.Scalar(lo))
		}
		if hi != math.MaxFloat32 {
			scalarInput(n, "max", 2, tensor.Scalar(hi))
		}
		return nil
	}}},
	"Dropout": {{12, func(_ *State, n *graph.Node) error {
		n.RemoveAttr("ratio")
		return nil
	}}},
	"BatchNormalization": {{9, func(_ *State, n *graph.Node) error {
		if n.Int("spatial", 1) != 1 {
			return fmt.Errorf("spatial = 0 has no successor")
		}
		n.RemoveAttr("spatial")
		return nil
	}}, {14, func(_ *State, n *graph.Node) error {
		for _, v := range n.Outputs()[1:] {
			if v != nil && len(v.Uses()) > 0 {
				return fmt.Errorf("its training outputs are used")
			}
		}
		n.TruncateOutputs(1)
		return nil
	}}},
	"Upsample": {{9, func(_ *State, n *graph.Node) error {
		if a := n.Attr("scales"); a != nil {
			scalarInput(n, "scales", 1, tensor.Of(append([]float32{}, a.Floats...)))
		}
		return nil
	}}, {10, func(_ *State, n *graph.Node) error {
		n.Op.Type = "Resize"
		return nil
	}}},
	"Resize": {{11, func(_ *State, n *graph.Node) error {
		scales := n.Input(1)
		n.SetInput(1, n.Graph().NewInitializer(n.Label()+"_roi", tensor.New(tensor.Float32, 0)))
		n.SetInput(2, scales)
		n.SetAttr(graph.String("coordinate_transformation_mode", "asymmetric"))
		if n.String("mode", "nearest") == "nearest" {
			n.SetAttr(graph.String("nearest_mode", "floor"))
		}
		return nil
	}}},
	"Slice": {{10, func(_ *State, n *graph.Node) error {
		starts, ends, axes := n.Ints("starts"), n.Ints("ends"), n.Ints("axes")
		g := n.Graph()
		n.SetInput(1, g.NewInitializer(n.Label()+"_starts", tensor.Of(append([]int64{}, starts...))))
		n.SetInput(2, g.NewInitializer(n.Label()+"_ends", tensor.Of(append([]int64{}, ends...))))
		if axes != nil {
			n.SetInput(3, g.NewInitializer(n.Label()+"_axes", tensor.Of(append([]int64{}, axes...))))
		}
		for _, a := range []string{"starts", "ends", "axes"} {
			n.RemoveAttr(a)
		}
		return nil
	}}},
	"TopK": {{10, func(_ *State, n *graph.Node) error {
		scalarInput(n, "k", 1, tensor.Of([]int64{n.Int("k", 0)}))
		return nil
	}}},
	"Pad": {{11, func(_ *State, n *graph.Node) error {
		value := n.Float("value", 0)
		n.RemoveAttr("value")
		if err := toInput("pads", 1)(nil, n); err != nil {
			return err
		}
		if value != 0 {
			scalarInput(n, "value", 2, tensor.Scalar(value))
		}
		return nil
	}}},
	"Scatter": {{11, func(_ *State, n *graph.Node) error {
		n.Op.Type = "ScatterElements"
		return nil
	}}},
	"Squeeze":    {{13, toInput("axes", 1)}},
	"Unsqueeze":  {{13, toInput("axes", 1)}},
	"ReduceSum":  {{13, toInput("axes", 1)}},
	"Split":      {{13, toInput("split", 1)}},
	"Softmax":    {{13, softmax13}},
	"LogSoftmax": {{13, softmax13}},
	"Hardmax":    {{13, softmax13}},
}

// softmax13 keeps the old meaning, softmax over all axes from axis on, which
// is the new one where axis is the last; else the axes are flattened around
// the node.
func softmax13(s *State, n *graph.Node) error {
	axis := n.Int("axis", 1)
	x, y, g := n.Input(0), n.Output(0), n.Graph()
	rank := len(x.Type.Shape)
	if x.Type.Shape != nil && (axis == int64(rank)-1 || axis == -1) {
		n.SetAttr(graph.Int("axis", -1))
		return nil
	}
	m := s.Model
	flat := g.NewValue(m.UniqueName(x.Name()+"_flat"), graph.Type{})
	soft := g.NewValue(m.UniqueName(y.Name()+"_flat"), graph.Type{})
	dims := g.NewValue(m.UniqueName(x.Name()+"_shape"), graph.Type{})
	back := g.NewValue(m.UniqueName(y.Name()+"_shaped"), graph.Type{})
	key := func(t string) graph.OpKey { return graph.OpKey{Type: t} }
	g.InsertBefore(g.NewNode(key("Shape"), m.UniqueNodeName(n.Label()+"_Shape"), []*graph.Value{x}, []*graph.Value{dims}), n)
	g.InsertBefore(g.NewNode(key("Flatten"), m.UniqueNodeName(n.Label()+"_Flatten"), []*graph.Value{x}, []*graph.Value{flat}, graph.Int("axis", axis)), n)
	g.InsertBefore(g.NewNode(n.Op, m.UniqueNodeName(n.Label()+"_flat"), []*graph.Value{flat}, []*graph.Value{soft}, graph.Int("axis", -1)), n)
	g.InsertBefore(g.NewNode(key("Reshape"), m.UniqueNodeName(n.Label()+"_Reshape"), []*graph.Value{soft, dims}, []*graph.Value{back}), n)
	if !y.ReplaceWith(back) {
		return fmt.Errorf("output %q cannot be replaced", y.Name())
	}
	g.Remove(n)
	return nil
}
