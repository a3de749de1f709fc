package exec

import (
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// chain decides which float32 images between convolutions of m stay in blocks
// of 16 channels: those that only nodes read which can read blocks. A Conv
// changes the layout of its input or output itself.
func (c *compiler) chain(m *graph.Model) {
	c.chains = map[*graph.Node]*ops.Chain{}
	c.blocked = map[int]int{}
	for g := range m.Scopes() {
		if g.Function() != nil {
			continue
		}
		b := &blocking{c: c, graph: g, channels: map[*graph.Value]int{}}
		for n := range g.Nodes() {
			b.enter(n)
		}
		for b.narrow() {
		}
		for n := range g.Nodes() {
			b.note(n)
		}
		for v, channels := range b.channels {
			if c.tapped(v) {
				c.blocked[v.ID] = channels
			}
		}
	}
}

// blocking holds the values of a graph that may be in blocks.
type blocking struct {
	c        *compiler
	graph    *graph.Graph
	channels map[*graph.Value]int // of each
}

// images returns the inputs of n that have the layout of its output if n works
// element by element, nil if it does not.
func images(n *graph.Node) []*graph.Value {
	if n.Op.Domain == ops.PointwiseDomain {
		return n.Inputs()
	}
	switch n.Op {
	case graph.OpKey{Type: "Relu"}, graph.OpKey{Type: "LeakyRelu"}, graph.OpKey{Type: "Clip"}, graph.OpKey{Type: "Sigmoid"},
		graph.OpKey{Type: "HardSigmoid"}, graph.OpKey{Type: "HardSwish"}, graph.OpKey{Type: "Tanh"}, graph.OpKey{Type: "Elu"}, graph.OpKey{Type: "Identity"}:
		return n.Inputs()[:1]
	case graph.OpKey{Type: "Add"}, graph.OpKey{Type: "Mul"}, graph.OpKey{Type: "Sub"}:
		a, b := n.Input(0), n.Input(1)
		switch {
		case isScalar(b):
			return n.Inputs()[:1]
		case isScalar(a):
			return n.Inputs()[1:2]
		case a != nil && b != nil && sameShape(a, b):
			return n.Inputs()[:2]
		}
	case graph.OpKey{Type: "Concat"}:
		if n.Int("axis", 0) == 1 {
			return n.Inputs()
		}
	}
	return nil
}

func isScalar(v *graph.Value) bool {
	return v != nil && v.IsConst() && v.Const.Len() == 1 && v.Const.Rank() < 3
}

// conv returns the shape of the weights of n if it is a Conv that can read and
// write blocks.
func (b *blocking) conv(n *graph.Node) []int {
	w := n.Input(1)
	if n.Op != (graph.OpKey{Type: "Conv"}) || w == nil || !w.IsConst() || w.Const.DType() != tensor.Float32 || !ops.ChainConv(w.Const.Shape(), int(n.Int("group", 1))) {
		return nil
	}
	if bias := n.Input(2); bias != nil && (!bias.IsConst() || bias.Const.DType() != tensor.Float32) {
		return nil
	}
	return w.Const.Shape()
}

func isPool(n *graph.Node) bool {
	return (n.Op == graph.OpKey{Type: "MaxPool"} || n.Op == graph.OpKey{Type: "AveragePool"}) && len(n.Ints("kernel_shape")) == 2 && len(n.Outputs()) == 1
}

// enter notes the output of n if it may be in blocks by how it is made.
func (b *blocking) enter(n *graph.Node) {
	y := n.Output(0)
	if y == nil || y.IsOutput() || b.c.tapped(y) && !b.c.blocks || len(n.Outputs()) != 1 {
		return
	}
	if w := b.conv(n); w != nil {
		b.channels[y] = w[0]
		return
	}
	in := images(n)
	if isPool(n) {
		in = n.Inputs()[:1]
	}
	sum := 0
	for _, x := range in {
		ch := b.channels[x]
		if ch == 0 || n.Op.Type == "Concat" && ch%16 != 0 {
			return
		}
		if n.Op.Type == "Concat" {
			sum += ch
		} else if sum != 0 && sum != ch {
			return
		} else {
			sum = ch
		}
	}
	if sum > 0 {
		b.channels[y] = sum
	}
}

// narrow drops values that cannot be in blocks for what reads or makes them,
// and reports whether there were any.
func (b *blocking) narrow() bool {
	changed := false
	drop := func(v *graph.Value) {
		if v != nil && b.channels[v] > 0 {
			delete(b.channels, v)
			changed = true
		}
	}
	for n := range b.graph.Nodes() {
		y := n.Output(0)
		blocked := y != nil && b.channels[y] > 0
		w := b.conv(n)
		tied := images(n) // inputs with the layout of the output
		if isPool(n) {
			tied = n.Inputs()[:1]
		}
		if f := b.c.fused[n]; w != nil && f != nil && f.Residual > 0 {
			tied = []*graph.Value{n.Input(f.Residual)}
		}
		for _, x := range tied {
			if b.channels[x] == 0 && blocked {
				drop(y)
				blocked = false
			}
		}
		for i, x := range n.Inputs() {
			if x == nil || b.channels[x] == 0 {
				continue
			}
			ok := w != nil && i == 0 && b.channels[x] == w[1]*int(n.Int("group", 1)) || n.Op == graph.OpKey{Type: "GlobalAveragePool"} || isPool(n)
			for _, t := range tied {
				ok = ok || blocked && t == x
			}
			if !ok {
				drop(x)
			}
		}
		// Nested graphs take values as they are.
		for _, a := range n.Attrs {
			for _, s := range a.Subgraphs() {
				b.captured(s, drop)
			}
		}
	}
	return changed
}

// captured drops the values that g reads from around it.
func (b *blocking) captured(g *graph.Graph, drop func(*graph.Value)) {
	for n := range g.Nodes() {
		for _, v := range n.Inputs() {
			drop(v)
		}
		for _, a := range n.Attrs {
			for _, s := range a.Subgraphs() {
				b.captured(s, drop)
			}
		}
	}
	for _, v := range g.Outputs() {
		drop(v)
	}
}

// note tells the kernel of n what is in blocks.
func (b *blocking) note(n *graph.Node) {
	x, y := n.Input(0), n.Output(0)
	if b.conv(n) == nil && !isPool(n) && n.Op != (graph.OpKey{Type: "GlobalAveragePool"}) || x == nil || y == nil {
		return
	}
	if k := (ops.Chain{X: b.channels[x] > 0, Y: b.channels[y] > 0, Channels: b.channels[x]}); k.X || k.Y {
		b.c.chains[n] = &k
	}
}
