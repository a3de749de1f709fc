package onnxq

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/passes"
	"github.com/onnxq/onnxq/qdq"
)

// Lint predicts which groups of DequantizeLinear, operator and QuantizeLinear
// in m, a quantized model from any tool, the target's runtime replaces by
// integer kernels, and why not the others. Nothing is run.
func Lint(m *graph.Model, o Options) (*qdq.LintReport, error) {
	return qdq.Lint(m, o.target())
}

// Difference says how a quantized model differs from the float one, at the
// outputs, value by value, and where the difference comes from. Its JSON form is
// that of `compare --json`.
type Difference struct {
	Samples int           `json:"samples"`
	SQNR    *float64      `json:"sqnr_db"` // of the worst output; nil if all are exact
	Outputs []eval.Output `json:"outputs"`
	// Values lists the values that both models have, in the order of the float
	// model.
	Values []eval.Value `json:"values"`
	// Nodes lists what each node adds to the error, the largest share first.
	Nodes []eval.NodeError `json:"nodes"`
	// Tensors lists the activations that are quantized, Weights the constants
	// that both models have.
	Tensors []eval.Tensor `json:"tensors"`
	Weights []eval.Weight `json:"weights"`
	// Unmatched counts values of the float model that the quantized one does not
	// have under any name that is understood.
	Unmatched int     `json:"unmatched"`
	Seconds   float64 `json:"seconds"`
}

// Diff runs the samples that o names through both models and compares them value
// by value. The quantized model may come from any tool that keeps the names of
// values. Each sample is run once through each model, or twice where the
// quantized one holds channels that are rescaled, and no value is kept longer
// than until its counterpart is there.
func Diff(ctx context.Context, ref, got *graph.Model, o Options) (d *Difference, err error) {
	defer watch(ref, &err)()
	defer watch(got, &err)()
	release, err := o.bound(ref)
	if err != nil {
		return nil, err
	}
	defer release()
	if len(o.Data) == 0 {
		return nil, optionErrorf("a comparison needs samples: give --data")
	}
	if err := sameInterface(ref, got); err != nil {
		return nil, err
	}
	ref = o.renamed(ctx, ref, o.Data)
	src, err := Open(ctx, ref, o.Data, o)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	d, err = diff(ctx, ref, got, o.limit(src), o)
	if err == nil {
		o.note(src)
	}
	return d, err
}

// sameInterface returns an error unless both models have the same inputs and as
// many outputs.
func sameInterface(ref, got *graph.Model) error {
	var names [2][]string
	for i, m := range []*graph.Model{ref, got} {
		for _, v := range m.Graph.FeedInputs() {
			names[i] = append(names[i], v.Name())
		}
		slices.Sort(names[i])
	}
	if !slices.Equal(names[0], names[1]) {
		return optionErrorf("the models do not belong together: the inputs of one are %q, of the other %q", names[0], names[1])
	}
	if a, b := len(ref.Graph.Outputs()), len(got.Graph.Outputs()); a != b {
		return optionErrorf("the models do not belong together: one has %d outputs, the other %d", a, b)
	}
	return nil
}

func diff(ctx context.Context, ref, got *graph.Model, src *calibration.Source, o Options) (*Difference, error) {
	start := time.Now()
	ref, got = alike(ctx, ref, got)
	d := &Difference{}
	var trace *eval.Trace
	selection, left, right := eval.Align(ctx, ref, got)
	for t := eval.NewTrace(left, right); t != nil; t = t.Rescaled(right) {
		var err error
		if d.Samples, d.Outputs, err = o.trace(ctx, t, ref, selection, src); err != nil {
			return nil, err
		}
		trace = t
	}
	d.SQNR, d.Values, d.Nodes, d.Unmatched = eval.Worst(d.Outputs), trace.Values(), trace.Nodes(), trace.Unmatched()
	d.Tensors, d.Weights = trace.Tensors(), trace.Weights()
	d.Seconds = time.Since(start).Seconds()
	return d, nil
}

// alike brings the float model into the form that the quantized one was made
// from: as it is, or prepared. Both get the same operator set, as far as that
// goes. Preparing gives values the meaning of others behind them, such as that
// of a normalization to what a convolution makes, so names tell which form it
// was.
func alike(ctx context.Context, ref, got *graph.Model) (a, b *graph.Model) {
	got = ops.Typed(got)
	p := ref.Clone()
	if _, err := passes.Prepare(ctx, p, passes.Options{MinOpset: got.Opset(graph.OnnxDomain)}); err != nil {
		return ops.Typed(ref), got
	}
	prepared, quantized := names(p), names(got)
	for name := range names(ref) {
		if !prepared[name] && (quantized[name] || quantized[name+"_quantized"]) {
			return ops.Typed(ref), got
		}
	}
	if to := p.Opset(graph.OnnxDomain); to > got.Opset(graph.OnnxDomain) {
		lifted := got.Clone()
		if _, err := passes.Prepare(ctx, lifted, passes.Options{MinOpset: to}); err == nil {
			got = lifted
		}
	}
	return p, got
}

// names returns the names of what the nodes of the main graph compute.
func names(m *graph.Model) map[string]bool {
	set := map[string]bool{}
	for n := range m.Graph.Nodes() {
		for _, v := range n.Outputs() {
			if v != nil {
				set[v.Name()] = true
			}
		}
	}
	return set
}

