package onnxq

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/ops"
)

// Inputs describes what m has to be fed.
func Inputs(m *graph.Model) []calibration.Input {
	var in []calibration.Input
	for _, v := range m.Graph.FeedInputs() {
		i := calibration.Input{Name: v.Name(), DType: v.Type.Elem}
		if v.Type.Shape != nil {
			i.Shape, i.Symbols = make([]int, len(v.Type.Shape)), make([]string, len(v.Type.Shape))
			for k, d := range v.Type.Shape {
				i.Shape[k], i.Symbols[k] = -1, d.Sym
				if d.Known && d.Size > 0 { // some producers write 0 for unknown
					i.Shape[k] = int(d.Size)
				}
			}
		}
		in = append(in, i)
	}
	return in
}

// Open opens sample sources for m. Inputs that o.State feeds may be missing
// from samples.
func Open(ctx context.Context, m *graph.Model, specs []string, o Options) (*calibration.Source, error) {
	return o.source(ctx, specs, Inputs(m))
}

// source opens sample sources for a model with the inputs in.
func (o *Options) source(ctx context.Context, specs []string, in []calibration.Input) (*calibration.Source, error) {
	so := o.Source
	if so.ReadTensor == nil {
		so.ReadTensor = onnxfile.ReadTensor
	}
	for i := range in {
		in[i].Optional = slices.ContainsFunc(o.State, func(f calibration.Feedback) bool { return f.Input == in[i].Name })
	}
	return calibration.Open(ctx, specs, in, so)
}

// limit returns the samples that o.Samples asks for.
func (o *Options) limit(src *calibration.Source) *calibration.Source {
	switch {
	case o.Samples <= 0:
		return src
	case len(o.State) > 0:
		return src.First(o.Samples)
	}
	return src.Limit(o.Samples)
}

// suggest adds to an error about missing inputs the pairs of state that could
// supply them.
func suggest(m *graph.Model, err error) error {
	var miss *calibration.MissingError
	if !errors.As(err, &miss) {
		return err
	}
	pairs := calibration.Suggest(m.Graph, miss.Inputs)
	if len(pairs) == 0 {
		return err
	}
	var flags []string
	for _, p := range pairs {
		flags = append(flags, "--state "+strconv.Quote(p.String()))
	}
	return fmt.Errorf("%w; if the model carries state from sample to sample, try %s", err, strings.Join(flags, " "))
}

func notes(src *calibration.Source) []string {
	out := src.Notes()
	for _, bad := range src.Skipped() {
		out = append(out, "skipped: "+bad.Error())
	}
	return out
}

func (o *Options) note(src *calibration.Source) {
	if o.Note != nil {
		for _, text := range notes(src) {
			o.Note(text)
		}
	}
}

func (q *quantization) openSources(ctx context.Context) error {
	given := len(q.o.Data)
	if t := q.o.Table; t != nil && given == 0 && len(t.Sources) > 0 {
		q.adopt(ctx)
	}
	adopted := len(q.o.Data) > given
	defer func() { q.checkTable(ctx, adopted) }()
	if len(q.o.Data) > 0 {
		src, err := Open(ctx, q.original, q.o.Data, q.o)
		if err != nil {
			return err
		}
		q.closers = append(q.closers, src)
		q.calib = q.o.limit(src)
	}
	if len(q.o.EvalData) > 0 {
		src, err := Open(ctx, q.original, q.o.EvalData, q.o)
		if err != nil {
			return err
		}
		q.closers = append(q.closers, src)
		q.eval, q.measured = src, "evaluation samples"
		return nil
	}
	if q.calib == nil {
		return nil
	}
	hold := -1
	if q.o.Holdout != nil {
		hold = *q.o.Holdout
	}
	rest, held, err := q.calib.Split(hold)
	if err != nil {
		return err
	}
	q.held = held.Len()
	if held.Len() > 0 {
		q.calib, q.eval, q.measured = rest, held, "held-out samples"
	} else {
		q.eval, q.measured = q.calib, "calibration samples"
	}
	return nil
}

// measuredOn returns the Index of each calibration sample that decisions are
// measured on, if these are to be measured on samples that ranges do not come
// from.
func (q *quantization) measuredOn() []int {
	if q.calib == nil || len(q.o.State) > 0 || q.calib.Len() < enoughToSplit {
		return nil
	}
	return places(q.calib, min(measureOn, q.calib.Len()/2))
}

// measureOn is the number of calibration samples that decisions are measured
// on.
const measureOn = 16

// enoughToSplit is the number of calibration samples from which decisions are
// measured on samples that the ranges do not come from.
const enoughToSplit = 20

// places returns the Index of each of n samples of src, evenly spaced.
func places(src *calibration.Source, n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = src.Sample(i * src.Len() / n).Index
	}
	return out
}

// spread calls f with n samples of src, evenly spaced, with the state that the
// float model has at each.
func (q *quantization) spread(ctx context.Context, src *calibration.Source, n int, f func(map[string]ops.Data) error) error {
	n = min(n, src.Len())
	var r *runner
	if len(q.o.State) > 0 {
		var err error
		if r, err = newRunner(ctx, q.prepared, q.o); err != nil {
			return err
		}
		defer r.close()
	}
	for k, i := 0, 0; i < n; k++ {
		chosen := k == i*src.Len()/n
		if chosen {
			i++
		} else if r == nil {
			continue
		}
		feed, err := src.Load(ctx, k)
		if err != nil {
			if src.Skip(k, err) {
				continue
			}
			return src.AllBad(ctx, err)
		}
		in := feedData(feed)
		if r != nil {
			if _, err := r.run(ctx, src.Sample(k), in); err != nil {
				return err
			}
		}
		if chosen {
			if err := f(in); err != nil {
				return err
			}
		}
	}
	return nil
}
