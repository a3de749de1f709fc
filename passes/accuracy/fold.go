package accuracy

import (
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// divisor is a tensor of positive factors that a value is divided by. It has as
// many axes as the value; those of length 1 are broadcast.
type divisor struct {
	shape []int
	data  []float32
}

// alongLast returns the factor of a value of the given rank for each channel of
// its last axis.
func alongLast(rank int, s []float32) divisor {
	shape := slices.Repeat([]int{1}, rank)
	shape[rank-1] = len(s)
	return divisor{shape, s}
}

// last returns the factors along the last axis if there is one for each of n
// channels and the other axes are broadcast, or else nil.
func (f divisor) last(n int) []float32 {
	if r := len(f.shape); r > 0 && f.shape[r-1] == n && len(f.data) == n {
		return f.data
	}
	return nil
}

// fits reports whether v has the axes that f has factors along.
func (f divisor) fits(v *graph.Value) bool {
	if len(v.Type.Shape) != len(f.shape) {
		return false
	}
	for a, d := range v.Type.Shape {
		if f.shape[a] != 1 && (!d.Known || d.Size != int64(f.shape[a])) {
			return false
		}
	}
	return true
}

// transposed returns the factor of the input of a Transpose with perm.
func (f divisor) transposed(perm []int64) divisor {
	out := divisor{shape: make([]int, len(perm)), data: make([]float32, len(f.data))}
	for a, p := range perm {
		out.shape[p] = f.shape[a]
	}
	// at counts the places of f, step is how far an axis of f lies in out.
	steps, at := make([]int, len(perm)), make([]int, len(perm))
	for a, p := range perm {
		steps[a] = 1
		for _, d := range out.shape[p+1:] {
			steps[a] *= d
		}
	}
	for _, x := range f.data {
		to := 0
		for a, i := range at {
			to += i * steps[a]
		}
		out.data[to] = x
		advance(at, f.shape)
	}
	return out
}

// advance goes to the next place of a tensor of the given shape, after the last
// one to the first.
func advance(at, shape []int) {
	for a := len(at) - 1; a >= 0; a-- {
		if at[a]++; at[a] < shape[a] {
			return
		}
		at[a] = 0
	}
}

// reshaped returns the factor of a value of shape in for that of a value of
// shape out with the same elements in the same order; ok is false where their
// axes do not tell it.
func (f divisor) reshaped(out, in graph.Shape) (g divisor, ok bool) {
	first := slices.IndexFunc(f.shape, func(d int) bool { return d != 1 })
	if first < 0 {
		return divisor{slices.Repeat([]int{1}, len(in)), f.data}, true
	}
	whole := divisor{} // along the last axes of out, none broadcast
	size := 1
	for _, d := range out[first:] {
		if !d.Known || d.Size < 1 || d.Size > maxInputs {
			return g, false
		}
		whole.shape = append(whole.shape, int(d.Size))
		if size *= int(d.Size); size > maxInputs*maxInputs {
			return g, false
		}
	}
	whole.data = make([]float32, size)
	at := make([]int, len(whole.shape))
	for i := range whole.data {
		from := 0
		for a, x := range at {
			if d := f.shape[first+a]; d != 1 {
				from = from*d + x
			}
		}
		whole.data[i] = f.data[from]
		advance(at, whole.shape)
	}
	from, left := len(in), size
	for from > 0 && left > 1 {
		from--
		if d := in[from]; !d.Known || d.Size < 1 || left%int(d.Size) != 0 {
			return g, false
		}
		left /= int(in[from].Size)
	}
	if left != 1 {
		return g, false
	}
	g = divisor{slices.Repeat([]int{1}, len(in)), whole.data}
	for a := from; a < len(in); a++ {
		g.shape[a] = int(in[a].Size)
	}
	return g.collapsed(), true
}

// collapsed returns f with the axes broadcast along which it is constant.
func (f divisor) collapsed() divisor {
	inner := 1
	for a := len(f.shape) - 1; a >= 0; a-- {
		d := f.shape[a]
		same := d > 1
		for i, x := range f.data {
			same = same && x == f.data[i/(inner*d)*inner*d+i%inner]
		}
		if same {
			var data []float32
			for at := 0; at < len(f.data); at += inner * d {
				data = append(data, f.data[at:at+inner]...)
			}
			shape := slices.Clone(f.shape)
			shape[a] = 1
			f, d = divisor{shape, data}, 1
		}
		inner *= d
	}
	return f
}

// folding are the edits of constants that divide a value.
type folding struct {
	g     *graph.Graph
	edits []func()
}

// divide adds the edits that divide v by f, exactly but for the rounding of
// constants. It reports whether constants can do it: only operators that keep
// factors may stand between them and v, and nothing else may read the values
// between. reads tells whether the uses of v are to see it divided.
func (d *folding) divide(v *graph.Value, f divisor, reads bool) bool {
	if v.IsConst() {
		return false
	}
	n := v.DefNode()
	if n == nil || !reads && v.OnlyUse() == nil || n.Graph() != d.g || n.Op.Domain != graph.OnnxDomain || !f.fits(v) {
		return false
	}
	for i, y := range n.Outputs() {
		if y != nil && y != v && (i == 0 || len(y.Uses()) > 0) {
			return false // the other outputs are not what they would have to be
		}
	}
	// through divides input i by the same factor, and leaves no edits if it cannot.
	through := func(i int) bool {
		mark := len(d.edits)
		if d.operand(n, i, f) {
			return true
		}
		d.edits = d.edits[:mark]
		return false
	}
	switch n.Op.Type {
	case "Relu", "LeakyRelu", "Identity":
		return through(0)
	case "Mul":
		if a := n.Input(0); a != nil && a.IsConst() {
			return through(0) || through(1)
		}
		return through(1) || through(0)
	case "Div":
		return through(0)
	case "Add", "Sub":
		return through(0) && through(1)
	case "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization":
		axis := n.Int("axis", -1)
		if axis != -1 && axis != int64(len(f.shape)-1) || f.last(f.shape[len(f.shape)-1]) == nil {
			return false
		}
		return through(1) && (n.Input(2) == nil || through(2))
	case "MatMul":
		w := n.Input(1)
		if w == nil || len(w.Type.Shape) < 2 {
			return false
		}
		if w.IsConst() {
			return len(w.Type.Shape) == 2 && f.last(f.shape[len(f.shape)-1]) != nil && through(1)
		}
		return f.shape[len(f.shape)-2] == 1 && through(1)
	case "Gemm":
		w := n.Input(1)
		if w == nil || !w.IsConst() || f.last(f.shape[len(f.shape)-1]) == nil {
			return false
		}
		turned := f
		if n.Int("transB", 0) != 0 {
			turned = f.transposed([]int64{1, 0})
		}
		return d.operand(n, 1, turned) && (n.Input(2) == nil || through(2))
	case "Transpose":
		perm := n.Ints("perm")
		if len(perm) == 0 {
			for a := len(f.shape) - 1; a >= 0; a-- {
				perm = append(perm, int64(a))
			}
		}
		return len(perm) == len(f.shape) && d.operand(n, 0, f.transposed(perm))
	case "Reshape", "Flatten", "Squeeze", "Unsqueeze":
		x := n.Input(0)
		if x == nil || x.Type.Shape == nil {
			return false
		}
		g, ok := f.reshaped(v.Type.Shape, x.Type.Shape)
		return ok && d.operand(n, 0, g)
	}
	return false
}

// operand is divide for input i of n, which is broadcast to the axes of f.
func (d *folding) operand(n *graph.Node, i int, f divisor) bool {
	v := n.Input(i)
	if v == nil {
		return false
	}
	if !v.IsConst() {
		return d.divide(v, f, false)
	}
	c := floats(v)
	if c == nil || v.Const.Rank() > len(f.shape) || i == 1 && (n.Op.Type == "MatMul" || n.Op.Type == "Gemm") && len(v.Uses()) > 1 {
		return false
	}
	// The result has the axes of both.
	own := slices.Concat(slices.Repeat([]int{1}, len(f.shape)-v.Const.Rank()), v.Const.Shape())
	shape := slices.Clone(own)
	size := 1
	for a, x := range f.shape {
		if x != 1 && own[a] != 1 && own[a] != x {
			return false
		}
		shape[a] = max(own[a], x)
		size *= shape[a]
	}
	if size > max(len(c), len(f.data)) {
		return false // more bytes than either has
	}
	out := make([]float32, size)
	at := make([]int, len(shape))
	for k := range out {
		a, b := 0, 0
		for axis, x := range at {
			if own[axis] != 1 {
				a = a*own[axis] + x
			}
			if f.shape[axis] != 1 {
				b = b*f.shape[axis] + x
			}
		}
		out[k] = c[a] / f.data[b]
		if out[k]-out[k] != 0 {
			return false
		}
		advance(at, shape)
	}
	for len(shape) > v.Const.Rank() && shape[0] == 1 {
		shape = shape[1:]
	}
	d.edits = append(d.edits, func() { put(n, i, tensor.Of(out, shape...)) })
	return true
}

// scaled returns x multiplied with factors along its last axis, by a Mul in g.
func scaled(g *graph.Graph, x *graph.Value, factors []float32, suffix string) *graph.Value {
	m := g.Model()
	by := g.NewInitializer(x.Name()+suffix, tensor.Of(factors))
	y := g.NewValue(m.UniqueName(x.Name()+suffix+"d"), x.Type)
	mul := g.NewNode(graph.OpKey{Type: "Mul"}, m.UniqueNodeName(x.Name()+suffix), []*graph.Value{x, by}, []*graph.Value{y})
	behind := x.DefNode()
	if x.Graph() != g {
		behind = nil // captured: before everything else
	}
	g.InsertAfter(mul, behind)
	return y
}
