package passes

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// simplify applies rules that look at a node and the one before it. Each rule
// reports whether it changed something.
func simplify(s *State) error {
	for g := range s.editable {
		for n := range g.Nodes() {
			if n.Op.Domain != graph.OnnxDomain || n.Op.Overload != "" || n.Input(0) == nil || n.Output(0) == nil {
				continue
			}
			changed := false
			switch n.Op.Type {
			case "Equal":
				changed = s.compareSizes(n)
			case "Where":
				changed = choose(n)
			case "Expand":
				changed = s.expandByConstant(n)
			case "Transpose":
				changed = mergeTransposes(n)
			case "Reshape", "Squeeze", "Unsqueeze":
				changed = mergeViews(n)
			case "Add", "Sub", "Mul", "Div":
				changed = dropNeutral(n)
			case "Relu", "Clip", "Min", "Max":
				changed = mergeBounds(n)
			}
			if changed {
				s.Changes++
			}
		}
	}
	return nil
}

// before returns the node of the given types that makes input 0 of n in the
// same graph, or nil.
func before(n *graph.Node, types ...string) *graph.Node {
	p := n.Input(0).DefNode()
	if isOp(p, types...) && p.Graph() == n.Graph() && p.Input(0) != nil {
		return p
	}
	return nil
}

// bypass makes everything that reads output 0 of n read v, and removes n.
func bypass(n *graph.Node, v *graph.Value) bool {
	if anyUsed(n, 1) || !n.Output(0).ReplaceWith(v) {
		return false
	}
	n.Graph().Remove(n)
	return true
}

// compareSizes computes an Equal of vectors of sizes: a symbol is a size, so
// it never equals a negative number.
func (s *State) compareSizes(n *graph.Node) bool {
	y := n.Output(0)
	if n.Input(1) == nil || y.IsOutput() || len(y.Type.Shape) > 1 || y.Type.Shape == nil {
		return false
	}
	a, ok := s.Types.Dims(n.Input(0))
	b, ok2 := s.Types.Dims(n.Input(1))
	if !ok || !ok2 || len(a) != len(b) && len(a) != 1 && len(b) != 1 || len(a) == 0 || len(b) == 0 {
		return false
	}
	size := max(len(a), len(b))
	if len(y.Type.Shape) == 0 && size != 1 {
		return false
	}
	t := tensor.New(tensor.Bool, []int{size}[:len(y.Type.Shape)]...)
	for i := range size {
		p, q := a[i%len(a)], b[i%len(b)]
		switch {
		case p.Known && q.Known:
			if p.Size == q.Size {
				t.Bytes()[i] = 1
			}
		case p.Known && p.Size < 0 && q.Sym != "", q.Known && q.Size < 0 && p.Sym != "":
		case p.Same(q):
			t.Bytes()[i] = 1
		default:
			return false
		}
	}
	removeFolded(n, []*graph.Value{becomeConst(y, t)})
	return true
}

// choose replaces a Where with a constant condition that is the same
// everywhere by the input that it selects, if that has the output's shape.
func choose(n *graph.Node) bool {
	c := n.Input(0)
	if !c.IsConst() || c.Const.DType() != tensor.Bool || c.Const.Len() == 0 {
		return false
	}
	first := c.Const.Bytes()[0]
	if slices.ContainsFunc(c.Const.Bytes(), func(b byte) bool { return (b != 0) != (first != 0) }) {
		return false
	}
	v := n.Input(2)
	if first != 0 {
		v = n.Input(1)
	}
	return v != nil && sameShape(v, n.Output(0)) && bypass(n, v)
}

func sameShape(a, b *graph.Value) bool {
	return a.Type.Shape != nil && b.Type.Shape != nil && slices.EqualFunc(a.Type.Shape, b.Type.Shape, graph.Dim.Same)
}

