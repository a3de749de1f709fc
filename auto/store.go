package auto

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/targets"
)

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
		next := c.storing(slices.Concat(small, half), 16)
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
	if n := len(best.qdq.Least) - len(small); best != c && n > 0 {
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
	return slices.DeleteFunc(stored(plan), func(i int) bool { return plan.Tensors[i].Type == qdq.Float16 })
}

// stored lists the weights that the plan stores in fewer bits to be decoded at load,
// by index in plan.Tensors.
func stored(plan *qdq.Plan) []int {
	var list []int
	for i := range plan.Tensors {
		if plan.Tensors[i].AtLoad {
			list = append(list, i)
		}
	}
	return list
}

// fewest lists the weights decoded at load that have the fewest bits, by index in
// plan.Tensors, and the bits that they are to have next.
func fewest(plan *qdq.Plan) (list []int, bits int) {
	if list = atLoad(plan); len(list) > 0 {
		return list, 16
	}
	return stored(plan), 32
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
	from, err := s.origins(ctx, c)
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
		} else if c.plan.Tensors[i].Type == qdq.Float16 {
			w.cost = quant.HalfNoise(values[i].Const)
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
