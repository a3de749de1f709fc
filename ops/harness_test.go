package ops

import (
	"context"
	"fmt"
	"math"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/tensor"
)

// heap is a Memory that allocates everything anew.
type heap struct{}

func (heap) New(dtype tensor.DType, shape []int) (*tensor.Tensor, error) {
	if n, ok := tensor.NumElements(shape); !ok || n > 1<<30 || !dtype.Valid() {
		return nil, fmt.Errorf("tensor %v%v", dtype, shape)
	}
	t := tensor.New(dtype, shape...)
	for i := range t.Bytes() {
		t.Bytes()[i] = 0xa5 // kernels must not rely on zeros
	}
	return t, nil
}

func (h heap) Reuse(_ *Call, _ int, dtype tensor.DType, shape []int) (*tensor.Tensor, error) {
	return h.New(dtype, shape)
}

func (heap) Free(t *tensor.Tensor) {
	for i := range t.Bytes() {
		t.Bytes()[i] = 0x5a
	}
}

func (heap) Scratch(n int) ([]byte, error) {
	b := tensor.AlignedBytes(n)
	for i := range b {
		b[i] = 0xa5
	}
	return b, nil
}

// single is a model of one node.
type single struct {
	op      graph.OpKey
	opset   int
	attrs   []*graph.Attr
	ins     []Data // nil where omitted
	consts  []bool // which inputs are initializers; nil for none
	outs    []bool // which outputs the node declares; nil for the first only
	fused   *Fusion
	threads int
}

// node builds the model.
func (s single) node() *graph.Node {
	m := graph.NewModel(10, graph.Opset{Domain: s.op.Domain, Version: int64(s.opset)})
	g := m.Graph
	var ins, outs []*graph.Value
	for i, d := range s.ins {
		t, ok := d.(*tensor.Tensor)
		switch {
		case !ok:
			ins = append(ins, nil)
		case i < len(s.consts) && s.consts[i]:
			v := g.NewValue(fmt.Sprint("in", i), graph.TypeOf(t))
			g.AddInitializer(v, t)
			ins = append(ins, v)
		default:
			v := g.NewValue(fmt.Sprint("in", i), graph.TypeOf(t))
			g.AddInput(v)
			ins = append(ins, v)
		}
	}
	declared := s.outs
	if declared == nil {
		declared = []bool{true}
	}
	for i, on := range declared {
		if on {
			outs = append(outs, g.NewValue(fmt.Sprint("out", i), graph.Type{}))
		} else {
			outs = append(outs, nil)
		}
	}
	n := g.NewNode(s.op, "node", ins, outs, s.attrs...)
	g.Append(n)
	return n
}

// run infers, compiles and computes the node and checks that the inferred
// types agree with the computed values.
func (s single) run() ([]Data, error) {
	n := s.node()
	spec := Lookup(n)
	if spec == nil || spec.Compile == nil {
		return nil, fmt.Errorf("%v is not in the table", s.op)
	}
	if _, err := Infer(n.Graph().Model()); err != nil {
		return nil, err
	}
	site := &Site{Node: n, Opset: s.opset, Fused: s.fused}
	for _, v := range n.Inputs() {
		var t *tensor.Tensor
		if v != nil && v.IsConst() {
			t = v.Const
		}
		site.Consts = append(site.Consts, t)
	}
	kernel, err := spec.Compile(site)
	if err != nil {
		return nil, err
	}
	c := &Call{Ctx: context.Background(), Mem: heap{}, Ins: s.ins, Outs: make([]Data, len(n.Outputs()))}
	if s.threads > 1 {
		c.Pool = par.New(s.threads)
		c.Pool.Begin()
		defer c.Pool.End()
	}
	for _, v := range n.Outputs() {
		c.Wanted = append(c.Wanted, v != nil)
	}
	if err := kernel(c); err != nil {
		return nil, err
	}
	for i, v := range n.Outputs() {
		t, ok := c.Outs[i].(*tensor.Tensor)
		if v == nil || !ok {
			continue
		}
		if v.Type.Elem != tensor.Undefined && v.Type.Elem != t.DType() {
			return nil, fmt.Errorf("output %d is inferred as %v, computed as %v", i, v.Type, t)
		}
		if v.Type.Shape == nil {
			continue
		}
		if len(v.Type.Shape) != t.Rank() {
			return nil, fmt.Errorf("output %d is inferred as %v, computed as %v", i, v.Type, t)
		}
		for k, d := range v.Type.Shape {
			if d.Known && d.Size != int64(t.Shape()[k]) {
				return nil, fmt.Errorf("output %d is inferred as %v, computed as %v", i, v.Type, t)
			}
		}
	}
	return c.Outs, nil
}

// same compares got with want: equal types and shapes, and elements that
// differ by at most atol + rtol·|want|; NaN equals NaN.
func same(got, want *tensor.Tensor, rtol, atol float64) error {
	if got == nil || got.DType() != want.DType() || tensor.ShapeString(got.Shape()) != tensor.ShapeString(want.Shape()) {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	if want.DType() == tensor.String {
		for i, s := range want.Strings() {
			if got.Strings()[i] != s {
				return fmt.Errorf("element %d is %q, want %q", i, got.Strings()[i], s)
			}
		}
		return nil
	}
	a, err := tensor.Float64s(got)
	if err != nil {
		return err
	}
	b, err := tensor.Float64s(want)
	if err != nil {
		return err
	}
	for i, w := range b {
		g := a[i]
		if g == w || math.IsNaN(g) && math.IsNaN(w) || math.Abs(g-w) <= atol+rtol*math.Abs(w) {
			continue
		}
		return fmt.Errorf("element %d of %v is %v, want %v", i, want, g, w)
	}
	return nil
}

// check runs s and compares its outputs, nil entries of want excepted.
func (s single) check(t *testing.T, rtol, atol float64, want ...*tensor.Tensor) {
	t.Helper()
	got, err := s.run()
	if err != nil {
		t.Errorf("%v: %v", s.op, err)
		return
	}
	for i, w := range want {
		if w == nil {
			continue
		}
		g, _ := got[i].(*tensor.Tensor)
		if err := same(g, w, rtol, atol); err != nil {
			t.Errorf("%v, output %d: %v", s.op, i, err)
		}
	}
}
