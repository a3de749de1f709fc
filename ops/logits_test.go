package ops_test

import (
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
)

// Logits are what becomes probabilities that leave the model, and nothing that
// gates other values.
func TestLogits(t *testing.T) {
	for _, c := range []struct {
		name, nodes string
		want        bool
	}{
		{"probabilities", "y = Sigmoid (v)", true},
		{"moved about", "a = Reshape (v, s) c = Concat <axis = 1> (a, a) p = Sigmoid (c) y = Transpose (p)", true},
		{"score of an object in a class", "p = Sigmoid (v) o = Relu (x) y = Mul (p, o)", true},
		{"gate", "p = Sigmoid (v) z = Mul (p, v) y = MatMul (z, w)", false},
		{"other function", "p = Tanh (v) y = Identity (p)", false},
		{"computed with before", "a = Neg (v) y = Sigmoid (a)", false},
		{"output as it is", "y = Identity (v)", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : 14]> g (float[4,4] x) => (float[?,?] y) <int64[2] s = {4, 4}, float[4,4] w = {...}> { v = Relu (x) ` + c.nodes + ` }`)
			if err != nil {
				t.Fatal(err)
			}
			if got := ops.Logits(m)[m.Graph.First().Output(0).ID]; got != c.want {
				t.Errorf("%v", got)
			}
		})
	}
}
