package eval_test

import (
	"math"
	"testing"

	"github.com/onnxq/onnxq/eval"
)

// Tensors have the range of their codes and what lies outside, weights their
// channels in both models.
func TestDetails(t *testing.T) {
	ref := traceModel(t, floatNodes)
	for _, nodes := range []string{
		"wd = DequantizeLinear (wq, sw, zw)\nx_q = QuantizeLinear (x, sw, z)\nx_dq = DequantizeLinear (x_q, sw, z)\na = Conv (x_dq, wd)\nr = Relu (a)\ny = Conv (r, w2)\n",
		"x_quantized = QuantizeLinear (x, sw, z)\nr_quantized = QLinearConv (x_quantized, sw, z, wq, sw, zw, s, zero)\nr = DequantizeLinear (r_quantized, s, zero)\ny = Conv (r, w2)\n",
	} {
		tr := eval.NewTrace(ref, traceModel(t, nodes))
		follow(t, tr, 30)
		list := tr.Tensors()
		if len(list) == 0 || list[0].Name != "x" {
			t.Fatalf("%+v", list)
		}
		// Codes of 0 to 255 around 128 at 0.01 are -1.28 to 1.27; x is within 1.
		x := list[0]
		if x.Type != "uint8" || math.Abs(x.Range[0]+1.28) > 1e-6 || math.Abs(x.Range[1]-1.27) > 1e-6 || x.Clipped != 0 || x.Seen[0] < -1 || x.Seen[1] > 1 || x.Seen[1]-x.Seen[0] < 1.9 {
			t.Errorf("%+v", x)
		}
		total := uint64(0)
		for _, c := range x.Histogram.Counts {
			total += c
		}
		if total != 30*64 || len(x.Histogram.Counts) > 128 {
			t.Errorf("%d values in %d bins", total, len(x.Histogram.Counts))
		}
	}
	narrow := eval.NewTrace(ref, traceModel(t, "h = Constant <value = float {0.004}> ()\nx_q = QuantizeLinear (x, h, z)\nx_dq = DequantizeLinear (x_q, h, z)\na = Conv (x_dq, w)\nr = Relu (a)\ny = Conv (r, w2)\n"))
	follow(t, narrow, 30)
	if len(narrow.Tensors()) != 0 {
		t.Errorf("a scale that is computed: %+v", narrow.Tensors())
	}
	tr := eval.NewTrace(ref, traceModel(t, "wd = DequantizeLinear (wq, sw, zw)\nx_q = QuantizeLinear (x, half, z)\nx_dq = DequantizeLinear (x_q, half, z)\na = Conv (x_dq, wd)\nr = Relu (a)\ny = Conv (r, w2)\n"))
	follow(t, tr, 30)
	// Codes of ±0.512: about half of the values are clipped.
	if x := tr.Tensors()[0]; x.Clipped < 0.4 || x.Clipped > 0.6 {
		t.Errorf("%g of x is clipped", x.Clipped)
	}
	// Codes of 0 and more are all that a Relu tells apart.
	relu := eval.NewTrace(ref, traceModel(t, "a = Conv (x, w)\na_q = QuantizeLinear (a, s, zero)\na_dq = DequantizeLinear (a_q, s, zero)\nr = Relu (a_dq)\ny = Conv (r, w2)\n"))
	follow(t, relu, 30)
	if list := relu.Tensors(); len(list) != 1 || list[0].Name != "a" || list[0].Clipped != 0 || list[0].Seen[0] > -0.1 {
		t.Errorf("%+v", list)
	}
	for _, v := range relu.Values() {
		if v.Name == "a" && (v.SQNR == nil || *v.SQNR < 25) {
			t.Errorf("%+v", v)
		}
	}
	w := tr.Weights()
	if len(w) != 2 || w[0].Name != "w" || len(w[0].Before) != 4 || w[0].Before[0] != [2]float32{-0.3, 0.5} || math.Abs(float64(w[0].After[3][1])-0.7) > 1e-6 || w[1].Before[0] != w[1].After[0] {
		t.Errorf("%+v", w)
	}
}