// expandByConstant gives Expand a constant shape where every dimension is
// known or stays what it is, which a 1 says.
func (s *State) expandByConstant(n *graph.Node) bool {
	v := n.Input(1)
	if v == nil || v.IsConst() {
		return false
	}
	dims, ok := s.Types.Dims(v)
	in := n.Input(0).Type.Shape
	if !ok || in == nil {
		return false
	}
	shape := make([]int64, len(dims))
	for i, d := range dims {
		k := i - len(dims) + len(in)
		switch {
		case d.Known && d.Size >= 0:
			shape[i] = d.Size
		case k >= 0 && d.Same(in[k]):
			shape[i] = 1
		default:
			return false
		}
	}
	n.SetInput(1, n.Graph().NewInitializer(n.Output(0).Name()+"_shape", tensor.Of(shape)))
	return true
}

// permOf returns the permutation of a Transpose, or nil if neither the node
// nor the type of its input says it.
func permOf(n *graph.Node) []int64 {
	if perm := n.Ints("perm"); len(perm) > 0 {
		return perm
	}
	perm := make([]int64, len(n.Input(0).Type.Shape))
	for i := range perm {
		perm[i] = int64(len(perm) - 1 - i)
	}
	return perm
}

func mergeTransposes(n *graph.Node) bool {
	p := before(n, "Transpose")
	if p == nil {
		return false
	}
	first, second := permOf(p), permOf(n)
	if len(first) == 0 || len(first) != len(second) {
		return false
	}
	perm, same := make([]int64, len(first)), true
	for i, k := range second {
		if k < 0 || k >= int64(len(first)) {
			return false
		}
		perm[i] = first[k]
		same = same && perm[i] == int64(i)
	}
	if same {
		return bypass(n, p.Input(0))
	}
	if p.Output(0).OnlyUse() != n {
		return false
	}
	n.SetAttr(graph.Ints("perm", perm...))
	n.SetInput(0, p.Input(0))
	return true
}

// axesOf returns the sorted, non-negative axes of a Squeeze or Unsqueeze, where
// they are constant and the rank that they count in is known.
func axesOf(n *graph.Node) ([]int64, bool) {
	var list []int64
	if n.Opset() < 13 {
		list = slices.Clone(n.Ints("axes"))
	} else if v := n.Input(1); v != nil && v.IsConst() && v.Const.DType() == tensor.Int64 {
		list = slices.Clone(tensor.As[int64](v.Const))
	}
	shape := n.Input(0).Type.Shape
	if len(list) == 0 || shape == nil {
		return nil, false
	}
	rank := int64(len(shape))
	if n.Op.Type == "Unsqueeze" {
		rank += int64(len(list))
	}
	for i, a := range list {
		if a < 0 {
			list[i] += rank
		}
		if list[i] < 0 || list[i] >= rank {
			return nil, false
		}
	}
	slices.Sort(list)
	return list, len(slices.Compact(slices.Clone(list))) == len(list)
}

// become turns n into a node of another type that reads v and a constant.
func become(n *graph.Node, op string, v *graph.Value, name string, list []int64) {
	n.Op.Type = op
	n.Attrs = nil
	n.SetInput(0, v)
	if op != "Reshape" && n.Opset() < 13 {
		n.TruncateInputs(1)
		n.SetAttr(graph.Ints("axes", list...))
		return
	}
	n.SetInput(1, n.Graph().NewInitializer(n.Output(0).Name()+"_"+name, tensor.Of(list)))
}

// others maps positions among the axes that are not in axes to axes.
func others(axes []int64, rank int) (list []int64) {
	for i := range int64(rank) {
		if !slices.Contains(axes, i) {
			list = append(list, i)
		}
	}
	return list
}

