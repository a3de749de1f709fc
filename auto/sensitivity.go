package auto

import (
	"context"
	"math"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/qdq"
)

// Sensitivity returns, for each weight of a plan that stores weights alone, what
// storing it alone does to the outputs on samples: the noise relative to the
// signal, 10^(-score/10) with the score of candidates of a search (see
// eval.Score), from 0 to 1. m is prepared, and codes are the nearest.
func Sensitivity(ctx context.Context, m *graph.Model, plan *qdq.Plan, e exec.Engine, o exec.SessionOptions, samples []map[string]ops.Data) ([]float64, error) {
	y, err := newYardstick(ctx, m, e, o, samples)
	if err != nil {
		return nil, err
	}
	places := make([]int, len(samples))
	for i := range places {
		places[i] = i
	}
	out := make([]float64, len(plan.Tensors))
	for i := range out {
		alone := *plan
		alone.Tensors = plan.Tensors[i : i+1]
		q, _, _, err := Apply(ctx, m, &alone, nil, Way{Threads: o.Threads})
		if err != nil {
			return nil, err
		}
		score, _, err := y.compare(ctx, q, false, o, places)
		if err != nil {
			return nil, err
		}
		out[i] = math.Pow(10, -score/10)
	}
	return out, nil
}
