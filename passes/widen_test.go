package passes

import (
	"bytes"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
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

// TestStoreHalves: constants that float16 holds are stored so, also where a body
// reads them; those that it does not hold, that codes are made with or that are
// small stay as they are. The model computes the same.
func TestStoreHalves(t *testing.T) {
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : 19]>
g (float[16,16] x, bool c) => (float[16,16] y)
<float[16,16] exact = {...}, float[16,16] other = {...}, float[16] small = {...}, float[256] scale = {...}, int8[256,1] q = {...}>
{
  a = Add (x, exact)
  b = Mul (a, other)
  s = Add (b, small)
  d = DequantizeLinear <axis = 0> (q, scale)
  shape = Constant <value_ints = [16, 16]> ()
  r = Reshape (d, shape)
  t = Sub (s, r)
  y = If (c) <
    then_branch = a () => (float[16,16] p) { p = Add (t, exact) },
    else_branch = b () => (float[16,16] q2) { q2 = Identity (t) }
  >
}
`)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range m.Graph.Initializers() {
		if v.Const.DType() != tensor.Float32 {
			continue
		}
		x := tensor.As[float32](v.Const)
		for i := range x {
			x[i] = float32(i-100) / 8
			if v.Name() == "other" && i == 255 {
				x[i] = 1.0001
			}
		}
	}
	if _, err := ops.Infer(m); err != nil {
		t.Fatal(err)
	}
	x := tensor.New(tensor.Float32, 16, 16)
	for i := range tensor.As[float32](x) {
		tensor.As[float32](x)[i] = float32(i) / 7
	}
	run := func() []byte {
		p, err := exec.Compile(m, exec.Options{})
		if err != nil {
			t.Fatal(err)
		}
		out, err := p.NewSession(exec.SessionOptions{}).Run(t.Context(), map[string]ops.Data{"x": x, "c": tensor.Scalar(true)}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return out[0].(*tensor.Tensor).Bytes()
	}
	want := run()
	if n := StoreHalves(m); n != 1 {
		t.Errorf("%d constants", n)
	}
	if err := m.Verify(); err != nil {
		t.Fatal(err)
	}
	for _, v := range m.Graph.Initializers() {
		if half := v.Const.DType() == tensor.Float16; half != (v.Name() == "exact_f16") {
			t.Errorf("%q is of %v", v.Name(), v.Const.DType())
		}
	}
	if !bytes.Equal(run(), want) {
		t.Error("the model computes something else")
	}
}
