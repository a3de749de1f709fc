package ops_test

import (
	"math"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
)

// What lies beyond the bounds makes no difference to any reader, and bounds that
// some reader does not have are infinite.
func TestSaturation(t *testing.T) {
	inf := math.Inf(1)
	for _, c := range []struct {
		name, nodes string
		lo, hi      float64
	}{
		{"hard sigmoid", "y = HardSigmoid <alpha = 0.25, beta = 0.5> (v)", -2, 2},
		{"falling", "y = HardSigmoid <alpha = -0.25> (v)", -inf, inf},
		{"hard swish", "y = HardSwish (v)", -3, inf},
		{"relu and clip", "a = Relu (v) b = Clip (v, low, high) y = Add (a, b)", -4, inf},
		{"clip", "y = Clip (v, low, high)", -4, 2},
		{"own gate", "g = HardSigmoid <alpha = 0.125> (v) y = Mul (v, g)", -4, inf},
		{"own gate before", "g = HardSigmoid <alpha = 0.125> (v) y = Mul (g, v)", -4, inf},
		{"gate of another", "g = HardSigmoid (x) h = Relu (v) a = Mul (v, g) y = Add (a, h)", -inf, inf},
		{"square", "y = Mul (v, v)", -inf, inf},
		{"all of it as well", "a = HardSwish (v) y = Add (a, v)", -inf, inf},
		{"as a bound", "y = Clip (x, v)", -inf, inf},
		{"output", "z = Relu (v) y = Identity (v)", -inf, inf},
	} {
		t.Run(c.name, func(t *testing.T) {
			outputs := "(float[4] y)"
			if c.name == "output" {
				outputs = "(float[4] v, float[4] z)"
			}
			m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : 14]> g (float[4] x) => ` + outputs + ` <float low = {-4}, float high = {2}> { v = Neg (x) ` + c.nodes + ` }`)
			if err != nil {
				t.Fatal(err)
			}
			for v := range m.Graph.First().Outputs() {
				if lo, hi := ops.Saturation(m.Graph.First().Output(v)); lo != c.lo || hi != c.hi {
					t.Errorf("[%g, %g], want [%g, %g]", lo, hi, c.lo, c.hi)
				}
			}
		})
	}
}
