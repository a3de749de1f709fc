package accuracy

import (
	"context"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// BlockError is what storing a weight in blocks does to the products with it.
type BlockError struct {
	Tensor int // index in plan.Tensors
	// Nearest and Chosen are Σ (Wq·x - W·x)² over the samples with the nearest
	// codes and with those that were chosen, Signal is Σ (W·x)².
	Nearest, Chosen, Signal float64
}

// GPTQ chooses codes and parameters of the weights that a plan stores in blocks
// and that Conv, Gemm or MatMul nodes of a model read; rows of a Gather may be
// looked up in them as well. They are those of quant.Blocks.Compensate: weights
// are taken in the order of the network, with the inputs that those before them
// give, and stand in for what these have done to their inputs. Codes that do not
// lower the error are left at the nearest ones. Or, where only the nearest are
// wanted, parameters fit the weights with the mean squares of their inputs as
// importance.
type GPTQ struct {
	nearest bool
	m       *graph.Model
	samples Samples
	count   int
	o       exec.SessionOptions
	pool    *par.Pool
	params  []quant.Params
	list    []blockProduct
	stages  [][]blockProduct
	errs    []BlockError
	// shadow is m with the values of the codes that were chosen, if changed, and
	// stored its weights, by index in plan.Tensors.
	shadow  *graph.Model
	stored  []*graph.Value
	changed bool
	// last is the moment that was prepared for one of origin and size.
	last     *quant.Moment
	lastOf   *moments
	lastSize int
}

// NewGPTQ returns a GPTQ of m on count samples. It sets Coded in params, those of
// Resolve for plan.
func NewGPTQ(m *graph.Model, plan *qdq.Plan, params []quant.Params, samples Samples, count int, nearest bool, o exec.SessionOptions) (*GPTQ, error) {
	s := &GPTQ{nearest: nearest, m: m, samples: samples, count: count, o: o, pool: par.New(o.Threads), params: params}
	if count == 0 {
		return s, nil
	}
	all, err := products(m, plan, true)
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		e := &plan.Tensors[p.tensor]
		b, err := e.Blocks()
		if err != nil {
			return nil, err
		}
		l, err := e.Lines(p.weight.Const)
		if err != nil {
			return nil, err
		}
		if e.Whole || b.Kind != quant.Integer && !nearest || l.K != p.k || l.N() != p.n*p.groups {
			continue // nothing to choose: the nearest codes are taken
		}
		s.list = append(s.list, blockProduct{p, b, l})
	}
	if len(s.list) == 0 {
		return s, nil
	}
	if s.stages = [][]blockProduct{s.list}; nearest {
		return s, nil
	}
	s.stages = stages(m, s.list)
	s.shadow = m.Clone()
	s.stored, err = plan.Values(s.shadow)
	return s, err
}

// Stages lists the weights by their index in plan.Tensors. What is chosen for
// one depends on those of the stages before its own, not on those beside it.
func (s *GPTQ) Stages() [][]int {
	out := make([][]int, len(s.stages))
	for i, stage := range s.stages {
		for _, p := range stage {
			out[i] = append(out[i], p.tensor)
		}
	}
	return out
}

// Choose chooses the codes of some weights of one stage. Those of the stages
// before it have to be there, from Choose or Take.
func (s *GPTQ) Choose(ctx context.Context, layers []int) ([]BlockError, error) {
	chosen := func(p blockProduct) bool { return slices.Contains(layers, p.tensor) }
	at := slices.IndexFunc(s.stages, func(stage []blockProduct) bool { return slices.ContainsFunc(stage, chosen) })
	if at < 0 {
		return nil, nil
	}
	stage := s.stages[at]
	list := slices.DeleteFunc(slices.Clone(stage), func(p blockProduct) bool { return !chosen(p) })
	f, other := s.fit, s.shadow
	if !s.nearest {
		f = s.compensate
	}
	if !s.changed {
		other = nil
	}
	s.errs = nil
	err := s.each(ctx, other, stage, list, f)
	s.last, s.lastOf = nil, nil
	return s.errs, err
}

// Take sets what was chosen for a weight elsewhere.
func (s *GPTQ) Take(tensor int, c *quant.Coded) error {
	i := slices.IndexFunc(s.list, func(p blockProduct) bool { return p.tensor == tensor })
	if i < 0 || c == nil || c.Lines != s.list[i].l.N() || c.K != s.list[i].l.K || len(c.Codes) < c.Lines*c.K {
		return fmt.Errorf("codes of tensor %d of another plan", tensor)
	}
	return s.keep(&s.list[i], c)
}

