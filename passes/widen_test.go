package passes

import (
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
)

// TestWiden: a model in float16 computes in float32 between casts, in bodies
// too, and one that holds quantization stays.
func TestWiden(t *testing.T) {
	const text = `<ir_version: 8, opset_import: ["" : 13]>
g (float16[2,4] x, bool c) => (float16[2,3] y, float16[2,4] z)
<float16[4,3] w = {...}>
{
  z = Relu (x)
  y = If (c) <
    then_branch = a () => (float16[2,3] p) { p = MatMul (z, w) },
    else_branch = b () => (float16[2,3] q) { m = MatMul (x, w) q = Tanh (m) }
  >
}
`
	m, err := graph.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Prepare(t.Context(), m, Options{Widen: true, Check: true}); err != nil {
		t.Fatal(err)
	}
	got := graph.Text(m, 1)
	for _, want := range []string{"float16[2,4] x", "float16[2,3] y, float16[2,4] z", "float[4,3] w", "z_f32 = Relu (x_f32)", "p = MatMul (z_f32, w)", "y = Cast <to: int = 10> (y_f32)"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	m, err = graph.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Prepare(t.Context(), m, Options{Check: true}); err != nil {
		t.Fatal(err)
	}
	if got := graph.Text(m, 1); strings.Contains(got, "Cast") {
		t.Errorf("changed unasked:\n%s", got)
	}
}
