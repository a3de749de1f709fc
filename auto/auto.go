// Package auto finds out what serves a model best by measuring it: it makes
// quantized forms of the model in several ways, runs them on calibration
// samples, and keeps what lowers the error of the outputs.
package auto

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/job"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes"
	"github.com/onnxq/onnxq/passes/accuracy"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
)

// Options say what a search may do.
type Options struct {
	Target *targets.Target
	Qdq    qdq.Options
	// Method is the calibration method; "" lets the search choose between
	// Auto, MinMax and MSE.
	Method        calibration.Method
	MethodOptions calibration.MethodOptions
	// Equalize, Smooth, CorrectBias and Round allow these passes; FloatIslands
	// allows parts of the model to stay float.
	Equalize, Split, Smooth, CorrectBias, Clip, Round, FloatIslands bool
	// Rows allows a scale for each row where inputs are quantized as they come.
	Rows bool
	// Size puts few bytes above speed: what integers do not make faster is
	// quantized as well.
	Size bool
	// Speed leaves float what integers are not clearly estimated to make faster.
	Speed bool
	// Store lets the search choose in how few bits the weights of nodes that
	// stay float are stored, in place of Qdq.Store.
	Store bool
	// Calibrate collects statistics of a prepared model. With unseen set it
	// leaves out the samples that candidates are measured on.
	Calibrate func(ctx context.Context, m *graph.Model, watch []quant.Watch, unseen bool) (*calibration.Table, error)
	// Visit calls f with samples for passes that run the model themselves, of
	// which there are Visits at most. With unseen set it leaves out the samples
	// that candidates are measured on.
	Visit  func(ctx context.Context, unseen bool, f func(map[string]ops.Data) error) error
	Visits int
	// Unseen makes the search measure candidates on samples that their ranges
	// do not know; the chosen one is then calibrated on all samples.
	Unseen bool
	// Samples are what candidates are measured on; none means that nothing can
	// be measured, and the first candidate is taken.
	Samples []map[string]ops.Data
	Engine  exec.Engine // what runs models to measure them; nil: exec.Embedded
	Session exec.SessionOptions
	// Runner, if given, measures candidates that do not depend on each other and
	// rounds the weights of layers, in Parts tasks; the files of tasks are put in
	// Work ("": the system's folder for temporary files). Engine is then
	// exec.Embedded.
	Runner job.Runner
	Parts  int
	Work   string
	// Contract is what the search aims at.
	Contract Contract
	// Accept, if given, has the last word on a model that the search thinks good:
	// it returns what the model misses, and a figure that is the less, the closer
	// the model comes. Until nothing is missing, more of the model stays float; the
	// result is the one that came closest.
	Accept func(ctx context.Context, m *graph.Model) (short Shortfall, loss float64, err error)
	// Progress is called before each measurement.
	Progress func(done int)
}

// Result is the candidate that was chosen.
type Result struct {
	Model *graph.Model // the quantized model; nil if nothing could be quantized
	Plan  *qdq.Plan
	Table *calibration.Table
	Notes []string
	// Short says what is missing of the contract, on the samples of the search or
	// by Accept; "" if nothing is.
	Short string
}

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

// maxWork bounds the nodes of all candidates together, so that the search stays
// cheap on graphs of many thousand nodes.
const maxWork = 9_000

// maxIslands bounds how many float islands are tried.
const maxIslands = 4

// candidate is one way to quantize.
type candidate struct {
	base   *graph.Model // prepared float model
	table  *calibration.Table
	method calibration.Method
	qdq    qdq.Options
	round  bool
	clip   bool
	means  bool                            // biases are corrected by measured means
	codes  map[*graph.Value][]quant.Params // what rounding gave, by weight, for some scales
	plan   *qdq.Plan
	model  *graph.Model
	found  []string // what the search changed
	notes  []string // of Rewrite
	score  float64
	short  Shortfall
	known  *scored // what a task gave, before the model is built
}

type search struct {
	o     Options
	float *graph.Model
	yard  *yardstick
	files shipped
	runs  int
	known ranges
	memo  accuracy.Memo
	left  int  // nodes that may still be tried
	final bool // the choices are made: all samples may be used
	costs *costs
	// aim and share bound relief: the score in dB that it stops at and the share
	// of the time saved by integers that it may give back.
	aim, share float64
	saves      float64 // what integers save at first, as anchors has it
}

