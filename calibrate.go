package onnxq

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
)

// ErrNoData says that a mode needs samples and none were given.
var ErrNoData = errors.New("static quantization needs samples: give --data, or --table with calibrated ranges")

// Calibrate runs the samples through a prepared model and collects statistics
// of the values that the plan wants.
func Calibrate(ctx context.Context, m *graph.Model, plan *qdq.Plan, src *calibration.Source, o Options) (*calibration.Table, error) {
	watch, err := plan.Wants(m)
	if err != nil {
		return nil, err
	}
	return collect(ctx, m, src, o, calibration.CollectOptions{Watch: watch})
}

// tableOptions returns what of the options a table names.
func (o *Options) tableOptions(holdout int) calibration.TableOptions {
	t := calibration.TableOptions{
		Bins: o.Bins, Limit: o.Samples, Batched: o.Source.Batched, Cast: o.Source.Cast, Image: o.Source.Image, Seed: o.Source.Seed,
		Holdout: holdout,
	}
	if t.Bins == 0 {
		t.Bins = calibration.DefaultBins
	}
	for _, f := range o.State {
		t.State = append(t.State, f.String())
	}
	slices.Sort(t.State)
	return t
}

// collect collects what co.Watch says; the rest of co follows from o, but for
// what concerns the identity of the table and its checkpoints.
func collect(ctx context.Context, m *graph.Model, src *calibration.Source, o Options, co calibration.CollectOptions) (*calibration.Table, error) {
	if _, err := calibration.NewState(m.Graph, o.State); err != nil {
		return nil, &OptionError{err}
	}
	co.Settings = o.tableOptions(co.Settings.Holdout)
	for i := range co.Watch {
		co.Watch[i].Observe = co.Watch[i].Observe || co.Watch[i].Channels
	}
	if o.Runner != nil {
		t, err := collectParts(ctx, m, src, o, co)
		return t, suggest(m, err)
	}
	taps := make([]bool, len(co.Watch))
	for i, w := range co.Watch {
		taps[i] = w.Observe
	}
	prog, err := o.engine().Compile(ctx, m, exec.Options{Taps: taps, Blocks: true})
	if err != nil {
		return nil, err
	}
	defer prog.Close()
	if n := prog.Untapped(); n > 0 && o.Note != nil {
		o.Note(fmt.Sprintf("the engine %s does not show %d values inside of nested graphs, so what reads them stays float", o.engine().Name(), n))
	}
	co.State, co.Session = o.State, o.session()
	co.Progress = func(done, total int) { o.progress("calibrate", done, total) }
	t, err := calibration.Collect(ctx, prog, src, co)
	var other *calibration.ResumeError
	if errors.As(err, &other) {
		return nil, &OptionError{err}
	}
	return t, suggest(m, err)
}

// calibrator returns what collects statistics for a search. The samples run
// once for a model, also where those that decisions are measured on are left
// out, and not at all where the table that was given has what is wanted.
func (q *quantization) calibrator(seen []int) func(context.Context, *graph.Model, []quant.Watch, bool) (*calibration.Table, error) {
	type known struct {
		model *graph.Model
		table *calibration.Table
	}
	tables := [2]known{{q.prepared, q.o.Table}} // of the prepared model, and of the last other one
	return func(ctx context.Context, m *graph.Model, watch []quant.Watch, unseen bool) (*calibration.Table, error) {
		k := &tables[1]
		if m == q.prepared {
			k = &tables[0]
		}
		if k.model != m || k.table == nil || q.calib != nil && !covers(k.table, m, watch) {
			if q.calib == nil {
				return nil, ErrNoData
			}
			t, err := collect(ctx, m, q.calib, q.o, calibration.CollectOptions{Watch: watch, Measured: seen})
			if err != nil {
				return nil, err
			}
			*k = known{m, t}
		}
		if unseen && k.table.Unseen != nil {
			return k.table.OfUnseen(), nil
		}
		return k.table, nil
	}
}

// covers reports whether a table knows of every value that is watched.
func covers(t *calibration.Table, m *graph.Model, watch []quant.Watch) bool {
	has := func(v *graph.Value) bool {
		if v.ID >= len(watch) || !watch[v.ID].Observe {
			return true
		}
		key := calibration.ValueKey(v)
		s := t.Values[key]
		if s == nil {
			_, unreached := slices.BinarySearch(t.Unreached, key)
			return unreached
		}
		return s.Channels != nil || !watch[v.ID].Channels
	}
	for v := range calibration.Observable(m) {
		if !has(v) {
			return false
		}
	}
	return true
}

// checkTable says where the table that was given is not what its samples give.
func (q *quantization) checkTable(ctx context.Context, adopted bool) {
	t := q.o.Table
	if t == nil {
		return
	}
	if miss := t.Missing(); len(miss) > 0 {
		q.note("the table lacks the samples of %d of %d shards", len(miss), t.Shards)
	}
	if q.calib == nil || t.Data == "" {
		return
	}
	var err error
	if !adopted {
		err = t.Verify(ctx, q.calib)
	}
	if err != nil {
		q.note("ranges come from the table, which was made from other samples than those given: %v", err)
	} else if len(t.Samples)+len(t.Skipped) != q.calib.Len() || !slices.Equal(t.Measured, q.measuredOn()) {
		q.note("ranges come from the table, which was made from another part of the samples")
	}
}