// trace runs the samples through both models of t and compares the outputs.
func (o *Options) trace(ctx context.Context, t *eval.Trace, ref *graph.Model, selection *eval.Selection, src *calibration.Source) (samples int, outputs []eval.Output, err error) {
	a, b, aTaps, bTaps := t.Models()
	x, err := o.open(ctx, a, aTaps)
	if err != nil {
		return 0, nil, err
	}
	defer x.close()
	y, err := o.open(ctx, b, bTaps)
	if err != nil {
		return 0, nil, err
	}
	defer y.close()
	cmp := selection.Comparison(ref)
	for i := range src.Len() {
		feed, err := src.Load(ctx, i)
		if err != nil {
			if src.Skip(i, err) {
				continue
			}
			return 0, nil, suggest(ref, src.AllBad(ctx, err))
		}
		sample := src.Sample(i)
		refIn, gotIn := feedData(feed), feedData(feed)
		if err := x.feed(sample, refIn); err != nil {
			return 0, nil, err
		}
		if err := y.feed(sample, gotIn); err != nil {
			return 0, nil, err
		}
		if selection.Picks() { // what is picked has to be known before
			out, err := x.session.Run(ctx, maps.Clone(refIn), nil, nil)
			if err != nil {
				return 0, nil, fmt.Errorf("sample %q: %w", sample.Name, err)
			}
			_, picked := selection.Split(out)
			maps.Copy(gotIn, picked)
		}
		refOut, gotOut, err := t.Run(ctx, x.session, y.session, refIn, gotIn)
		if err != nil {
			return 0, nil, fmt.Errorf("sample %q: %w", sample.Name, err)
		}
		x.state.Keep(refOut)
		y.state.Keep(gotOut)
		refOut, _ = selection.Split(refOut)
		if err := cmp.Add(refOut, gotOut); err != nil {
			return 0, nil, err
		}
		o.progress("compare", i+1, src.Len())
	}
	return cmp.Samples(), cmp.Outputs(), nil
}

// open returns what runs m and reports the values of taps, by Value.ID.
func (o *Options) open(ctx context.Context, m *graph.Model, taps []bool) (*runner, error) {
	state, err := calibration.NewState(m.Graph, o.State)
	if err != nil {
		return nil, &OptionError{err}
	}
	prog, err := o.engine().Compile(ctx, m, exec.Options{Taps: taps})
	if err != nil {
		return nil, err
	}
	so := o.session()
	so.Profile, so.Transient = o.profile, o.transient
	session, err := prog.Open(ctx, so)
	if err != nil {
		prog.Close()
		return nil, err
	}
	return &runner{program: prog, session: session, state: state}, nil
}

// Compare runs the samples through both models and compares the outputs.
func Compare(ctx context.Context, ref, got *graph.Model, src *calibration.Source, o Options) ([]eval.Output, error) {
	outputs, _, _, err := compare(ctx, ref, got, src, o)
	return outputs, err
}

// compare is Compare and gives how they were compared and the eval.Score in dB as well.
func compare(ctx context.Context, ref, got *graph.Model, src *calibration.Source, o Options) ([]eval.Output, *eval.Selection, float64, error) {
	o.transient = true
	selection, left, right := eval.Align(ctx, ref, got)
	a, err := newRunner(ctx, left, o)
	if err != nil {
		return nil, nil, 0, err
	}
	defer a.close()
	b, err := newRunner(ctx, right, o)
	if err != nil {
		return nil, nil, 0, err
	}
	defer b.close()
	cmp, score := selection.Comparison(ref), eval.NewScore(len(selection.Names(ref)))
	for i := range src.Len() {
		feed, err := src.Load(ctx, i)
		if err != nil {
			if src.Skip(i, err) {
				continue
			}
			return nil, nil, 0, suggest(ref, src.AllBad(ctx, err))
		}
		x, err := a.run(ctx, src.Sample(i), feedData(feed))
		if err != nil {
			return nil, nil, 0, err
		}
		x, picked := selection.Split(x)
		in := feedData(feed)
		maps.Copy(in, picked)
		y, err := b.run(ctx, src.Sample(i), in)
		if err != nil {
			return nil, nil, 0, err
		}
		if err := cmp.Add(x, y); err != nil {
			return nil, nil, 0, err
		}
		if err := score.Add(x, y); err != nil {
			return nil, nil, 0, err
		}
		o.progress("compare", i+1, src.Len())
	}
	return cmp.Outputs(), selection, score.DB(), nil
}

// runner runs a model on samples in order.
type runner struct {
	program exec.Executable
	session exec.Runner
	state   *calibration.State
	path    string
}

func (r *runner) close() {
	r.session.Close()
	r.program.Close()
}

// prepared brings m into the form of fewest nodes, and tells whether that went
// well.
func prepared(ctx context.Context, m *graph.Model) bool {
	_, err := passes.Prepare(ctx, m, passes.Options{SameRounding: true})
	return err == nil
}

func newRunner(ctx context.Context, m *graph.Model, o Options) (*runner, error) {
	e := o.engine()
	if _, own := e.(exec.Embedded); own {
		// What cannot be prepared is compiled as it is.
		if p := m.Clone(); prepared(ctx, p) {
			m = p
		}
	}
	return o.open(ctx, m, nil)
}

// feed adds the state to the inputs in.
func (r *runner) feed(sample calibration.Sample, in map[string]ops.Data) error {
	if sample.Row == 0 || sample.Path != r.path {
		r.state.Reset()
		r.path = sample.Path
	}
	return r.state.Feed(in)
}

// run adds the state to the inputs in and runs the model.
func (r *runner) run(ctx context.Context, sample calibration.Sample, in map[string]ops.Data) ([]ops.Data, error) {
	if err := r.feed(sample, in); err != nil {
		return nil, err
	}
	out, err := r.session.Run(ctx, in, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("sample %s: %w", strconv.Quote(sample.Name), err)
	}
	r.state.Keep(out)
	return out, nil
}
