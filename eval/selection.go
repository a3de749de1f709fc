package eval

import (
	"context"
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes"
	"github.com/onnxq/onnxq/tensor"
)

// Selection says how models are compared whose outputs are rows that TopK,
// NonMaxSuppression or NonZero picked by values that quantization changes, as
// detectors do. Rows of nearly equal value change places, so that row by row
// nothing would be alike though nothing is lost. So the quantized model is made to
// pick what the float model picked: the indices, and the results of comparisons
// that they follow from, as of a peak with its neighbours, are outputs of that one
// and inputs of the other.
//
// Where lengths follow from values that are rounded, as those of speech from the
// durations that a model predicts, one that is rounded the other way shifts all that
// follows. These are taken from the float model as well.
//
// What is picked but put back to its place by a Scatter stands where it stood,
// and is compared as it is.
//
// Where no output tells how good the picks are, since all are integers or as many
// as were picked, the values that they were picked by are compared as well.
type Selection struct {
	outputs int // of the model
	forced  []forced
	judged  []Judged // beside the outputs
}

// forced is a value that the quantized model takes from the float model.
type forced struct {
	names []string // of it and of what only copies it
	elem  tensor.DType
}

// Judged is a value that a model picks by.
type Judged struct {
	Name string
	// Value is that value, in a copy of the model given to NewSelection.
	Value *graph.Value
	// reader holds the names of the first output of the node that reads it, and port
	// is the input.
	reader []string
	port   int
	// Boxes says that few of its elements matter: those that are picked.
	Boxes bool
}

// picks tells which output of n holds what n picked.
func picks(n *graph.Node) (index int, ok bool) {
	if n.Op.Domain != graph.OnnxDomain {
		return 0, false
	}
	switch n.Op.Type {
	case "TopK":
		return 1, n.Output(1) != nil
	case "NonMaxSuppression", "NonZero":
		return 0, n.Output(0) != nil
	}
	return 0, false
}

// NewSelection returns how quantized forms of m are compared with it, or nil if
// their outputs are compared as they are.
func NewSelection(m *graph.Model) *Selection {
	if !slices.ContainsFunc(m.Graph.Outputs(), func(v *graph.Value) bool { return !floats(v) }) && !hasPicks(m.Graph) {
		return nil
	}
	m = ops.Typed(m)
	g := m.Graph
	rough := inexact(g)
	s := &Selection{outputs: len(g.Outputs())}
	picking, decided := map[*graph.Node]bool{}, map[*graph.Node]bool{}
	var lengths []*graph.Node
	picked := map[*graph.Value]bool{} // depends on how many were picked
	for n := range g.Nodes() {
		if slices.ContainsFunc(n.Inputs(), func(v *graph.Value) bool { return picked[v] }) {
			mark(picked, n)
		}
		if rounds(n) && rough[n.Input(0)] && measures(n.Output(0)) {
			lengths = append(lengths, n)
			s.force(n.Output(0), n.Input(0).Type.Elem)
			mark(picked, n)
			continue
		}
		i, ok := picks(n)
		if !ok || n.Input(0) == nil || !rough[n.Input(0)] && !(n.Op.Type == "NonMaxSuppression" && rough[n.Input(1)]) || scattered(n.Output(i)) {
			continue
		}
		picking[n] = true
		s.force(n.Output(i), tensor.Int64)
		compared(n, rough, decided)
		if n.Op.Type != "TopK" {
			mark(picked, n)
		}
	}
	for n := range g.Nodes() {
		if decided[n] && n.Output(0) != nil {
			s.force(n.Output(0), tensor.Bool)
		}
	}
	judged := map[*graph.Value]bool{}
	judge := func(list []source, boxes bool) {
		for _, x := range list {
			v := x.reader.Input(x.port)
			if judged[v] || v.IsOutput() {
				continue
			}
			judged[v] = true
			s.judged = append(s.judged, Judged{Name: v.Name(), Value: v, reader: aliases(x.reader.Output(0)), port: x.port, Boxes: boxes})
		}
	}
	if !slices.ContainsFunc(g.Outputs(), func(v *graph.Value) bool { return floats(v) && !picked[v] }) {
		for n := range g.Nodes() {
			if picking[n] {
				judge(sources(n, rough), true)
			}
		}
		for _, v := range g.Outputs() {
			if !floats(v) && !picked[v] && rough[v] && v.DefNode() != nil {
				judge(sources(v.DefNode(), rough), false)
			}
		}
	}
	for _, n := range lengths {
		judge([]source{{n, 0}}, false)
	}
	if len(s.forced)+len(s.judged) == 0 {
		return nil
	}
	return s
}