// keep sets the codes of a weight.
func (s *GPTQ) keep(p *blockProduct, c *quant.Coded) error {
	s.params[p.tensor].Coded = c
	if s.nearest {
		return nil
	}
	s.changed = true
	v := s.stored[p.tensor]
	var err error
	v.Const, err = c.Values(s.pool, p.l).Reshape(v.Const.Shape())
	return err
}

// blockProduct is a product whose weight is stored in blocks.
type blockProduct struct {
	product
	b quant.Blocks
	l quant.Lines
}

// each calls f with each product of a list out of a stage and what is known of its
// inputs.
func (s *GPTQ) each(ctx context.Context, other *graph.Model, stage, list []blockProduct, f func(context.Context, *blockProduct, []*moments) error) error {
	return inTurn(ctx, s.m, other, plain(stage), plain(list), drawn{rows: maxRows, halves: !s.nearest}, s.samples, s.count, s.o, oneByOne(ctx, func(i int, sums []*moments) error {
		return f(ctx, &list[i], sums)
	}))
}

// plain returns the products without how they are stored.
func plain(list []blockProduct) []product {
	out := make([]product, len(list))
	for i := range list {
		out[i] = list[i].product
	}
	return out
}

// fit finds the nearest codes of a product.
func (s *GPTQ) fit(ctx context.Context, p *blockProduct, sums []*moments) error {
	shared, err := p.b.Share(s.pool, p.l)
	if err != nil {
		return err
	}
	e := BlockError{Tensor: p.tensor}
	best := p.b
	best.Fit = quant.Cover
	importance := make([]float32, p.k) // by group, of equal weight
	for g := range p.groups {
		for i, x := range diagonal(p.withRows(s.pool, p.together(sums, g, sumsOf)), p.k) {
			importance[i] += x / float32(p.groups)
		}
	}
	s.pool.Begin()
	defer s.pool.End()
	plain, err := best.Encode(ctx, s.pool, p.l, shared, 0, p.l.N(), nil)
	if err != nil {
		return err
	}
	chosen := plain
	if p.b.Fit != quant.Cover {
		if chosen, err = p.b.Encode(ctx, s.pool, p.l, shared, 0, p.l.N(), importance); err != nil {
			return err
		}
	}
	for g := range p.groups {
		h := p.withRows(s.pool, p.together(sums, g, sumsOf))
		e.Nearest += lossOf(s.pool, p.l, plain, h, nil, g*p.n, p.n)
		e.Chosen += lossOf(s.pool, p.l, chosen, h, nil, g*p.n, p.n)
		e.Signal += lossOf(s.pool, p.l, nil, h, nil, g*p.n, p.n)
	}
	if !(e.Chosen < e.Nearest) && e.Signal > 0 {
		chosen, e.Chosen = plain, e.Nearest
	}
	s.errs = append(s.errs, e)
	return s.keep(p, chosen)
}

// compensate chooses the codes of a product.
func (s *GPTQ) compensate(ctx context.Context, p *blockProduct, sums []*moments) error {
	shared, err := p.b.Share(s.pool, p.l)
	if err != nil {
		return err
	}
	s.pool.Begin()
	defer s.pool.End()
	all := make([]*quant.Moment, p.groups)
	for g := range all {
		if all[g], err = s.moment(ctx, p, sums, g); err != nil {
			return err
		}
	}
	coded, losses, err := p.b.Compensate(ctx, s.pool, p.l, shared, all)
	if err != nil {
		return err
	}
	if few(p, sums) {
		// What cancels on so few inputs may not on others.
		near, holds, err := s.holds(ctx, p, sums, shared)
		if err != nil {
			return err
		}
		if !holds {
			coded, losses.Chosen = near, 0
			for g := range p.groups {
				losses.Chosen += lossOf(s.pool, p.l, coded, p.withRows(s.pool, p.together(sums, g, sumsOf)), nil, g*p.n, p.n)
			}
		}
	}
	s.errs = append(s.errs, BlockError{p.tensor, losses.Nearest, losses.Chosen, losses.Signal})
	return s.keep(p, coded)
}

// few reports whether there are fewer inputs than are wanted for a product.
func few(p *blockProduct, sums []*moments) bool {
	rows := 0
	for _, m := range sums {
		rows += m.count
	}
	return rows < rowsPerInput*p.k
}

