package exec

import (
	"math"
	"slices"

	"github.com/onnxq/onnxq/fusion"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

const msDomain = "com.microsoft"

// IntegerForm returns m, or a copy in which every group of DequantizeLinear,
// operator and QuantizeLinear that ONNX Runtime's CPU provider replaces by an
// integer kernel is replaced by the same kernel, so that running it gives what
// that runtime computes. The conditions are those of the runtime's selectors
// (core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc). IDs of
// nodes and values stay those of m.
func IntegerForm(m *graph.Model) *graph.Model {
	quantized := false
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			quantized = quantized || fusion.IsDQ(n)
		}
	}
	if !quantized {
		return m
	}
	c := m.Clone()
	for g := range c.Scopes() {
		if g.Function() != nil {
			continue
		}
		for n := range g.Nodes() {
			fuseGroup(n)
		}
	}
	for g := range c.Scopes() {
		for n := g.Last(); n != nil; {
			prev := n.Prev()
			if fusion.IsDQ(n) && len(n.Output(0).Uses()) == 0 {
				g.Remove(n)
			}
			n = prev
		}
	}
	return c
}

func isStandard(n *graph.Node, op string) bool {
	return n != nil && n.Op.Domain == graph.OnnxDomain && n.Op.Type == op
}

// eight reports whether c is of 8 bits (32 for a bias), with constant scales and
// zero points, as the integer kernels here take it.
func eight(c fusion.Codes) bool {
	return c.Node != nil && c.Node.Int("block_size", 0) == 0 && c.Scale.IsConst() && c.Scale.Const.DType() == tensor.Float32 && (c.Zero == nil || c.Zero.IsConst())
}

// activation reports whether c is per tensor with 8 bits and a zero point.
func activation(c fusion.Codes) bool {
	return c.Scale.Const.Len() == 1 && c.Zero != nil && (c.DType == tensor.Uint8 || c.DType == tensor.Int8)
}

// group is a node between its dequantizers and its quantizer.
type group struct {
	node     *graph.Node
	in       []fusion.Codes
	kernel   graph.OpKey
	q, clamp *graph.Node
}

// fuseGroup replaces n by an integer kernel where the runtime would.
func fuseGroup(n *graph.Node) {
	found := fusion.ARM.Find(n) // unsigned activations or signed ones give the same results
	if found == nil || found.Rule == nil || n.Output(0) == nil || len(found.Q) > 1 {
		return
	}
	k := group{node: n, kernel: found.Kernel(), clamp: found.Clamp}
	for _, c := range found.In {
		if c.Node == nil {
			continue // sizes, indices, conditions, what the runtime quantizes itself
		}
		if !eight(c) {
			return
		}
		k.in = append(k.in, c)
	}
	if len(k.in) == 0 || !activation(k.in[0]) {
		return
	}
	if len(found.Q) == 1 {
		k.q = found.Q[0]
		if z := k.q.Input(2); z == nil || !z.IsConst() || !k.q.Input(1).IsConst() || k.q.Input(1).Const.Len() != 1 {
			return
		}
	}
	if build, ok := builders[found.Rule.Shape]; ok {
		build(&k)
	}
}

