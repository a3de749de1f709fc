package qdq

import (
	"fmt"
	"math"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
	"github.com/onnxq/onnxq/validate"
)

// MaxHalf is the largest magnitude that float16 holds, MinHalf the least that it
// holds with all its digits.
const (
	MaxHalf = 65504
	MinHalf = 1.0 / (1 << 14)
)

// fullPrecision lists operators that stay float32 where others compute in 16
// bits: their results leave the range of float16 or lose their digits in it, or
// runtimes have them in float32 only.
var fullPrecision = []string{
	"Exp", "Log", "Pow", "Reciprocal", "CumSum", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd",
	"Sin", "Cos", "Tan", "STFT", "DFT", "MelWeightMatrix", "Range", "Resize", "Upsample", "NonMaxSuppression", "TopK", "LpNormalization", "RoiAlign", "GridSample",
}

// FullPrecision returns the operators of the standard domain that stay float32
// in modes that compute in 16 bits.
func FullPrecision() []string { return slices.Clone(fullPrecision) }

// elem returns the element type that nodes of this kind compute in.
func (h How) elem() tensor.DType {
	switch h {
	case Half:
		return tensor.Float16
	case Brain:
		return tensor.BFloat16
	}
	return tensor.Undefined
}

// fitsHalf returns why n cannot compute in floats of type t, or "".
func fitsHalf(n *graph.Node, t tensor.DType) string {
	spec := ops.Lookup(n)
	switch {
	case n.Graph().Function() != nil:
		return "body of a local function that is not inlined"
	case spec == nil:
		return fmt.Sprintf("operator %s is not known: kept as it is", n.Op)
	case spec.Flow == ops.Integers:
		return "computes no real values"
	case spec.Flow == ops.Opaque:
		return fmt.Sprintf("%s is kept as it is", n.Op)
	case n.Op.Domain == graph.OnnxDomain && slices.Contains(fullPrecision, n.Op.Type):
		return fmt.Sprintf("%s is kept in float32", n.Op)
	case !slices.ContainsFunc(n.Inputs(), func(v *graph.Value) bool { return v != nil && v.Type.Elem == tensor.Float32 }):
		return "reads no float32"
	}
	in, _, err := validate.Narrow(n, t)
	if err != nil {
		return err.Error()
	}
	for i, narrow := range in {
		if v := n.Input(i); narrow && t == tensor.Float16 && v.IsConst() && slices.Contains(scaling, n.Op.Type) && tiny(tensor.As[float32](v.Const)) {
			return fmt.Sprintf("the constant %q is too small for float16", v.Name())
		}
	}
	return ""
}

// movesBatch reports whether n is a Transpose that moves the first axis to the last or
// the one before, the others in their order, and one of the given products reads what
// it gives; see targets.Target.TakesBatch.
func movesBatch(n *graph.Node, products []string) bool {
	perm := n.Ints("perm")
	rank := len(perm)
	if n.Op != op("Transpose") || n.Output(0) == nil || rank < 3 || !slices.ContainsFunc(n.Output(0).Uses(), func(u graph.Use) bool {
		return u.Node != nil && u.Node.Op.Domain == graph.OnnxDomain && slices.Contains(products, u.Node.Op.Type)
	}) {
		return false
	}
	at := slices.Index(perm, 0)
	if at < rank-2 {
		return false
	}
	for i, p := range slices.Delete(slices.Clone(perm), at, at+1) {
		if p != int64(i+1) {
			return false
		}
	}
	return true
}

// tiny reports whether the largest of x is one that float16 does not hold with all
// its digits, but not 0.
func tiny(x []float32) bool {
	most := float32(0)
	for _, v := range x {
		most = max(most, v, -v)
	}
	return most > 0 && most < MinHalf
}

// halfNode makes n compute in 16-bit floats: what it reads is cast, once for
// all readers, and its outputs are cast back for those that need float32.
func (w *rewriter) halfNode(n *graph.Node, t tensor.DType) error {
	in, out, err := validate.Narrow(n, t)
	if err != nil {
		return err
	}
	for i, narrow := range in {
		if !narrow {
			continue
		}
		v, err := w.narrowed(n.Input(i), t)
		if err != nil {
			return err
		}
		n.SetInput(i, v)
	}
	after := n
	for i, narrow := range out {
		if !narrow {
			continue
		}
		g, y := n.Graph(), n.Output(i)
		half := g.NewValue(w.m.UniqueName(base(y.Name())+halfSuffix(t)), graph.TensorType(t, y.Type.Shape))
		n.SetOutput(i, half)
		back := g.NewNode(op("Cast"), "", []*graph.Value{half}, []*graph.Value{y}, graph.Int("to", int64(tensor.Float32)))
		g.InsertAfter(back, after)
		after = back
		w.half[halfKey{y, t}] = half
	}
	return nil
}

type halfKey struct {
	value *graph.Value
	elem  tensor.DType
}

func halfSuffix(t tensor.DType) string {
	if t == tensor.BFloat16 {
		return "_bf16"
	}
	return "_f16"
}

// narrowed returns v in floats of type t, made where v is.
func (w *rewriter) narrowed(v *graph.Value, t tensor.DType) (*graph.Value, error) {
	key := halfKey{v, t}
	if w.half[key] != nil {
		return w.half[key], nil
	}
	g, name := v.Graph(), base(v.Name())+halfSuffix(t)
	if v.IsConst() {
		x, err := narrowTensor(v.Const, t)
		if err != nil {
			return nil, err
		}
		w.half[key] = g.NewInitializer(name, x)
		return w.half[key], nil
	}
	h := g.NewValue(w.m.UniqueName(name), graph.TensorType(t, v.Type.Shape))
	g.InsertAfter(g.NewNode(op("Cast"), "", []*graph.Value{v}, []*graph.Value{h}, graph.Int("to", int64(t))), v.DefNode())
	w.half[key] = h
	return h, nil
}

// narrowTensor returns a float32 tensor in floats of type t. Finite values
// beyond the range of float16 become the nearest finite ones, since masks are
// such values and an infinite mask gives NaN where a whole row is masked.
func narrowTensor(x *tensor.Tensor, t tensor.DType) (*tensor.Tensor, error) {
	if t == tensor.Float16 {
		x = x.Clone()
		for i, v := range tensor.As[float32](x) {
			if !math.IsInf(float64(v), 0) {
				tensor.As[float32](x)[i] = min(max(v, -MaxHalf), MaxHalf)
			}
		}
	}
	out := tensor.New(t, x.Shape()...)
	return out, tensor.Convert(out, x, 0, x.Len(), tensor.ConvertOptions{})
}
