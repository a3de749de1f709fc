package qdq

import (
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
)

// setBlocks gives e the scheme b.
func (e *TensorPlan) setBlocks(b quant.Blocks) {
	e.Type, e.Block, e.Zero, e.ScaleType, e.Fit, e.PowerOfTwo = b.Name, b.Size, string(b.Zero), quant.ScaleName(b.ScaleType), string(b.Fit), b.PowerOfTwo
	e.Symmetric = b.Zero != quant.Asymmetric
}

// Blocks returns the scheme of a weight that has a Form.
func (e *TensorPlan) Blocks() (quant.Blocks, error) {
	s, err := quant.ParseStorage(e.Type)
	if err != nil {
		return quant.Blocks{}, err
	}
	b := quant.Blocks{Storage: s, Size: e.Block, Fit: quant.Fit(e.Fit), PowerOfTwo: e.PowerOfTwo}
	if s.Block == 0 {
		if b.ScaleType, err = quant.ParseScale(e.ScaleType); err != nil {
			return b, err
		}
	}
	if b.Zero, err = quant.ParseZeros(e.Zero); err != nil {
		return b, err
	}
	if !slices.Contains([]quant.Fit{quant.Cover, quant.Clip, quant.HQQ, quant.KQuant}, b.Fit) {
		return b, fmt.Errorf("fit %q is not known", b.Fit)
	}
	return b.Complete()
}

// Lines takes the weight t that e is about apart as its Form does.
func (e *TensorPlan) Lines(t *tensor.Tensor) (quant.Lines, error) {
	axis := e.Axis
	if e.Whole {
		var err error
		if t, err = t.Reshape([]int{1, t.Len()}); err != nil {
			return quant.Lines{}, err
		}
		axis = 1
	} else if e.Flat {
		rows := 1
		for _, d := range t.Shape()[:axis] {
			rows *= d
		}
		var err error
		if t, err = t.Reshape([]int{rows, t.Len() / max(rows, 1)}); err != nil {
			return quant.Lines{}, err
		}
		axis = 1
	}
	return quant.LinesOf(t, axis)
}

// StoredBytes returns what the codes and parameters of the weight t take that e
// is about.
func (e *TensorPlan) StoredBytes(t *tensor.Tensor) int64 {
	if e.Form == "" {
		scales := int64(1)
		if e.Axis >= 0 {
			scales = int64(t.Shape()[e.Axis])
		}
		if e.Type == Float16 {
			return 2 * int64(t.Len())
		}
		bits := int64(8)
		if typ, err := targets.Type(e.Type); err == nil {
			bits = int64(typ.DType.Bits())
		}
		bytes := (bits*int64(t.Len())+7)/8 + 4*scales
		if !e.AtLoad {
			bytes += (bits*scales + 7) / 8 // zero points
		}
		return bytes
	}
	b, err := e.Blocks()
	if err != nil {
		return int64(t.Size())
	}
	l, err := e.Lines(t)
	if err != nil {
		return int64(t.Size())
	}
	n := int64(l.N())
	if e.Form == targets.Packed {
		codes, zeros := b.PackedBytes(l.K)
		blocks := (l.K + b.Size - 1) / b.Size
		bytes := int64(codes) + int64(blocks*b.ScaleType.Bits()/8)
		if b.Zero == quant.Asymmetric {
			bytes += int64(zeros)
		}
		return n * bytes
	}
	bits := b.BitsPerWeight(l.K, false)
	return int64(float64(n)*float64(l.K)*bits+7)/8 + int64(4*max(len(b.Grid), b.Levels))
}

// matrix is what can be done with a weight in few bits.
type matrix struct {
	axis   int // that blocks run along
	flat   bool
	packed string // why MatMulNBits and GatherBlockQuantized cannot read it, or ""
	gather bool   // rows are looked up
	mixed  bool   // and it is multiplied with as well
}

