package auto

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes"
	"github.com/onnxq/onnxq/passes/accuracy"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
)

// calibrate makes the plan of c and collects what it wants.
func (s *search) calibrate(ctx context.Context, c *candidate, unseen bool) error {
	var err error
	if c.plan, err = qdq.Annotate(c.base, s.o.Target, c.qdq); err != nil {
		return err
	}
	watch, err := c.plan.Wants(c.base)
	if err != nil || !slices.ContainsFunc(watch, func(w quant.Watch) bool { return w.Observe }) {
		return err
	}
	c.table, err = s.o.Calibrate(ctx, c.base, watch, unseen)
	return err
}

// realize builds c if it has been measured elsewhere.
func (s *search) realize(ctx context.Context, c *candidate) error {
	if c.known == nil || c.model != nil {
		return nil
	}
	known := c.known
	c.known = nil
	err := s.build(ctx, c)
	c.known = known
	return err
}

// empty reports whether nothing is quantized in c, which has been built.
func (c *candidate) empty() bool {
	if c.known != nil {
		return c.known.empty
	}
	return c.model == nil
}

// build makes the quantized model of c, unless it has been measured elsewhere.
// Where calibration gave no usable range, the plan is made again without the
// nodes that would need it.
func (s *search) build(ctx context.Context, c *candidate) error {
	if c.known != nil {
		return nil
	}
	visit := func(ctx context.Context, f func(map[string]ops.Data) error) error {
		return s.o.Visit(ctx, s.o.Unseen && !s.final, f)
	}
	return s.usable(ctx, c, func() (bad map[int]string, err error) {
		way := s.way(c)
		if c.round {
			way.Round = func(params []quant.Params) (int, error) { return s.roundOnce(ctx, c, params, visit) }
		}
		if c.means {
			way.Means = func(params []quant.Params) (accuracy.Means, error) {
				return accuracy.MeasureMeans(ctx, c.base, c.plan, params, visit, s.o.Session)
			}
		}
		model, notes, bad, err := Apply(ctx, c.base, c.plan, c.table, way)
		if err == nil && len(bad) == 0 {
			c.model, c.notes, c.traced = model, notes, false
		}
		return bad, err
	})
}

