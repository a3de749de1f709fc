package passes

import (
	"context"
	"fmt"
	"math/rand"
	"slices"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// chain is a model of n nodes, one behind the other, with shape arithmetic,
// constants and branches in between.
func chain(n int) *graph.Model {
	return build(7, 11, func(b *builder) {
		x := b.float("x", "N", 4)
		cond := b.in("cond", tensor.Bool)
		w := b.rand("w", 4, 4)
		for i := 0; i < n; i += 8 {
			name := func(s string) string { return fmt.Sprint(s, i) }
			k := b.op("Constant", name("k"), nil, graph.TensorAttr("value", tensor.Of([]int64{4})))
			s := b.op("Shape", name("s"), vals{x})
			g := b.op("Slice", name("g"), vals{s, b.ints(name("b"), 0), b.ints(name("e"), 1)})
			c := b.op("Concat", name("c"), vals{g, k}, graph.Int("axis", 0))
			r := b.op("Reshape", name("r"), vals{x, c})
			m := b.op("MatMul", name("m"), vals{r, w})
			a := b.op("Add", name("a"), vals{m, b.rand(name("bias"), 4)})
			x = b.op("Softmax", name("x"), vals{a})
			if i%80 == 0 {
				branch := func() *graph.Graph {
					return b.body(func(s *builder) { s.out(tensor.Float32, 2, s.op("Neg", b.m.UniqueName("neg"), vals{x})) })
				}
				x = b.op("If", name("if"), vals{cond}, graphAttr("then_branch", branch()), graphAttr("else_branch", branch()))
			}
		}
		b.out(tensor.Float32, 2, x)
	})
}

// TestLarge prepares large graphs with all invariants checked after each pass;
// BenchmarkPrepare says how the time grows.
func TestLarge(t *testing.T) {
	for name, m := range map[string]*graph.Model{"chain": chain(10000), "star": star(20000)} {
		if _, err := Prepare(context.Background(), m, Options{MinOpset: 21, Check: true}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

// star is a model of n nodes that all read one value, most of which do nothing
// or the same.
func star(n int) *graph.Model {
	return build(8, 13, func(b *builder) {
		x := b.op("Relu", "r", vals{b.float("x", 4)})
		var all vals
		for i := range n / 4 {
			y := b.op("Identity", fmt.Sprint("i", i), vals{x})
			y = b.op("Exp", fmt.Sprint("e", i), vals{y})
			y = b.op("LeakyRelu", fmt.Sprint("l", i), vals{y}, graph.Float("alpha", float32(i+1)))
			k := b.op("Constant", fmt.Sprint("k", i), nil, graph.TensorAttr("value", tensor.Of([]float32{float32(i % 7)}, 1)))
			all = append(all, b.op("Mul", fmt.Sprint("m", i), vals{y, k}))
		}
		b.out(tensor.Float32, 1, b.op("Concat", "y", all, graph.Int("axis", 0)))
	})
}

func BenchmarkPrepare(b *testing.B) {
	for name, make := range map[string]func(int) *graph.Model{"chain": chain, "star": star} {
		for _, n := range []int{5000, 10000, 20000} {
			b.Run(fmt.Sprint(name, n), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					m := make(n)
					b.StartTimer()
					if _, err := Prepare(context.Background(), m, Options{MinOpset: 21}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// shuffle puts the nodes of g into another topological order.
func shuffle(g *graph.Graph, rng *rand.Rand) {
	waiting := map[*graph.Node]int{}
	readers := map[*graph.Node][]*graph.Node{}
	var ready []*graph.Node
	for n := range g.Nodes() {
		reads := map[*graph.Node]bool{}
		var visit func(n *graph.Node)
		visit = func(m *graph.Node) {
			for _, v := range m.Inputs() {
				if v != nil && v.Graph() == g && v.DefNode() != nil {
					reads[v.DefNode()] = true
				}
			}
			for _, a := range m.Attrs {
				for _, s := range a.Subgraphs() {
					for k := range s.Nodes() {
						visit(k)
					}
					for _, v := range s.Outputs() {
						if v.Graph() == g && v.DefNode() != nil {
							reads[v.DefNode()] = true
						}
					}
				}
			}
		}
		visit(n)
		for d := range reads {
			readers[d] = append(readers[d], n)
		}
		if waiting[n] = len(reads); len(reads) == 0 {
			ready = append(ready, n)
		}
	}
	byID := func(a, b *graph.Node) int { return a.ID - b.ID }
	var order []*graph.Node
	for len(ready) > 0 {
		i := rng.Intn(len(ready))
		n := ready[i]
		ready = slices.Delete(ready, i, i+1)
		order = append(order, n)
		next := slices.SortedFunc(slices.Values(readers[n]), byID)
		for _, r := range next {
			if waiting[r]--; waiting[r] == 0 {
				ready = append(ready, r)
			}
		}
	}
	for _, n := range order[1:] {
		if n != g.Last() {
			last := g.Last()
			g.MoveBefore(n, last)
			g.MoveBefore(last, n)
		}
	}
}

// TestShuffled prepares models whose independent nodes stand in another order:
// outputs and the operators that remain do not depend on it.
func TestShuffled(t *testing.T) {
	for _, r := range reals(t) {
		if len(r.model) > 4<<20 {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			count := func(m *graph.Model) map[string]int {
				c := map[string]int{}
				for g := range m.Scopes() {
					for n := range g.Nodes() {
						c[n.Op.String()]++
					}
				}
				return c
			}
			plain := decode(t, r.model)
			want, err := compute(decode(t, r.model), r.sample(t, 0))
			if err != nil {
				t.Logf("NOT COMPARED in the executor: %v", err)
			}
			if _, err := Prepare(context.Background(), plain, Options{MinOpset: 18, Check: true}); err != nil {
				t.Fatal(err)
			}
			for seed := range int64(2) {
				m := decode(t, r.model)
				rng := rand.New(rand.NewSource(seed))
				for g := range m.Scopes() {
					if g.NumNodes() > 0 {
						shuffle(g, rng)
					}
				}
				if err := m.Verify(); err != nil {
					t.Fatal(err)
				}
				if _, err := Prepare(context.Background(), m, Options{MinOpset: 18, Check: true}); err != nil {
					t.Fatal(err)
				}
				if a, b := fmt.Sprint(count(m)), fmt.Sprint(count(plain)); a != b {
					t.Errorf("seed %d: left with %s, in the order of the file %s", seed, a, b)
				}
				if want == nil {
					continue
				}
				got, err := compute(m, r.sample(t, 0))
				if err != nil {
					t.Fatal(err)
				}
				if err := compare(got, want, 2e-5); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
