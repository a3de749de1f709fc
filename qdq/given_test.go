package qdq_test

import (
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/qdq"
)

// What computes on codes already says so, with a bias of codes too.
func TestIntegersStay(t *testing.T) {
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["" : 13]> g (float[2,4] x) => (float[2,3] y, float[2,3] z)
<int8[4,3] w = {...}, float s = {0.1}, int8[3,4] v = {...}, int32[3] b = {...}, uint8 zero = {0}>
{ c, cs, cz = DynamicQuantizeLinear (x) i = MatMulInteger (c, w, cz) f = Cast <to: int = 1> (i) y = Mul (f, cs)
 q = QuantizeLinear (x, s, zero) d = DequantizeLinear (q, s, zero) wv = DequantizeLinear (v, s) bv = DequantizeLinear (b, s) z = Gemm <transB: int = 1> (d, wv, bv) }`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Infer(m); err != nil {
		t.Fatal(err)
	}
	plan, err := qdq.Annotate(m, ortCPU(t), qdq.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if n := plan.Count(qdq.Integers); n != 2 {
		t.Errorf("%d nodes, want 2: %+v", n, plan.Nodes)
	}
}
