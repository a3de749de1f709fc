package accuracy

import (
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
)

// Clip narrows the ranges of the planned weights where cutting off their largest
// elements costs less than finer steps gain (see quant.Params.Narrow). An error
// of a weight counts by the power of what it multiplies, for which the square of
// the greatest magnitude of the input channel stands where bounds tells it. It
// edits params, those of Resolve for plan, on the given number of threads (0: one
// per processor), and returns the number of scales that changed.
func Clip(m *graph.Model, plan *qdq.Plan, params []quant.Params, bounds Bounds, threads int) (int, error) {
	values, err := plan.Values(m)
	if err != nil {
		return 0, err
	}
	changed := make([]int, len(values))
	par.Each(threads, len(values), func(i int) {
		v := values[i]
		e := &plan.Tensors[i]
		if e.Kind != qdq.Weight || e.Type == qdq.Float16 || e.PowerOfTwo || params[i].Codes != nil || params[i].Type.Real() || !holdsFloats(v) || len(params[i].Scale) == 0 {
			return
		}
		var importance func(int) float64
		if n := v.OnlyUse(); n != nil && n.Input(1) == v {
			importance = importanceOf(n, bounds)
		}
		changed[i] = params[i].Narrow(v.Const, importance)
	})
	count := 0
	for _, n := range changed {
		count += n
	}
	return count, nil
}

// importanceOf returns what an error of each weight element of n counts, or nil
// if that is not known.
func importanceOf(n *graph.Node, bounds Bounds) func(i int) float64 {
	if n.Input(0) == nil || ops.Lookup(n) == nil {
		return nil
	}
	lo, hi := bounds(n.Input(0))
	power := make([]float64, len(lo))
	for c := range power {
		if a := math.Max(-float64(lo[c]), float64(hi[c])); a > 0 {
			power[c] = a * a
		}
	}
	shape, size := n.Input(1).Const.Shape(), n.Input(1).Const.Len()
	switch {
	case n.Op.Type == "Conv" && len(shape) > 2:
		groups := int(n.Int("group", 1))
		if groups < 1 || shape[0]%groups != 0 || shape[1]*groups != len(power) {
			return nil
		}
		return func(i int) float64 { return power[inputChannel(i, size, shape, groups)] }
	case isProduct(n) && len(shape) == 2:
		if rows, channel := rowOf(n); rows == len(power) {
			return func(i int) float64 { return power[channel(i)] }
		}
	}
	return nil
}
