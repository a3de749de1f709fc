package passes_test

import (
	"math"
	"testing"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes"
	"github.com/onnxq/onnxq/tensor"
)

// Experimental operators of old files become what they compute.
func TestWithdrawn(t *testing.T) {
	at := func(c, h, w int) float64 { return float64(c*12 + h*4 + w) }
	for _, c := range []struct {
		node  string
		shape []int // of the result, for the input [1,2,3,4] that counts from 0
		want  func(c, h, w int) float64
	}{
		{`ImageScaler <scale: float = 0.5, bias: floats = [1.0, -2.0]> (x)`, []int{1, 2, 3, 4}, func(c, h, w int) float64 { return at(c, h, w)/2 + []float64{1, -2}[c] }},
		{`ImageScaler <scale: float = 2.0> (x)`, []int{1, 2, 3, 4}, func(c, h, w int) float64 { return 2 * at(c, h, w) }},
		{`Crop <border: ints = [1, 0, 1, 2]> (x)`, []int{1, 2, 1, 2}, func(c, h, w int) float64 { return at(c, h, w+1) }},
		{`Crop <border: ints = [1, 1, 0, 0], scale: ints = [2, 2]> (x)`, []int{1, 2, 2, 2}, func(c, h, w int) float64 { return at(c, h+1, w+1) }},
		{`Affine <alpha: float = 3.0, beta: float = -1.0> (x)`, []int{1, 2, 3, 4}, func(c, h, w int) float64 { return 3*at(c, h, w) - 1 }},
		{`Scale <scale: float = 0.25> (x)`, []int{1, 2, 3, 4}, func(c, h, w int) float64 { return at(c, h, w) / 4 }},
		{`ScaledTanh <alpha: float = 2.0, beta: float = 0.1> (x)`, []int{1, 2, 3, 4}, func(c, h, w int) float64 { return 2 * math.Tanh(at(c, h, w)/10) }},
		{`ParametricSoftplus <alpha: float = 2.0, beta: float = 0.1> (x)`, []int{1, 2, 3, 4}, func(c, h, w int) float64 { return 2 * math.Log1p(math.Exp(at(c, h, w)/10)) }},
	} {
		t.Run(c.node, func(t *testing.T) {
			m, err := graph.Parse("<ir_version: 3, opset_import: [\"\" : 7]>\ng (float[1,2,3,4] x) => (float[a,b,c,d] y) { y = " + c.node + " }")
			if err != nil {
				t.Fatal(err)
			}
			if n, err := passes.ReplaceWithdrawn(m); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			p, err := exec.Compile(m, exec.Options{})
			if err != nil {
				t.Fatal(err)
			}
			x := tensor.New(tensor.Float32, 1, 2, 3, 4)
			for i := range tensor.As[float32](x) {
				tensor.As[float32](x)[i] = float32(i)
			}
			out, err := p.NewSession(exec.SessionOptions{}).Run(t.Context(), map[string]ops.Data{"x": x}, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			y := out[0].(*tensor.Tensor)
			if got := y.Shape(); len(got) != 4 || got[1] != c.shape[1] || got[2] != c.shape[2] || got[3] != c.shape[3] {
				t.Fatalf("shape %v, want %v", got, c.shape)
			}
			for i, v := range tensor.As[float32](y) {
				w, rest := i%c.shape[3], i/c.shape[3]
				if want := c.want(rest/c.shape[2], rest%c.shape[2], w); math.Abs(float64(v)-want) > 1e-5*(1+math.Abs(want)) {
					t.Errorf("element %d is %g, want %g", i, v, want)
				}
			}
		})
	}
}
