package auto

import (
	"context"
	"math"
	"slices"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/targets"
	"github.com/onnxq/onnxq/tensor"
)

// By which factors the time of integers counts: as it is, and against them where
// speed counts most. The whole has to be faster by the factor sure on every kind
// of processor.
const (
	margin  = 1.0
	clearly = 1.1
	sure    = 1.05
)

// costs knows how large the values of a model are, and what its nodes take under
// a target.
type costs struct {
	prices []targets.Cost
	sizes  []int // elements of each value in one sample, by ID; 0: not seen
	ranks  []int
	// conv says that there are convolutions, whose kernels on integers keep
	// channels last.
	conv bool
}

// measureCosts runs one sample to learn the sizes of values.
func (s *search) measureCosts(ctx context.Context, m *graph.Model) (*costs, error) {
	out := &costs{prices: s.o.Target.Costs, sizes: make([]int, m.NumValues()), ranks: make([]int, m.NumValues())}
	taps := make([]bool, m.NumValues())
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			out.conv = out.conv || n.Op.Type == "Conv"
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
func (k *costs) node(c *targets.Cost, n *graph.Node) (float, integer float64) {
	return c.Node + k.kernel(&c.Float, n), c.Node + k.kernel(&c.Int, n)
}

// saved returns the time that integers save at n, over all kinds of processors;
// 0 if they do not.
func (k *costs) saved(n *graph.Node) float64 {
	sum := 0.0
	for i := range k.prices {
		float, integer := k.node(&k.prices[i], n)
		sum += float - integer
	}
	return math.Max(sum, 0)
}

func (k *costs) kernel(r *targets.Rates, n *graph.Node) float64 {
	y := float64(k.size(n.Output(0)))
	w := n.Input(1)
	if n.Op.Type == "LSTM" {
		return k.cell(r, n)
	}
	if w == nil || !w.IsConst() || w.Const.Rank() < 2 || depth(n) == 0 {
		switch n.Op.Type {
		case "Reshape", "Flatten", "Squeeze", "Unsqueeze":
			return 0
		case "AveragePool":
			taps := 1.0
			for _, k := range n.Ints("kernel_shape") {
				taps *= float64(k)
			}
			return y * taps * r.Average
		}
		return y * r.Element
	}
	shape := w.Const.Shape()
	if n.Op.Type != "Conv" {
		inputs := float64(depth(n))
		outs := float64(w.Const.Len()) / inputs
		return r.Start + r.Product(r.MatMul, y/outs, inputs, outs) + y*r.Output
	}
	groups := float64(max(n.Int("group", 1), 1))
	outs, channels := float64(shape[0]), float64(shape[1])
	taps := float64(depth(n)) / channels
	x := float64(k.size(n.Input(0))) * r.Input
	if channels == 1 && groups > 1 {
		return x + y*taps*r.DepthMAC + y*r.DepthOutput
	}
	places := y / outs
	t := x + groups*r.Product(r.MAC, places, channels*taps, outs/groups) + y*r.Output
	if taps > 1 {
		t += places * groups * taps * (r.Patch + channels*r.PatchElement)
	}
	return t
}

// cell returns what a recurrent cell takes; 0 where its sizes are not known.
func (k *costs) cell(r *targets.Rates, n *graph.Node) float64 {
	w, h := n.Input(1), n.Input(2)
	if w == nil || h == nil || !w.IsConst() || !h.IsConst() || w.Const.Rank() != 3 || w.Const.Len() == 0 {
		return 0
	}
	directions, inputs := float64(w.Const.Shape()[0]), float64(w.Const.Shape()[2])
	steps := float64(k.size(n.Input(0))) / inputs
	return steps * (directions*r.Step + float64(w.Const.Len()+h.Const.Len())*r.StepMAC)
}

// border returns what it takes to quantize v and to dequantize it.
func (k *costs) border(c *targets.Cost, v *graph.Value) (quantize, dequantize float64) {
	n := float64(k.size(v))
	quantize, dequantize = c.Node+n*c.Quantize, c.Node+n*c.Dequantize
	if k.conv && n > 0 && k.ranks[v.ID] > 2 {
		quantize += n * c.Layout
		dequantize += n * c.Unlayout
	}
	return quantize, dequantize
}

// region is what of a model a plan quantizes.
type region struct {
	nodes []*graph.Node
	// values are those that the nodes read or write, once each.
	values []crossing
}

// crossing is a value between nodes that may be float or integer.
type crossing struct {
	v       *graph.Value
	from    int   // node of the region that writes it, -1 for a float one
	free    bool  // that can give float32 at no cost
	readers []int // nodes of the region
	float   bool  // something else reads it too
}

// regionOf returns the nodes of m that plan runs on integers.
func regionOf(m *graph.Model, plan *qdq.Plan) *region {
	r := &region{}
	how := hows(m, plan)
	at := map[*graph.Node]int{}
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if h := how[n.ID]; h == qdq.Integer || h == qdq.FloatOutput {
				at[n] = len(r.nodes)
				r.nodes = append(r.nodes, n)
			}
		}
	}
	place := func(n *graph.Node) int {
		if n != nil && how[n.ID] == qdq.Absorbed {
			n = n.Input(0).DefNode()
		}
		if i, ok := at[n]; ok {
			return i
		}
		return -1
	}
	seen := map[*graph.Value]bool{}
	for _, n := range r.nodes {
		y := n.Output(0)
		if u := y.OnlyUse(); u != nil && how[u.ID] == qdq.Absorbed {
			y = u.Output(0)
		}
		for _, v := range append(activations(n), y) {
			if seen[v] {
				continue
			}
			seen[v] = true
			d := v.DefNode()
			c := crossing{v: v, from: place(d), free: d != nil && how[d.ID] == qdq.FloatOutput, float: v.IsOutput()}
			for _, u := range v.Uses() {
				if u.Node == nil || place(u.Node) < 0 {
					c.float = true
				} else {
					c.readers = append(c.readers, place(u.Node))
				}
			}
			r.values = append(r.values, c)
		}
	}
	return r
}

