package auto

import (
	"cmp"
	"context"
	"slices"

	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/qdq"
)

// origins says where the noise of a candidate's outputs starts: which part of it
// goes away when a node is float, or a weight exact, as if the parts were
// independent.
type origins struct{ nodes, weights map[int]float64 } // by ID

// leastSeen is the part of the noise that has to start in the main graph: what
// starts in nested graphs is not told apart.
const leastSeen = 0.5

// origins runs c and the float model that it is made from side by side on a few
// samples, once; see eval.Trace. It returns nil where most of the noise starts in
// nested graphs.
func (s *search) origins(ctx context.Context, c *candidate) (*origins, error) {
	if err := s.realize(ctx, c); err != nil || c.traced {
		return c.from, err
	}
	s.count()
	ref, got := c.base, c.model
	aligned := s.yard.selection.Quantized(got)
	if aligned != nil {
		ref, got = s.yard.selection.Reference(ref), aligned
	}
	trace := eval.NewTrace(ref, got)
	left, right, leftTaps, rightTaps := trace.Models()
	a, err := exec.Compile(left, exec.Options{Taps: leftTaps})
	if err != nil {
		return nil, err
	}
	b, err := exec.Compile(right, exec.Options{Taps: rightTaps, Saturate: s.o.Target.PairSums})
	if err != nil {
		return nil, err
	}
	x, y := a.NewSession(s.o.Session), b.NewSession(s.o.Session)
	for _, i := range s.few(s.look) {
		if _, _, err := trace.Run(ctx, x, y, s.yard.samples[i], s.yard.feeds(i, aligned != nil)); err != nil {
			return nil, err
		}
	}
	values, err := c.plan.Values(c.base)
	if err != nil {
		return nil, err
	}
	rounded := map[int]bool{}
	for i, v := range values {
		rounded[v.ID] = c.plan.Tensors[i].Kind == qdq.Activation
	}
	c.from, c.traced = originsOf(c.base, trace.Origins(s.o.Contract.allowed(s.yard.kinds)), rounded), true
	return c.from, nil
}

// originsOf shares out what starts at the inputs and values of m's main graph, by ID,
// as a trace has it. There a value stands for the node that makes it, for the nodes
// before that are part of the same integer kernel, and for being quantized itself, if
// it is one of rounded. Where there are both, half of what starts is taken to be for
// those that make the value, and half for those that read it.
func originsOf(m *graph.Model, starts map[int]float64, rounded map[int]bool) *origins {
	o := &origins{map[int]float64{}, map[int]float64{}}
	hidden := func(n *graph.Node) bool {
		return !slices.ContainsFunc(n.Outputs(), func(v *graph.Value) bool {
			if v == nil {
				return false
			}
			_, ok := starts[v.ID]
			return ok
		})
	}
	give := func(list []*graph.Node, part float64) {
		for _, n := range list {
			o.nodes[n.ID] += part / float64(len(list))
		}
	}
	sum := 0.0
	share := func(v *graph.Value) {
		part := starts[v.ID]
		if part == 0 {
			return
		}
		sum += part
		var made, read []*graph.Node
		if n := v.DefNode(); n != nil && depth(n) > 0 {
			made = []*graph.Node{n}
		} else if n != nil {
			made = slices.DeleteFunc(nearest(producers(n), producers, hidden), func(n *graph.Node) bool { return !hidden(n) })
		}
		if rounded[v.ID] {
			read = nearest(readers(v), consumers, hidden)
		}
		switch {
		case len(read) == 0:
			give(made, part)
		case len(made) == 0:
			give(read, part)
		default:
			give(made, part/2)
			give(read, part/2)
		}
		for _, n := range made {
			for _, w := range n.Inputs() {
				if w != nil && w.IsConst() {
					o.weights[w.ID] += part / float64(len(made))
				}
			}
		}
	}
	for _, v := range m.Graph.Inputs() {
		share(v)
	}
	for n := range m.Graph.Nodes() {
		for _, v := range n.Outputs() {
			if v != nil {
				share(v)
			}
		}
	}
	if sum < leastSeen {
		return nil
	}
	return o
}

// nearest returns those of the nodes with weights that are reached first from list
// over hidden nodes without weights.
func nearest(list []*graph.Node, next func(*graph.Node) []*graph.Node, hidden func(*graph.Node) bool) []*graph.Node {
	var out []*graph.Node
	seen := map[*graph.Node]bool{}
	for ; len(list) > 0; list = list[1:] {
		n := list[0]
		switch {
		case seen[n]:
		case depth(n) > 0:
			out = append(out, n)
		case hidden(n):
			list = append(list, next(n)...)
		}
		seen[n] = true
	}
	slices.SortFunc(out, func(a, b *graph.Node) int { return cmp.Compare(a.ID, b.ID) })
	return out
}
