package exec

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// TestFlexAttentionGraphs compares FlexAttention that holds graphs, one of
// which captures a value from around it, with the operators it stands for.
func TestFlexAttentionGraphs(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	random := func(shape ...int) *tensor.Tensor {
		x := tensor.New(tensor.Float32, shape...)
		for i := range tensor.As[float32](x) {
			tensor.As[float32](x)[i] = float32(r.NormFloat64())
		}
		return x
	}
	feeds := map[string]ops.Data{"q": random(2, 4, 3, 8), "k": random(2, 4, 5, 8), "v": random(2, 4, 5, 6), "bias": random(3, 5)}
	run := func(body string) *tensor.Tensor {
		t.Helper()
		m, err := graph.Parse(`<ir_version: 10, opset_import: ["" : 21, "ai.onnx.preview" : 1]>
			g (float[2,4,3,8] q, float[2,4,5,8] k, float[2,4,5,6] v, float[3,5] bias) => (float[2,4,3,6] y) <float half = {0.5}, float two = {2}> {` + body + "}")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ops.Infer(m); err != nil {
			t.Fatal(err)
		}
		p, err := Compile(m, Options{})
		if err != nil {
			t.Fatal(err)
		}
		out, err := p.NewSession(SessionOptions{Threads: 2}).Run(context.Background(), feeds, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return out[0].(*tensor.Tensor)
	}
	const (
		scores = "kt = Transpose<perm = [0, 1, 3, 2]>(k) qk = MatMul(q, kt) s = Mul(qk, half)"
		flex   = "y = ai.onnx.preview.FlexAttention<scale = 0.5"
	)
	score := ", score_mod = sm (float[a,b,c,d] x) => (float[a,b,c,d] z) { z = Add(x, bias) }"
	prob := ", prob_mod = pm (float[a,b,c,d] p) => (float[a,b,c,d] w) { u = Mul(p, two) w = Sub(u, p) }"
	for _, c := range []struct{ flex, plain string }{
		{flex + ">(q, k, v)", scores + " p = Softmax(s) y = MatMul(p, v)"},
		{flex + score + ">(q, k, v)", scores + " b = Add(s, bias) p = Softmax(b) y = MatMul(p, v)"},
		{flex + score + prob + ">(q, k, v)", scores + " b = Add(s, bias) p = Softmax(b) u = Mul(p, two) w = Sub(u, p) y = MatMul(w, v)"},
		{flex + ", softmax_precision = 11, prob_mod = pm (p) => (w) { w = Add(p, p) }>(q, k, v)", scores + " p = Softmax(s) w = Add(p, p) y = MatMul(w, v)"},
	} {
		if d := distance(run(c.flex), run(c.plain)); d > 1e-6 {
			t.Errorf("%s: relative distance %g", c.flex, d)
		}
	}
	m, err := graph.Parse(fmt.Sprintf(`<ir_version: 10, opset_import: ["" : 21, "ai.onnx.preview" : 1]>
		g (float[1,1,2,2] q) => (y) { %s, score_mod = sm (x) => (z) <int64[1] flat = {-1}> { z = Reshape(x, flat) }>(q, q, q) }`, flex))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Compile(m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.NewSession(SessionOptions{}).Run(context.Background(), map[string]ops.Data{"q": random(1, 1, 2, 2)}, nil, nil); err == nil {
		t.Error("a graph that changes the shape of the scores is accepted")
	}
}