// matrixOf finds out how the constant v is used; ok is false where something
// reads it that is no weight port, or a node that is to be left alone.
func (a *annotator) matrixOf(v *graph.Value) (m matrix, ok bool) {
	m.axis = -1
	join := func(u use) {
		if m.axis >= 0 && (m.axis != u.axis || m.flat != u.flat) {
			m.packed = "its readers want blocks along different axes"
		} else {
			m.axis, m.flat = u.axis, u.flat
		}
		if u.why != "" {
			m.packed = u.why
		}
		if u.gather {
			m.gather = true
		} else {
			m.mixed = true
		}
	}
	for _, u := range v.Uses() {
		if u.Node == nil || a.byID[u.Node.ID].on || a.byID[u.Node.ID].leave || u.Node.Graph().Function() != nil {
			return m, false
		}
		if t := Transposed(u.Node, v); t != nil {
			for _, w := range t.Uses() {
				if w.Node == nil || a.byID[w.Node.ID].leave {
					return m, false
				}
				r, known := readOf(w.Node, w.Index, v)
				if !known || r.gather || r.flat || r.axis > 1 {
					return m, false
				}
				r.axis = 1 - r.axis
				join(r)
			}
			continue
		}
		r, known := readOf(u.Node, u.Index, v)
		if !known {
			return m, false
		}
		join(r)
	}
	m.mixed = m.mixed && m.gather
	return m, m.axis >= 0
}

// Transposed returns the output of n if that is a Transpose of the matrix v.
func Transposed(n *graph.Node, v *graph.Value) *graph.Value {
	if n.Op != op("Transpose") || v.Const.Rank() != 2 || n.Output(0) == nil || n.Output(0).IsOutput() {
		return nil
	}
	if p := n.Ints("perm"); len(p) > 0 && (len(p) != 2 || p[0] != 1) {
		return nil
	}
	return n.Output(0)
}

// use is how one node reads a weight.
type use struct {
	axis   int
	flat   bool
	gather bool
	why    string // why it cannot become MatMulNBits or GatherBlockQuantized, or ""
}

// readOf says how port i of n reads the weight v, or a transpose of it; known
// is false if that is no weight.
func readOf(n *graph.Node, i int, v *graph.Value) (u use, known bool) {
	rank := v.Const.Rank()
	if n.Op.Domain != graph.OnnxDomain {
		return u, false
	}
	switch {
	case n.Op.Type == "MatMul" && i == 1:
		u.axis = rank - 2
		if rank != 2 {
			u.why = "MatMulNBits multiplies with a matrix"
		}
		return u, true
	case n.Op.Type == "Gemm" && i == 1:
		if n.Int("transB", 0) != 0 {
			u.axis = 1
		}
		if n.Int("transA", 0) != 0 || n.Float("alpha", 1) != 1 || n.Input(2) != nil && n.Float("beta", 1) != 1 {
			u.why = "MatMulNBits knows no transA, alpha or beta"
		}
		return u, true
	case n.Op.Type == "Gather" && i == 0:
		u.axis, u.gather = rank-1, true
		if rank != 2 || n.Int("axis", 0) != 0 && n.Int("axis", 0) != -2 {
			u.why = "GatherBlockQuantized is for rows of a matrix here"
		}
		return u, rank >= 2
	}
	spec := ops.Lookup(n)
	if spec == nil {
		return u, false
	}
	if port, ok := spec.InPort(i); !ok || port.Role != ops.Weight {
		return u, false
	}
	u.why = fmt.Sprintf("%s reads float weights", n.Op)
	switch n.Op.Type {
	case "Conv":
		u.axis, u.flat = 1, rank > 2
		return u, true
	case "LSTM", "GRU", "RNN":
		u.axis = rank - 1
		return u, true
	}
	return u, false
}

// nodeOverhead estimates what the nodes, names and attributes of a form take in
// a file, in bytes.
const nodeOverhead = 400

// elementOpset is the operator set of the default domain from which its Cast
// and DequantizeLinear know an element type, and elementIR the IR version that
// knows it (ONNX IR specification, versions; operator changelog).
var (
	elementOpset = map[tensor.DType]int{
		tensor.BFloat16: 13, tensor.Float8E4M3FN: 19, tensor.Float8E5M2: 19, tensor.Int4: 21, tensor.Uint4: 21,
		tensor.Float4E2M1: 23, tensor.Float8E8M0: 24, tensor.Int2: 25, tensor.Uint2: 25,
	}
	elementIR = map[tensor.DType]int64{
		tensor.BFloat16: 4, tensor.Float8E4M3FN: 9, tensor.Float8E5M2: 9, tensor.Int4: 10, tensor.Uint4: 10,
		tensor.Float4E2M1: 11, tensor.Float8E8M0: 12, tensor.Int2: 13, tensor.Uint2: 13,
	}
)

// TypeOpset returns the operator set from which QuantizeLinear and DequantizeLinear
// know a type of kernels, or 0 for those that they always knew.
func TypeOpset(name string) int {
	t, err := targets.Type(name)
	if err != nil {
		return 0
	}
	return elementOpset[t.DType]
}

