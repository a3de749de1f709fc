// Package auto finds out what serves a model best by measuring it: it makes
// quantized forms of the model in several ways, runs them on calibration
// samples, and keeps what lowers the error of the outputs.
package auto

import (
	"context"
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/job"
	"github.com/onnxq/onnxq/ops"
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
	Base  *graph.Model // the float model that Plan is of; nil for the one given
	Plan  *qdq.Plan
	Table *calibration.Table
	Notes []string
	// Short says what is missing of the contract, on the samples of the search or
	// by Accept; "" if nothing is.
	Short string
}

// maxWork bounds the nodes of all candidates together, so that the search stays
// cheap on graphs of many thousand nodes.
const maxWork = 9_000

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
	known  *scored  // what a task gave, before the model is built
	from   *origins // of model, once traced says so; nil if it cannot be told
	traced bool
}

type search struct {
	o     Options
	float *graph.Model
	first *candidate // what the search starts from; nil once it has begun again
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
	look       int     // the number of samples that parts are tried on
	stuck      int     // how many retreats brought a candidate no closer
	want       float64 // the score in dB that other samples ask for; 0 until some do
	saves      float64 // what integers save at first, as anchors has it
}

// Search quantizes m, a prepared model, in the best way that it finds.
func Search(ctx context.Context, m *graph.Model, o Options) (*Result, error) {
	s := &search{o: o, float: m, left: maxWork, known: ranges{}, aim: reliefAim, share: reliefShare, look: reliefSamples}
	defer s.files.close()
	best := &candidate{base: m, method: o.Method, qdq: o.Qdq}
	if best.method == "" {
		if best.method = calibration.MinMax; len(o.Samples) == 0 {
			best.method = calibration.Auto // nothing is measured
		}
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
		best.qdq.Least = best.storing(small, 16).qdq.Least
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
	s.first = best.variant()
	if best, err = s.improve(ctx, best); err != nil {
		return nil, err
	}
	return s.settle(ctx, best)
}

// improve takes what lowers the error of best, one step after the other.
func (s *search) improve(ctx context.Context, best *candidate) (*candidate, error) {
	steps := []step{s.rows, s.islands, s.ranges, s.equalize, s.split, s.smooth, s.again}
	if len(fewBits(best.plan)) > 0 { // whose codes matter more than anything behind them
		steps = append(steps, s.clipped, s.rounded, s.widened, s.biases, s.relief, s.dynamic, s.store)
	} else {
		steps = append(steps, s.biases, s.relief, s.dynamic, s.store, s.clipped, s.rounded)
	}
	return s.inTurn(ctx, best, steps...)
}

// step looks for a better candidate than the one it is given, which it returns where it
// finds none.
type step = func(context.Context, *candidate) (*candidate, error)

// inTurn takes steps one after the other, each from what the one before came to.
func (s *search) inTurn(ctx context.Context, c *candidate, steps ...step) (*candidate, error) {
	for _, take := range steps {
		next, err := take(ctx, c)
		if err != nil {
			return nil, err
		}
		c = next
	}
	return c, nil
}

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
	c.qdq.Keep = map[int]string{}
	for _, n := range s.costs.decoded(c.base, plan) {
		c.qdq.Keep[n.ID] = "more elements are looked up than the table has, so that decoding it when the model is loaded costs less"
	}
	list, speed := s.costs.slower(c.base, plan, worth)
	if len(list) == 0 {
		return nil
	}
	for _, n := range list {
		c.qdq.Keep[n.ID] = fmt.Sprintf("integers would not be faster on %s: estimated from the sizes of a sample", s.o.Target.Name)
	}
	c.found = append(c.found, fmt.Sprintf("kept %d of %d nodes float that integers would not make faster; the parts that could be quantized are estimated to run at %.2f times float's speed or more", len(list), plan.Quantized(), speed))
	return nil
}

func (s *search) result(c *candidate) *Result {
	return &Result{Model: c.model, Base: c.base, Plan: c.plan, Table: c.table, Notes: slices.Concat(c.found, c.notes)}
}

// variant returns a candidate like c that has not been built yet.
func (c *candidate) variant() *candidate {
	return &candidate{base: c.base, table: c.table, method: c.method, qdq: c.qdq, round: c.round, clip: c.clip, means: c.means, codes: c.codes, found: slices.Clone(c.found)}
}