// time returns what the nodes take, with the borders between them, if integer
// says which of them are integer.
func (k *costs) time(c *targets.Cost, r *region, integer []bool) float64 {
	sum := 0.0
	for i, n := range r.nodes {
		onFloat, onInt := k.node(c, n)
		if integer[i] {
			sum += onInt
		} else {
			sum += onFloat
		}
	}
	for _, x := range r.values {
		quantize, dequantize := k.border(c, x.v)
		ints, floats := 0, 0
		for _, i := range x.readers {
			if integer[i] {
				ints++
			} else {
				floats++
			}
		}
		switch from := x.from >= 0 && integer[x.from]; {
		case from && (floats > 0 || x.float) && !x.free:
			sum += dequantize
		case !from && ints > 0:
			sum += quantize
		}
	}
	return sum
}

// divide returns which nodes are integer in the division into float and integer
// ones that takes least time, that on integers counting worth times. Of several
// kinds of processors, each counts by its time relative to that of floats. This
// is a cut of least weight, which is found by the flow that it bounds (L. Ford
// and D. Fulkerson, 1956).
func (k *costs) divide(prices []targets.Cost, r *region, worth float64) []bool {
	const source, sink = 0, 1 // nodes on the side of the source are integer
	f := &flow{}
	f.grow(2 + len(r.nodes))
	none := make([]bool, len(r.nodes))
	for i := range prices {
		c := &prices[i]
		scale := 1e6 / math.Max(k.time(c, r, none), 1)
		for i, n := range r.nodes {
			onFloat, onInt := k.node(c, n)
			f.add(source, 2+i, scale*onFloat)
			f.add(2+i, sink, scale*onInt*worth)
		}
		for _, x := range r.values {
			quantize, dequantize := k.border(c, x.v)
			if x.free {
				dequantize = 0
			}
			from := sink
			if x.from >= 0 {
				from = 2 + x.from
			}
			a, b := f.grow(1), f.grow(1)
			f.add(from, a, scale*dequantize) // paid if a reader is float
			f.add(b, from, scale*quantize)   // paid if a reader is integer
			for _, i := range x.readers {
				f.add(a, 2+i, math.Inf(1))
				f.add(2+i, b, math.Inf(1))
			}
			if x.float {
				f.add(a, sink, math.Inf(1))
			}
		}
	}
	f.run(source, sink)
	return f.reached(source)[2 : 2+len(r.nodes)]
}

// slower returns the nodes that plan quantizes but that are better left float,
// time on integers counting worth times, and the least speed-up of the nodes
// that plan quantizes on any kind of processor, where 1 is float's speed. A
// division that is hardly faster than floats on one of them is made for that one,
// and without preference; where that gains on none, all stay float. Unless time
// on integers counts more than on floats, a plan that takes at most a call of the
// runtime longer than the division is kept whole.
func (k *costs) slower(m *graph.Model, plan *qdq.Plan, worth float64) (list []*graph.Node, speed float64) {
	r := regionOf(m, plan)
	none := make([]bool, len(r.nodes))
	integer := k.divide(k.prices, r, worth)
	speeds := func() []float64 {
		out := make([]float64, len(k.prices))
		for i := range k.prices {
			out[i] = k.time(&k.prices[i], r, none) / math.Max(k.time(&k.prices[i], r, integer), 1)
		}
		return out
	}
	all := speeds()
	if speed = slices.Min(all); speed < sure {
		at := slices.Index(all, speed)
		integer = k.divide(k.prices[at:at+1], r, math.Max(worth, sure))
		all = speeds()
		if speed = slices.Min(all); slices.Max(all) < sure {
			integer, speed = none, 1
		}
	}
	if worth <= margin && k.trifling(r, integer) {
		return nil, speed
	}
	for i, n := range r.nodes {
		if !integer[i] {
			list = append(list, n)
		}
	}
	return list, speed
}

// decoded returns the nodes that look more elements up in one sample than their table
// has, all of which would have to be dequantized.
func (k *costs) decoded(m *graph.Model, plan *qdq.Plan) []*graph.Node {
	var list []*graph.Node
	how := hows(m, plan)
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			if how[n.ID] == qdq.Lookup && k.size(n.Output(0)) > n.Input(0).Const.Len() {
				list = append(list, n)
			}
		}
	}
	return list
}

// trifling reports whether r takes, all on integers, no longer than as integer
// divides it and a call of the runtime, on every kind of processor.
func (k *costs) trifling(r *region, integer []bool) bool {
	all := slices.Repeat([]bool{true}, len(r.nodes))
	for i := range k.prices {
		c := &k.prices[i]
		if k.time(c, r, all) > k.time(c, r, integer)+c.Call {
			return false
		}
	}
	return true
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
