// Package onnxq quantizes ONNX models: a float model and sample inputs go in,
// a model with QuantizeLinear/DequantizeLinear comes out that is about a
// quarter of the size and that ONNX Runtime runs on integers.
//
// Quantize does the whole job from file to file, QuantizeModel in memory. The
// stages can be called one by one: Load, Prepare, MakePlan and Calibrate; then
// QuantizeModel with the plan and the table as Options.Plan and Options.Table,
// and Compare.
package onnxq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/onnxq/onnxq/auto"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
)

// Quantize reads the model at path in and writes its quantized form to out.
// What it cannot quantize stays float with a reason in the Result; a model in
// which nothing can be quantized is copied as it is. If a demand of the
// options is not met, the error is a *ContractError, the Result is complete,
// and out is not written unless KeepFailed is set.
func Quantize(ctx context.Context, in, out string, o Options) (result *Result, err error) {
	start := time.Now()
	m, err := o.Load(in)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	defer watch(m, &err)()
	release, err := o.bound(m)
	if err != nil {
		return nil, err
	}
	defer release()
	save := o.saveOptions()
	if err := onnxfile.CheckDestination(m, out, save); err != nil {
		return nil, err
	}
	if o.Report != "" {
		if err := checkReport(o.Report, in, out); err != nil {
			return nil, err
		}
	}
	info, err := os.Stat(in)
	if err != nil {
		return nil, err
	}
	o.path = in
	q, res, err := QuantizeModel(ctx, m, o)
	var broken *ContractError
	if err != nil && !errors.As(err, &broken) {
		return nil, err
	}
	res.BytesIn, res.BytesOut = max(info.Size(), onnxfile.Size(m)), onnxfile.Size(q) // external data included
	if q != m && o.Plan == nil && res.Quantized == 0 && res.BytesOut >= res.BytesIn {
		q = m
		res.unchanged()
	}
	if broken == nil || o.KeepFailed {
		if q == m {
			res.BytesOut = res.BytesIn
			err = onnxfile.Copy(ctx, m, out, save)
		} else {
			err = o.save(ctx, q, out)
		}
		if err != nil {
			return nil, err
		}
	}
	res.Seconds, res.PeakRSS = time.Since(start).Seconds(), peakRSS()
	if o.Report != "" {
		if err := res.WriteReport(o.Report, in, out); err != nil {
			return nil, err
		}
	}
	if broken != nil {
		return res, broken
	}
	return res, nil
}

// QuantizeModel returns the quantized form of m, which aliases m's tensors; m
// itself stays as it is, and is the result if nothing in it can be quantized.
// The fields of the Result about files are not set. With a *ContractError,
// model and Result are complete.
func QuantizeModel(ctx context.Context, m *graph.Model, o Options) (quantized *graph.Model, result *Result, err error) {
	defer watch(m, &err)()
	release, err := o.bound(m)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	start := time.Now()
	var more []string
	o.Note = func(text string) {
		if !slices.Contains(more, text) {
			more = append(more, text)
		}
	}
	q, err := newQuantization(ctx, m, o)
	if err != nil {
		return nil, nil, err
	}
	defer q.close()
	res, broken, err := q.run(ctx)
	if err != nil {
		return nil, nil, err
	}
	if q.result == nil {
		q.result = m
	}
	for _, src := range q.closers {
		res.Notes = append(res.Notes, notes(src)...)
	}
	res.Notes = append(res.Notes, more...)
	res.Seconds, res.PeakRSS = time.Since(start).Seconds(), peakRSS()
	if broken != nil {
		return q.result, res, broken
	}
	return q.result, res, nil
}

// quantization is one run of Quantize in memory.
type quantization struct {
	o        Options
	original *graph.Model
	prepared *graph.Model
	planned  *graph.Model // the one that the plan of the result is of
	result   *graph.Model
	calib    *calibration.Source // samples to calibrate on; nil with a table
	eval     *calibration.Source // samples to measure on; may be nil
	held     int                 // samples held out of the data
	measured string
	closers  []*calibration.Source
	passes   []passes.Change
	path     string   // of the float model; "" if it is in memory only
	metric   *float64 // of the float model
	verdicts map[*graph.Model]*verdict
}

func (q *quantization) close() {
	for _, s := range q.closers {
		s.Close()
	}
}

