package ops

import (
	"math"

	"github.com/onnxq/onnxq/graph"
)

// Saturation returns the bounds beyond which the readers of v do not tell its
// elements apart: what they make of a lesser or greater element is what they make
// of the bound itself, as HardSigmoid, HardSwish, Relu and Clip do, and a product
// of v with its own HardSigmoid. The bounds are infinite where some reader, or the
// caller of the model, tells all elements apart.
func Saturation(v *graph.Value) (lo, hi float64) {
	if v.IsOutput() || len(v.Uses()) == 0 {
		return math.Inf(-1), math.Inf(1)
	}
	lo, hi = math.Inf(1), math.Inf(-1)
	for _, u := range v.Uses() {
		a, b := math.Inf(-1), math.Inf(1)
		switch n := u.Node; {
		case n == nil:
		case n.Op == graph.OpKey{Type: "Mul"}:
			a = opens(n, v)
		case u.Index == 0 && n.Op == graph.OpKey{Type: "HardSwish"}:
			a = -3
		case u.Index == 0:
			if from, to, ok := ramp(n); ok {
				a, b = from, to
			}
		}
		lo, hi = min(lo, a), max(hi, b)
	}
	return lo, hi
}

// ramp returns the bounds beyond which n gives what it gives at the bound.
func ramp(n *graph.Node) (lo, hi float64, ok bool) {
	if n.Op != (graph.OpKey{Type: "HardSigmoid"}) {
		return ClampBounds(n)
	}
	slope, middle := float64(n.Float("alpha", 0.2)), float64(n.Float("beta", 0.5))
	return -middle / slope, (1 - middle) / slope, slope > 0
}

// opens returns the bound below which n, a Mul, gives 0 of v, since its other
// input is a HardSigmoid of v: -Inf where it is not.
func opens(n *graph.Node, v *graph.Value) float64 {
	for i, w := range n.Inputs() {
		if w == nil || n.Input(1-i) != v || w.DefNode() == nil {
			continue
		}
		if g := w.DefNode(); g.Op == (graph.OpKey{Type: "HardSigmoid"}) && g.Input(0) == v {
			if lo, _, ok := ramp(g); ok {
				return lo
			}
		}
	}
	return math.Inf(-1)
}
