package qdq

import (
	"fmt"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
)

// Kept is what becomes of QuantizeLinear and DequantizeLinear that a model came
// with, such as the fake quantization of training: they stay, and kernels for
// integers are built around them.
const Kept How = "kept"

// Integers is the reason of nodes that compute on codes already, in the operators
// that other tools and the dynamic mode write.
const Integers = "computes on integers already"

// computesCodes reports whether n multiplies codes.
func computesCodes(n *graph.Node) bool {
	ms := n.Op.Domain == msDomain && (n.Op.Type == "QGemm" || n.Op.Type == "QAttention")
	return integerProducts[n.Op] || ms
}

func isQuantizer(n *graph.Node) bool {
	return n != nil && n.Op.Type == "QuantizeLinear" && (n.Op.Domain == graph.OnnxDomain || n.Op.Domain == msDomain)
}

func isDequantizer(n *graph.Node) bool {
	return n != nil && n.Op.Type == "DequantizeLinear" && (n.Op.Domain == graph.OnnxDomain || n.Op.Domain == msDomain)
}

// given returns the parameters of v where a DequantizeLinear of the model makes
// it from codes of 8 or 16 bits, or constant ones of 4, with constant parameters,
// not in blocks.
func given(v *graph.Value) (quant.Params, bool) {
	if v == nil || !isDequantizer(v.DefNode()) {
		return quant.Params{}, false
	}
	n := v.DefNode()
	codes, scale, zero := n.Input(0), n.Input(1), n.Input(2)
	if codes == nil || scale == nil || !scale.IsConst() || scale.Const.DType() != tensor.Float32 || scale.Const.Rank() > 1 ||
		zero != nil && (!zero.IsConst() || zero.Const.Len() != scale.Const.Len()) || n.Int("block_size", 0) != 0 {
		return quant.Params{}, false
	}
	p := quant.Params{Axis: -1, Scale: append([]float32{}, tensor.As[float32](scale.Const)...), Zero: make([]int32, scale.Const.Len())}
	elem := codes.Type.Elem
	if zero != nil {
		elem = zero.Const.DType()
		z, err := tensor.Int64s(zero.Const)
		if err != nil {
			return quant.Params{}, false
		}
		for i, x := range z {
			p.Zero[i] = int32(x)
		}
	}
	for _, t := range []quant.Type{quant.U8, quant.I8, quant.U16, quant.I16, quant.I4} {
		if t.DType == elem && (t.DType.Bits() >= 8 || codes.IsConst()) {
			p.Type = t
		}
	}
	if p.Type.Name == "" || len(p.Scale) == 0 {
		return quant.Params{}, false
	}
	if scale.Const.Rank() == 1 && len(p.Scale) > 1 {
		p.Axis = int(n.Int("axis", 1))
		if rank := len(codes.Type.Shape); p.Axis < 0 && rank > 0 {
			p.Axis += rank
		}
	}
	return p, true
}

// isGiven reports whether v is what given knows.
func isGiven(v *graph.Value) bool {
	_, ok := given(v)
	return ok
}

// givenWeight returns why v, the weight at port i of n, does not serve the
// integer kernel of r as the codes that it is, or "" if it does; ok is false
// where it is no DequantizeLinear of constant codes.
func givenWeight(n *graph.Node, i int, v *graph.Value, r *targets.Rule) (why string, ok bool) {
	p, ok := given(v)
	if !ok || !v.DefNode().Input(0).IsConst() {
		return "", false
	}
	rank := v.DefNode().Input(0).Const.Rank()
	switch want := channelAxis(n, i, rank); {
	case p.Type.DType.Bits() != 8 && (p.Type.DType.Bits() > 8 || !r.FewBits):
		return fmt.Sprintf("weight %q is quantized to %s", v.Name(), p.Type.Name), true
	case rank < 2:
		return fmt.Sprintf("weight %q has rank %d", v.Name(), rank), true
	case p.Axis >= 0 && p.Axis != want:
		return fmt.Sprintf("weight %q is quantized along axis %d, the integer kernel wants axis %d or one scale", v.Name(), p.Axis, want), true
	}
	return "", true
}

// quantizedBehind reports whether nothing but a QuantizeLinear of the model
// reads v, directly or behind one Relu or Clip.
func quantizedBehind(v *graph.Value) bool {
	n := v.OnlyUse()
	if n != nil && n.Op.Domain == graph.OnnxDomain && (n.Op.Type == "Relu" || n.Op.Type == "Clip") && n.Input(0) == v && n.Output(0) != nil {
		n = n.Output(0).OnlyUse()
	}
	return isQuantizer(n)
}
