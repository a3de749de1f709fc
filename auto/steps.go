package auto

import (
	"context"
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/passes/accuracy"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
)

// Gains in dB that a change of the plan has to bring: little where it costs
// nothing, more where it leans on the samples or a part of the model stays
// float.
const (
	freeGain   = 0.1
	roundGain  = 0.3
	clipGain   = 1
	smoothGain = 1
	islandGain = 3
)

// poor is the score in dB below which parts of the model may stay float: the
// noise of the outputs is more than a tenth of their variance.
const poor = 10

// maxIslands bounds how many float islands are tried.
const maxIslands = 4

// equalize tries cross-layer equalization.
func (s *search) equalize(ctx context.Context, c *candidate) (*candidate, error) {
	if !s.o.Equalize || s.good(c) {
		return c, nil
	}
	next := c.variant()
	next.base = c.base.Clone()
	count := accuracy.Equalize(next.base, boundsOf(c.table), means(c.table))
	if count == 0 {
		return c, nil
	}
	return s.rescaled(ctx, c, next, freeGain, fmt.Sprintf("equalized the channels of %d values", count))
}

// rowGain is by how much, in dB, scales for each row have to raise the score, since
// they take time.
const rowGain = 3

// rows gives each row that is quantized as it comes a scale of its own where the
// contract is not kept otherwise.
func (s *search) rows(ctx context.Context, c *candidate) (*candidate, error) {
	if !s.o.Rows || !c.qdq.Dynamic || c.qdq.PerToken || c.short.Text == "" {
		return c, nil
	}
	next := c.variant()
	next.qdq.PerToken = true
	return s.better(ctx, c, next, rowGain, "a scale for each row of the inputs of products, since "+c.short.Text)
}

// dynamic tries to let recurrent cells quantize their inputs as they come,
// where the target has a kernel for that which is faster than float, as far as
// costs are known: what is computed step by step has no range that could be known
// as well beforehand.
func (s *search) dynamic(ctx context.Context, c *candidate) (*candidate, error) {
	if !s.o.FloatIslands {
		return c, nil
	}
	next := c.variant()
	next.qdq.Choose = map[int]qdq.How{}
	quantized := quantizedNodes(c.base, c.plan)
	for g := range c.base.Scopes() {
		for n := range g.Nodes() {
			if _, keep := c.qdq.Keep[n.ID]; !keep && !quantized[n.ID] && n.Op.Type == "LSTM" &&
				slices.ContainsFunc(s.o.Target.RulesFor(n), func(r *targets.Rule) bool { return r.Class == targets.Dynamic && !r.Slow }) &&
				(s.costs == nil || s.costs.size(n.Input(0)) == 0 || s.costs.saved(n) > 0) {
				next.qdq.Choose[n.ID] = qdq.Dynamic
			}
		}
	}
	if len(next.qdq.Choose) == 0 || !s.afford(next) {
		return c, nil
	}
	if err := s.build(ctx, next); err != nil || next.empty() {
		return c, err
	}
	if next.plan.Quantized() <= c.plan.Quantized() {
		return c, nil
	}
	if err := s.measure(ctx, next); err != nil {
		return nil, err
	}
	if next.short.Text != "" || next.score < min(c.score-storeLoss, reliefAim) {
		return c, nil
	}
	next.found = append(next.found, fmt.Sprintf("%d recurrent cells quantize their inputs as they come: score %.1f → %.1f dB on calibration samples", len(next.qdq.Choose), c.score, next.score))
	return next, nil
}

// Parameters of splitting: the share of channels, and the gain in dB, since the
// model grows.
const (
	splitShare = 0.08
	splitGain  = 1
)

// split tries to divide outlier channels in halves.
func (s *search) split(ctx context.Context, c *candidate) (*candidate, error) {
	if !s.o.Split || s.good(c) {
		return c, nil
	}
	next := c.variant()
	next.base = c.base.Clone()
	count := accuracy.Split(next.base, boundsOf(c.table), splitShare)
	if count == 0 {
		return c, nil
	}
	return s.rescaled(ctx, c, next, splitGain, fmt.Sprintf("split %d outlier channels", count))
}

