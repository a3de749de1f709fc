package eval

import (
	"math"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/fusion"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// Tensor is an activation that is quantized, and what of its values the codes
// hold.
type Tensor struct {
	Scope string `json:"scope"`
	Name  string `json:"name"`
	Type  string `json:"type"` // of the codes, such as uint8
	// Range is what the codes stand for, Seen the smallest and the largest value
	// in the float model.
	Range [2]float64 `json:"range"`
	Seen  [2]float64 `json:"seen"`
	// Clipped is the share of values that lie outside of Range by more than half
	// a step, as far as their readers tell them apart (ops.Saturation).
	Clipped float64 `json:"clipped"`
	// Histogram counts the values of the float model.
	Histogram Histogram `json:"histogram"`
}

// Histogram counts values in bins of equal width from Start on.
type Histogram struct {
	Start  float64  `json:"start"`
	Width  float64  `json:"width"`
	Counts []uint64 `json:"counts"`
}

// Weight compares a weight by output channel.
type Weight struct {
	Node string `json:"node"`
	Name string `json:"name"` // in the float model
	// Before and After are the smallest and the largest element of each channel
	// in the float model and in the quantized one. Passes such as equalization
	// move them between channels.
	Before [][2]float32 `json:"before"`
	After  [][2]float32 `json:"after"`
}

// detailBins is the number of histogram bins on each side of 0.
const detailBins = 256

// codes describes what gives the codes of a value.
type codes struct {
	dtype     tensor.DType
	low, high float64
	step      float64
}

// codesOf returns what the codes stand for that n gives, or nil if they do not
// have one constant scale.
func codesOf(n *graph.Node) *codes {
	scale, zero := outputParams(n)
	if scale == nil || scale.Const == nil || scale.Const.Len() != 1 || scale.Const.DType() != tensor.Float32 {
		return nil
	}
	t, z := tensor.Uint8, int64(0)
	if zero != nil {
		if zero.Const == nil || zero.Const.Len() != 1 {
			return nil
		}
		t = zero.Const.DType()
		list, err := tensor.Int64s(zero.Const)
		if err != nil {
			return nil
		}
		z = list[0]
	}
	lo, hi, ok := t.IntRange()
	if !ok {
		return nil
	}
	s := float64(tensor.As[float32](scale.Const)[0])
	return &codes{dtype: t, low: float64(lo-z) * s, high: float64(hi-z) * s, step: s}
}

// observe counts what the float model has of a value that is quantized.
func (p *pair) observe(sample int, x *tensor.Tensor) {
	if p.codes == nil {
		return
	}
	if p.seenBy == nil {
		p.seenBy = calibration.NewObserver(detailBins, -1)
	}
	data := tensor.As[float32](x)
	// The observer has no channels, so it cannot fail.
	_ = p.seenBy.Update(sample, x.Shape(), data)
	lo, hi := p.codes.low-p.codes.step/2, p.codes.high+p.codes.step/2
	for _, f := range data {
		if v := p.clamp(float64(f)); (v < lo || v > hi) && v > -1e30 && !math.IsInf(v, 1) {
			p.clipped++
		}
	}
}

// Tensors returns the activations that are quantized, in the order of the float
// model. Those with rescaled channels are left out: their codes stand for other
// values than those of the float model.
func (t *Trace) Tensors() []Tensor {
	list := []Tensor{}
	for _, p := range t.pairs {
		if p.codes == nil || p.seenBy == nil || p.gain != nil || p.seenBy.Stats().Count == 0 {
			continue
		}
		s := p.seenBy.Stats()
		list = append(list, Tensor{
			Scope: p.ref.Graph().Scope(), Name: p.ref.Name(), Type: p.codes.dtype.String(), Range: [2]float64{p.codes.low, p.codes.high},
			Seen: [2]float64{float64(s.Min), float64(s.Max)}, Clipped: float64(p.clipped) / float64(s.Count), Histogram: trimmed(&s.Hist),
		})
	}
	return list
}

// maxBins bounds the number of bins of a Histogram.
const maxBins = 128

// trimmed leaves out empty bins at both ends, and joins bins where there are
// many.
func trimmed(h *calibration.Histogram) Histogram {
	first, last := 0, len(h.Counts)
	for first < last && h.Counts[first] == 0 {
		first++
	}
	for last > first && h.Counts[last-1] == 0 {
		last--
	}
	out := Histogram{Start: h.Edge(first), Width: h.Width(), Counts: append([]uint64{}, h.Counts[first:last]...)}
	for len(out.Counts) > maxBins {
		half := out.Counts[:(len(out.Counts)+1)/2]
		for i := range half {
			sum := out.Counts[2*i]
			if 2*i+1 < len(out.Counts) {
				sum += out.Counts[2*i+1]
			}
			half[i] = sum
		}
		out.Counts, out.Width = half, 2*out.Width
	}
	return out
}

// Weights compares the weights of the main graph by output channel, in the
// order of the float model: those that both models have as constants.
func (t *Trace) Weights() []Weight {
	made := map[string]*graph.Node{} // what makes a value, by name
	for n := range t.plus.Graph.Nodes() {
		for _, v := range n.Outputs() {
			if v != nil {
				made[v.Name()] = n
			}
		}
	}
	list := []Weight{}
	for n := range t.ref.Graph.Nodes() {
		spec := ops.Lookup(n)
		if spec == nil || n.Output(0) == nil {
			continue
		}
		other := made[n.Output(0).Name()]
		if other == nil {
			other = made[n.Output(0).Name()+"_quantized"]
		}
		if other == nil {
			continue
		}
		for i, v := range n.Inputs() {
			port, _ := spec.InPort(i)
			if v == nil || port.Role != ops.Weight || !v.IsConst() || v.Const.DType() != tensor.Float32 || v.Const.Rank() < 2 || n.Op.Type == "Gather" {
				continue
			}
			axis := spec.Axis(n, i, v.Const.Rank())
			w := decoded(other, n.Op.Type, i)
			if axis < 0 || w == nil || w.DType() != tensor.Float32 || tensor.ShapeString(w.Shape()) != tensor.ShapeString(v.Const.Shape()) {
				continue
			}
			list = append(list, Weight{Node: n.Label(), Name: v.Name(), Before: channelRanges(v.Const, axis), After: channelRanges(w, axis)})
		}
	}
	return list
}

// decoded returns the constant input i of a node of type op as float32, behind
// a DequantizeLinear, or an integer kernel in its place; nil if there is none.
func decoded(n *graph.Node, op string, i int) *tensor.Tensor {
	var data, scale, zero *graph.Value
	axis := int64(1)
	switch {
	case n.Op.Type == op:
		v := n.Input(i)
		if v == nil {
			return nil
		}
		if v.IsConst() {
			return v.Const
		}
		dq := v.DefNode()
		if !fusion.IsDQ(dq) || dq.Int("block_size", 0) != 0 {
			return nil
		}
		data, scale, zero, axis = dq.Input(0), dq.Input(1), dq.Input(2), dq.Int("axis", 1)
	case n.Op.Type == "QLinearConv" && op == "Conv", n.Op.Type == "QLinearMatMul" && op == "MatMul", n.Op.Type == "QGemm" && op == "Gemm":
		data, scale, zero = n.Input(3), n.Input(4), n.Input(5)
		if op == "Conv" || n.Int("transB", 0) == 1 {
			axis = 0
		}
	}
	if data == nil || data.Const == nil || scale == nil || scale.Const == nil || scale.Const.DType() != tensor.Float32 || zero != nil && zero.Const == nil {
		return nil
	}
	codes, err := tensor.Int64s(data.Const)
	if err != nil {
		return nil
	}
	var zeros []int64
	if zero != nil {
		if zeros, err = tensor.Int64s(zero.Const); err != nil {
			return nil
		}
	}
	shape, scales := data.Const.Shape(), tensor.As[float32](scale.Const)
	if axis < 0 {
		axis += int64(len(shape))
	}
	inner := 1
	if len(scales) > 1 {
		if axis < 0 || axis >= int64(len(shape)) || shape[axis] != len(scales) || zeros != nil && len(zeros) != len(scales) {
			return nil
		}
		for _, d := range shape[axis+1:] {
			inner *= d
		}
	}
	out := tensor.New(tensor.Float32, shape...)
	x := tensor.As[float32](out)
	for k, q := range codes {
		c := k / inner % len(scales)
		if zeros != nil {
			q -= zeros[min(c, len(zeros)-1)]
		}
		x[k] = float32(q) * scales[c]
	}
	return out
}

// channelRanges returns the smallest and the largest element of each slice along
// axis.
func channelRanges(t *tensor.Tensor, axis int) [][2]float32 {
	shape, inner := t.Shape(), 1
	for _, d := range shape[axis+1:] {
		inner *= d
	}
	if t.Len() == 0 {
		return [][2]float32{}
	}
	out := make([][2]float32, shape[axis])
	for i := range out {
		out[i] = [2]float32{math.MaxFloat32, -math.MaxFloat32}
	}
	for k, f := range tensor.As[float32](t) {
		r := &out[k/inner%shape[axis]]
		r[0], r[1] = min(r[0], f), max(r[1], f)
	}
	return out
}