// mergeViews makes one node of two that leave the elements in their order.
func mergeViews(n *graph.Node) bool {
	p := before(n, "Reshape", "Squeeze", "Unsqueeze", "Flatten")
	if p == nil || n.Opset() < 5 {
		return false
	}
	src, alone := p.Input(0), p.Output(0).OnlyUse() == n
	if n.Op.Type == "Reshape" {
		to := n.Input(1)
		if !alone || to == nil || !to.IsConst() || to.Const.DType() != tensor.Int64 || slices.Contains(tensor.As[int64](to.Const), 0) {
			return false
		}
		n.SetInput(0, src)
		return true
	}
	axes, ok := axesOf(n)
	if !ok {
		return false
	}
	switch p.Op.Type {
	case "Squeeze", "Unsqueeze":
		first, ok := axesOf(p)
		switch {
		case !ok:
			return false
		case p.Op.Type != n.Op.Type:
			return slices.Equal(first, axes) && bypass(n, src)
		case !alone:
			return false
		case n.Op.Type == "Squeeze":
			left := others(first, len(src.Type.Shape))
			for _, a := range axes {
				if a >= int64(len(left)) {
					return false
				}
				first = append(first, left[a])
			}
			axes = first
		default:
			left := others(axes, len(src.Type.Shape)+len(first)+len(axes))
			for _, a := range first {
				axes = append(axes, left[a])
			}
		}
		slices.Sort(axes)
		become(n, n.Op.Type, src, "axes", axes)
		return true
	case "Reshape":
		to := p.Input(1)
		if !alone || to == nil || !to.IsConst() || to.Const.DType() != tensor.Int64 || slices.Contains(tensor.As[int64](to.Const), 0) {
			return false
		}
		shape := slices.Clone(tensor.As[int64](to.Const))
		if n.Op.Type == "Unsqueeze" {
			for _, a := range axes {
				if a > int64(len(shape)) {
					return false
				}
				shape = slices.Insert(shape, int(a), 1)
			}
		} else {
			for _, a := range slices.Backward(axes) {
				if a >= int64(len(shape)) || shape[a] != 1 {
					return false
				}
				shape = slices.Delete(shape, int(a), int(a)+1)
			}
		}
		become(n, "Reshape", src, "shape", shape)
		return true
	}
	return false
}

// broadcastsInto reports whether a constant of one element leaves the shape of
// x in an element-wise operation.
func broadcastsInto(c *tensor.Tensor, x *graph.Value) bool {
	return c.Len() == 1 && (c.Rank() == 0 || x.Type.Shape != nil && c.Rank() <= len(x.Type.Shape))
}

// dropNeutral removes x + 0, x - 0, x · 1 and x / 1.
func dropNeutral(n *graph.Node) bool {
	neutral := 0.0
	if n.Op.Type == "Mul" || n.Op.Type == "Div" {
		neutral = 1
	}
	for i := 1; i >= 0; i-- {
		c, x := n.Input(i), n.Input(1-i)
		if i == 0 && isOp(n, "Sub", "Div") || c == nil || x == nil || !c.IsConst() || !broadcastsInto(c.Const, x) {
			continue
		}
		v, err := tensor.Float64s(c.Const)
		if err != nil || v[0] != neutral {
			continue
		}
		return bypass(n, x)
	}
	return false
}

// boundsOf returns the source and the bounds, infinite where absent, of a Relu,
// a Clip with constant bounds, or a Min or Max with a constant, of float32
// values.
func boundsOf(n *graph.Node) (src *graph.Value, lo, hi float32, ok bool) {
	lo, hi = float32(math.Inf(-1)), float32(math.Inf(1))
	src = n.Input(0)
	if isOp(n, "Min", "Max") {
		if n.NumInputs() != 2 || n.Input(1) == nil {
			return nil, 0, 0, false
		}
		c := n.Input(1)
		if c.DefNode() != nil || !c.IsConst() {
			c, src = src, c
		}
		x, ok := constFloat(c)
		if !ok || !broadcastsInto(c.Const, src) {
			return nil, 0, 0, false
		}
		if n.Op.Type == "Min" {
			hi = x
		} else {
			lo = x
		}
	} else {
		below, above, ok := ops.ClampBounds(n)
		if !ok {
			return nil, 0, 0, false
		}
		lo, hi = float32(below), float32(above)
	}
	return src, lo, hi, src.Type.Elem == tensor.Float32 && lo <= hi
}

