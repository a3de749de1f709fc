package calibration

import (
	"math"
	"slices"

	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/quant"
)

// weighted is a histogram without empty bins, for searches by cost.
type weighted struct {
	stats *Stats
	norm  float64   // the power of differences
	x     []float64 // middles
	n     []float64 // elements, times what they weigh
	width float64

	// sums holds, for norms 1 and 2, the sums of n, n*x and n*x² over the bins
	// before each.
	sums [3][]float64
	// powers are of costOf, by the difference in steps times 2*powers.
	powers []float64
}

// newWeighted returns the bins of s. With sensitivity, which may be nil, a bin
// weighs what Weighted says.
func newWeighted(s *Stats, norm float64, sensitivity []float64) *weighted {
	h := &s.Hist
	w := &weighted{stats: s, norm: norm, width: h.Width()}
	mean := meanSensitivity(s, sensitivity)
	for i, n := range h.Counts {
		if n == 0 {
			continue
		}
		weight := float64(n)
		if mean != nil {
			weight *= mean[i]
		}
		w.x = append(w.x, h.Edge(i)+w.width/2)
		w.n = append(w.n, weight)
	}
	if norm == 1 || norm == 2 {
		for k := range w.sums {
			w.sums[k] = make([]float64, len(w.x)+1)
		}
		for i, x := range w.x {
			n := w.n[i]
			w.sums[0][i+1] = w.sums[0][i] + n
			w.sums[1][i+1] = w.sums[1][i] + float64(n*x)
			w.sums[2][i+1] = w.sums[2][i] + float64(float64(n*x)*x)
		}
	}
	return w
}

// meanSensitivity returns, for each bin, the mean sensitivity of the channels
// whose ranges include it, relative to that of all; 1 where there is none. It
// is nil where sensitivities are missing, or do not fit the channels.
func meanSensitivity(s *Stats, sensitivity []float64) []float64 {
	c := s.Channels
	if c == nil || len(sensitivity) == 0 || len(sensitivity) != len(c.Count) {
		return nil
	}
	h := &s.Hist
	// Differences from bin to bin.
	sum, count := make([]float64, len(h.Counts)+1), make([]float64, len(h.Counts)+1)
	var all, n float64
	for k, g := range sensitivity {
		if c.Count[k] == 0 {
			continue
		}
		m := float64(c.Count[k])
		all += float64(m * g)
		n += m
		lo, hi := h.bin(c.Min[k]), h.bin(c.Max[k])
		sum[lo] += float64(m * g)
		count[lo] += m
		sum[hi+1] -= float64(m * g)
		count[hi+1] -= m
	}
	if !(all > 0) || math.IsInf(all, 0) {
		return nil
	}
	out := make([]float64, len(h.Counts))
	var a, b float64
	for i := range out {
		a += sum[i]
		b += count[i]
		out[i] = 1
		if b > 0.5 {
			out[i] = math.Max(a, 0) / b * n / all
		}
	}
	return out
}

// grid returns the step, the least and the greatest quantized value of a range,
// and false where it has no parameters.
func grid(s quant.Scheme, r quant.Range) (step, lo, hi float64, ok bool) {
	scale, zero, err := s.Scalar(r)
	step = float64(scale)
	return step, float64(s.Type.Min-zero) * step, float64(s.Type.Max-zero) * step, err == nil
}

// outside returns the cost of what lies below lo and above hi, for norms 1
// and 2, and which bins lie between.
func (w *weighted) outside(lo, hi float64) (cost float64, from, to int) {
	from, _ = slices.BinarySearch(w.x, lo)
	to, _ = slices.BinarySearch(w.x, hi)
	last := len(w.x)
	to = max(to, from)
	n, x := w.sums[0][from], w.sums[1][from]
	m, y := w.sums[0][last]-w.sums[0][to], w.sums[1][last]-w.sums[1][to]
	if w.norm == 1 {
		return float64(lo*n) - x + y - float64(hi*m), from, to
	}
	below := float64(lo*lo*n) - float64(2*lo*x) + w.sums[2][from]
	above := w.sums[2][last] - w.sums[2][to] - float64(2*hi*y) + float64(hi*hi*m)
	return math.Max(below, 0) + math.Max(above, 0), from, to
}

// cost returns the expected sum, over all elements, of a power of the
// differences from their quantized values, up to a constant; elements are
// taken to sit at the middles of their bins, or to be spread evenly where bins
// are wider than a step. It is +Inf where the range has no parameters, and may
// be any number above most where it is above that.
func (w *weighted) cost(s quant.Scheme, r quant.Range, most float64) float64 {
	step, lo, hi, ok := grid(s, r)
	switch {
	case !ok:
		return math.Inf(1)
	case w.norm != 1 && w.norm != 2:
		return w.costOf(step, lo, hi, most)
	}
	cost, from, to := w.outside(lo, hi)
	if cost*(1-1e-6) > most {
		return cost
	}
	if step <= w.width {
		within := step / 4
		if w.norm == 2 {
			within = step * step / 12
		}
		return cost + float64(within*(w.sums[0][to]-w.sums[0][from]))
	}
	return cost + kernels.QuantCost(w.x[from:to], w.n[from:to], step, lo, hi, w.norm == 1)
}

// powers is the number of pieces in which costOf takes powers of differences
// up to half a step for straight lines.
const powers = 1024