// holds reports whether codes that are chosen on one half of the samples make the
// products with the other half nearer to those of the float model than the
// nearest codes do, and returns the latter for all samples. Without samples, in a
// branch that none takes, they do not.
func (s *GPTQ) holds(ctx context.Context, p *blockProduct, sums []*moments, shared quant.Shared) (near *quant.Coded, holds bool, err error) {
	importance, some := make([]float32, p.k), make([]float32, p.k)
	train := make([]*quant.Moment, p.groups)
	seen := false
	for g := range p.groups {
		h, half := p.together(sums, g, sumsOf), p.together(sums, g, sumsOfHalf)
		rest := make([]float32, len(h))
		kernels.Binary(kernels.Sub, rest, h, half)
		for i := range p.k {
			seen = seen || half[i*p.k+i] > 0 && rest[i*p.k+i] > 0
		}
		var cross []float32
		if c := p.together(sums, g, crossOf); c != nil {
			crossOfHalf := p.together(sums, g, crossOfHalf)
			f, err := lasting(ctx, s.pool, h, c, half, crossOfHalf, p.k)
			if err != nil {
				return nil, false, err
			}
			cross = make([]float32, len(c))
			for i, x := range crossOfHalf {
				cross[i] = f * (c[i] - x)
			}
		}
		rest = p.withRows(s.pool, rest)
		for i, x := range diagonal(p.withRows(s.pool, h), p.k) {
			importance[i] += x / float32(p.groups)
		}
		for i, x := range diagonal(rest, p.k) {
			some[i] += x / float32(p.groups)
		}
		if train[g], err = quant.NewMoment(ctx, s.pool, rest, cross, p.k, p.b.Size, damping); err != nil {
			return nil, false, err
		}
	}
	if near, err = p.b.Encode(ctx, s.pool, p.l, shared, 0, p.l.N(), importance); err != nil || !seen {
		return near, false, err
	}
	chosen, _, err := p.b.Compensate(ctx, s.pool, p.l, shared, train)
	if err != nil {
		return nil, false, err
	}
	plain, err := p.b.Encode(ctx, s.pool, p.l, shared, 0, p.l.N(), some)
	if err != nil {
		return nil, false, err
	}
	gain := 0.0
	for g := range p.groups {
		half := p.withRows(s.pool, p.together(sums, g, sumsOfHalf))
		cross := p.together(sums, g, crossOfHalf)
		gain += lossOf(s.pool, p.l, plain, half, cross, g*p.n, p.n) - lossOf(s.pool, p.l, chosen, half, cross, g*p.n, p.n)
	}
	return near, gain > 0, nil
}

// moment prepares what is known of the inputs of group g. Weights that read the
// same value follow one another and share it.
func (s *GPTQ) moment(ctx context.Context, p *blockProduct, sums []*moments, g int) (*quant.Moment, error) {
	simple := len(sums) == 1 && p.groups == 1 && !p.lookedUp
	if simple && s.last != nil && s.lastOf == sums[0] && s.lastSize == p.b.Size {
		return s.last, nil
	}
	h := p.together(sums, g, sumsOf)
	cross := p.together(sums, g, crossOf)
	if cross != nil {
		half, crossOfHalf := p.together(sums, g, sumsOfHalf), p.together(sums, g, crossOfHalf)
		f, err := lasting(ctx, s.pool, h, cross, half, crossOfHalf, p.k)
		if err != nil {
			return nil, err
		}
		scaled := make([]float32, len(cross))
		for i, x := range cross {
			scaled[i] = f * x
		}
		cross = scaled
	}
	h = p.withRows(s.pool, h)
	m, err := quant.NewMoment(ctx, s.pool, h, cross, p.k, p.b.Size, damping)
	if simple {
		s.last, s.lastOf, s.lastSize = m, sums[0], p.b.Size
	}
	return m, err
}

// lasting returns the share, from 0 to 1, of the errors that inputs have by
// their regression on the inputs which is worth making up for: the one that is
// best for half of the samples if the regression is that of the other half.
func lasting(ctx context.Context, pool *par.Pool, h, cross, half, crossOfHalf []float32, k int) (float32, error) {
	mean := 0.0
	for i := range k {
		mean += float64(half[i*k+i]) / float64(k)
	}
	if !(mean > 0) || math.IsInf(mean, 0) {
		return 0, nil
	}
	a := slices.Clone(half)
	for i := range k {
		a[i*k+i] += float32(damping * mean)
	}
	u, d, err := quant.Factor(ctx, pool, a, k)
	if err != nil {
		return 0, err
	}
	p := slices.Clone(crossOfHalf)
	quant.Solve(pool, p, u, d, k)
	kernels.Binary(kernels.Sub, a, h, half)
	out := make([]float32, k*k)
	kernels.Gemm(pool, k, k, k, kernels.Matrix{Data: p, Ld: k}, kernels.Matrix{Data: a, Ld: k}, out, k, nil)
	slope, curve := 0.0, 0.0
	for i, x := range p {
		slope += float64(x) * float64(cross[i]-crossOfHalf[i])
		curve += float64(x) * float64(out[i])
	}
	if !(curve > 0) || !(slope > 0) {
		return 0, nil
	}
	return float32(min(1, slope/curve)), nil
}

