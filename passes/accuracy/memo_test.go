package accuracy_test

import (
	"reflect"
	"testing"

	"github.com/onnxq/onnxq/passes/accuracy"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// With a Memo, results are those without one: the first time, when all is
// known, and after the parameters of one layer have changed.
func TestMemo(t *testing.T) {
	m := parse(t, head+`(float[1,6,9] x) => (float[1,4,9] y) <float[8,6,3] w = {...}, float[8] b = {...}, float[4,8,3] w2 = {...}, float[4] b2 = {...}>
	{ h = Conv <pads = [1,1]> (x, w, b) y = Conv <pads = [1,1]> (h, w2, b2) }`)
	p := planOf(t, m, qdq.Options{})
	st := observe(t, m)
	run := func(memo *accuracy.Memo, factor float32) (params []quant.Params, counts [3]int, biases []float32) {
		params, _, err := p.Resolve(m, st.ranges, 0)
		if err != nil {
			t.Fatal(err)
		}
		values, err := p.Values(m)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range values {
			if v.Name() == "h" {
				params[i].Scale[0] *= factor
			}
		}
		if counts[0], counts[1], err = accuracy.FitPairs(m, p, params, st.bounds, memo, 0); err != nil {
			t.Fatal(err)
		}
		q := m.Clone()
		if counts[2], err = accuracy.CorrectBias(q, p, params, st.mean, nil, memo, 0); err != nil {
			t.Fatal(err)
		}
		for n := range q.Graph.Nodes() {
			biases = append(biases, tensor.As[float32](n.Input(2).Const)...)
		}
		return params, counts, biases
	}
	var memo accuracy.Memo
	for _, factor := range []float32{1, 1, 0.5, 1} {
		params, counts, biases := run(&memo, factor)
		want, wantCounts, wantBiases := run(nil, factor)
		if counts[0] == 0 || counts[2] != 2 {
			t.Fatalf("%v: nothing to do", counts)
		}
		if !reflect.DeepEqual(params, want) || counts != wantCounts || !reflect.DeepEqual(biases, wantBiases) {
			t.Errorf("factor %v: %v, %v, want %v, %v", factor, counts, biases, wantCounts, wantBiases)
		}
	}
}
