package ops

import (
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// PointwiseDomain is the domain of the nodes that the executor makes of runs of
// element-wise nodes. It has no operators of its own.
const PointwiseDomain = "onnxq.pointwise"

// Pointwise is a run of element-wise float32 functions, each of which is applied
// to the result of the one before and at most one further tensor of that shape,
// or a constant. Computed a piece at a time, what lies between them stays in the
// cache. The result is that of the nodes one by one, bit by bit.
type Pointwise struct {
	inputs []*graph.Value
	steps  []pointStep
	costly bool
}

// pointStep applies unary, or binary to two operands of which the right one, or
// the left one if swapped is set, is input other or, if that is negative, scalar.
type pointStep struct {
	unary   func(dst, src []float32)
	binary  *binary[float32, float32]
	swapped bool
	other   int
	scalar  float32
}

// NewPointwise returns a run that begins with n, or nil if n cannot.
func NewPointwise(n *graph.Node, fused *Fusion) *Pointwise {
	for _, x := range n.Inputs() {
		if x == nil || x.IsConst() {
			continue
		}
		p := &Pointwise{inputs: []*graph.Value{x}}
		if p.Append(n, x, fused) {
			return p
		}
	}
	return nil
}

// Inputs returns the values that the run reads, each once.
func (p *Pointwise) Inputs() []*graph.Value { return p.inputs }

// Len returns the number of functions.
func (p *Pointwise) Len() int { return len(p.steps) }

// Append adds n, which reads the result so far as x, and reports whether it is
// such a function.
func (p *Pointwise) Append(n *graph.Node, x *graph.Value, fused *Fusion) bool {
	y := n.Output(0)
	if n.Op.Domain != graph.OnnxDomain || y == nil || len(n.Outputs()) != 1 || x.Type.Elem != tensor.Float32 || y.Type.Elem != tensor.Float32 {
		return false
	}
	s := &Site{Node: n, Opset: n.Opset(), Fused: fused}
	if n.Op.Type == "Clip" {
		lo, hi, ok := clipBounds32(n)
		if !ok || n.Input(0) != x {
			return false
		}
		p.steps = append(p.steps, pointStep{unary: func(dst, src []float32) { kernels.Clip(dst, src, lo, hi) }})
		return true
	}
	if i := slices.IndexFunc(unaryOps, func(op unaryOp) bool { return op.name == n.Op.Type }); i >= 0 && s.Opset >= unaryOps[i].since {
		u := unaryOps[i].build(s)
		if u.f32 == nil {
			return false
		}
		p.costly = p.costly || !u.cheap
		p.steps = append(p.steps, pointStep{unary: u.f32})
		return true
	}
	i := slices.IndexFunc(arithOps, func(op arithOp) bool { return op.name == n.Op.Type })
	if i < 0 || s.Opset < arithOps[i].since || n.NumInputs() != 2 {
		return false
	}
	a, err := arithOps[i].build(s)
	if err != nil || a.f32 == nil || a.f32.vv == nil || a.scale != nil {
		return false
	}
	step := pointStep{binary: a.f32, swapped: n.Input(0) != x, other: -1}
	other := n.Input(1)
	if step.swapped {
		other = n.Input(0)
	}
	switch {
	case other == nil:
		return false
	case other.IsConst() && other.Const.DType() == tensor.Float32 && other.Const.Len() == 1 && other.Const.Rank() <= len(x.Type.Shape):
		step.scalar = tensor.As[float32](other.Const)[0]
	case slices.Contains(p.inputs, other): // and so of the shape of the result
		step.other = slices.Index(p.inputs, other)
	case sameType(other, x):
		step.other = len(p.inputs)
		p.inputs = append(p.inputs, other)
	default:
		return false
	}
	p.steps = append(p.steps, step)
	return true
}

// sameType reports whether the types say that a and b are float32 tensors of one
// shape.
func sameType(a, b *graph.Value) bool {
	s, t := a.Type.Shape, b.Type.Shape
	if s == nil || len(s) != len(t) || a.Type.Elem != tensor.Float32 || b.Type.Elem != tensor.Float32 {
		return false
	}
	for i, d := range s {
		if e := t[i]; d.Known != e.Known || d.Known && d.Size != e.Size || !d.Known && (d.Sym == "" || d.Sym != e.Sym) {
			return false
		}
	}
	return true
}

// clipBounds32 returns the bounds of a Clip of float32 where they are constant.
func clipBounds32(n *graph.Node) (lo, hi float32, ok bool) {
	b := [2]float32{float32(math.Inf(-1)), float32(math.Inf(1))}
	if n.Opset() < 11 {
		return n.Float("min", b[0]), n.Float("max", b[1]), true
	}
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

// pointPiece is the number of elements of a piece.
const pointPiece = 2048

var pointRooms = sync.Pool{New: func() any { return new([pointPiece]float32) }}

// Kernel returns what computes the run from its Inputs.
func (p *Pointwise) Kernel() Kernel {
	chunk := cheapChunk
	if p.costly {
		chunk = costlyChunk
	}
	return func(c *Call) error {
		var room [4][]float32
		in := room[:0]
		for i := range p.inputs {
			x, err := c.tensor(i)
			if err != nil {
				return err
			}
			if x.DType() != tensor.Float32 || x.Len() != c.In(0).Len() {
				return fmt.Errorf("operands %v and %v", c.In(0), x)
			}
			in = append(in, tensor.As[float32](x))
		}
		y, err := c.OutLike(0, 0, tensor.Float32, c.In(0).Shape()...)
		if err != nil {
			return err
		}
		dst := tensor.As[float32](y)
		if len(dst) <= smallLoop {
			p.run(dst, in, 0, len(dst))
			return nil
		}
		return c.For(len(dst), chunk, func(lo, hi int) { p.run(dst, in, lo, hi) })
	}
}

// run computes the elements from lo to hi. Nothing is written to dst before the
// last function, since dst may be one of the inputs.
func (p *Pointwise) run(dst []float32, in [][]float32, lo, hi int) {
	room := pointRooms.Get().(*[pointPiece]float32)
	defer pointRooms.Put(room)
	for ; lo < hi; lo += pointPiece {
		n := min(pointPiece, hi-lo)
		x := in[0][lo : lo+n]
		for i := range p.steps {
			s := &p.steps[i]
			y := room[:n]
			if i == len(p.steps)-1 {
				y = dst[lo : lo+n]
			}
			switch {
			case s.unary != nil:
				s.unary(y, x)
			case s.other >= 0:
				a, b := x, in[s.other][lo:lo+n]
				if s.swapped {
					a, b = b, a
				}
				s.binary.vv(y, a, b)
			case s.swapped:
				s.binary.sv(y, s.scalar, x)
			default:
				s.binary.vs(y, x, s.scalar)
			}
			x = y
		}
	}
}