// Search quantizes m, a prepared model, in the best way that it finds.
func Search(ctx context.Context, m *graph.Model, o Options) (*Result, error) {
	s := &search{o: o, float: m, left: maxWork, known: ranges{}, aim: reliefAim, share: reliefShare}
	defer s.files.close()
	best := &candidate{base: m, method: o.Method, qdq: o.Qdq}
	if best.method == "" {
		best.method = calibration.Auto
	}
	if o.Store {
		best.qdq.Store = codes
		if len(o.Samples) > 0 {
			best.qdq.Store = qdq.Float16
		}
	}
	best.qdq.Logged = o.Qdq.Logged && len(o.Samples) > 0
	if err := s.economize(ctx, best); err != nil {
		return nil, err
	}
	if err := s.calibrate(ctx, best, o.Unseen); err != nil {
		return nil, err
	}
	if best.plan.Empty() {
		return &Result{Plan: best.plan}, nil
	}
	if o.Store && len(o.Samples) == 0 {
		small, err := s.small(best)
		if err != nil {
			return nil, err
		}
		best.qdq.Half = best.halving(small).qdq.Half
	}
	if err := s.build(ctx, best); err != nil {
		return nil, err
	}
	if best.empty() || len(o.Samples) == 0 {
		return s.result(best), nil
	}
	var err error
	if s.yard, err = newYardstick(ctx, m, o.Engine, o.Session, o.Samples); err != nil {
		return nil, err
	}
	if err := s.measure(ctx, best); err != nil {
		return nil, err
	}
	steps := []func(context.Context, *candidate) (*candidate, error){s.rows, s.islands, s.ranges, s.equalize, s.split, s.smooth, s.again}
	if len(fewBits(best.plan)) > 0 { // whose codes matter more than anything behind them
		steps = append(steps, s.clipped, s.rounded, s.widened, s.biases, s.relief, s.dynamic, s.store)
	} else {
		steps = append(steps, s.biases, s.relief, s.dynamic, s.store, s.clipped, s.rounded)
	}
	for _, step := range steps {
		next, err := step(ctx, best)
		if err != nil {
			return nil, err
		}
		best = next
	}
	return s.settle(ctx, best)
}

// settle makes the result of c, or of variants with less and less on integers
// where c does not keep the contract.
func (s *search) settle(ctx context.Context, c *candidate) (*Result, error) {
	var best *Result
	closest := math.Inf(1)
	for try := 0; ; try++ {
		if c.short.Text == "" || !s.o.FloatIslands || try == maxRetreats {
			if err := s.realize(ctx, c); err != nil {
				return nil, err
			}
			if err := s.finish(ctx, c); err != nil {
				return nil, err
			}
			res := s.result(c)
			loss := 0.0
			if s.o.Accept != nil && c.model != nil {
				var err error
				if c.short, loss, err = s.o.Accept(ctx, c.model); err != nil {
					return nil, err
				}
			}
			res.Short = c.short.Text
			if best == nil || loss < closest {
				best, closest = res, loss
			}
			if res.Short == "" {
				return res, nil
			}
		}
		if !s.o.FloatIslands || try == maxRetreats {
			return best, nil
		}
		next, err := s.retreat(ctx, c, try)
		if err != nil {
			return nil, err
		}
		c = next
	}
}

// finish calibrates c on all samples and builds it.
func (s *search) finish(ctx context.Context, c *candidate) error {
	if !s.o.Unseen {
		return nil
	}
	if err := s.calibrate(ctx, c, false); err != nil {
		return err
	}
	s.final = true
	defer func() { s.final = false }()
	c.known = nil
	return s.build(ctx, c)
}

// maxRetreats is the number of retreats of settle: two times with the weights in
// 16 bits that cost the outputs most or more and more of the time that integers
// save given back, then no integers, then weights in 16 bits.
const maxRetreats = 5