var builders = map[fusion.Shape]func(*group){
	fusion.Convolution: func(k *group) {
		if !k.weight(1) {
			return
		}
		w, x := k.in[1], k.in[0]
		in := []*graph.Value{x.Data, x.Scale, x.Zero, w.Data, w.Scale, k.zeros(w), k.q.Input(1), k.q.Input(2)}
		if bias, ok := k.bias(); !ok {
			return
		} else if bias != nil {
			in = append(in, bias)
		}
		k.replace(in, k.node.Attrs...)
	},
	fusion.Product: func(k *group) {
		if !k.weight(1) {
			return
		}
		a, b := k.in[0], k.in[1]
		if k.q != nil {
			k.replace([]*graph.Value{a.Data, a.Scale, a.Zero, b.Data, b.Scale, k.zeros(b), k.q.Input(1), k.q.Input(2)})
			return
		}
		k.replace([]*graph.Value{a.Data, b.Data, a.Scale, b.Scale, a.Zero, k.zeros(b)})
	},
	fusion.General: func(k *group) {
		bias, ok := k.bias()
		if !ok || !k.weight(1) {
			return
		}
		a, b := k.in[0], k.in[1]
		in := []*graph.Value{a.Data, a.Scale, a.Zero, b.Data, b.Scale, k.zeros(b), bias}
		if k.q != nil {
			in = append(in, k.q.Input(1), k.q.Input(2))
		}
		attrs := slices.DeleteFunc(slices.Clone(k.node.Attrs), func(a *graph.Attr) bool { return a.Name == "beta" })
		k.replace(in, attrs...)
	},
	fusion.Unary: func(k *group) {
		if k.clamp != nil {
			return
		}
		x, attrs := k.in[0], slices.Clone(k.node.Attrs)
		if k.kernel.Type == "QLinearSoftmax" { // whose axis means what it did in this operator set
			attrs = append(attrs, graph.Int("opset", int64(k.node.Opset())))
		}
		k.replace([]*graph.Value{x.Data, x.Scale, x.Zero, k.q.Input(1), k.q.Input(2)}, attrs...)
	},
	fusion.Choice: func(k *group) {
		a, b := k.in[0], k.in[1]
		if k.clamp == nil && activation(b) {
			k.replace([]*graph.Value{k.node.Input(0), a.Data, a.Scale, a.Zero, b.Data, b.Scale, b.Zero, k.q.Input(1), k.q.Input(2)})
		}
	},
	fusion.Variadic: func(k *group) {
		var in []*graph.Value
		for _, c := range k.in {
			if !activation(c) {
				return
			}
			in = append(in, c.Data, c.Scale, c.Zero)
		}
		switch scale, zero := k.q.Input(1), k.q.Input(2); {
		case k.kernel.Type != "QLinearConcat":
			in = append(in, scale, zero)
		case k.clamp != nil:
			return
		default:
			in = append([]*graph.Value{scale, zero}, in...)
		}
		k.replace(in, k.node.Attrs...)
	},
	// An operator that moves elements moves codes instead.
	fusion.Move: func(k *group) {
		if slices.Contains(moved, k.node.Op.Type) {
			k.replace(append([]*graph.Value{k.in[0].Data}, k.node.Inputs()[1:]...), k.node.Attrs...)
		}
	},
}

// moved lists the operators whose kernels here take codes.
var moved = []string{"MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Resize", "Slice", "Gather", "Expand", "Tile"}

// bias returns the codes of the bias, nil if there is none. One in float32 gets
// the codes that the runtime gives it when it loads the model.
func (k *group) bias() (v *graph.Value, ok bool) {
	if len(k.in) == 3 {
		return k.in[2].Data, k.in[2].DType == tensor.Int32
	}
	b := k.node.Input(2)
	if b == nil {
		return nil, true
	}
	if b.Const == nil || len(k.in) < 2 {
		return nil, false
	}
	x, w := tensor.As[float32](k.in[0].Scale.Const)[0], tensor.As[float32](k.in[1].Scale.Const)
	codes := make([]int32, b.Const.Len())
	for i, f := range tensor.As[float32](b.Const) {
		r := math.RoundToEven(float64(f / (x * w[min(i, len(w)-1)])))
		codes[i] = int32(max(math.MinInt32, min(r, math.MaxInt32)))
	}
	return k.node.Graph().NewInitializer(b.Name()+"_q", tensor.Of(codes)), true
}

// weight reports whether input i is of 8 bits and goes with the activation.
func (k *group) weight(i int) bool {
	if i >= len(k.in) {
		return false
	}
	w := k.in[i]
	switch w.DType {
	case tensor.Int8:
		return true
	case tensor.Uint8:
		return k.in[0].DType == tensor.Uint8
	}
	return false
}

// zeros returns the zero point of c, or zeros of the shape of its scale.
func (k *group) zeros(c fusion.Codes) *graph.Value {
	if c.Zero != nil {
		return c.Zero
	}
	return k.node.Graph().NewInitializer(c.Data.Name()+"_zero_point", tensor.New(c.DType, c.Scale.Const.Shape()...))
}

// replace puts the integer kernel in the place of the group.
func (k *group) replace(in []*graph.Value, attrs ...*graph.Attr) {
	op, g := k.kernel, k.node.Graph()
	out := k.node.Output(0)
	if k.q != nil {
		out = k.q.Output(0)
	}
	v := g.NewValue(g.Model().UniqueName(out.Name()), out.Type)
	n := g.NewNode(op, k.node.Name, in, []*graph.Value{v}, attrs...)
	if op.Domain != graph.OnnxDomain && g.Opset(op.Domain) == 0 {
		g.Model().SetOpset(op.Domain, 1)
	}
	if s := ops.Lookup(n); s == nil || s.Compile == nil {
		for i := range in {
			n.SetInput(i, nil)
		}
		return
	}
	g.InsertBefore(n, k.node)
	if !out.ReplaceWith(v) {
		for i := range in {
			n.SetInput(i, nil)
		}
		g.Remove(n)
		return
	}
	v.ID, out.ID = out.ID, v.ID // taps go by the ID
	for _, old := range []*graph.Node{k.q, k.clamp, k.node} {
		if old != nil {
			g.Remove(old)
		}
	}
}