// mergeBounds makes one Clip, or Relu, of two nodes that bound a value.
func mergeBounds(n *graph.Node) bool {
	x, lo, hi, ok := boundsOf(n)
	if !ok || n.Opset() < 11 {
		return false
	}
	p := x.DefNode()
	if !isOp(p, "Relu", "Clip", "Min", "Max") || p.Graph() != n.Graph() || x.OnlyUse() != n || p.Input(0) == nil {
		return false
	}
	src, lo2, hi2, ok := boundsOf(p)
	lo, hi = max(lo, lo2), min(hi, hi2)
	if !ok || lo > hi {
		return false
	}
	n.Attrs = nil
	n.TruncateInputs(0)
	n.AddInput(src)
	n.Op.Type = "Clip"
	if lo == 0 && math.IsInf(float64(hi), 1) {
		n.Op.Type = "Relu"
		return true
	}
	name := n.Output(0).Name()
	if !math.IsInf(float64(lo), -1) {
		n.SetInput(1, n.Graph().NewInitializer(name+"_min", tensor.Scalar(lo)))
	}
	if !math.IsInf(float64(hi), 1) {
		n.SetInput(2, n.Graph().NewInitializer(name+"_max", tensor.Scalar(hi)))
	}
	return true
}

// shareResults removes nodes that compute what an earlier node of the same
// graph computes.
func shareResults(s *State) error {
	for g := range s.editable {
		first := map[string]*graph.Node{}
		for n := range g.Nodes() {
			key := keyOf(n)
			if key == "" {
				continue
			}
			m := first[key]
			if m == nil {
				first[key] = n
				continue
			}
			removeEqual(n, m.Outputs())
			s.Changes++
		}
	}
	return nil
}

// removeEqual removes n, whose outputs are these values, each where n has one.
func removeEqual(n *graph.Node, outputs []*graph.Value) {
	for i, v := range n.Outputs() {
		if v != nil {
			v.ReplaceUses(outputs[i])
		}
	}
	n.Graph().Remove(n)
}

// keyOf is equal for two nodes of a graph only if they compute the same; it is
// empty for nodes that must stay.
func keyOf(n *graph.Node) string {
	spec := ops.Lookup(n)
	if spec == nil || !spec.Pure || isQuantization(n.Op.Type) {
		return ""
	}
	var b strings.Builder
	fmt.Fprint(&b, n.Op.Domain, ":", n.Op.Type, ":", n.Op.Overload)
	for _, v := range n.Inputs() {
		id := -1
		if v != nil {
			id = v.ID
		}
		fmt.Fprint(&b, " ", id)
	}
	for _, v := range n.Outputs() {
		if v != nil && v.IsOutput() {
			return ""
		}
		fmt.Fprint(&b, " ", v != nil)
	}
	attrs := slices.Clone(n.Attrs)
	slices.SortFunc(attrs, func(x, y *graph.Attr) int { return strings.Compare(x.Name, y.Name) })
	for _, a := range attrs {
		if a.RefName != "" || len(a.Extra) > 0 {
			return ""
		}
		fmt.Fprintf(&b, " %q", a.Name)
		switch a.Kind {
		case graph.AttrFloat:
			fmt.Fprint(&b, math.Float32bits(a.F))
		case graph.AttrInt:
			fmt.Fprint(&b, a.I)
		case graph.AttrString:
			fmt.Fprintf(&b, "%q", a.S)
		case graph.AttrInts:
			fmt.Fprint(&b, a.Ints)
		case graph.AttrFloats:
			for _, f := range a.Floats {
				fmt.Fprint(&b, ",", math.Float32bits(f))
			}
		case graph.AttrStrings:
			fmt.Fprintf(&b, "%q", a.Strings)
		default:
			return ""
		}
	}
	return b.String()
}
