package accuracy

import (
	"context"
	"math"
	"slices"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// Bounds of the search of AWQ: how many exponents are tried, and the lines of a
// weight that errors are measured on at most.
const (
	awqSteps = 20
	awqLines = 256
)

// AWQScale is what AWQ found for an activation.
type AWQScale struct {
	Value string // the activation
	Alpha float64
	// Before and After are Σ (Wq·x - W·x)² over the samples and some channels of
	// the products that read the activation, with the nearest codes.
	Before, After float64
	// Folded says that the scales went into constants that were there.
	Folded bool
}

// AWQ multiplies row k of the weights that read an activation x by s_k, and
// divides channel k of x by it, so that weights which meet strong inputs are
// stored more finely (J. Lin et al., "AWQ: Activation-aware Weight Quantization",
// 2023, section 3.2): s_k = m_k^α with m_k the root mean square of channel k over
// the samples, and α the multiple of 1/20 from 0 to 1 for which the products with
// the nearest codes have the least squared error. All weights that read x share s.
//
// The division goes into constants that x is computed with, those of a
// normalization, a product or a multiplication, where nothing else reads x. Else
// it is a Mul of its own, where the error falls by a factor of at least worth.
//
// Weights are those that plan stores in blocks and that MatMul and Gemm nodes
// read. AWQ edits m, a prepared float model, which computes the same after it,
// but for rounding; plan is to be made again for it.
func AWQ(ctx context.Context, m *graph.Model, plan *qdq.Plan, samples Samples, count int, worth float64, o exec.SessionOptions) ([]AWQScale, error) {
	all, err := products(m, plan, true)
	if err != nil || count == 0 {
		return nil, err
	}
	var groups []awqGroup
	var first []product // of each group
	for _, p := range all {
		b, err := plan.Tensors[p.tensor].Blocks()
		if err != nil {
			return nil, err
		}
		if p.lookedUp || b.Kind == quant.Cast || !holdsFloats(p.weight) || !p.readsOnly(p.inputs[0].value) {
			continue
		}
		x := p.inputs[0].value
		i := slices.IndexFunc(groups, func(g awqGroup) bool { return g.x == x && g.members[0].k == p.k })
		if i < 0 {
			i = len(groups)
			groups = append(groups, awqGroup{x: x})
			first = append(first, p)
		}
		groups[i].members = append(groups[i].members, awqMember{p, b})
	}
	pool := par.New(o.Threads)
	err = inTurn(ctx, m, nil, first, first, drawn{rows: maxRows}, samples, count, o, oneByOne(ctx, func(i int, sums []*moments) error {
		return groups[i].search(ctx, pool, sums[0].sums[0])
	}))
	if err != nil {
		return nil, err
	}
	var out []AWQScale
	for i := range groups {
		g := &groups[i]
		if g.scale == nil {
			continue
		}
		d := folding{g: g.x.Graph()}
		alone := !g.x.IsOutput() && g.readAll() && len(g.x.Type.Shape) > 0 && d.divide(g.x, alongLast(len(g.x.Type.Shape), g.scale), true)
		switch {
		case alone:
			for _, edit := range d.edits {
				edit()
			}
		case g.before >= worth*g.after:
			g.insert()
		default:
			continue
		}
		for j := range g.members {
			g.members[j].multiply(g.scale)
		}
		out = append(out, AWQScale{g.x.Name(), g.alpha, g.before, g.after, alone})
	}
	return out, nil
}

// readsOnly reports whether all products with the weight read the last axis of
// x, in the graph of the weight.
func (p *product) readsOnly(x *graph.Value) bool {
	for i := range p.inputs {
		if p.inputs[i].value != x || p.inputs[i].window.kernel != nil {
			return false
		}
	}
	return p.groups == 1
}

// awqGroup is an activation and the weights that read it.
type awqGroup struct {
	x       *graph.Value
	members []awqMember
	// What was found: scales of the channels, or nil.
	scale         []float32
	alpha         float64
	before, after float64
}

type awqMember struct {
	product
	b quant.Blocks
}

// search finds the scales for the second moment h of the inputs.
func (g *awqGroup) search(ctx context.Context, pool *par.Pool, h []float32) error {
	k := g.members[0].k
	mean := make([]float64, k) // logarithms of the root mean squares
	least, greatest := math.Inf(1), math.Inf(-1)
	for i := range k {
		if x := float64(h[i*k+i]); x > 0 {
			mean[i] = math.Log(x) / 2
			least, greatest = min(least, mean[i]), max(greatest, mean[i])
		}
	}
	if !(least < greatest) || math.IsInf(greatest, 0) {
		return nil
	}
	for i := range k {
		if h[i*k+i] <= 0 {
			mean[i] = least // nothing to gain: no row of weights is widened
		}
	}
	// Lines of weights that errors are measured on.
	samples := make([]quant.Lines, len(g.members))
	for j := range g.members {
		samples[j] = g.members[j].sample()
	}
	pool.Begin()
	defer pool.End()
	turned := make([]float32, len(h))
	scale := make([]float32, k)
	for step := range awqSteps + 1 {
		alpha := float64(step) / awqSteps
		// Scales lie around 1: the geometric mean of the least and the greatest.
		for i := range scale {
			s := math.Exp(alpha * (mean[i] - (least+greatest)/2))
			scale[i] = float32(min(max(s, 1.0/widest), widest))
		}
		for i := range k {
			for j, x := range h[i*k:][:k] {
				turned[i*k+j] = x / scale[i] / scale[j]
			}
		}
		loss := 0.0
		for j := range g.members {
			one, err := g.members[j].loss(ctx, pool, samples[j], scale, turned)
			if err != nil {
				return err
			}
			loss += one
		}
		if step == 0 {
			g.before, g.after = loss, loss
		} else if loss < g.after {
			g.scale, g.alpha, g.after = slices.Clone(scale), alpha, loss
		}
	}
	return nil
}

// sample returns some of the lines of the weight.
func (m *awqMember) sample() quant.Lines {
	l := m.lines()
	n := min(m.n, awqLines)
	data := make([]float32, n*m.k)
	for i := range n {
		at := i * m.n / n
		l.Read(data[i*m.k:][:m.k], at, at+1)
	}
	return quant.Lines{T: tensor.Of(data, n, m.k), Outer: n, K: m.k, Inner: 1}
}

// loss returns the squared error of the products of l with inputs of which h is
// the second moment once they are divided by scale.
func (m *awqMember) loss(ctx context.Context, pool *par.Pool, l quant.Lines, scale, h []float32) (float64, error) {
	plain := tensor.As[float32](l.T)
	data := make([]float32, len(plain))
	for i, x := range plain {
		data[i] = x * scale[i%m.k]
	}
	l.T = tensor.Of(data, l.T.Shape()...)
	shared, err := m.b.Share(pool, l)
	if err != nil {
		return 0, err
	}
	c, err := m.b.Encode(ctx, pool, l, shared, 0, l.N(), diagonal(h, m.k))
	if err != nil {
		return 0, err
	}
	return lossOf(pool, l, c, h, nil, 0, l.N()), nil
}

// multiply multiplies the rows of the weight by the scales.
func (m *awqMember) multiply(scale []float32) {
	v := m.weight
	data := slices.Clone(floats(v))
	for i := range data {
		if m.byColumn {
			data[i] *= scale[i/m.n]
		} else {
			data[i] *= scale[i%m.k]
		}
	}
	v.Const = tensor.Of(data, v.Const.Shape()...)
}

// readers returns the inputs of nodes that multiply x with the weights.
func (g *awqGroup) readers() []graph.Use {
	var out []graph.Use
	for _, u := range g.x.Uses() {
		if u.Node == nil || u.Index != 0 {
			continue
		}
		w := weightOf(u.Node)
		if slices.ContainsFunc(g.members, func(m awqMember) bool { return m.weight.ID == w }) {
			out = append(out, u)
		}
	}
	return out
}

// readAll reports whether nothing but the products reads x.
func (g *awqGroup) readAll() bool { return len(g.readers()) == len(g.x.Uses()) }

// insert divides x by the scales for the products alone.
func (g *awqGroup) insert() {
	inverse := make([]float32, len(g.scale))
	for i, s := range g.scale {
		inverse[i] = 1 / s
	}
	readers := g.readers()
	y := scaled(g.x.Graph(), g.x, inverse, "_awq")
	for _, u := range readers {
		u.Node.SetInput(0, y)
	}
}
