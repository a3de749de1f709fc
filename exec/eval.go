package exec

import (
	"context"
	"errors"
	"fmt"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// ErrBudget is wrapped by the error of Evaluate that says that a result would
// be larger than allowed.
var ErrBudget = errors.New("result exceeds the budget")

// Evaluate computes a node whose inputs are all constant, or omitted, and
// returns its tensors, nil for omitted outputs. No output, nor any other
// memory that the kernel asks for, may be larger than budget bytes. The
// results belong to the caller.
func Evaluate(ctx context.Context, n *graph.Node, budget int64) ([]*tensor.Tensor, error) {
	spec := ops.Lookup(n)
	if spec == nil || spec.Compile == nil {
		return nil, graph.NodeError("evaluate", n, ErrUnsupported)
	}
	site := &ops.Site{Node: n, Opset: n.Opset(), Consts: make([]*tensor.Tensor, n.NumInputs())}
	ins := make([]ops.Data, n.NumInputs())
	for i, v := range n.Inputs() {
		if v == nil {
			continue
		}
		if !v.IsConst() {
			return nil, n.Errorf("evaluate", "input %q is not constant", v.Name())
		}
		site.Consts[i], ins[i] = v.Const, v.Const
	}
	site.Body = func(*graph.Graph) (ops.Body, error) { return nil, ErrUnsupported }
	kernel, err := spec.Compile(site)
	if err != nil {
		return nil, graph.NodeError("evaluate", n, err)
	}
	wanted := make([]bool, len(n.Outputs()))
	for i, v := range n.Outputs() {
		wanted[i] = v != nil
	}
	c := &ops.Call{Ctx: ctx, Mem: heap{budget}, Ins: ins, Outs: make([]ops.Data, len(wanted)), Wanted: wanted}
	if err := invoke(kernel, c); err != nil {
		return nil, graph.NodeError("evaluate", n, err)
	}
	out := make([]*tensor.Tensor, len(wanted))
	for i, d := range c.Outs {
		t, ok := d.(*tensor.Tensor)
		if wanted[i] && !ok {
			return nil, n.Errorf("evaluate", "output %d is no tensor", i)
		}
		out[i] = t
	}
	return out, nil
}

// heap is a Memory without recycling.
type heap struct{ budget int64 }

func (h heap) New(dtype tensor.DType, shape []int) (*tensor.Tensor, error) {
	n, ok := tensor.NumElements(shape)
	if !ok || !dtype.Valid() {
		return nil, fmt.Errorf("cannot make a tensor %v%v", dtype, tensor.ShapeString(shape))
	}
	if n > maxElements || int64(dtype.Bytes(n)) > h.budget || int64(n) > h.budget {
		return nil, fmt.Errorf("%w: %v%v", ErrBudget, dtype, tensor.ShapeString(shape))
	}
	return tensor.New(dtype, shape...), nil
}

func (heap) Free(*tensor.Tensor) {}

func (h heap) Reuse(_ *ops.Call, _ int, dtype tensor.DType, shape []int) (*tensor.Tensor, error) {
	return h.New(dtype, shape)
}

func (h heap) Scratch(n int) ([]byte, error) {
	if n < 0 || int64(n) > h.budget {
		return nil, fmt.Errorf("%w: %d bytes of scratch", ErrBudget, n)
	}
	return tensor.AlignedBytes(n), nil
}
