package onnxq

import (
	"context"
	"fmt"
	"maps"
	"slices"
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