func (s *Selection) force(v *graph.Value, elem tensor.DType) {
	s.forced = append(s.forced, forced{aliases(v), elem})
}

func hasPicks(g *graph.Graph) bool {
	for n := range g.Nodes() {
		if _, ok := picks(n); ok || rounds(n) {
			return true
		}
	}
	return false
}

// rounds reports whether n rounds floats to integers.
func rounds(n *graph.Node) bool {
	if n.Op.Domain != graph.OnnxDomain || n.Input(0) == nil || n.Output(0) == nil {
		return false
	}
	return n.Op.Type == "Ceil" || n.Op.Type == "Floor" || n.Op.Type == "Round"
}

// measures reports whether a length follows from v without a product with weights
// between.
func measures(v *graph.Value) bool {
	return reaches(v, func(u graph.Use) bool {
		if u.Node.Op.Domain != graph.OnnxDomain {
			return false
		}
		switch u.Node.Op.Type {
		case "Range":
			return true
		case "ConstantOfShape", "Loop":
			return u.Index == 0
		case "Expand", "Tile":
			return u.Index == 1
		}
		return false
	}, func(n *graph.Node, _ *graph.Value) bool {
		spec := ops.Lookup(n)
		return spec != nil && !weighs(spec, n)
	})
}

// reaches reports whether a use that is wanted follows from v through outputs w of
// nodes n that pass.
func reaches(v *graph.Value, wanted func(u graph.Use) bool, pass func(n *graph.Node, w *graph.Value) bool) bool {
	seen := map[*graph.Value]bool{v: true}
	for stack := []*graph.Value{v}; len(stack) > 0; {
		v := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, u := range v.Uses() {
			if u.Node == nil {
				continue
			}
			if wanted(u) {
				return true
			}
			for _, w := range u.Node.Outputs() {
				if w != nil && !seen[w] && pass(u.Node, w) {
					seen[w] = true
					stack = append(stack, w)
				}
			}
		}
	}
	return false
}

func floats(v *graph.Value) bool {
	switch v.Type.Elem {
	case tensor.Float32, tensor.Float16, tensor.BFloat16, tensor.Float64:
		return true
	}
	return !v.Type.IsTensor()
}

func mark(set map[*graph.Value]bool, n *graph.Node) {
	for _, v := range n.Outputs() {
		if v != nil {
			set[v] = true
		}
	}
}

// inexact tells which values of g follow from weights, so that quantization
// changes them; shapes do not.
func inexact(g *graph.Graph) map[*graph.Value]bool {
	set := map[*graph.Value]bool{}
	for n := range g.Nodes() {
		if n.Op.Domain == graph.OnnxDomain && (n.Op.Type == "Shape" || n.Op.Type == "Size" || n.Op.Type == "ConstantOfShape") {
			continue
		}
		spec := ops.Lookup(n)
		rough := spec == nil && n.NumInputs() > 0 || spec != nil && weighs(spec, n)
		for _, v := range n.Inputs() {
			rough = rough || v != nil && set[v]
		}
		for _, a := range n.Attrs {
			rough = rough || len(a.Subgraphs()) > 0
		}
		if rough {
			mark(set, n)
		}
	}
	return set
}

// scattered reports whether indices lead to where a Scatter puts something.
func scattered(v *graph.Value) bool {
	return reaches(v, func(u graph.Use) bool {
		if u.Node.Op.Domain != graph.OnnxDomain || u.Index != 1 {
			return false
		}
		switch u.Node.Op.Type {
		case "Scatter", "ScatterElements", "ScatterND":
			return true
		}
		return false
	}, func(n *graph.Node, w *graph.Value) bool { return n.Op.Domain == graph.OnnxDomain && !floats(w) })
}

// compares reports whether n compares its inputs.
func compares(n *graph.Node) bool {
	if n.Op.Domain != graph.OnnxDomain {
		return false
	}
	switch n.Op.Type {
	case "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal":
		return true
	}
	return false
}

