package exec

import (
	"context"
	"math"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// fuse returns m, or a copy in which the additions and clamps that alone read
// a float32 product are part of the product's node; c.fused says what each
// node took in. A tapped value stays the output of a node. IDs stay those of m.
func (c *compiler) fuse(m *graph.Model) *graph.Model {
	m = m.Clone()
	// Residual inputs need shapes. What inference finds wrong is reported by
	// the node that it concerns.
	_, _ = ops.Infer(m)
	c.fused, c.runs = map[*graph.Node]*ops.Fusion{}, map[*graph.Node]*ops.Pointwise{}
	for g := range m.Scopes() {
		if g.Function() != nil {
			continue
		}
		nodes := slices.Collect(g.Nodes())
		for _, n := range nodes {
			c.lift(n)
		}
		for _, n := range nodes {
			c.fold(n)
		}
		for _, n := range nodes {
			if n.Graph() == nil || n.Output(0) == nil {
				continue // moved into another
			}
			c.asRuntime(n)
			if p := newProduct(n); p != nil {
				c.extend(p)
			}
		}
		for _, n := range nodes {
			if n.Graph() != nil && n.Output(0) != nil {
				c.pointwise(n)
			}
		}
	}
	c.channelsLast(m)
	c.chain(m)
	return m
}

// liftBudget bounds the bytes of constants that lift computes: sizes, pads and
// bounds, which decide what can be fused. Larger ones are left to precompute.
const liftBudget = 1 << 12

// lift makes the output of a Constant, or of a node that makes a small tensor
// from constants, an initializer.
func (c *compiler) lift(n *graph.Node) {
	v := n.Output(0)
	if v == nil || len(n.Outputs()) != 1 || v.IsOutput() || c.tapped(v) {
		return
	}
	t := ops.ConstantValue(n)
	if t == nil {
		if t = evaluateSmall(n); t == nil {
			return
		}
	}
	g := n.Graph()
	n.SetOutput(0, nil)
	g.Remove(n)
	g.AddInitializer(v, t)
}

// evaluateSmall computes a node of small constants, or returns nil.
func evaluateSmall(n *graph.Node) *tensor.Tensor {
	spec := ops.Lookup(n)
	if spec == nil || !spec.Pure || n.NumInputs() == 0 {
		return nil
	}
	for _, a := range n.Attrs {
		if len(a.Subgraphs()) > 0 {
			return nil
		}
	}
	for _, x := range n.Inputs() {
		if x != nil && (!x.IsConst() || len(x.Const.Bytes()) > liftBudget) {
			return nil
		}
	}
	out, err := Evaluate(context.Background(), n, liftBudget)
	if err != nil {
		return nil
	}
	return out[0]
}

// fold moves paddings, and scales per channel behind them, into convolutions and
// Gemms.
func (c *compiler) fold(n *graph.Node) {
	switch {
	case n.Graph() == nil || n.Output(0) == nil:
	case isStandard(n, "Pad"):
		if !c.tapped(n.Output(0)) {
			ops.FoldPad(n)
		}
	case isStandard(n, "Conv"), isStandard(n, "ConvTranspose"), isStandard(n, "Gemm"):
		for {
			next := n.Output(0).OnlyUse()
			if !isStandard(next, "BatchNormalization") && !isStandard(next, "Mul") && !isStandard(next, "Div") ||
				c.tapped(n.Output(0)) || next.Output(0) == nil || c.tapped(next.Output(0)) || !ops.FoldBehind(n) {
				return
			}
		}
	}
}

// product is a node that takes in arithmetic.
type product struct {
	node     *graph.Node
	channels int // values of a bias
	axis     int // of the channels, from the end
	rank     int // of the output
	fusion   ops.Fusion
}

// newProduct describes n if it is a product of float32 operands with a
// constant weight, else it returns nil.
func newProduct(n *graph.Node) *product {
	y, w := n.Output(0), n.Input(1)
	if n.Op.Domain != graph.OnnxDomain || y == nil || w == nil || len(n.Outputs()) != 1 || !w.IsConst() || w.Const.DType() != tensor.Float32 {
		return nil
	}
	spec := ops.Lookup(n)
	if spec == nil || spec.Compile == nil {
		return nil
	}
	p := &product{node: n, axis: 1, rank: len(y.Type.Shape)}
	shape := w.Const.Shape()
	switch n.Op.Type {
	case "Conv", "ConvTranspose":
		p.rank = len(shape)
		if p.rank < 3 {
			return nil
		}
		p.axis, p.channels = p.rank-1, shape[0]
		if n.Op.Type == "ConvTranspose" {
			p.channels = shape[1] * int(n.Int("group", 1))
		}
	case "Gemm", "MatMul":
		if len(shape) != 2 || p.rank == 0 {
			return nil
		}
		p.channels = shape[1]
		if n.Op.Type == "Gemm" && n.Int("transB", 0) != 0 {
			p.channels = shape[0]
		}
	default:
		return nil
	}
	return p
}

// extend moves what follows p into it.
func (c *compiler) extend(p *product) {
	for !p.fusion.Clip {
		y := p.node.Output(0)
		next := y.OnlyUse()
		if next == nil || next.Graph() != p.node.Graph() || c.tapped(y) || next.Op.Domain != graph.OnnxDomain || len(next.Outputs()) != 1 || next.Output(0) == nil {
			return
		}
		if !p.take(next) {
			return
		}
		g, out := next.Graph(), next.Output(0)
		g.MoveBefore(p.node, next)
		next.SetOutput(0, nil)
		g.Remove(next)
		p.node.SetOutput(0, out)
		f := p.fusion
		c.fused[p.node] = &f
	}
}

// take notes what n does to the output of p, if p can do that.
func (p *product) take(n *graph.Node) bool {
	f := &p.fusion
	y := p.node.Output(0)
	switch n.Op.Type {
	case "Relu":
		f.Clip, f.Min, f.Max = true, 0, float32(math.Inf(1))
		return true
	case "Clip":
		lo, hi, ok := clipBounds(n)
		if !ok || n.Input(0) != y || lo > hi {
			return false
		}
		f.Clip, f.Min, f.Max = true, lo, hi
		return true
	case "Add":
		other := n.Input(0)
		if other == y {
			other = n.Input(1)
		}
		if other == nil || other == y {
			return false
		}
		if f.Bias == nil && other.IsConst() {
			f.Bias = p.bias(other.Const)
			return f.Bias != nil
		}
		if f.Residual == 0 && !other.IsConst() && y.Type.Elem == tensor.Float32 && sameShape(y, other) {
			f.Residual = max(3, p.node.NumInputs())
			p.node.SetInput(f.Residual, other)
			return true
		}
	}
	return false
}

// bias returns t as one value for each channel, nil if adding t to the output
// of p is something else.
func (p *product) bias(t *tensor.Tensor) []float32 {
	if t.DType() != tensor.Float32 || t.Rank() > p.rank || t.Len() != p.channels && t.Len() != 1 {
		return nil
	}
	data := tensor.As[float32](t)
	if t.Len() == 1 {
		return slices.Repeat(data, p.channels)
	}
	if at := t.Rank() - p.axis; at < 0 || t.Shape()[at] != p.channels {
		return nil
	}
	return data
}

// clipBounds returns the constant bounds of a Clip.
func clipBounds(n *graph.Node) (lo, hi float32, ok bool) {
	b := [2]float32{-math.MaxFloat32, math.MaxFloat32}
	if n.Opset() < 11 {
		return n.Float("min", b[0]), n.Float("max", b[1]), true
	}
	b[0], b[1] = float32(math.Inf(-1)), float32(math.Inf(1))
	for i := range b {
		v := n.Input(i + 1)
		if v == nil {
			continue
		}
		if !v.IsConst() || v.Const.DType() != tensor.Float32 || v.Const.Len() != 1 {
			return 0, 0, false
		}
		b[i] = tensor.As[float32](v.Const)[0]
	}
	return b[0], b[1], true
}