// usable makes the plan of c, again and again without the activations that apply, by
// ID, finds no usable range for.
func (s *search) usable(ctx context.Context, c *candidate, apply func() (bad map[int]string, err error)) error {
	unusable := maps.Clone(c.qdq.Unusable)
	if unusable == nil {
		unusable = map[int]string{}
	}
	for {
		options := c.qdq
		options.Unusable = unusable
		var err error
		if c.plan, err = qdq.Annotate(c.base, s.o.Target, options); err != nil {
			return err
		}
		bad, err := apply()
		if err != nil || len(bad) == 0 {
			return err
		}
		maps.Copy(unusable, bad)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// way returns how c gets its parameters, without what runs the model.
func (s *search) way(c *candidate) Way {
	return Way{Method: c.method, MethodOptions: s.o.MethodOptions, CorrectBias: s.o.CorrectBias, Clip: c.clip, FitPairs: s.o.Target.PairSums, Threads: s.o.Session.Threads, ranges: s.known, memo: &s.memo}
}

// roundOnce chooses the codes of c's weights, as before for those whose scales are the
// same as in a candidate that c is a variant of.
func (s *search) roundOnce(ctx context.Context, c *candidate, params []quant.Params, visit accuracy.Samples) (int, error) {
	values, err := c.plan.Values(c.base)
	if err != nil {
		return 0, err
	}
	if c.codes == nil {
		c.codes = map[*graph.Value][]quant.Params{}
	}
	n := 0
	known := make([]bool, len(params))
	for i := range params {
		for _, p := range c.codes[values[i]] {
			if params[i].Equal(p) {
				params[i].Codes, known[i] = p.Codes, true
				n++
				break
			}
		}
	}
	layers := Layers{Runner: s.o.Runner, Parts: s.o.Parts, Work: s.o.Work, Session: s.o.Session, Samples: visit, Count: s.o.Visits}
	more, _, err := layers.Round(ctx, c.base, c.plan, c.table, s.way(c), params)
	for i, p := range params {
		if p.Codes != nil && !known[i] {
			p.Scale = slices.Clone(p.Scale) // which a bias may raise yet
			c.codes[values[i]] = append(c.codes[values[i]], p)
		}
	}
	return n + more, err
}

// Way is how ranges and weights become parameters.
type Way struct {
	Method        calibration.Method
	MethodOptions calibration.MethodOptions
	// Round, if given, chooses the codes of weights and returns of how many; see
	// accuracy.Round.
	Round       func([]quant.Params) (int, error)
	CorrectBias bool
	// Means, if given, measures what quantization adds to the means of
	// activations, for CorrectBias; see accuracy.MeasureMeans.
	Means func([]quant.Params) (accuracy.Means, error)
	// Clip narrows the ranges of weights; see accuracy.Clip.
	Clip bool
	// FitPairs keeps sums of two products within 16 bits; see accuracy.FitPairs.
	FitPairs bool
	// Threads is how many look at weights and statistics; 0: one per processor.
	Threads int

	ranges ranges         // known already; may be nil
	memo   *accuracy.Memo // may be nil
}

// ranges are what methods gave.
type ranges map[rangeKey]quant.Range

type rangeKey struct {
	stats  *calibration.Stats
	method calibration.Method
	scheme quant.Scheme
}

// Apply quantizes m as the plan says. The table may be nil for a plan without
// activations. The result is nil if the plan changes nothing, or if bad lists,
// by value ID, activations without a usable range.
func Apply(ctx context.Context, m *graph.Model, plan *qdq.Plan, table *calibration.Table, way Way) (result *graph.Model, notes []string, bad map[int]string, err error) {
	fitted := ""
	ranges, unsure, err := way.rangesOf(m, plan, table)
	if err != nil {
		return nil, nil, nil, err
	}
	params, bad, err := plan.Resolve(m, ranges, way.Threads)
	if err != nil || len(bad) > 0 || plan.Empty() {
		return nil, nil, bad, err
	}
	if way.Clip {
		if _, err := accuracy.Clip(m, plan, params, boundsOf(table), way.Threads); err != nil {
			return nil, nil, nil, err
		}
	}
	if way.FitPairs {
		channels, nodes, err := accuracy.FitPairs(m, plan, params, boundsOf(table), way.memo, way.Threads)
		if err != nil {
			return nil, nil, nil, err
		}
		if channels > 0 {
			fitted = fmt.Sprintf("%d output channels of %d nodes use fewer of the weights' codes, so that sums in 16 bits do not saturate on processors without VNNI", channels, nodes)
		}
	}
	raised, err := plan.FitBiases(m, params)
	if err != nil {
		return nil, nil, nil, err
	}
	if way.Round != nil {
		if _, err := way.Round(params); err != nil {
			return nil, nil, nil, err
		}
	}
	result = m.Clone()
	if way.CorrectBias {
		var added accuracy.Means
		if way.Means != nil {
			if added, err = way.Means(params); err != nil {
				return nil, nil, nil, err
			}
		}
		if _, err := accuracy.CorrectBias(result, plan, params, means(table), added, way.memo, way.Threads); err != nil {
			return nil, nil, nil, err
		}
	}
	if notes, err = qdq.RewriteContext(ctx, result, plan, params, way.Threads); err != nil {
		return nil, nil, nil, err
	}
	notes = append(raised, notes...)
	if fitted != "" {
		notes = append(notes, fitted)
	}
	if list := *unsure; len(list) > 0 {
		const most = 4
		notes = append(notes, fmt.Sprintf("no sample gives a probability above one half from %q: samples of what the model looks for would give better ranges", list[:min(most, len(list))]))
	}
	_, err = passes.Cleanup(ctx, result, passes.Options{Check: true})
	return result, notes, nil, err
}

// rangesOf gives the method's range of each activation, within what its readers
// tell apart, and with room for logits. Once it has been asked for all, unsure has
// the names of logits that the samples leave below 0.
func (w *Way) rangesOf(m *graph.Model, plan *qdq.Plan, table *calibration.Table) (of qdq.Ranges, unsure *[]string, err error) {
	values, err := plan.Values(m)
	if err != nil {
		return nil, nil, err
	}
	known := w.ranges
	if known == nil {
		known = ranges{}
	}
	keyOf := func(v *graph.Value, e *qdq.TensorPlan) (rangeKey, bool) {
		if table == nil || e.Kind != qdq.Activation {
			return rangeKey{}, false
		}
		scheme := w.MethodOptions.Scheme
		if s, err := e.Scheme(); err == nil {
			scheme = s
		}
		st := table.Values[calibration.ValueKey(v)]
		return rangeKey{st, w.Method, scheme}, st != nil
	}
	// What is not known yet is found for all activations together.
	var keys []rangeKey
	var list []calibration.Request
	for i, v := range values {
		k, ok := keyOf(v, &plan.Tensors[i])
		if _, done := known[k]; !ok || done || plan.Tensors[i].Range != nil {
			continue
		}
		o := w.MethodOptions
		o.Scheme = k.scheme
		if c := k.stats.Channels; c != nil && w.Method.UsesSensitivity() {
			o.Sensitivity = calibration.Sensitivity(v, len(c.Count))
		}
		keys = append(keys, k)
		list = append(list, calibration.Request{Stats: k.stats.Within(ops.Saturation(v)), Method: w.Method, Options: o})
	}
	failed := map[rangeKey]error{}
	for i, r := range calibration.Ranges(list, w.Threads) {
		if r.Err != nil {
			failed[keys[i]] = r.Err
		} else {
			known[keys[i]] = r.Range
		}
	}
	logits, unsure := ops.Logits(m), new([]string)
	return func(v *graph.Value, e *qdq.TensorPlan) (quant.Range, string) {
		k, ok := keyOf(v, e)
		if !ok {
			return quant.Range{}, "no sample reached it, so its range is not known"
		}
		if err := failed[k]; err != nil {
			return quant.Range{}, err.Error()
		}
		r := known[k]
		if logits[v.ID] {
			if r.Max <= 0 {
				*unsure = append(*unsure, v.Name())
			}
			r.Min, r.Max = min(r.Min, -ops.Certain), max(r.Max, ops.Certain)
		}
		return r, ""
	}, unsure, nil
}

// means gives the mean of each channel of an activation.
func means(table *calibration.Table) accuracy.Means {
	return func(v *graph.Value) []float64 {
		if table == nil {
			return nil
		}
		if st := table.Values[calibration.ValueKey(v)]; st != nil && st.Channels != nil {
			return st.Channels.Mean()
		}
		return nil
	}
}

// boundsOf gives the range of each channel of an activation.
func boundsOf(table *calibration.Table) accuracy.Bounds {
	return func(v *graph.Value) (lo, hi []float32) {
		if table == nil {
			return nil, nil
		}
		if st := table.Values[calibration.ValueKey(v)]; st != nil && st.Channels != nil {
			return st.Channels.Min, st.Channels.Max
		}
		return nil, nil
	}
}