// biases tries to take what rounding and clipping activations adds on average
// out of biases as well.
func (s *search) biases(ctx context.Context, c *candidate) (*candidate, error) {
	if !s.o.CorrectBias || s.o.Visits == 0 || c.qdq.Dynamic || s.good(c) {
		return c, nil
	}
	next := c.variant()
	next.means = true
	return s.better(ctx, c, next, freeGain, "biases corrected by measured means")
}

// clipped tries to cut off the largest weights of channels.
func (s *search) clipped(ctx context.Context, c *candidate) (*candidate, error) {
	if !s.o.Clip || s.good(c) {
		return c, nil
	}
	next := c.variant()
	next.clip = true
	return s.better(ctx, c, next, freeGain, "clipped the largest weights")
}

// roundNote says that codes were chosen so.
const roundNote = "weights rounded by their effect on outputs"

// rounded tries to choose the codes of weights by what they do to the samples.
func (s *search) rounded(ctx context.Context, c *candidate) (*candidate, error) {
	if next := s.rounding(c); next != nil {
		return s.better(ctx, c, next, roundGain, roundNote)
	}
	return c, nil
}

// rounding returns a variant of c whose codes are chosen so, or nil where that is not
// allowed, done already, or not needed.
func (s *search) rounding(c *candidate) *candidate {
	if !s.o.Round || s.o.Visits == 0 || c.round || s.reaches(c, roundFine) {
		return nil
	}
	next := c.variant()
	next.round = true
	return next
}

// fine is the score in dB from which passes that lower the error are not tried, and
// roundFine that from which rounding is not, which takes as long as all others together.
const (
	fine      = 30
	roundFine = 25
)

// good reports whether nothing has to be gained any more.
func (s *search) good(c *candidate) bool { return s.reaches(c, fine) }

// reaches reports whether c keeps the contract with a score of at least least, and of
// what other samples ask for.
func (s *search) reaches(c *candidate, least float64) bool {
	return c.score >= max(least, s.want) && c.short.Text == ""
}

// Parameters of smoothing: α and the least factor by which the expected error
// of an activation has to fall.
const (
	smoothAlpha = 0.65
	smoothWorth = 2
)

// smooth tries to even out activations before matrix products.
func (s *search) smooth(ctx context.Context, c *candidate) (*candidate, error) {
	if !s.o.Smooth || s.good(c) {
		return c, nil
	}
	quantized := quantizedNodes(c.base, c.plan)
	next := c.variant()
	next.base = c.base.Clone()
	count := accuracy.Smooth(next.base, func(n *graph.Node) bool { return quantized[n.ID] }, boundsOf(c.table), smoothAlpha, smoothWorth)
	if count == 0 {
		return c, nil
	}
	return s.rescaled(ctx, c, next, smoothGain, fmt.Sprintf("smoothed the channels of %d values", count))
}

// rescaled compares c with next, whose activations have other ranges.
func (s *search) rescaled(ctx context.Context, c, next *candidate, gain float64, note string) (*candidate, error) {
	if s.left < 0 {
		return c, nil
	}
	if err := s.calibrate(ctx, next, s.o.Unseen); err != nil {
		return nil, err
	}
	return s.better(ctx, c, next, gain, note)
}

// methods are what ranges tries.
var methods = []calibration.Method{calibration.Auto, calibration.MinMax, calibration.MSE}

// ranges tries other methods for the ranges of activations.
func (s *search) ranges(ctx context.Context, c *candidate) (*candidate, error) {
	if s.o.Method != "" || s.good(c) {
		return c, nil
	}
	given, err := s.rangesUnder(c, c.method)
	if err != nil {
		return nil, err
	}
	tried := [][]methodRange{given}
	var list []*candidate
	for _, m := range methods {
		if m == c.method {
			continue
		}
		if given, err = s.rangesUnder(c, m); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(tried, func(other []methodRange) bool { return slices.Equal(given, other) }) {
			continue
		}
		tried = append(tried, given)
		next := c.variant()
		next.method = m
		list = append(list, next)
	}
	if err := s.ahead(ctx, list, s.few(len(s.o.Samples))); err != nil {
		return nil, err
	}
	best := c
	for _, next := range list {
		// What is clipped errs to one side, for all the samples alike, so that a
		// task can lose by it while the score gains.
		gain := float64(clipGain)
		if next.method == calibration.MinMax {
			gain = freeGain
		}
		if best, err = s.better(ctx, best, next, gain, "ranges by "+string(next.method)); err != nil {
			return nil, err
		}
	}
	return best, nil
}