// blockedOpset is the operator set that brought DequantizeLinear in blocks,
// halfScaleOpset that of scales in float16.
const (
	blockedOpset   = 21
	halfScaleOpset = 19
)

// FormOpset returns the operator set that a form needs for the scheme b where a
// line is divided (blocked) or not.
func FormOpset(f targets.FormName, b *quant.Blocks, blocked bool) int {
	if f == targets.Packed {
		return 1
	}
	need := max(elementOpset[b.DType], 13)
	if f == targets.Dequantize && blocked {
		need = max(need, blockedOpset)
	}
	if b.ScaleType == tensor.Float8E8M0 || b.ScaleType == tensor.Float8E4M3FN {
		need = max(need, elementOpset[b.ScaleType])
	}
	return need
}

// WeightOpset returns the operator set that a model needs on the target for the
// scheme b: that of the form which most matrices get. It is 1 where the form
// does not depend on the operator set.
func WeightOpset(t *targets.Target, b quant.Blocks) int {
	b, err := b.Complete()
	if err != nil {
		return 1
	}
	for _, f := range t.Forms {
		if f.Takes(b.Name, quant.ScaleName(b.ScaleType), b.Size) == "" {
			return FormOpset(f.Name, &b, b.Size > 0)
		}
	}
	return 1
}

// CheckWeights returns why the target takes no weights of scheme b.
func CheckWeights(t *targets.Target, b quant.Blocks) error {
	b, err := b.Complete()
	if err != nil {
		return err
	}
	if why := t.Refuses(b.Name, quant.ScaleName(b.ScaleType)); why != "" {
		return fmt.Errorf("%s takes no %s weights with %s scales: %s", t.Name, b.Name, quant.ScaleName(b.ScaleType), why)
	}
	return nil
}

// inBlocks plans the weights that are stored as Options.Blocks or BlocksOf
// say, in the first form of the target that takes them.
func (a *annotator) inBlocks(p *Plan, listed map[*graph.Value]int) {
	for g := range a.m.Scopes() {
		if g.Function() != nil {
			continue
		}
		for _, v := range g.Initializers() {
			if _, seen := listed[v]; seen || !v.IsConst() || v.IsInput() || v.IsOutput() || v.Const.Rank() < 2 || v.Const.Len() == 0 || !a.floating(v.Const.DType()) {
				continue
			}
			m, ok := a.matrixOf(v)
			if !ok {
				continue
			}
			b := *a.o.Blocks
			if own, ok := a.o.BlocksOf[v.ID]; ok {
				b = own
			}
			e := TensorPlan{Scope: g.Scope(), Tensor: v.Name(), Kind: Weight, AtLoad: true, Axis: m.axis, Flat: m.flat, Whole: a.o.PerTensor && b.Size == 0}
			if !a.form(&e, v, m, b) || e.StoredBytes(v.Const)+nodeOverhead >= int64(v.Const.Size()) {
				continue
			}
			listed[v] = len(p.Tensors)
			p.Tensors = append(p.Tensors, e)
		}
	}
}

// floating reports whether weights of type d can be stored in few bits.
func (a *annotator) floating(d tensor.DType) bool {
	return d == tensor.Float32 || d == tensor.Float16 || d == tensor.BFloat16
}

// form sets the form and scheme of e, and reports whether there is one.
func (a *annotator) form(e *TensorPlan, v *graph.Value, m matrix, b quant.Blocks) bool {
	b, err := b.Complete()
	if err != nil {
		return false
	}
	probe := *e
	l, err := probe.Lines(v.Const)
	if err != nil || l.K == 0 {
		return false
	}
	opset := v.Graph().Opset(graph.OnnxDomain)
	for _, f := range a.t.Forms {
		s := b
		if f.Name == targets.Packed {
			for s.Size > f.MinBlock && s.Size/2 >= l.K { // short lines need no larger blocks
				s.Size /= 2
			}
			if m.packed != "" || s.Size == 0 || v.Const.DType() == tensor.BFloat16 || m.mixed && l.K%s.Size != 0 {
				continue
			}
		}
		if f.Takes(s.Name, quant.ScaleName(s.ScaleType), s.Size) != "" || opset < FormOpset(f.Name, &s, s.Size > 0 || l.T.Rank() > 2) {
			continue
		}
		e.Form = f.Name
		e.setBlocks(s)
		return true
	}
	return false
}
