package accuracy

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/tensor"
)

// What is drawn of one product is the same to the last bit as what is drawn of it
// with all others, though which values are seen changes last bits.
func TestDrawnAlone(t *testing.T) {
	m, err := graph.Parse(`<ir_version: 8, opset_import: ["": 17]> g (float[1,3,33,33] x) => (float[1,24,17,17] y)
<float lo = {0}, float hi = {6}, float[32,3,3,3] w0 = {...}, float[200,32,1,1] wa = {...}, float[200,1,3,3] wb = {...}, float[24,200,1,1] wc = {...},
 float[200,24,1,1] wd = {...}, float[200,1,5,5] we = {...}, float[24,200,1,1] wf = {...}, float[24,24,3,3] wg = {...}> {
  s = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w0) rs = Clip (s, lo, hi)
  a = Conv (rs, wa) ra = Clip (a, lo, hi)
  b = Conv <group = 200, pads = [1,1,1,1]> (ra, wb) rb = Clip (b, lo, hi)
  c = Conv (rb, wc)
  d = Conv (c, wd) rd = Clip (d, lo, hi)
  e = Conv <group = 200, pads = [2,2,2,2]> (rd, we) re = Clip (e, lo, hi)
  f = Conv (re, wf) h = Add (c, f)
  y = Conv <pads = [1,1,1,1]> (h, wg)
}`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Infer(m); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(7, 8))
	fill := func(x *tensor.Tensor) {
		for i := range tensor.As[float32](x) {
			tensor.As[float32](x)[i] = float32(r.NormFloat64() * 0.3)
		}
	}
	plan := &qdq.Plan{}
	for n := range m.Graph.Nodes() {
		plan.Nodes = append(plan.Nodes, qdq.NodePlan{Scope: graph.MainScope, Node: n.Label(), Op: n.Op.String()})
	}
	for _, v := range m.Graph.Initializers() {
		if v.Const.Len() > 1 {
			fill(v.Const)
			plan.Tensors = append(plan.Tensors, qdq.TensorPlan{Scope: graph.MainScope, Tensor: v.Name(), Kind: qdq.Weight, Type: "i8", Axis: -1})
		}
	}
	x := tensor.New(tensor.Float32, 1, 3, 33, 33)
	fill(x)
	samples := func(_ context.Context, f func(map[string]ops.Data) error) error {
		return f(map[string]ops.Data{"x": x})
	}
	all, err := products(m, plan, false)
	if err != nil || len(all) != 8 {
		t.Fatal(len(all), err)
	}
	draw := func(of, list []product) (sums [][][]float32) {
		err := inTurn(t.Context(), m, nil, of, list, drawn{rows: minRows}, samples, 1, exec.SessionOptions{Threads: 1}, func(_ int, s [][]*moments) error {
			for _, p := range s {
				sums = append(sums, p[0].sums)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return sums
	}
	equal := func(a, b [][]float32) bool { return slices.EqualFunc(a, b, slices.Equal[[]float32]) }
	together := draw(all, all)
	others := 0
	for i := range all {
		if !equal(draw(all, all[i:i+1])[0], together[i]) {
			t.Errorf("inputs of %s are others alone", all[i].weight.Name())
		}
		if !equal(draw(all[i:i+1], all[i:i+1])[0], together[i]) {
			others++
		}
	}
	t.Logf("a program for one product gives other last bits in %d of %d cases", others, len(all))
}