// What moments hold.
func sumsOf(s *moments) [][]float32      { return s.sums }
func crossOf(s *moments) [][]float32     { return s.cross }
func sumsOfHalf(s *moments) [][]float32  { return s.sumsOfHalf }
func crossOfHalf(s *moments) [][]float32 { return s.crossOfHalf }

// together returns what moments hold of group g for all that is done with the
// weight, or nil if they lack it. Errors e of a channel make the squared error
// eᵀ·h·e with h of the sums.
func (p *product) together(sums []*moments, g int, of func(*moments) [][]float32) []float32 {
	if of(sums[0]) == nil {
		return nil
	}
	if len(sums) == 1 && !p.lookedUp {
		return of(sums[0])[g]
	}
	h := make([]float32, p.k*p.k)
	for _, s := range sums {
		kernels.Binary(kernels.Add, h, h, of(s)[g])
	}
	return h
}

// withRows adds to h what errors do in rows that are looked up. These count as
// much as the products: an error of either is worth its share of the signal.
func (p *product) withRows(pool *par.Pool, h []float32) []float32 {
	if !p.lookedUp {
		return h
	}
	h = slices.Clone(h)
	f := p.signals(pool, h)
	for i := range p.k {
		h[i*p.k+i] += f
	}
	return h
}

// signals returns Σ wᵀ·h·w over the channels w, as a multiple of Σ wᵀ·w.
func (p *product) signals(pool *par.Pool, h []float32) float32 {
	l := p.lines()
	power := 0.0
	line := make([]float32, p.k)
	for i := range p.n {
		l.Read(line, i, i+1)
		power += kernels.ReduceSumSquares(line)
	}
	if !(power > 0) {
		return 0
	}
	return float32(lossOf(pool, l, nil, h, nil, 0, p.n) / power)
}

// stages orders the products so that each stands behind those that its inputs
// depend on, and puts those together that do not depend on each other.
func stages(m *graph.Model, list []blockProduct) [][]blockProduct {
	weights := map[int]int{} // by value ID
	for i := range list {
		weights[list[i].weight.ID] = i
	}
	depth := make([]int, m.NumValues()) // products on the way to a value
	at := make([]int, len(list))
	var walk func(g *graph.Graph, least int) int
	walk = func(g *graph.Graph, least int) int {
		most := least
		for n := range g.Nodes() {
			d := least
			for _, v := range n.Inputs() {
				if v != nil {
					d = max(d, depth[v.ID])
				}
			}
			for sub := range bodies(n) {
				d = max(d, walk(sub, d))
			}
			if i, ok := weights[weightOf(n)]; ok && n.Op.Type != "Gather" {
				at[i] = max(at[i], d)
				d++
			}
			for _, v := range n.Outputs() {
				if v != nil {
					depth[v.ID] = d
				}
			}
			most = max(most, d)
		}
		return most
	}
	out := make([][]blockProduct, walk(m.Graph, 0)+1)
	for i := range list {
		out[at[i]] = append(out[at[i]], list[i])
	}
	return slices.DeleteFunc(out, func(s []blockProduct) bool { return len(s) == 0 })
}

// weightOf returns the ID of the value that n may multiply with, before a
// Transpose, or -1.
func weightOf(n *graph.Node) int {
	v := n.Input(1)
	if v == nil {
		return -1
	}
	if d := v.DefNode(); d != nil && d.Input(0) != nil && d.Input(0).IsConst() && qdq.Transposed(d, d.Input(0)) == v {
		v = d.Input(0)
	}
	return v.ID
}

// diagonal returns the mean squares of the inputs relative to their mean, with
// damping so that none counts for nothing.
func diagonal(h []float32, k int) []float32 {
	d := make([]float32, k)
	mean := 0.0
	for i := range d {
		mean += float64(h[i*k+i]) / float64(k)
	}
	if !(mean > 0) || math.IsInf(mean, 0) {
		for i := range d {
			d[i] = 1
		}
		return d
	}
	for i := range d {
		d[i] = float32(float64(h[i*k+i])/mean + damping)
	}
	return d
}

