package auto

import (
	"context"
	"math"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
)

// What integers have to gain to be preferred, as factors by which estimates of
// their time are raised: as a rule, and where speed counts most.
const (
	margin  = 1.05
	clearly = 1.15
)

// costs knows what the nodes of a model take under a target.
type costs struct {
	c     *targets.Cost
	sizes []int // elements of each value in one sample, by ID; 0: not seen
	ranks []int
}

// measureCosts runs one sample to learn the sizes of values.
func (s *search) measureCosts(ctx context.Context, m *graph.Model) (*costs, error) {
	out := &costs{c: s.o.Target.Cost, sizes: make([]int, m.NumValues()), ranks: make([]int, m.NumValues())}
	taps := make([]bool, m.NumValues())
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			for _, v := range n.Outputs() {
				if v != nil && v.Type.Elem == tensor.Float32 {
					taps[v.ID] = true
				}
			}
		}
	}
	prog, err := exec.Compile(m, exec.Options{Taps: taps})
	if err != nil {
		return nil, err
	}
	see := func(v *graph.Value, t *tensor.Tensor) { out.sizes[v.ID], out.ranks[v.ID] = t.Len(), t.Rank() }
	for _, v := range m.Graph.FeedInputs() {
		if t, ok := s.o.Samples[0][v.Name()].(*tensor.Tensor); ok {
			see(v, t)
		}
	}
	_, err = prog.NewSession(s.o.Session).Run(ctx, s.o.Samples[0], func(v *graph.Value, t *tensor.Tensor) error {
		if v.ID < len(out.sizes) { // what the executor adds comes behind
			see(v, t)
		}
		return nil
	}, nil)
	return out, err
}

// size returns the elements of v, 0 where that is not known.
func (k *costs) size(v *graph.Value) int {
	if v == nil || v.ID >= len(k.sizes) {
		return 0
	}
	return k.sizes[v.ID]
}

// node returns what n takes on float32 and on integers, in ns.
func (k *costs) node(n *graph.Node) (float, integer float64) {
	return k.c.Node + k.kernel(&k.c.Float, n), k.c.Node + k.kernel(&k.c.Int, n)
}

func (k *costs) kernel(r *targets.Rates, n *graph.Node) float64 {
	y := float64(k.size(n.Output(0)))
	w := n.Input(1)
	if w == nil || !w.IsConst() || w.Const.Rank() < 2 || depth(n) == 0 {
		if spec := ops.Lookup(n); spec != nil && spec.FlowAt(n) == ops.Pass && (n.Op.Type == "Reshape" || n.Op.Type == "Flatten" || n.Op.Type == "Squeeze" || n.Op.Type == "Unsqueeze") {
			return 0
		}
		return y * r.Element
	}
	shape := w.Const.Shape()
	if n.Op.Type != "Conv" {
		inputs := float64(depth(n))
		outs := float64(w.Const.Len()) / inputs
		return r.Product(y/outs, inputs, outs) + y*r.Output
	}
	groups := float64(max(n.Int("group", 1), 1))
	outs, channels := float64(shape[0]), float64(shape[1])
	taps := float64(depth(n)) / channels
	if channels == 1 && groups > 1 {
		return y*taps*r.DepthMAC + y*r.DepthOutput
	}
	places := y / outs
	t := groups*r.Product(places, channels*taps, outs/groups) + y*r.Output
	if taps > 1 {
		t += places * groups * taps * (r.Patch + channels*r.PatchElement)
	}
	return t
}

// border returns what it takes to quantize v and to dequantize it.
func (k *costs) border(v *graph.Value) (quantize, dequantize float64) {
	n := float64(k.size(v))
	layout := 0.0
	if n > 0 && k.ranks[v.ID] > 2 {
		layout = n * k.c.Layout
	}
	return k.c.Node + n*k.c.Quantize + layout, k.c.Node + n*k.c.Dequantize + layout
}