// methodRange is what a method gives for an activation: its range, or why there
// is none.
type methodRange struct {
	quant.Range
	why string
}

// rangesUnder returns what a method gives for the activations of c whose ranges
// are not fixed.
func (s *search) rangesUnder(c *candidate, m calibration.Method) ([]methodRange, error) {
	way := s.way(c)
	way.Method = m
	of, _, err := way.rangesOf(c.base, c.plan, c.table)
	if err != nil {
		return nil, err
	}
	values, err := c.plan.Values(c.base)
	if err != nil {
		return nil, err
	}
	var out []methodRange
	for i, v := range values {
		if e := &c.plan.Tensors[i]; e.Kind == qdq.Activation && e.Range == nil {
			r, why := of(v, e)
			out = append(out, methodRange{r, why})
		}
	}
	return out, nil
}

// again tries other methods once more where passes have changed the ranges.
func (s *search) again(ctx context.Context, c *candidate) (*candidate, error) {
	if c.base == s.float {
		return c, nil
	}
	return s.ranges(ctx, c)
}

// islands tries to keep float what feeds a logarithm or root: these turn small
// errors of small values, such as the quiet bands of a spectrum, into large
// ones. Only parts behind which integer kernels still follow are tried, the
// last of them first.
func (s *search) islands(ctx context.Context, c *candidate) (*candidate, error) {
	if !s.o.FloatIslands || c.score >= poor {
		return c, nil
	}
	tries := cuts(c.base, c.plan)
	tries = tries[:min(len(tries), maxIslands)]
	var list []*candidate
	for _, cut := range tries {
		var ids []int
		for _, n := range cut.nodes {
			ids = append(ids, n.ID)
		}
		list = append(list, c.keeping(ids, fmt.Sprintf("feeds %s %q, which magnifies the error of small values: measured", cut.at.Op, cut.at.Label())))
	}
	if err := s.ahead(ctx, list, s.few(len(s.o.Samples))); err != nil {
		return nil, err
	}
	for i, next := range list {
		kept, err := s.better(ctx, c, next, islandGain, fmt.Sprintf("kept what feeds %s %q float", tries[i].at.Op, tries[i].at.Label()))
		if err != nil {
			return nil, err
		}
		if kept == next {
			return next, nil
		}
	}
	return c, nil
}

// cut is a node and the quantized nodes that feed it.
type cut struct {
	at    *graph.Node
	nodes []*graph.Node
}

// cuts lists the logarithms and roots of the main graph that quantized anchors
// feed and that feed quantized anchors, last first, one for each set of nodes.
func cuts(m *graph.Model, plan *qdq.Plan) []cut {
	quantized := quantizedNodes(m, plan)
	var out []cut
	seen := map[string]bool{}
	for n := m.Graph.Last(); n != nil; n = n.Prev() {
		if n.Op.Domain != graph.OnnxDomain || n.Op.Type != "Log" && n.Op.Type != "Sqrt" {
			continue
		}
		var nodes []*graph.Node
		key := ""
		for _, k := range reach(n, func(v *graph.Node) []*graph.Node { return producers(v) }) {
			if quantized[k.ID] {
				nodes = append(nodes, k)
				key += fmt.Sprint(k.ID, " ")
			}
		}
		after := slices.ContainsFunc(reach(n, consumers), func(k *graph.Node) bool { return quantized[k.ID] })
		if len(nodes) == 0 || !after || seen[key] {
			continue
		}
		seen[key] = true
		out = append(out, cut{n, nodes})
	}
	return out
}