// compared adds the comparisons of inexact values to set that n follows from
// without a product with weights between.
func compared(n *graph.Node, rough map[*graph.Value]bool, set map[*graph.Node]bool) {
	seen := map[*graph.Node]bool{n: true}
	for stack := []*graph.Node{n}; len(stack) > 0; {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, v := range n.Inputs() {
			if v == nil || !rough[v] || v.DefNode() == nil || v.DefNode().Graph() != n.Graph() || seen[v.DefNode()] {
				continue
			}
			k := v.DefNode()
			seen[k] = true
			if compares(k) {
				set[k] = true
			}
			if spec := ops.Lookup(k); spec != nil && !weighs(spec, k) {
				stack = append(stack, k)
			}
		}
	}
}

// weighs reports whether n multiplies with weights.
func weighs(spec *ops.Spec, n *graph.Node) bool {
	for i := range n.Inputs() {
		if port, _ := spec.InPort(i); port.Role == ops.Weight && n.Op.Type != "Gather" {
			return true
		}
	}
	return false
}

// source is an input of a node.
type source struct {
	reader *graph.Node
	port   int
}

// sources lists where n and what feeds it with other types read floats that are
// inexact.
func sources(n *graph.Node, rough map[*graph.Value]bool) []source {
	var out []source
	seen := map[*graph.Node]bool{n: true}
	for stack := []*graph.Node{n}; len(stack) > 0; {
		n := stack[0]
		stack = stack[1:]
		for i, v := range n.Inputs() {
			switch {
			case v == nil || !rough[v]:
			case floats(v):
				out = append(out, source{n, i})
			case v.DefNode() != nil && v.DefNode().Graph() == n.Graph() && !seen[v.DefNode()]:
				seen[v.DefNode()] = true
				stack = append(stack, v.DefNode())
			}
		}
	}
	return out
}

// aliases lists the names of v and of what only copies it.
func aliases(v *graph.Value) []string {
	list := []string{v.Name()}
	for _, u := range v.Uses() {
		if u.Node != nil && u.Node.Op == (graph.OpKey{Type: "Identity"}) && u.Node.Output(0) != nil {
			list = append(list, aliases(u.Node.Output(0))...)
		}
	}
	return list
}

// maker returns what makes the value that has one of the names, behind copies, in
// the main graph of m, or nil.
func maker(m *graph.Model, names []string) (*graph.Node, int) {
	for _, name := range names {
		for n := range m.Graph.Nodes() {
			for i, v := range n.Outputs() {
				if v != nil && v.Name() == name && n.Op.Type != "Identity" {
					return n, i
				}
			}
		}
	}
	return nil, 0
}

// Beside returns what is compared beside the outputs.
func (s *Selection) Beside() []Judged {
	if s == nil {
		return nil
	}
	return s.judged
}

// Reference returns m, the model that NewSelection was given, with what is judged
// and what it picks appended to its outputs.
func (s *Selection) Reference(m *graph.Model) *graph.Model {
	if s == nil {
		return m
	}
	c := m.Clone()
	s.show(c)
	for _, f := range s.forced {
		n, i := maker(c, f.names)
		v := n.Output(i)
		w := c.Graph.NewValue(c.UniqueName(v.Name()), v.Type)
		c.Graph.InsertAfter(c.Graph.NewNode(graph.OpKey{Type: "Identity"}, c.UniqueNodeName("picked"), []*graph.Value{v}, []*graph.Value{w}), n)
		c.Graph.AddOutput(w)
	}
	return c
}