// retreat returns a variant of c that is closer to the float model.
func (s *search) retreat(ctx context.Context, c *candidate, try int) (*candidate, error) {
	gain := float64(retreatGain)
	if c.short.DB > 0 {
		gain = c.short.DB + retreatMargin
	}
	s.aim = c.score + gain*float64(1+min(try, 1))
	next, note := c.variant(), "left all products float"
	next.qdq.Keep = map[int]string{}
	quantized, anchors := quantizedNodes(c.base, c.plan), 0
	for g := range c.base.Scopes() {
		for n := range g.Nodes() {
			if why, kept := c.qdq.Keep[n.ID]; kept {
				next.qdq.Keep[n.ID] = why
			} else if quantized[n.ID] && depth(n) > 0 && n.Op.Type != "Gather" {
				next.qdq.Keep[n.ID] = "integers cost the outputs too much: measured"
				anchors++
			}
		}
	}
	switch {
	case anchors > 0 && try < 2:
		s.share = []float64{0.35, 0.8}[try]
		if r, err := s.finer(ctx, c, finerShare); err != nil || r != c {
			return r, err
		}
		if r, err := s.relief(ctx, c); err != nil || r != c {
			return r, err
		}
		return c, nil
	case anchors > 0 && try == 2:
		if s.o.Store && len(next.qdq.Half) == 0 {
			next.qdq.Store = codes
		}
	default:
		if try < maxRetreats-1 {
			for _, most := range []float64{finerShare, 1} {
				if r, err := s.finer(ctx, c, most); err != nil || r != c {
					return r, err
				}
			}
		}
		order, err := s.costliest(ctx, c, atLoad(c.plan))
		if err != nil {
			return nil, err
		}
		if try < maxRetreats-1 {
			order = order[:(len(order)+1)/2]
		}
		next.qdq.Half = c.halving(order).qdq.Half
		note = fmt.Sprintf("stored %d weights in 16 bits", len(order))
	}
	if err := s.build(ctx, next); err != nil {
		return nil, err
	}
	if next.empty() {
		next.score, next.short = math.Inf(1), Shortfall{}
		return next, nil
	}
	if err := s.measure(ctx, next); err != nil {
		return nil, err
	}
	next.found = append(next.found, fmt.Sprintf("%s, since %s: score %.1f → %.1f dB on calibration samples", note, c.short.Text, c.score, next.score))
	if anchors == 0 || !s.o.Round || s.o.Visits == 0 || next.round || s.good(next) {
		return next, nil
	}
	// Without integers the codes of weights are all that is left to choose.
	rounded := next.variant()
	rounded.round = true
	return s.improved(ctx, next, rounded, roundGain, roundNote)
}

// A retreat is to raise the score by what the contract lacks and retreatMargin, or by
// retreatGain where that is no matter of noise alone; all in dB.
const (
	retreatGain   = 4
	retreatMargin = 0.5
)

// economize keeps float what integers would not make faster, where the target
// says what things cost and nodes were not included by name.
func (s *search) economize(ctx context.Context, c *candidate) error {
	if !s.o.FloatIslands || s.o.Size || len(c.qdq.Include) > 0 || len(s.o.Target.Costs) == 0 || len(s.o.Samples) == 0 {
		return nil
	}
	plan, err := qdq.Annotate(c.base, s.o.Target, c.qdq)
	if err != nil {
		return err
	}
	if s.costs, err = s.measureCosts(ctx, c.base); err != nil || plan.Quantized() == 0 {
		return err
	}
	worth := margin
	if s.o.Speed {
		worth = clearly
	}
	list, speed := s.costs.slower(c.base, plan, worth)
	if len(list) == 0 {
		return nil
	}
	c.qdq.Keep = map[int]string{}
	for _, n := range list {
		c.qdq.Keep[n.ID] = fmt.Sprintf("integers would not be faster on %s: estimated from the sizes of a sample", s.o.Target.Name)
	}
	c.found = append(c.found, fmt.Sprintf("kept %d of %d nodes float that integers would not make faster; the parts that could be quantized are estimated to run at %.2f times float's speed or more", len(list), plan.Quantized(), speed))
	return nil
}

