package ops

import (
	"context"
	"fmt"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/tensor"
)

// Site is a node as Spec.Compile sees it.
type Site struct {
	Node  *graph.Node
	Opset int // version of the node's domain
	// Consts holds the constant value of each input, nil where it is not
	// constant.
	Consts []*tensor.Tensor
	// Fused is arithmetic that the executor moved into the node, or nil; see
	// Fusion for the operators that honour it.
	Fused *Fusion
	// Saturate makes products of uint8 and int8 those of processors without
	// 8-bit dot products; see kernels.PackQB.
	Saturate bool
	// Chain says which images of the node are in blocks, or is nil.
	Chain *Chain
	// Body compiles a graph that the node holds in an attribute. The body's
	// captured values are bound by the executor.
	Body func(*graph.Graph) (Body, error)
}

// Const returns the constant value of input i, or nil.
func (s *Site) Const(i int) *tensor.Tensor {
	if i < 0 || i >= len(s.Consts) {
		return nil
	}
	return s.Consts[i]
}

// Has reports whether input i is given.
func (s *Site) Has(i int) bool { return s.Node.Input(i) != nil }

// Errorf returns an error about the node.
func (s *Site) Errorf(format string, args ...any) error {
	return s.Node.Errorf("compile", format, args...)
}

// Body is a compiled nested graph.
type Body interface {
	// Run computes the graph's outputs from its inputs, within the run that c
	// belongs to.
	Run(c *Call, inputs []Data) ([]Data, error)
}

// Data is what a value holds while a model runs: *tensor.Tensor, Sequence,
// *Optional or *Map; nil is an omitted value.
type Data any

// Sequence is the value of a sequence type.
type Sequence []Data

// Optional is the value of an optional type; Elem is nil if it is empty.
type Optional struct{ Elem Data }

// Kernel computes a node once. It may be called from several goroutines at the
// same time with different Calls, so what it shares is read only.
type Kernel func(c *Call) error

// Call is one execution of a node. Inputs are read only unless Reuse hands
// one out.
type Call struct {
	Ctx  context.Context
	Pool *par.Pool // nil: the caller does everything itself
	Ins  []Data
	Outs []Data // filled by the kernel; nil entries for omitted outputs
	Mem  Memory
	// Wanted tells for each output whether the node declares it; a kernel need
	// not compute others.
	Wanted []bool
}

// Memory gives kernels their buffers.
type Memory interface {
	// New returns an uninitialized tensor of valid type and shape.
	New(dtype tensor.DType, shape []int) (*tensor.Tensor, error)
	// Reuse returns a tensor of that type and shape in the memory of input i
	// if nothing reads that input afterwards and the size is the same, else a
	// new one. The contents are those of the input in the first case, so only
	// a kernel that reads element k before or while it writes element k may
	// ask.
	Reuse(c *Call, i int, dtype tensor.DType, shape []int) (*tensor.Tensor, error)
	// Free takes back a tensor of this call, from New or from a Body, before
	// the kernel ends: nothing refers to its memory any more.
	Free(t *tensor.Tensor)
	// Scratch returns n uninitialized, 64-byte aligned bytes that are valid
	// until the kernel returns.
	Scratch(n int) ([]byte, error)
}

// NumIn returns the number of inputs.
func (c *Call) NumIn() int { return len(c.Ins) }

// In returns input i as a tensor, or nil if it is omitted.
func (c *Call) In(i int) *tensor.Tensor {
	if i < 0 || i >= len(c.Ins) {
		return nil
	}
	t, _ := c.Ins[i].(*tensor.Tensor)
	return t
}

// Out allocates output i. Its contents are not initialized.
func (c *Call) Out(i int, dtype tensor.DType, shape ...int) (*tensor.Tensor, error) {
	t, err := c.Mem.New(dtype, shape)
	if err == nil {
		c.Outs[i] = t
	}
	return t, err
}

// OutLike allocates output i in the memory of input k if that is possible; see
// Memory.Reuse.
func (c *Call) OutLike(i, k int, dtype tensor.DType, shape ...int) (*tensor.Tensor, error) {
	t, err := c.Mem.Reuse(c, k, dtype, shape)
	if err == nil {
		c.Outs[i] = t
	}
	return t, err
}

// SetOut makes t output i. It may share memory with an input (a view).
func (c *Call) SetOut(i int, t *tensor.Tensor) { c.Outs[i] = t }

// View makes output i a reshaped view of input k.
func (c *Call) View(i, k int, shape ...int) error {
	t, err := c.In(k).Reshape(shape)
	if err == nil {
		c.Outs[i] = t
	}
	return err
}

// Floats returns scratch memory for n float32 values.
func (c *Call) Floats(n int) ([]float32, error) {
	b, err := c.Mem.Scratch(4 * n)
	if err != nil || n == 0 {
		return nil, err
	}
	t, err := tensor.FromBytes(tensor.Float32, []int{n}, b)
	if err != nil {
		return nil, err
	}
	return tensor.As[float32](t), nil
}

// For runs f over [0, n) in pieces of at most chunk, in parallel, and stops
// early when the context is done. The pieces do not depend on the number of
// threads.
func (c *Call) For(n, chunk int, f func(lo, hi int)) error {
	c.Pool.For(n, chunk, func(lo, hi int) {
		if c.Ctx.Err() == nil {
			f(lo, hi)
		}
	})
	return c.Ctx.Err()
}

// NormalAxis returns axis in [0, rank) for an axis in [-rank, rank).
func NormalAxis(axis int64, rank int) (int, error) {
	if axis < -int64(rank) || axis >= int64(rank) {
		return 0, fmt.Errorf("axis %d is not in [-%d, %d)", axis, rank, rank)
	}
	if axis < 0 {
		axis += int64(rank)
	}
	return int(axis), nil
}

// BroadcastDims returns the shape that shapes broadcast to (ONNX multidirectional
// broadcasting).
func BroadcastDims(shapes ...[]int) ([]int, error) {
	rank := 0
	for _, s := range shapes {
		rank = max(rank, len(s))
	}
	out := make([]int, rank)
	for i := range out {
		out[i] = 1
	}
	for _, s := range shapes {
		off := rank - len(s)
		for i, d := range s {
			switch o := &out[off+i]; {
			case *o == d || d == 1:
			case *o == 1:
				*o = d
			default:
				return nil, fmt.Errorf("shapes %v do not broadcast", shapes)
			}
		}
	}
	return out, nil
}
