package onnxq

import (
	"context"
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/auto"
	"github.com/onnxq/onnxq/calibration"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/passes"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
)

// half makes the model that computes in 16-bit floats. With samples or a
// table, nodes that read or give values beyond half the range of float16 stay
// float32.
func (q *quantization) half(ctx context.Context, o auto.Options) (*auto.Result, error) {
	plan, err := qdq.Annotate(q.prepared, o.Target, o.Qdq)
	if err != nil {
		return nil, err
	}
	res := &auto.Result{Plan: plan}
	watch, err := plan.Wants(q.prepared)
	if err != nil {
		return nil, err
	}
	observes := slices.ContainsFunc(watch, func(w quant.Watch) bool { return w.Observe })
	if observes && (q.calib != nil || q.o.Table != nil) {
		if res.Table, err = o.Calibrate(ctx, q.prepared, watch, false); err != nil {
			return nil, err
		}
		if o.Qdq.Keep = outOfHalf(q.prepared, plan, res.Table); len(o.Qdq.Keep) > 0 {
			if res.Plan, err = qdq.Annotate(q.prepared, o.Target, o.Qdq); err != nil {
				return nil, err
			}
			res.Notes = append(res.Notes, fmt.Sprintf("%d nodes whose values come near the largest of float16 or beyond, or are all too small for it, stay float32", len(o.Qdq.Keep)))
		}
	}
	var notes []string
	res.Model, notes, _, err = auto.Apply(ctx, q.prepared, res.Plan, res.Table, auto.Way{Threads: q.o.Threads})
	res.Notes = append(res.Notes, notes...)
	return res, err
}

// outOfHalf returns, by node ID, the nodes in float16 that meet values beyond
// half its range, or values all of which lose digits in it, with the reason.
func outOfHalf(m *graph.Model, plan *qdq.Plan, table *calibration.Table) map[int]string {
	keep := map[int]string{}
	i := 0
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			how := plan.Nodes[i].How
			i++
			if how != qdq.Half {
				continue
			}
			for _, v := range slices.Concat(n.Inputs(), n.Outputs()) {
				if v == nil {
					continue
				}
				st := table.Values[calibration.ValueKey(v)]
				if st == nil {
					continue
				}
				r, err := calibration.Range(st, calibration.MinMax, calibration.MethodOptions{})
				why, most := "", max(-r.Min, r.Max)
				switch {
				case err != nil || most > qdq.MaxHalf/2:
					why = fmt.Sprintf("%q reaches %.3g, float16 ends at %d", v.Name(), most, qdq.MaxHalf)
				case most > 0 && most < qdq.MinHalf:
					why = fmt.Sprintf("%q reaches no more than %.3g, float16 has all its digits from %.2g on", v.Name(), most, qdq.MinHalf)
				}
				if why != "" {
					keep[n.ID] = why
					break
				}
			}
		}
	}
	return keep
}

// integerOperators returns m with operators on codes in the place of what the
// runtime fuses.
func integerOperators(ctx context.Context, m *graph.Model) (*graph.Model, error) {
	out := exec.IntegerForm(m)
	_, err := passes.Cleanup(ctx, out, passes.Options{Check: true})
	return out, err
}
