package accuracy

import (
	"math"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// Bounds gives the least and greatest value of each channel of an activation
// over the calibration samples, or nil.
type Bounds func(v *graph.Value) (lo, hi []float32)

// Equalize evens out the ranges of the channels between two convolutions, so
// that one scale serves all of them: channel c of the value between is divided
// by s_c in the weight and bias of the first and multiplied in the weight of
// the second, which changes nothing but rounding where only operators stand
// between that commute with a positive factor per channel (Nagel et al., 2019,
// section 4.1).
//
// Where the second convolution is depthwise, each of its channels has a weight
// scale of its own, and s_c = (a_c / max a)^strength, with a_c the greatest
// magnitude of channel c, costs nothing; a strength below 1 leaves room above
// what the samples showed in all channels but the greatest. Elsewhere s_c = √(a_c / w_c), with w_c the greatest
// share of input channel c in the range of a row of weights, divides the
// difficulty between activation and weights (G. Xiao et al., "SmoothQuant",
// 2023, equation 4 with α = 1/2).
//
// It edits m, a prepared float model, and returns the number of values
// equalized. Ranges observed before do not hold for these values afterwards.
func Equalize(m *graph.Model, bounds Bounds, strength float64) int {
	count := 0
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if g.Function() == nil && n.Op == (graph.OpKey{Type: "Conv"}) && equalizeInto(n, bounds, strength) {
				count++
			}
		}
	}
	return count
}

// widest bounds how far the scales of two channels may lie apart.
const widest = 1 << 10

// equalizeInto equalizes the input of the convolution n.
func equalizeInto(n *graph.Node, bounds Bounds, strength float64) bool {
	x := n.Input(0)
	w := floats(n.Input(1))
	if x == nil || w == nil || n.Input(1).Const.Rank() < 3 || x.OnlyUse() != n {
		return false
	}
	first := source(x)
	if first == nil {
		return false
	}
	w1, channels := floats(first.Input(1)), first.Input(1).Const.Shape()[0]
	var b1 []float32
	if first.Input(2) != nil {
		if b1 = floats(first.Input(2)); len(b1) != channels {
			return false
		}
	}
	shape := n.Input(1).Const.Shape()
	groups := int(n.Int("group", 1))
	if groups < 1 || shape[1]*groups != channels || shape[0]%groups != 0 {
		return false
	}
	lo, hi := bounds(x)
	if len(lo) != channels {
		return false
	}
	scale := factors(w, shape, groups, lo, hi, strength)
	if scale == nil {
		return false
	}
	inner1 := len(w1) / channels
	nw1 := make([]float32, len(w1))
	for i, v := range w1 {
		nw1[i] = float32(float64(v) / scale[i/inner1])
	}
	nw := make([]float32, len(w))
	for i, v := range w {
		nw[i] = float32(float64(v) * scale[inputChannel(i, len(w), shape, groups)])
	}
	bad := func(v float32) bool { return v-v != 0 }
	if slices.ContainsFunc(nw1, bad) || slices.ContainsFunc(nw, bad) {
		return false
	}
	replace(first, 1, nw1)
	replace(n, 1, nw)
	if b1 != nil {
		nb := make([]float32, len(b1))
		for c, v := range b1 {
			nb[c] = float32(float64(v) / scale[c])
		}
		replace(first, 2, nb)
	}
	return true
}

// inputChannel returns the input channel that weight element i of a
// convolution multiplies.
func inputChannel(i, n int, shape []int, groups int) int {
	inner := n / (shape[0] * shape[1])
	o := i / (shape[1] * inner)
	return o/(shape[0]/groups)*shape[1] + i/inner%shape[1]
}

// factors returns s_c for each channel, 1 at the channel of the greatest
// range, or nil if there is nothing to gain.
func factors(w []float32, shape []int, groups int, lo, hi []float32, strength float64) []float64 {
	channels := len(lo)
	a := make([]float64, channels)
	top := 0.0
	for c := range a {
		a[c] = math.Max(-float64(lo[c]), float64(hi[c]))
		if math.IsInf(a[c], 0) || a[c] != a[c] {
			return nil
		}
		top = math.Max(top, a[c])
	}
	if top == 0 {
		return nil
	}
	share := make([]float64, channels)
	depthwise := shape[1] == 1
	if !depthwise {
		row := len(w) / shape[0]
		for o := range shape[0] {
			most := 0.0
			for _, v := range w[o*row:][:row] {
				most = math.Max(most, math.Abs(float64(v)))
			}
			if most == 0 {
				continue
			}
			for i := o * row; i < (o+1)*row; i++ {
				c := inputChannel(i, len(w), shape, groups)
				share[c] = math.Max(share[c], math.Abs(float64(w[i]))/most)
			}
		}
	}
	s := make([]float64, channels)
	most, widestShare := 0.0, 0.0
	for c := range s {
		switch {
		case a[c] == 0:
			continue // never active: see below
		case depthwise:
			s[c] = math.Pow(a[c], strength)
		case share[c] == 0:
			continue
		default:
			s[c] = math.Sqrt(a[c] / share[c])
		}
		most, widestShare = math.Max(most, s[c]), math.Max(widestShare, s[c]*share[c])
	}
	if most == 0 {
		return nil
	}
	spread := false
	for c := range s {
		if s[c] == 0 {
			// Nothing to even out, but its weights must not widen the rows.
			s[c] = most
			if share[c] > 0 {
				s[c] = math.Min(most, widestShare/share[c])
			}
		}
		s[c] = math.Max(s[c]/most, 1.0/widest)
		spread = spread || s[c] != 1
	}
	if !spread {
		return nil
	}
	return s
}

// source returns the convolution that alone makes x, through operators that
// commute with a positive factor per channel, or nil.
func source(x *graph.Value) *graph.Node {
	for {
		n := x.DefNode()
		if n == nil || n.Op.Domain != graph.OnnxDomain || x.OnlyUse() == nil {
			return nil
		}
		switch n.Op.Type {
		case "PRelu":
			if floats(n.Input(1)) == nil || len(n.Outputs()) != 1 || n.Input(0) == nil {
				return nil
			}
			x = n.Input(0)
		case "Relu", "LeakyRelu", "AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool":
			if len(n.Outputs()) != 1 || n.Input(0) == nil {
				return nil
			}
			x = n.Input(0)
		case "Conv":
			if floats(n.Input(1)) == nil || n.Input(1).Const.Rank() < 3 {
				return nil
			}
			return n
		default:
			return nil
		}
	}
}

// holdsFloats reports whether v is a float32 constant.
func holdsFloats(v *graph.Value) bool {
	return v != nil && v.IsConst() && v.Const.DType() == tensor.Float32
}

func floats(v *graph.Value) []float32 {
	if !holdsFloats(v) {
		return nil
	}
	return tensor.As[float32](v.Const)
}

// replace gives input i of n, a constant, other elements.
func replace(n *graph.Node, i int, data []float32) {
	put(n, i, tensor.Of(data, n.Input(i).Const.Shape()...))
}