func newQuantization(ctx context.Context, m *graph.Model, o Options) (*quantization, error) {
	if o.Mode == Auto && len(o.Data) == 0 && o.Table == nil && o.Plan == nil && !o.narrow() {
		o.Mode, o.unasked = Weights, !o.fewBits()
	}
	o.settle()
	q := &quantization{o: o, original: m, path: o.path}
	if err := o.check(); err != nil {
		return nil, err
	}
	if t := o.Table; t != nil && t.Model != "" && t.Model != Digest(m) {
		return nil, optionErrorf("the calibration table was made from another model")
	}
	m = o.renamed(ctx, m, o.Data)
	q.original = m
	var err error
	if q.prepared, q.passes, err = Prepare(ctx, m, o); err != nil {
		return nil, err
	}
	for _, c := range q.passes {
		if c.Pass == passes.SealWeights && c.Count > 0 {
			q.note("%d initializers, most of the weights among them, are inputs as well: they are taken for constants, and are inputs no more", c.Count)
		}
	}
	need, how := o.lowestOpset()
	if got := q.prepared.Opset(graph.OnnxDomain); o.Opset > 0 && got < need {
		return nil, optionErrorf("%s needs opset %d, not %d", how, need, got)
	}
	if err := q.openSources(ctx); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

// adopt takes the samples that the table was made from, with the options that
// it names, where they are still there.
func (q *quantization) adopt(ctx context.Context) {
	t := q.o.Table
	o := q.o
	o.Data, o.Samples, o.Bins, o.Holdout = t.Sources, t.Options.Limit, t.Options.Bins, &t.Options.Holdout
	o.Source.Batched, o.Source.Cast, o.Source.Image, o.Source.Seed = t.Options.Batched, t.Options.Cast, t.Options.Image, t.Options.Seed
	o.Source.SkipBad = max(o.Source.SkipBad, len(t.Skipped))
	o.State = nil
	for _, pair := range t.Options.State {
		in, out, _ := strings.Cut(pair, "=")
		o.State = append(o.State, calibration.Feedback{Input: in, Output: out})
	}
	names := strings.Join(t.Sources, ", ")
	src, err := Open(ctx, q.original, o.Data, o)
	if err == nil {
		err = t.Verify(ctx, src)
		src.Close()
	}
	if err != nil {
		q.note("the samples that the table was made from (%s) are not here as they were, so nothing is measured: %v", names, err)
		return
	}
	q.o = o
	q.note("decisions are measured on the samples that the table was made from: %s", names)
}

// note tells the user something, if that is wanted.
func (q *quantization) note(format string, args ...any) {
	if q.o.Note != nil {
		q.o.Note(fmt.Sprintf(format, args...))
	}
}

func (q *quantization) run(ctx context.Context) (*Result, *ContractError, error) {
	found, err := q.quantize(ctx)
	if err != nil {
		return nil, nil, err
	}
	q.result, q.planned = found.Model, found.Base
	if q.planned == nil {
		q.planned = q.prepared
	}
	if q.o.Format == QOperator && q.result != nil {
		if q.result, err = integerOperators(ctx, q.result); err != nil {
			return nil, nil, err
		}
	}
	if q.result != nil && slices.ContainsFunc(q.passes, func(c passes.Change) bool { return c.Pass == passes.WidenHalves && c.Count > 0 }) {
		passes.StoreHalves(q.result)
	}
	res := &Result{
		Plan: found.Plan, Table: found.Table, Mode: found.Plan.Mode, Target: found.Plan.Target,
		Passes: q.passes, Notes: found.Notes, Measured: q.measured,
	}
	res.describe(q)
	if t := found.Table; t != nil {
		if zeros := t.Zeros(); len(zeros) > 0 {
			const most = 8
			text := fmt.Sprintf("zero in every calibration sample, so that the samples give no range: %d values, %q", len(zeros), zeros[:min(most, len(zeros))])
			res.Notes = append(res.Notes, text)
		}
	}
	if q.result != nil && q.o.Plan == nil && res.Int8MACs == 0 && onnxfile.Size(q.result) >= onnxfile.Size(q.original) {
		q.result = nil
		res.Plan.Drop("the model would be no smaller and compute no more on integers")
		res.Notes = nil
		res.describe(q)
	}
	if n := res.Plan.Count(qdq.Integers); n > 0 && q.result != nil {
		res.Notes = append(res.Notes, fmt.Sprintf("the model is quantized already, in part or whole: %d nodes compute on integers, and stay as they are", n))
	}
	v := &verdict{}
	if q.result != nil {
		if v, err = q.judge(ctx, q.result); err != nil {
			return nil, nil, err
		}
		if q.o.Report != "" {
			if err := q.see(ctx, res); err != nil {
				return nil, nil, err
			}
		}
	}
	if v.outputs != nil {
		res.Outputs = v.outputs
	}
	res.SQNR, res.Metric = eval.Worst(res.Outputs), v.metric
	if p := q.o.MinCoverage; p != nil && 100*res.Int8MACs < *p {
		return res, &ContractError{fmt.Sprintf("%.1f %% of the multiply-adds run on integers, %g %% were demanded", 100*res.Int8MACs, *p)}, nil
	}
	return res, q.broken(v), nil
}

// see adds what a report shows besides.
func (q *quantization) see(ctx context.Context, res *Result) (err error) {
	if q.eval != nil && q.eval.Len() > 0 {
		if res.Difference, err = diff(ctx, q.original, q.result, q.eval, q.o); err != nil {
			return err
		}
	}
	res.Lint, err = Lint(q.result, q.o)
	return err
}

// quantize makes the quantized model: as a given plan and table say, or by
// measuring what serves best.
func (q *quantization) quantize(ctx context.Context) (*auto.Result, error) {
	o := auto.Options{
		Target: q.o.target(), Qdq: q.o.qdq(), Method: q.o.Method, MethodOptions: q.o.MethodOptions,
		Equalize: q.o.allows(Equalize) && q.calib != nil, Split: q.o.allows(Split) && q.calib != nil, Smooth: q.o.allows(Smooth) && q.calib != nil, CorrectBias: q.o.allows(BiasCorrection), Round: q.o.allows(Round) || q.o.allows(GPTQ), Clip: q.o.allows(Clip),
		Rows:         q.o.MinSQNR != nil || q.o.MaxDrop != nil,
		FloatIslands: q.o.Mode == Auto, Store: q.o.Mode == Auto, Size: q.o.Prefer == Size || q.o.MinCoverage != nil, Speed: q.o.Prefer == Speed,
		Contract: q.o.contract(),
		Engine:   q.o.engine(),
		Session:  q.o.session(),
		Runner:   q.o.Runner,
		Parts:    q.o.parts(),
		Work:     q.o.Work,
		Progress: func(n int) { q.o.progress("measure", n, 0) },
	}
	seen := q.measuredOn()
	o.Unseen = len(seen) > 0
	samples := func(unseen bool) *calibration.Source {
		if unseen {
			return q.calib.Without(seen)
		}
		return q.calib
	}
	o.Calibrate = q.calibrator(seen)
	if o.Method == "" && (q.calib == nil || q.o.Mode == Static && q.o.Algorithms != nil && len(q.o.Algorithms) == 0) {
		o.Method = calibration.Auto // nothing is measured, so that a table gives what its samples give
	}
	if q.o.Plan != nil {
		return q.follow(ctx, q.o.Plan, o)
	}
	if o.Qdq.Blocks != nil {
		return q.inBlocks(ctx, o.Qdq)
	}
	if q.o.Mode == Float16 {
		return q.half(ctx, o)
	}
	if o.Qdq.Dynamic {
		o.Method, o.Equalize, o.Split, o.Smooth, o.Round = calibration.MinMax, false, false, false, false // no range is known beforehand
	}
	if q.calib != nil {
		measured := measureOn
		if o.Unseen {
			measured = len(seen)
		}
		err := q.spread(ctx, q.calib, measured, func(in map[string]ops.Data) error {
			o.Samples = append(o.Samples, in)
			return nil
		})
		if err != nil {
			return nil, suggest(q.original, err)
		}
		o.Visits = min(measureOn, q.calib.Len())
		o.Visit = func(ctx context.Context, unseen bool, f func(map[string]ops.Data) error) error {
			return q.spread(ctx, samples(unseen), o.Visits, f)
		}
	}
	o.Accept = func(ctx context.Context, m *graph.Model) (auto.Shortfall, float64, error) {
		v, err := q.judge(ctx, m)
		if err != nil {
			return auto.Shortfall{}, 0, err
		}
		return v.short, v.loss, nil
	}
	return auto.Search(ctx, q.prepared, o)
}

// follow does what a plan from outside says.
func (q *quantization) follow(ctx context.Context, plan *qdq.Plan, o auto.Options) (*auto.Result, error) {
	res := &auto.Result{Plan: plan}
	watch, err := plan.Wants(q.prepared) // which holds the plan against the model
	if err != nil || plan.Empty() {
		return res, err
	}
	if slices.ContainsFunc(watch, func(w quant.Watch) bool { return w.Observe }) {
		if res.Table, err = o.Calibrate(ctx, q.prepared, watch, false); err != nil {
			return nil, err
		}
	}
	method := o.Method
	if method == "" {
		method = calibration.Auto
	}
	var bad map[int]string
	res.Model, res.Notes, bad, err = auto.Apply(ctx, q.prepared, plan, res.Table, auto.Way{Method: method, MethodOptions: o.MethodOptions, CorrectBias: o.CorrectBias, FitPairs: o.Target.PairSums, Threads: q.o.Threads})
	for _, id := range slices.Sorted(maps.Keys(bad)) {
		return nil, fmt.Errorf("the plan quantizes a tensor that has no range: %s", bad[id])
	}
	return res, err
}
