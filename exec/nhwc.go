package exec

import (
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// channelsLast rewrites m in place so that integer convolutions, and what lies
// between them, work on images in the layout N, spatial axes, C, which their
// kernels want. Images change layout where others read or make them.
func (c *compiler) channelsLast(m *graph.Model) {
	for g := range m.Scopes() {
		if g.Function() != nil {
			continue
		}
		l := &relayout{graph: g, last: map[*graph.Value]*graph.Value{}}
		for _, n := range slices.Collect(g.Nodes()) {
			l.node(n)
		}
		for _, t := range slices.Backward(l.moves) {
			if y := t.Output(0); len(y.Uses()) == 0 && !y.IsOutput() && !c.tapped(y) {
				g.Remove(t)
			}
		}
	}
}

type relayout struct {
	graph *graph.Graph
	last  map[*graph.Value]*graph.Value // the same images with channels last
	moves []*graph.Node                 // Transposes
}

// node puts a node that works on images with channels last in the place of n,
// where there is one.
func (l *relayout) node(n *graph.Node) {
	y := n.Output(0)
	if y == nil || len(n.Outputs()) != 1 {
		return
	}
	ms := func(op string) graph.OpKey { return graph.OpKey{Domain: msDomain, Type: op} }
	flag := append(slices.Clone(n.Attrs), graph.Int("channels_last", 1))
	in := slices.Clone(n.Inputs())
	// known reports whether images that are inputs have channels last already.
	known := func(at ...int) bool {
		for _, i := range at {
			if l.last[n.Input(i)] == nil {
				return false
			}
		}
		for _, i := range at {
			in[i] = l.last[n.Input(i)]
		}
		return true
	}
	switch n.Op {
	case graph.OpKey{Type: "QLinearConv"}:
		w := n.Input(3)
		if w == nil || !w.IsConst() || w.Const.Rank() < 3 || w.Const.Rank() > 5 {
			return
		}
		if !known(0) {
			in[0] = l.enter(n, w.Const.Rank())
		}
		l.replace(n, ms("QLinearConv"), in, w.Const.Rank(), flag)
	case ms("QLinearAdd"), ms("QLinearMul"):
		a, b := n.Input(0), n.Input(3)
		if a != nil && b != nil && len(a.Type.Shape) > 2 && sameShape(a, b) && known(0, 3) {
			l.replace(n, n.Op, in, len(a.Type.Shape), n.Attrs)
		}
	case ms("QLinearLeakyRelu"), ms("QLinearSigmoid"):
		if rank := len(n.Input(0).Type.Shape); rank > 2 && known(0) {
			l.replace(n, n.Op, in, rank, n.Attrs)
		}
	case ms("QLinearAveragePool"), ms("QLinearGlobalAveragePool"):
		if rank := len(n.Input(0).Type.Shape); rank > 2 && n.Int("channels_last", 0) == 0 && known(0) {
			l.replace(n, n.Op, in, rank, flag)
		}
	case graph.OpKey{Type: "MaxPool"}:
		if rank := len(n.Input(0).Type.Shape); (rank == 3 || rank == 4) && known(0) {
			n.RemoveAttr("storage_order")
			l.replace(n, ms("NhwcMaxPool"), in, rank, n.Attrs)
		}
	case ms("QLinearConcat"):
		var images []int
		rank := 0
		for i := 2; i < n.NumInputs(); i += 3 {
			images = append(images, i)
			rank = len(n.Input(i).Type.Shape)
		}
		if axis := n.Int("axis", 0); rank > 2 && (axis == 1 || axis == int64(1-rank)) && known(images...) {
			l.replace(n, n.Op, in, rank, []*graph.Attr{graph.Int("axis", int64(rank-1))})
		}
	}
}

// enter returns input 0 of n with channels last.
func (l *relayout) enter(n *graph.Node, rank int) *graph.Value {
	x := n.Input(0)
	if t := x.DefNode(); t != nil && t.Op == (graph.OpKey{Type: "Transpose"}) && t.Graph() == l.graph {
		// Images that were changed from that layout.
		first := []int64{0, int64(rank - 1)}
		for i := 1; i < rank-1; i++ {
			first = append(first, int64(i))
		}
		if slices.Equal(t.Ints("perm"), first) {
			l.moves = append(l.moves, t)
			l.last[x] = t.Input(0)
			return l.last[x]
		}
	}
	perm := []int64{0}
	for i := 2; i < rank; i++ {
		perm = append(perm, int64(i))
	}
	v := l.value(x, rank)
	t := l.graph.NewNode(graph.OpKey{Type: "Transpose"}, "", []*graph.Value{x}, []*graph.Value{v}, graph.Ints("perm", append(perm, 1)...))
	l.graph.InsertBefore(t, n)
	l.moves = append(l.moves, t)
	l.last[x] = v
	return v
}

// value returns a new value for the images v with channels last.
func (l *relayout) value(v *graph.Value, rank int) *graph.Value {
	t := v.Type
	if s := t.Shape; len(s) == rank {
		t.Shape = append(append(graph.Shape{s[0]}, s[2:]...), s[1])
	}
	return l.graph.NewValue(l.graph.Model().UniqueName(v.Name()), t)
}

// replace puts a node before n that computes the output with channels last,
// and a Transpose that makes the output from it in the place of n.
func (l *relayout) replace(n *graph.Node, op graph.OpKey, in []*graph.Value, rank int, attrs []*graph.Attr) {
	g, y := l.graph, n.Output(0)
	if g.Opset(msDomain) == 0 {
		g.Model().SetOpset(msDomain, 1)
	}
	v := l.value(y, rank)
	g.InsertBefore(g.NewNode(op, n.Name, in, []*graph.Value{v}, attrs...), n)
	perm := []int64{0, int64(rank - 1)}
	for i := 1; i < rank-1; i++ {
		perm = append(perm, int64(i))
	}
	n.SetOutput(0, nil)
	t := g.NewNode(graph.OpKey{Type: "Transpose"}, "", []*graph.Value{v}, []*graph.Value{y}, graph.Ints("perm", perm...))
	g.InsertBefore(t, n)
	g.Remove(n)
	l.moves = append(l.moves, t)
	l.last[y] = v
}

// sameShape reports whether the types say that a and b have one shape.
func sameShape(a, b *graph.Value) bool {
	s, t := a.Type.Shape, b.Type.Shape
	if s == nil || len(s) != len(t) || a.Type.Elem != b.Type.Elem || a.Type.Elem == tensor.Undefined {
		return false
	}
	for i, d := range s {
		if e := t[i]; d.Known != e.Known || d.Known && d.Size != e.Size || !d.Known && (d.Sym == "" || d.Sym != e.Sym) {
			return false
		}
	}
	return true
}