// slower returns the nodes that plan quantizes but that are better left float where
// integers have to be faster by the factor worth: those of the division of the nodes into float ones and integer ones that
// takes least time, with the time of quantizing and dequantizing between them.
// That is a cut of least weight, which is found by the flow that it bounds
// (L. Ford and D. Fulkerson, 1956). It also returns the time of the quantized
// nodes as float and in that division.
func (k *costs) slower(m *graph.Model, plan *qdq.Plan, worth float64) (list []*graph.Node, float, best float64) {
	how := hows(m, plan)
	var nodes []*graph.Node
	at := map[*graph.Node]int{}
	const source, sink = 0, 1
	f := &flow{}
	f.grow(2)
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if h := how[n.ID]; h == qdq.Integer || h == qdq.FloatOutput {
				at[n] = f.grow(1)
				nodes = append(nodes, n)
			}
		}
	}
	// What stands for n: a node that absorbs n, or the sink for a float node.
	place := func(n *graph.Node) int {
		if n != nil && how[n.ID] == qdq.Absorbed {
			n = n.Input(0).DefNode()
		}
		if i, ok := at[n]; ok {
			return i
		}
		return sink
	}
	out := func(n *graph.Node) *graph.Value {
		y := n.Output(0)
		if u := y.OnlyUse(); u != nil && how[u.ID] == qdq.Absorbed {
			return u.Output(0)
		}
		return y
	}
	// Nodes on the side of the source are integer.
	seen := map[*graph.Value]bool{}
	for _, n := range nodes {
		onFloat, onInt := k.node(n)
		f.add(source, at[n], onFloat)
		f.add(at[n], sink, onInt*worth)
		for _, v := range append(activations(n), out(n)) {
			if seen[v] {
				continue
			}
			seen[v] = true
			quantize, dequantize := k.border(v)
			from := place(v.DefNode())
			if d := v.DefNode(); d != nil && how[d.ID] == qdq.FloatOutput {
				dequantize = 0
			}
			a, b := f.grow(1), f.grow(1)
			f.add(from, a, dequantize) // paid if a reader is float
			f.add(b, from, quantize)   // paid if a reader is integer
			float := v.IsOutput()
			for _, u := range v.Uses() {
				if u.Node == nil {
					float = true
					continue
				}
				to := place(u.Node)
				f.add(a, to, math.Inf(1))
				f.add(to, b, math.Inf(1))
			}
			if float {
				f.add(a, sink, math.Inf(1))
			}
		}
	}
	best = f.run(source, sink)
	reach := f.reached(source)
	for _, n := range nodes {
		onFloat, _ := k.node(n)
		float += onFloat
		if !reach[at[n]] {
			list = append(list, n)
		}
	}
	return list, float, best
}

// activations returns the float inputs of n that are computed.
func activations(n *graph.Node) []*graph.Value {
	var list []*graph.Value
	for _, v := range n.Inputs() {
		if v != nil && !v.IsConst() && v.Type.Elem == tensor.Float32 {
			list = append(list, v)
		}
	}
	return list
}

// hows tells by node ID what the plan makes of a node.
func hows(m *graph.Model, plan *qdq.Plan) []qdq.How {
	out := make([]qdq.How, m.NumNodes())
	i := 0
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			out[n.ID] = plan.Nodes[i].How
			i++
		}
	}
	return out
}

// flow is a network of edges with capacities.
type flow struct {
	first []int // by node: its first edge, -1 for none
	edges []edge
}

type edge struct {
	to, next int // next edge of the same node, -1 for none
	left     float64
}

// grow adds n nodes and returns the first of them.
func (f *flow) grow(n int) int {
	at := len(f.first)
	for range n {
		f.first = append(f.first, -1)
	}
	return at
}

// add adds an edge; edge i^1 is the way back of edge i.
func (f *flow) add(from, to int, capacity float64) {
	if from == to {
		return
	}
	for _, e := range [2]edge{{to: to, left: capacity}, {to: from}} {
		e.next = f.first[from]
		f.first[from] = len(f.edges)
		f.edges = append(f.edges, e)
		from, to = to, from
	}
}

// least is the capacity in ns below which an edge counts as full.
const least = 1e-6

// run sends as much as fits from source to sink along shortest ways and
// returns how much that is.
func (f *flow) run(source, sink int) float64 {
	total := 0.0
	via := make([]int, len(f.first))
	for {
		for i := range via {
			via[i] = -1
		}
		queue := []int{source}
		for len(queue) > 0 && via[sink] < 0 {
			n := queue[0]
			queue = queue[1:]
			for e := f.first[n]; e >= 0; e = f.edges[e].next {
				if to := f.edges[e].to; f.edges[e].left > least && via[to] < 0 && to != source {
					via[to] = e
					queue = append(queue, to)
				}
			}
		}
		if via[sink] < 0 {
			return total
		}
		amount := math.Inf(1)
		for n := sink; n != source; n = f.edges[via[n]^1].to {
			amount = math.Min(amount, f.edges[via[n]].left)
		}
		if math.IsInf(amount, 1) {
			return amount
		}
		for n := sink; n != source; n = f.edges[via[n]^1].to {
			f.edges[via[n]].left -= amount
			f.edges[via[n]^1].left += amount
		}
		total += amount
	}
}

// reached tells which nodes can be reached from n over edges that are not full.
func (f *flow) reached(n int) []bool {
	out := make([]bool, len(f.first))
	out[n] = true
	for stack := []int{n}; len(stack) > 0; {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for e := f.first[n]; e >= 0; e = f.edges[e].next {
			if to := f.edges[e].to; f.edges[e].left > least && !out[to] {
				out[to] = true
				stack = append(stack, to)
			}
		}
	}
	return out
}