// lossLines is the number of lines that errors are computed of at once.
const lossLines = 256

// lossOf returns the sum of eᵀ·h·e over the errors e of n lines from the given
// one on; without c these are the lines themselves. With cross, Σ d·xᵀ for inputs
// x that lack d of those of the float model, it is that of the squared errors of
// the products, Σ (w·(x+d) - (w-e)·x)², but for what does not depend on e.
func lossOf(pool *par.Pool, l quant.Lines, c *quant.Coded, h, cross []float32, from, n int) float64 {
	k := l.K
	sum := 0.0
	size := min(n, lossLines)
	w, e, back, out := make([]float32, size*k), make([]float32, size*k), make([]float32, k), make([]float32, size*k)
	add := func(count int, x, m []float32, times float64) {
		kernels.Gemm(pool, count, k, k, kernels.Matrix{Data: x, Ld: k}, kernels.Matrix{Data: m, Ld: k}, out, k, nil)
		for i, x := range e[:count*k] {
			sum += times * float64(x) * float64(out[i])
		}
	}
	for at := from; at < from+n; at += size {
		count := min(size, from+n-at)
		l.Read(w, at, at+count)
		copy(e, w[:count*k])
		if c != nil {
			for i := range count {
				c.Decode(back, at+i)
				kernels.Binary(kernels.Sub, e[i*k:][:k], e[i*k:][:k], back)
			}
		}
		add(count, e, h, 1)
		if cross != nil {
			add(count, w, cross, 2)
		}
	}
	return sum
}

// drawer runs a model and draws inputs of products.
type drawer struct {
	session *exec.Session
	taps    []bool // by value ID
}

// newDrawer prepares runs of m, which is the model that the products are of or a
// clone of it. Last bits of what is drawn follow from the products: which values
// are to be seen changes what the executor joins.
func newDrawer(m *graph.Model, list []product, o exec.SessionOptions) (*drawer, error) {
	d := &drawer{taps: make([]bool, m.NumValues())}
	for _, p := range list {
		for _, s := range p.inputs {
			d.taps[s.value.ID] = true
		}
	}
	prog, err := exec.Compile(upTo(m, d.taps), exec.Options{Taps: d.taps})
	if err != nil {
		return nil, err
	}
	d.session = prog.NewSession(o)
	return d, nil
}

// run calls f with what the products multiply with, by value ID.
func (d *drawer) run(ctx context.Context, feeds map[string]ops.Data, f func(id int, t *tensor.Tensor)) error {
	_, err := d.session.Run(ctx, feeds, func(v *graph.Value, t *tensor.Tensor) error {
		f(v.ID, t)
		return nil
	}, d.taps)
	return err
}

// upTo returns a clone of m with the nodes that compute the values of taps, given
// by ID, and those before them. Its outputs mean nothing.
func upTo(m *graph.Model, taps []bool) *graph.Model {
	m = m.Clone()
	g := m.Graph
	wanted := slices.Clone(taps)
	var reads func(n *graph.Node) // marks what n needs
	reads = func(n *graph.Node) {
		for _, v := range n.Inputs() {
			if v != nil {
				wanted[v.ID] = true
			}
		}
		for sub := range bodies(n) {
			for _, v := range sub.Outputs() {
				wanted[v.ID] = true
			}
			for inner := range sub.Nodes() {
				reads(inner)
			}
		}
	}
	var gives func(n *graph.Node) *graph.Value // a wanted value that n computes
	gives = func(n *graph.Node) *graph.Value {
		for _, v := range n.Outputs() {
			if v != nil && wanted[v.ID] {
				return v
			}
		}
		for sub := range bodies(n) {
			for inner := range sub.Nodes() {
				if gives(inner) != nil {
					return n.Output(0)
				}
			}
		}
		return nil
	}
	var end *graph.Value
	for n := g.Last(); n != nil && end == nil; n = n.Prev() {
		end = gives(n)
	}
	if end == nil {
		return m // inputs of the model alone
	}
	for i := range g.Outputs() {
		g.SetOutput(i, end)
	}
	for n := g.Last(); n != nil; {
		prev := n.Prev()
		if gives(n) == nil {
			g.Remove(n)
		} else {
			reads(n)
		}
		n = prev
	}
	return m
}

// bodies yields the graphs in the attributes of n.
func bodies(n *graph.Node) iter.Seq[*graph.Graph] {
	return func(yield func(*graph.Graph) bool) {
		for _, a := range n.Attrs {
			for _, sub := range a.Subgraphs() {
				if !yield(sub) {
					return
				}
			}
		}
	}
}
