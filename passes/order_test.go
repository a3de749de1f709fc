package passes

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/graph"
)

// orders returns the orders of a list that After allows, the list's own first.
func orders(list []Pass) (all [][]Pass) {
	order := make([]Pass, 0, len(list))
	in := func(list []Pass, name string) bool {
		return slices.ContainsFunc(list, func(p Pass) bool { return p.Name == name })
	}
	var extend func()
	extend = func() {
		if len(order) == len(list) {
			all = append(all, slices.Clone(order))
			return
		}
		for _, p := range list {
			if in(order, p.Name) || slices.ContainsFunc(p.After, func(need string) bool { return !in(order, need) }) {
				continue
			}
			order = append(order, p)
			extend()
			order = order[:len(order)-1]
		}
	}
	extend()
	return all
}

// names lists passes for a message.
func names(list []Pass) (s []string) {
	for _, p := range list {
		s = append(s, p.Name)
	}
	return s
}

// checkOrders fails unless preparing the model in the file before gives the
// bytes of want in every order of independent passes.
func checkOrders(t *testing.T, before, want []byte, o Options) {
	t.Helper()
	if o.FoldBudget == 0 {
		o.FoldBudget = DefaultFoldBudget
	}
	for _, order := range orders(prepare) {
		m := decode(t, before)
		if _, err := run(context.Background(), m, o, order); err != nil {
			t.Fatalf("in the order %v: %v", names(order), err)
		}
		if !bytes.Equal(encode(t, m), want) {
			t.Errorf("other bytes in the order %v", names(order))
		}
	}
}

// TestOrders prepares real models, and one that has something for each of the
// passes that are independent, in every order.
func TestOrders(t *testing.T) {
	if all := orders(prepare); len(all) < 2 || len(all) > 100 || !slices.Equal(names(all[0]), names(prepare)) {
		t.Fatalf("%d orders", len(all))
	}
	if n := len(orders(cleanup)); n != 1 {
		t.Errorf("%d orders of cleanup, of which this test runs none", n)
	}
	const text = `<ir_version: 3, opset_import: ["" : 13]>
g (float[0,2,6,6] x, float[4,2,3,3] w, float[4] k) => (float[n,8] y, float[n,8] z)
   <float[4,2,3,3] w = {...}, float[4] k = {1,2,3,4}, int64[8] pads = {0,0,1,1,0,0,1,1}, float[4,1,1] s = {1,2,3,4},
    float three = {3}, float zero = {0}, float six = {6}, float[144,8] a = {...}, float[8,8] b = {...}, float[1,8] bias = {1,2,3,4,5,6,7,8}, float[8] row = {1,2,3,4,5,6,7,8},
    float one = {1}, float half = {0.5}, float scale = {0.8}> {
  p = Pad(x, pads)
  c = Conv(p, w, k)
  m = Mul(c, s)
  h0 = Add(m, three)
  h1 = Clip(h0, zero, six)
  h2 = Mul(m, h1)
  h = Div(h2, six)
  f = Flatten(h)
  q0 = MatMul(f, a)
  q = Add(q0, row)
  g0 = Gemm<alpha = 0.5, beta = 2.0>(q, b, bias)
  t0 = Mul(g0, scale)
  t1 = Tanh(t0)
  t2 = Add(t1, one)
  t3 = Mul(t2, half)
  y = Mul(g0, t3)
  z = Relu(q)
}`
	m, err := graph.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	before := encode(t, m)
	m = decode(t, before)
	changes, err := Prepare(t.Context(), m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range changes {
		if c.Count == 0 && slices.ContainsFunc(orders(prepare), func(order []Pass) bool { return order[i].Name != c.Pass }) {
			t.Errorf("nothing to do for %s", c.Pass)
		}
	}
	if got := opsOf(m.Graph); got != "Conv HardSigmoid Mul Flatten Gemm Gemm Mul Sigmoid Mul Relu" {
		t.Errorf("left with %s", got)
	}
	checkOrders(t, before, encode(t, m), Options{})
	for _, r := range reals(t) {
		if len(r.model) > 4<<20 {
			continue
		}
		m := decode(t, r.model)
		if _, err := Prepare(t.Context(), m, Options{MinOpset: 18}); err != nil {
			t.Fatal(err)
		}
		checkOrders(t, r.model, encode(t, m), Options{MinOpset: 18})
	}
}
