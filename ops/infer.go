package ops

import (
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// maxPropagated bounds the elements of integer tensors whose contents
// inference follows; they describe shapes.
const maxPropagated = 1024

// Inference is a node as Spec.Infer sees it. Besides types it carries the
// contents of short integer tensors, as far as they are known, since these
// become shapes further on.
type Inference struct {
	Node  *graph.Node
	Opset int
	types *Types
}

// In returns the type of input i; unknown if it is omitted.
func (c *Inference) In(i int) graph.Type {
	if v := c.Node.Input(i); v != nil {
		return v.Type
	}
	return graph.Type{}
}

// Shape returns the shape of tensor input i, or nil if its rank is unknown.
func (c *Inference) Shape(i int) graph.Shape { return c.In(i).Shape }

// Elem returns the element type of tensor input i, or Undefined.
func (c *Inference) Elem(i int) tensor.DType { return c.In(i).Elem }

// Const returns the value of input i if it is constant, or nil.
func (c *Inference) Const(i int) *tensor.Tensor {
	v := c.Node.Input(i)
	if v == nil {
		return nil
	}
	if v.IsConst() {
		return v.Const
	}
	return ConstantValue(v.DefNode())
}

// Dims returns the contents of an integer input of rank 0 or 1 as dimensions;
// entries may be symbolic or unknown. It is false if nothing is known.
func (c *Inference) Dims(i int) ([]graph.Dim, bool) {
	v := c.Node.Input(i)
	if v == nil {
		return nil, false
	}
	return c.types.dims(v)
}

// contents is Dims for an integer input of any rank: its elements in row-major
// order, and its shape.
func (c *Inference) contents(i int) ([]graph.Dim, []int, bool) {
	v := c.Node.Input(i)
	if v == nil {
		return nil, nil, false
	}
	dims, ok := c.types.contents(v)
	shape, known := v.Type.Shape.Dims()
	if !ok || !known || volume(shape) != len(dims) {
		return nil, nil, false
	}
	return dims, shape, true
}

// Ints returns the contents of an integer input of rank 0 or 1 if all of them
// are known.
func (c *Inference) Ints(i int) ([]int64, bool) {
	dims, ok := c.Dims(i)
	if !ok {
		return nil, false
	}
	out := make([]int64, len(dims))
	for k, d := range dims {
		if !d.Known {
			return nil, false
		}
		out[k] = d.Size
	}
	return out, true
}

// Out states the type of output i. What is already known about the value is
// kept where t leaves it open; what the file says of the shape of a value that is no
// output of a graph is dropped where t says otherwise, since exporters err there.
func (c *Inference) Out(i int, t graph.Type) {
	v := c.Node.Output(i)
	if v == nil {
		return
	}
	if v.Type.Kind == t.Kind && !v.IsOutput() && v.Type.Shape.Contradicts(t.Shape) {
		v.Type.Shape = nil
	}
	v.Type = mergeTypes(v.Type, t)
}

// Tensor states that output i is a tensor; a nil shape is an unknown rank. A
// size below 0, which the kernel will refuse, is left open.
func (c *Inference) Tensor(i int, elem tensor.DType, shape graph.Shape) {
	negative := func(d graph.Dim) bool { return d.Known && d.Size < 0 }
	if slices.ContainsFunc(shape, negative) {
		shape = slices.Clone(shape)
		for k, d := range shape {
			if negative(d) {
				shape[k] = graph.Dim{}
			}
		}
	}
	c.Out(i, graph.TensorType(elem, shape))
}

// Same states that output 0 has the type of input 0.
func (c *Inference) Same() error {
	c.Out(0, c.In(0))
	return nil
}

// SetDims states the contents of output i, an integer tensor, in row-major
// order. Its type must be stated before.
func (c *Inference) SetDims(i int, dims []graph.Dim) {
	v := c.Node.Output(i)
	if v == nil || len(dims) > maxPropagated {
		return
	}
	if len(v.Type.Shape) > 1 {
		if shape, ok := v.Type.Shape.Dims(); !ok || volume(shape) != len(dims) {
			return
		}
	}
	c.types.data[v.ID] = dims
}

// Errorf returns an error about the node.
func (c *Inference) Errorf(format string, args ...any) error {
	return c.Node.Errorf("infer", format, args...)
}

// Types is the state of inference over a model: the propagated contents of
// integer tensors. The inferred types are in Value.Type.
type Types struct {
	data [][]graph.Dim
}

func (t *Types) dims(v *graph.Value) ([]graph.Dim, bool) {
	if len(v.Type.Shape) > 1 {
		return nil, false
	}
	return t.contents(v)
}

func (t *Types) contents(v *graph.Value) ([]graph.Dim, bool) {
	if v.ID < len(t.data) && t.data[v.ID] != nil {
		return t.data[v.ID], true
	}
	if !v.IsConst() {
		return nil, false
	}
	return dimsOf(v.Const)
}

// dimsOf returns the elements of a short int32, int64 or boolean tensor.
func dimsOf(v *tensor.Tensor) ([]graph.Dim, bool) {
	if d := v.DType(); v.Len() > maxPropagated || d != tensor.Int64 && d != tensor.Int32 && d != tensor.Bool {
		return nil, false
	}
	ints, err := tensor.Int64s(v)
	if err != nil {
		return nil, false
	}
	return toDims(ints), true
}

// Dims returns what inference knows about the contents of v, an integer
// tensor of rank 0 or 1.
func (t *Types) Dims(v *graph.Value) ([]graph.Dim, bool) { return t.dims(v) }

// Infer finds the types of the values of the main graph and of those nested in it,
// as far as the operator table knows them, and stores them in Value.Type.
// Declared types stay where they are more exact. The error names the first
// node whose inputs contradict its operator.
func Infer(m *graph.Model) (*Types, error) {
	t := &Types{data: make([][]graph.Dim, m.NumValues())}
	if err := t.graph(m.Graph); err != nil {
		return nil, err
	}
	return t, nil
}

// Typed returns a copy of m with the types of values, as far as they can be
// inferred; what contradicts its operator ends that in silence.
func Typed(m *graph.Model) *graph.Model {
	c := m.Clone()
	_, _ = Infer(c)
	return c
}

func (t *Types) graph(g *graph.Graph) error {
	for _, v := range g.Initializers() {
		if v.Const != nil && v.IsConst() {
			v.Type = mergeTypes(graph.TypeOf(v.Const), v.Type)
		}
	}
	for n := range g.Nodes() {
		spec := Lookup(n)
		if spec == nil || spec.Infer == nil {
			for _, a := range n.Attrs {
				for _, s := range a.Subgraphs() {
					if err := t.graph(s); err != nil {
						return err
					}
				}
			}
			continue
		}
		if err := spec.Check(n); err != nil {
			return err
		}
		c := &Inference{Node: n, Opset: g.Opset(n.Op.Domain), types: t}
		if err := spec.Infer(c); err != nil {
			return graph.NodeError("infer", n, err)
		}
	}
	return nil
}

// Graph infers the types of a nested graph; operators with bodies call it once
// they have stated the types of the body's inputs.
func (c *Inference) Graph(g *graph.Graph) error { return c.types.graph(g) }

// mergeTypes returns what two statements about one value say together; the
// first wins where they contradict each other.
func mergeTypes(a, b graph.Type) graph.Type {
	switch {
	case a.Kind == graph.KindUnknown:
		return b
	case b.Kind != a.Kind:
		return a
	}
	if a.Elem == tensor.Undefined {
		a.Elem = b.Elem
	}
	if a.Inner != nil && b.Inner != nil {
		inner := mergeTypes(*a.Inner, *b.Inner)
		a.Inner = &inner
	}
	if a.Shape == nil {
		a.Shape = b.Shape
	} else if len(a.Shape) == len(b.Shape) {
		var merged graph.Shape
		for i, d := range a.Shape {
			if e := b.Shape[i]; !d.Known && (e.Known || d.Sym == "" && e.Sym != "") {
				if merged == nil {
					merged = append(graph.Shape{}, a.Shape...)
				}
				merged[i].Size, merged[i].Known, merged[i].Sym = e.Size, e.Known, e.Sym
			}
		}
		if merged != nil {
			a.Shape = merged
		}
	}
	return a
}

// BroadcastShapes returns the shape that shapes broadcast to; nil if a rank is
// unknown.
func BroadcastShapes(shapes ...graph.Shape) (graph.Shape, error) {
	rank := 0
	for _, s := range shapes {
		if s == nil {
			return nil, nil
		}
		rank = max(rank, len(s))
	}
	out := make(graph.Shape, rank)
	for i := range out {
		out[i] = graph.D(1)
	}
	for _, s := range shapes {
		off := rank - len(s)
		for i, d := range s {
			d.Extra = nil
			o := &out[off+i]
			switch {
			case d.Known && d.Size == 1, o.Same(d):
			case o.Known && o.Size == 1:
				*o = d
			case o.Known && d.Known:
				return nil, fmt.Errorf("shapes %v do not broadcast", shapes)
			case o.Known: // d is 1 or equal to o
			case d.Known:
				*o = d
			default:
				*o = graph.Dim{}
			}
		}
	}
	return out, nil
}