func (s *search) result(c *candidate) *Result {
	return &Result{Model: c.model, Plan: c.plan, Table: c.table, Notes: slices.Concat(c.found, c.notes)}
}

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
	unusable := map[int]string{}
	for id, why := range c.qdq.Unusable {
		unusable[id] = why
	}
	for {
		options := c.qdq
		options.Unusable = unusable
		var err error
		if c.plan, err = qdq.Annotate(c.base, s.o.Target, options); err != nil {
			return err
		}
		way := s.way(c)
		visit := func(ctx context.Context, f func(map[string]ops.Data) error) error {
			return s.o.Visit(ctx, s.o.Unseen && !s.final, f)
		}
		if c.round {
			way.Round = func(params []quant.Params) (int, error) { return s.roundOnce(ctx, c, params, visit) }
		}
		if c.means {
			way.Means = func(params []quant.Params) (accuracy.Means, error) {
				return accuracy.MeasureMeans(ctx, c.base, c.plan, params, visit, s.o.Session)
			}
		}
		model, notes, bad, err := Apply(ctx, c.base, c.plan, c.table, way)
		if err != nil {
			return err
		}
		if len(bad) == 0 {
			c.model, c.notes = model, notes
			return nil
		}
		for id, why := range bad {
			unusable[id] = why
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
	// Means, if given, measures what quantization leaves of the means of
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
	if way.Round != nil {
		if _, err := way.Round(params); err != nil {
			return nil, nil, nil, err
		}
	}
	result = m.Clone()
	if way.CorrectBias {
		var rounded accuracy.Means
		if way.Means != nil {
			if rounded, err = way.Means(params); err != nil {
				return nil, nil, nil, err
			}
		}
		if _, err := accuracy.CorrectBias(result, plan, params, means(table), rounded, way.memo, way.Threads); err != nil {
			return nil, nil, nil, err
		}
	}
	if notes, err = qdq.RewriteContext(ctx, result, plan, params, way.Threads); err != nil {
		return nil, nil, nil, err
	}
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

// newYardstick runs the float model m on samples.
func newYardstick(ctx context.Context, m *graph.Model, e exec.Engine, o exec.SessionOptions, samples []map[string]ops.Data) (*yardstick, error) {
	y := &yardstick{samples: samples, selection: eval.NewSelection(m), outputs: len(m.Graph.Outputs())}
	y.names, y.kinds = y.selection.Names(m), Kinds(m, y.selection.Beside())
	m = y.selection.Reference(m)
	if e == nil {
		e = exec.Embedded{}
	}
	x, err := e.Compile(ctx, m, exec.Options{})
	if err != nil {
		return nil, err
	}
	defer x.Close()
	r, err := x.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for _, in := range samples {
		out, err := r.Run(ctx, in, nil, nil)
		if err != nil {
			return nil, err
		}
		ref, picked := y.selection.Split(out)
		y.ref, y.picked = append(y.ref, ref), append(y.picked, picked)
	}
	return y, nil
}

// measure sets the score of c, in dB, of which more is better, and what c
// misses of the contract.
func (s *search) measure(ctx context.Context, c *candidate) error {
	if c.known != nil && c.known.all {
		s.count()
		c.score, c.short = c.known.score(), c.known.Short
		return nil
	}
	score, compared, err := s.compare(ctx, c, s.few(len(s.o.Samples)))
	if err != nil {
		return err
	}
	c.score = score
	c.short = s.o.Contract.Check(s.yard.kinds, compared.Outputs(), score)
	return nil
}

// score returns the score of c on a few of the samples.
func (s *search) score(ctx context.Context, c *candidate, few []int) (float64, error) {
	if c.known != nil && c.known.all == (len(few) == len(s.o.Samples)) {
		s.count()
		return c.known.score(), nil
	}
	score, _, err := s.compare(ctx, c, few)
	return score, err
}

// count counts a measurement.
func (s *search) count() {
	s.runs++
	if s.o.Progress != nil {
		s.o.Progress(s.runs)
	}
}

// compare runs c on some of the samples.
func (s *search) compare(ctx context.Context, c *candidate, places []int) (float64, *eval.Comparison, error) {
	s.count()
	if err := s.realize(ctx, c); err != nil {
		return 0, nil, err
	}
	return s.yard.compare(ctx, c.model, s.o.Target.PairSums, s.o.Session, places)
}

// compare runs m on some of the samples.
func (y *yardstick) compare(ctx context.Context, m *graph.Model, saturate bool, o exec.SessionOptions, places []int) (float64, *eval.Comparison, error) {
	names, aligned := y.names, y.selection.Quantized(m)
	if aligned != nil {
		m = aligned
	} else {
		names = names[:y.outputs]
	}
	prog, err := exec.Compile(m, exec.Options{Saturate: saturate})
	if err != nil {
		return 0, nil, err
	}
	session := prog.NewSession(o)
	score, compared := eval.NewScore(len(names)), eval.NewComparison(names)
	for _, i := range places {
		in, ref := y.samples[i], y.ref[i][:len(names)]
		if aligned != nil && len(y.picked[i]) > 0 {
			in = maps.Clone(in)
			maps.Copy(in, y.picked[i])
		}
		out, err := session.Run(ctx, in, nil, nil)
		if err != nil {
			return 0, nil, err
		}
		if err := score.Add(ref, out); err != nil {
			return 0, nil, err
		}
		if err := compared.Add(ref, out); err != nil {
			return 0, nil, err
		}
	}
	return score.DB(), compared, nil
}

// better is improved for what is left of the work of trying candidates.
func (s *search) better(ctx context.Context, c, next *candidate, gain float64, note string) (*candidate, error) {
	if !s.afford(next) {
		return c, nil
	}
	return s.improved(ctx, c, next, gain, note)
}

// improved builds and measures next and returns it if it beats c by gain dB.
func (s *search) improved(ctx context.Context, c, next *candidate, gain float64, note string) (*candidate, error) {
	if err := s.build(ctx, next); err != nil {
		return nil, err
	}
	if next.empty() {
		return c, nil
	}
	if err := s.measure(ctx, next); err != nil {
		return nil, err
	}
	if next.score < c.score+gain {
		return c, nil
	}
	next.found = append(next.found, fmt.Sprintf("%s: score %.1f → %.1f dB on calibration samples", note, c.score, next.score))
	return next, nil
}

// afford takes the work of trying c from what is left, and reports whether
// there was enough.
func (s *search) afford(c *candidate) bool {
	for g := range c.base.Scopes() {
		s.left -= g.NumNodes()
	}
	return s.left >= 0
}

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

// codes is the storage type of weights that are decoded at load.
const codes = "i8"

// Storing weights in fewer bits may cost storeLoss, in dB, and anything that
// keeps the contract or leaves a score of enough: noise of a thousandth of the
// variance.
const (
	storeLoss = 0.2
	enough    = 30
)

// smallShare is the share of the quantized weights that keep 16 bits though 8 might
// do, the smallest tensors first: the first layer's, those of depthwise
// convolutions and the like are most easily harmed, and hardly count in bytes.
const smallShare = 0.01

// store tries to keep the weights of nodes that stay float in 8 bits: all but the
// smallest or, where that costs too much, all but as few as will do, those first
// that cost the outputs most for their bytes. Where rounding by the effect on outputs is
// enough, all are.
func (s *search) store(ctx context.Context, c *candidate) (*candidate, error) {
	if !s.o.Store {
		return c, nil
	}
	small, err := s.small(c)
	if err != nil {
		return nil, err
	}
	try := func(half []int) (*candidate, error) {
		next := c.halving(slices.Concat(small, half))
		next.qdq.Store = codes
		if !s.afford(next) {
			return nil, nil
		}
		if err := s.build(ctx, next); err != nil {
			return nil, err
		}
		return next, s.measure(ctx, next)
	}
	passes := func(next *candidate) bool {
		return next.short.Text == "" && !s.o.Speed || next.score >= min(c.score-storeLoss, enough)
	}
	all, err := try(nil)
	if err != nil || all == nil || passes(all) {
		if all == nil {
			all = c
		}
		return all, err
	}
	// Rounding takes all layers, and long: these have to be most of them.
	if s.o.Round && s.o.Visits > 0 && !all.round && 2*len(atLoad(all.plan)) > all.plan.Quantized() {
		next := all.variant()
		next.round = true
		next, err := s.improved(ctx, all, next, roundGain, roundNote)
		if err != nil || next != all && passes(next) {
			return next, err
		}
	}
	order, err := s.costliest(ctx, all, atLoad(all.plan))
	if err != nil {
		return nil, err
	}
	best, half := c, order // half lists the weights that stay in float16
	for lo, hi := 1, len(order)-1; lo <= hi; {
		mid := (lo + hi) / 2
		next, err := try(order[:mid])
		if err != nil {
			return nil, err
		}
		if next == nil {
			break
		}
		if passes(next) {
			best, half, hi = next, order[:mid], mid-1
		} else {
			lo = mid + 1
		}
	}
	if best != c {
		if best, err = pruned(best, half, sizes(all.base), try, passes); err != nil {
			return nil, err
		}
	}
	if n := len(best.qdq.Half) - len(small); best != c && n > 0 {
		best.found = append(best.found, fmt.Sprintf("stored %d of %d weights that are decoded at load in 16 bits, since fewer bits cost the outputs too much", n, len(order)))
	}
	return best, nil
}

// small lists the smallest weights that c could store in 8 bits, by ID, as many as
// take that share together; none where bytes count most.
func (s *search) small(c *candidate) ([]int, error) {
	if s.o.Size {
		return nil, nil
	}
	all := c.variant()
	all.qdq.Store = codes
	plan, err := qdq.Annotate(all.base, s.o.Target, all.qdq)
	if err != nil {
		return nil, err
	}
	values, err := plan.Values(all.base)
	if err != nil {
		return nil, err
	}
	total := 0
	for i, v := range values {
		if plan.Tensors[i].Kind == qdq.Weight {
			total += v.Const.Len()
		}
	}
	list := atLoad(plan)
	slices.SortStableFunc(list, func(a, b int) int { return cmp.Compare(values[a].Const.Len(), values[b].Const.Len()) })
	var small []int
	left := smallShare * float64(total)
	for _, i := range list {
		if left -= float64(values[i].Const.Len()); left < 0 {
			break
		}
		small = append(small, values[i].ID)
	}
	return small, nil
}

// maxPrunes bounds how often pruned tries.
const maxPrunes = 8

// pruned takes weights out of those that c keeps in 16 bits, by ID, which do no harm
// in 8 though they are rough: halves of them, then smaller parts, the largest
// weights first.
func pruned(c *candidate, half []int, size map[int]int, try func([]int) (*candidate, error), passes func(*candidate) bool) (*candidate, error) {
	half = slices.Clone(half)
	slices.SortStableFunc(half, func(a, b int) int { return cmp.Compare(size[b], size[a]) })
	tries := 0
	for step := len(half) / 2; step > 0; step /= 2 {
		for at := 0; at < len(half) && step < len(half); tries++ {
			if tries == maxPrunes {
				return c, nil
			}
			fewer := slices.Delete(slices.Clone(half), at, min(at+step, len(half)))
			next, err := try(fewer)
			if err != nil || next == nil {
				return c, err
			}
			if passes(next) {
				c, half = next, fewer
			} else {
				at += step
			}
		}
	}
	return c, nil
}

// sizes gives the number of elements of the constants of m, by ID.
func sizes(m *graph.Model) map[int]int {
	out := map[int]int{}
	for g := range m.Scopes() {
		for _, v := range g.Initializers() {
			if v.Const != nil {
				out[v.ID] = v.Const.Len()
			}
		}
	}
	return out
}

// fewBits lists the weights of fewer than 8 bits that integer kernels read, by
// index in plan.Tensors.
func fewBits(plan *qdq.Plan) []int {
	var list []int
	for i := range plan.Tensors {
		e := &plan.Tensors[i]
		if t, err := targets.Type(e.Type); err == nil && e.Kind == qdq.Weight && !e.AtLoad && t.DType.Bits() < 8 {
			list = append(list, i)
		}
	}
	return list
}

// widened gives 8 bits to as few of the weights that have fewer as will keep the
// contract, those first that cost the outputs most for their bytes, or to all of them where
// nothing less does.
func (s *search) widened(ctx context.Context, c *candidate) (*candidate, error) {
	enough := func(c *candidate) bool { return c.score >= s.aim || c.short.Text == "" && c.score >= leastScore }
	list := fewBits(c.plan)
	if !s.o.FloatIslands || len(list) == 0 || enough(c) {
		return c, nil
	}
	order, err := s.costliest(ctx, c, list)
	if err != nil {
		return nil, err
	}
	best := c
	for lo, hi, n := 1, len(order), len(order); lo <= hi; n = (lo + hi) / 2 { // the number of weights of 8 bits
		next := c.variant()
		next.qdq.Wide = map[int]bool{}
		for _, id := range order[:n] {
			next.qdq.Wide[id] = true
		}
		if !s.afford(next) {
			break
		}
		if err := s.build(ctx, next); err != nil {
			return nil, err
		}
		if next.empty() {
			break
		}
		if err := s.measure(ctx, next); err != nil {
			return nil, err
		}
		next.found = append(next.found, fmt.Sprintf("%d of %d weights of few bits got 8, those that cost the outputs most: score %.1f → %.1f dB on calibration samples", n, len(order), c.score, next.score))
		switch {
		case enough(next):
			best, hi = next, n-1
		case n == len(order):
			if next.score < c.score+freeGain {
				return c, nil
			}
			return next, nil
		default:
			lo = n + 1
		}
	}
	return best, nil
}

// atLoad lists the weights that the plan stores as codes to be decoded at load, by
// index in plan.Tensors.
func atLoad(plan *qdq.Plan) []int {
	var list []int
	for i := range plan.Tensors {
		if e := &plan.Tensors[i]; e.AtLoad && e.Type != qdq.Float16 {
			list = append(list, i)
		}
	}
	return list
}

// costliest lists the IDs of weights of c, given by index in the plan's Tensors, by
// falling share of the noise that starts at them for the bytes that they take. Where
// noise starts in nested graphs, the rounding error relative to their power stands for
// it.
func (s *search) costliest(ctx context.Context, c *candidate, weights []int) ([]int, error) {
	values, err := c.plan.Values(c.base)
	if err != nil {
		return nil, err
	}
	from, err := s.origins(ctx, c, s.few(reliefSamples))
	if err != nil {
		return nil, err
	}
	type weight struct {
		id   int
		cost float64
	}
	var list []weight
	for _, i := range weights {
		w := weight{id: values[i].ID}
		if from != nil {
			w.cost = from.weights[w.id] / float64(values[i].Const.Len())
		} else {
			scheme, err := c.plan.Tensors[i].Scheme()
			if err != nil {
				return nil, err
			}
			if w.cost, err = scheme.Noise(values[i].Const); err != nil {
				return nil, err
			}
		}
		list = append(list, w)
	}
	slices.SortStableFunc(list, func(a, b weight) int { return cmp.Compare(b.cost, a.cost) })
	out := make([]int, len(list))
	for i, w := range list {
		out[i] = w.id
	}
	return out, nil
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
	if !s.o.Round || s.o.Visits == 0 || c.round || s.good(c) {
		return c, nil
	}
	next := c.variant()
	next.round = true
	return s.better(ctx, c, next, roundGain, roundNote)
}

// fine is the score in dB from which passes that lower the error are not tried.
const fine = 25

// good reports whether nothing has to be gained any more.
func (s *search) good(c *candidate) bool { return c.score >= fine && c.short.Text == "" }

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

// variant returns a candidate like c that has not been built yet.
func (c *candidate) variant() *candidate {
	return &candidate{base: c.base, table: c.table, method: c.method, qdq: c.qdq, round: c.round, clip: c.clip, means: c.means, codes: c.codes, found: slices.Clone(c.found)}
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
		next := c.variant()
		next.qdq.Keep = map[int]string{}
		for id, why := range c.qdq.Keep {
			next.qdq.Keep[id] = why
		}
		for _, n := range cut.nodes {
			next.qdq.Keep[n.ID] = fmt.Sprintf("feeds %s %q, which magnifies the error of small values: measured", cut.at.Op, cut.at.Label())
		}
		list = append(list, next)
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

// quantizedNodes tells by node ID what the plan quantizes.
func quantizedNodes(m *graph.Model, plan *qdq.Plan) []bool {
	out := make([]bool, m.NumNodes())
	i := 0
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			out[n.ID] = plan.Nodes[i].Quantized
			i++
		}
	}
	return out
}

func producers(n *graph.Node) []*graph.Node {
	var out []*graph.Node
	for _, v := range n.Inputs() {
		if v != nil && v.DefNode() != nil {
			out = append(out, v.DefNode())
		}
	}
	return out
}

func consumers(n *graph.Node) []*graph.Node {
	var out []*graph.Node
	for _, v := range n.Outputs() {
		if v != nil {
			out = append(out, readers(v)...)
		}
	}
	return out
}

func readers(v *graph.Value) []*graph.Node {
	var out []*graph.Node
	for _, u := range v.Uses() {
		if u.Node != nil {
			out = append(out, u.Node)
		}
	}
	return out
}

// reach returns the nodes that can be reached from n, itself excluded, sorted
// by ID.
func reach(n *graph.Node, next func(*graph.Node) []*graph.Node) []*graph.Node {
	seen := map[*graph.Node]bool{n: true}
	var out []*graph.Node
	for stack := []*graph.Node{n}; len(stack) > 0; {
		k := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, v := range next(k) {
			if !seen[v] {
				seen[v] = true
				out = append(out, v)
				stack = append(stack, v)
			}
		}
	}
	slices.SortFunc(out, func(a, b *graph.Node) int { return a.ID - b.ID })
	return out
}