// Quantized returns m, a quantized form of the model, with what is judged appended
// to its outputs, and picks taken from inputs; or nil if m lacks one of these.
func (s *Selection) Quantized(m *graph.Model) *graph.Model {
	if s == nil {
		return m
	}
	c := m.Clone()
	if !s.show(c) {
		return nil
	}
	for k, f := range s.forced {
		n, i := maker(c, f.names)
		if n == nil {
			return nil
		}
		if index, ok := picks(n); !compares(n) && !rounds(n) && (!ok || index != i || c.Opset(graph.OnnxDomain) < gatherElements) {
			return nil
		}
		in := c.Graph.NewValue(pickedName(k), graph.TensorType(f.elem, nil))
		c.Graph.AddInput(in)
		last, free := n, map[*graph.Value]string{}
		replace := func(v *graph.Value, t graph.Type, op string, inputs []*graph.Value, attrs ...*graph.Attr) *graph.Value {
			y := c.Graph.NewValue(c.UniqueName(v.Name()), t)
			k := c.Graph.NewNode(graph.OpKey{Type: op}, c.UniqueNodeName("picked"), inputs, []*graph.Value{y}, attrs...)
			c.Graph.InsertAfter(k, last)
			last, free[y] = k, v.Name()
			v.ReplaceWith(y)
			return y
		}
		at := in
		if t := n.Output(i).Type; rounds(n) && t.Elem != f.elem && t.Elem != tensor.Undefined { // it computes in 16 bits
			at = replace(n.Output(i), t, "Cast", []*graph.Value{in}, graph.Int("to", int64(t.Elem)))
		} else {
			at = replace(n.Output(i), in.Type, "Identity", []*graph.Value{in})
		}
		if w := n.Output(0); n.Op.Type == "TopK" && w != nil {
			replace(w, w.Type, "GatherElements", []*graph.Value{n.Input(0), at}, graph.Int("axis", n.Int("axis", -1)))
		}
		c.Graph.Remove(n)
		for y, name := range free {
			y.Rename(name)
		}
	}
	return c
}

// gatherElements is the operator set that GatherElements came with.
const gatherElements = 11

// pickedName is the name of the input of indices i.
func pickedName(i int) string { return fmt.Sprintf("onnxq.picked.%d", i) }

// show makes what is judged outputs of m, as float32, and reports whether m has
// all of it.
func (s *Selection) show(m *graph.Model) bool {
	for _, j := range s.judged {
		n, _ := maker(m, j.reader)
		if n == nil || n.Input(j.port) == nil {
			return false
		}
		v := n.Input(j.port)
		for v.DefNode() != nil && !floats(v) && v.DefNode().Op.Type == "QuantizeLinear" {
			v = v.DefNode().Input(0)
		}
		if !floats(v) && v.Type.Elem != tensor.Undefined {
			return false
		}
		w := m.Graph.NewValue(m.UniqueName(j.Name+"_judged"), graph.TensorType(tensor.Float32, v.Type.Shape))
		m.Graph.InsertBefore(m.Graph.NewNode(graph.OpKey{Type: "Cast"}, m.UniqueNodeName("judged"), []*graph.Value{v}, []*graph.Value{w}, graph.Int("to", int64(tensor.Float32))), n)
		m.Graph.AddOutput(w)
	}
	return true
}

// Align returns the forms of a float model and a quantized form of it that are
// compared, with a nil Selection if these are the models themselves.
func Align(ctx context.Context, ref, got *graph.Model) (s *Selection, a, b *graph.Model) {
	if s = NewSelection(ref); s != nil {
		lifted := got
		if got.Opset(graph.OnnxDomain) < gatherElements {
			lifted = got.Clone()
			if _, err := passes.Prepare(ctx, lifted, passes.Options{MinOpset: gatherElements}); err != nil {
				return nil, ref, got
			}
		}
		if b = s.Quantized(lifted); b != nil {
			return s, s.Reference(ref), b
		}
	}
	return nil, ref, got
}

// Names returns the names of what is compared: the outputs of m and what is
// judged beside them.
func (s *Selection) Names(m *graph.Model) []string {
	var list []string
	for _, v := range m.Graph.Outputs() {
		list = append(list, v.Name())
	}
	if s != nil {
		for _, j := range s.judged {
			list = append(list, j.Name)
		}
	}
	return list
}

// Comparison returns an empty comparison with m, the model that NewSelection was
// given.
func (s *Selection) Comparison(m *graph.Model) *Comparison {
	names := s.Names(m)
	c := NewComparison(names)
	for i := len(m.Graph.Outputs()); i < len(names); i++ {
		c.outputs[i].picks = true
	}
	return c
}

// Picks reports whether Split gives inputs of Quantized.
func (s *Selection) Picks() bool { return s != nil && len(s.forced) > 0 }

// Split divides what Reference gives into what is compared and inputs of Quantized.
func (s *Selection) Split(outputs []ops.Data) (compared []ops.Data, picked map[string]ops.Data) {
	if s == nil {
		return outputs, nil
	}
	n := s.outputs + len(s.judged)
	picked = map[string]ops.Data{}
	for i := range s.forced {
		picked[pickedName(i)] = outputs[n+i]
	}
	return outputs[:n], picked
}