// costOf is cost of any norm.
func (w *weighted) costOf(step, lo, hi, most float64) float64 {
	if w.powers == nil {
		w.powers = make([]float64, powers+2)
		for i := range w.powers {
			w.powers[i] = math.Pow(float64(i)/(2*powers), w.norm)
		}
	}
	var inside, outside float64
	unit := math.Pow(step, w.norm)
	for i, x := range w.x {
		switch {
		case x < lo:
			outside += float64(w.n[i] * math.Pow(lo-x, w.norm))
		case x > hi:
			outside += float64(w.n[i] * math.Pow(x-hi, w.norm))
		case step <= w.width:
			inside += w.n[i] * w.powers[powers] / (w.norm + 1)
		default:
			u := x / step
			u = math.Abs(u-math.RoundToEven(u)) * (2 * powers)
			k := min(int(u), powers)
			inside += float64(w.n[i] * (w.powers[k] + float64((u-float64(k))*(w.powers[k+1]-w.powers[k]))))
		}
		if i%64 == 0 && outside+float64(unit*inside) > most {
			break
		}
	}
	return outside + float64(unit*inside)
}

// better reports whether a cost is lower by more than rounding errors are.
func better(a, b float64) bool { return a < b*(1-1e-9) }

// search looks for the range of the least cost: first both bounds shrink
// together, then each alone, in steps of a hundredth, and of a thousandth below
// a hundredth and about the best.
func (w *weighted) search(scheme quant.Scheme) quant.Range {
	lo, hi := math.Min(float64(w.stats.Min), 0), math.Max(float64(w.stats.Max), 0)
	if scheme.Symmetric {
		hi = math.Max(-lo, hi)
		lo = -hi
	}
	at := func(a, b int) quant.Range {
		return quant.Range{Min: lo * float64(a) / 1000, Max: hi * float64(b) / 1000}
	}
	a, b := 1000, 1000
	best := w.cost(scheme, at(a, b), math.Inf(1))
	try := func(na, nb int) {
		if na < 1 || nb < 1 || na > 1000 || nb > 1000 {
			return
		}
		if c := w.cost(scheme, at(na, nb), best); better(c, best) {
			a, b, best = na, nb, c
		}
	}
	next := func(k int) int {
		if k > 10 {
			return k - 10
		}
		return k - 1
	}
	for k := 990; k > 0; k = next(k) {
		try(k, k)
	}
	if !scheme.Symmetric && lo < 0 && hi > 0 {
		for range 2 {
			for k := 1000; k > 0; k = next(k) {
				try(k, b)
			}
			for k := 1000; k > 0; k = next(k) {
				try(a, k)
			}
		}
		for ca, d := a, -9; d <= 9; d++ {
			try(ca+d, b)
		}
		for cb, d := b, -9; d <= 9; d++ {
			try(a, cb+d)
		}
	} else {
		for c, d := a, -9; d <= 9; d++ {
			try(c+d, c+d)
		}
	}
	return at(a, b)
}

// searchGreedy takes from the side whose next step covers more of the axis.
func (w *weighted) searchGreedy(scheme quant.Scheme) quant.Range {
	s := w.stats
	h := &s.Hist
	clip := func(r quant.Range) quant.Range {
		return quant.Range{Min: math.Max(r.Min, float64(s.Min)), Max: math.Min(r.Max, float64(s.Max))}
	}
	lo, hi := 0, len(h.Counts) // the bins that are left
	var cutLo, cutHi uint64    // elements outside of them
	for lo < hi && h.Counts[lo] == 0 {
		lo++
	}
	for hi > lo && h.Counts[hi-1] == 0 {
		hi--
	}
	best := clip(quant.Range{Min: h.Edge(lo), Max: h.Edge(hi)})
	cost := w.cost(scheme, best, math.Inf(1))
	step := max(s.Count/100000, 1)
	for {
		nextLo, below := lo, cutLo
		for nextLo < hi && below < cutLo+step {
			below += h.Counts[nextLo]
			nextLo++
		}
		nextHi, above := hi, cutHi
		for nextHi > lo && above < cutHi+step {
			nextHi--
			above += h.Counts[nextHi]
		}
		if nextLo-lo > hi-nextHi {
			lo, cutLo = nextLo, below
		} else {
			hi, cutHi = nextHi, above
		}
		if lo >= hi {
			return best
		}
		r := clip(quant.Range{Min: h.Edge(lo), Max: h.Edge(hi)})
		c := w.cost(scheme, r, cost)
		if !better(c, cost) {
			return best
		}
		best, cost = r, c
	}
}

// What Auto demands of the range of the least expected error: the factor by which
// that falls, and the share of elements that it may clip.
const (
	autoWorth = 2
	autoClips = 1e-4
)

// searchAuto looks for the least expected error among ranges that clip little.
func searchAuto(s *Stats, o MethodOptions) quant.Range {
	w := newWeighted(s, 2, o.Sensitivity)
	all := quant.Range{Min: float64(s.Min), Max: float64(s.Max)}
	within := func(r quant.Range) quant.Range {
		return quant.Range{Min: math.Max(r.Min, math.Min(all.Min, 0)), Max: math.Min(r.Max, math.Max(all.Max, 0))}
	}
	best, cost := all, w.cost(o.Scheme, all, math.Inf(1))
	r := within(percentile(s, o.Percentile, o.Scheme.Symmetric))
	if c := w.cost(o.Scheme, r, cost); better(c, cost) {
		best, cost = r, c
	}
	bound := percentile(s, 100*(1-autoClips), o.Scheme.Symmetric)
	r = w.search(o.Scheme)
	r = within(quant.Range{Min: math.Min(r.Min, bound.Min), Max: math.Max(r.Max, bound.Max)})
	if w.cost(o.Scheme, r, math.Inf(1))*autoWorth <= cost {
		return r
	}
	return best
}
