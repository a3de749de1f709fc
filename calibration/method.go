package calibration

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/quant"
)

// Method is a way to make a range from statistics.
type Method string

// The methods. Where one differs from onnxruntime.quantization.calibrate on
// purpose, the difference is given.
const (
	// MinMax is the range of all elements.
	MinMax Method = "minmax"
	// MovingAverage is m += c*(x-m) over the least and greatest element of
	// each sample in order of their index, starting with the first sample's,
	// with c = MethodOptions.Average. (onnxruntime averages the samples of a
	// batch plainly and applies c between batches only.)
	MovingAverage Method = "moving-average"
	// Percentile leaves out (100-P)/2 percent of the elements on each side, or
	// 100-P percent of the magnitudes where the range is to be symmetric. The
	// bounds are bin edges that keep the percentile's bin inside, (onnxruntime:
	// always the lower edge), within the range of all elements; and the rank of
	// the percentile is counted in integers.
	Percentile Method = "percentile"
	// Entropy minimizes the Kullback-Leibler divergence between the elements
	// clipped to a window about 0 and their distribution over Levels groups of
	// bins (S. Migacz, "8-bit inference with TensorRT", GTC 2017), with
	// onnxruntime's windows, groups and smoothing. For values of one sign the
	// window is one-sided and its bins are divided evenly, unless the range is
	// to be symmetric (onnxruntime: half of the groups stay empty). The
	// histogram is finer: 2048 bins a side instead of 64.
	Entropy Method = "entropy"
	// MSE minimizes the expected squared difference between the elements and
	// their quantized values under MethodOptions.Scheme.
	MSE Method = "mse"
	// HistogramSearch narrows the range from both ends by steps of equal counts
	// as long as the expected squared difference falls (the greedy search of
	// PyTorch's HistogramObserver): it stops at the first minimum where MSE
	// takes the least.
	HistogramSearch Method = "histogram"
)

// Methods lists all methods.
func Methods() []Method {
	return []Method{MinMax, MovingAverage, HistogramSearch, Entropy, Percentile, MSE}
}

// ParseMethod returns the method of the given name; the error lists them.
func ParseMethod(name string) (Method, error) {
	if m := Method(name); slices.Contains(Methods(), m) {
		return m, nil
	}
	var names []string
	for _, m := range Methods() {
		names = append(names, string(m))
	}
	return "", fmt.Errorf("unknown method %q: want one of %s", name, strings.Join(names, ", "))
}

// MethodOptions are the parameters of methods; 0 stands for the default.
type MethodOptions struct {
	// Percentile is P of Percentile, above 0 and at most 100 [99.999].
	Percentile float64
	// Average is c of MovingAverage, above 0 and at most 1 [0.01].
	Average float64
	// Levels is the number of groups of Entropy, at least 2 [128].
	Levels int
	// Scheme is how values will be quantized [unsigned 8 bits]. With Symmetric
	// set, ranges are [-t, t].
	Scheme quant.Scheme
}

// ErrNoElements is returned by Range for a value that no sample produced.
var ErrNoElements = errors.New("no sample produced the value")

// Range returns the range that a method gives. It lies within [Min, Max] of the
// statistics, or, where the scheme is symmetric, is [-t, t] with t at most
// max(-Min, Max); it is not extended to 0. It is an error (ErrNoElements, or
// one with the counts) if there are no elements, or NaN or infinite ones.
func Range(s *Stats, m Method, o MethodOptions) (quant.Range, error) {
	if s.NaN+s.Inf > 0 {
		return quant.Range{}, fmt.Errorf("%d NaN and %d infinite elements", s.NaN, s.Inf)
	}
	if s.Count == 0 {
		return quant.Range{}, ErrNoElements
	}
	if o.Percentile == 0 {
		o.Percentile = 99.999
	}
	if o.Average == 0 {
		o.Average = 0.01
	}
	if o.Levels == 0 {
		o.Levels = 128
	}
	if o.Scheme.Type.Name == "" {
		o.Scheme.Type, o.Scheme.Axis = quant.U8, -1
	}
	all := quant.Range{Min: float64(s.Min), Max: float64(s.Max)}
	var r quant.Range
	var err error
	switch m {
	case MinMax:
		r = all
	case MovingAverage:
		r, err = movingAverage(s, o.Average)
	case Percentile:
		r, err = percentile(s, o.Percentile, o.Scheme.Symmetric)
	case Entropy:
		r, err = entropyRange(s, o.Levels, o.Scheme.Symmetric)
	case MSE:
		r, err = searchMSE(s, o.Scheme)
	case HistogramSearch:
		r, err = searchGreedy(s, o.Scheme)
	default:
		_, err = ParseMethod(string(m))
	}
	if err != nil {
		return quant.Range{}, err
	}
	if o.Scheme.Symmetric {
		t := math.Max(-r.Min, r.Max)
		t = math.Min(t, math.Max(-all.Min, all.Max))
		return quant.Range{Min: -t, Max: t}, nil
	}
	r.Min = math.Min(math.Max(r.Min, all.Min), all.Max)
	r.Max = math.Max(math.Min(r.Max, all.Max), all.Min)
	return r, nil
}

func movingAverage(s *Stats, c float64) (quant.Range, error) {
	if !(c > 0 && c <= 1) {
		return quant.Range{}, fmt.Errorf("averaging constant %v, want above 0 and at most 1", c)
	}
	var r quant.Range
	for i, v := range s.Samples {
		lo, hi := float64(v.Min), float64(v.Max)
		if i == 0 {
			r = quant.Range{Min: lo, Max: hi}
			continue
		}
		// The conversions keep the compiler from fusing, so that every machine
		// gives the same bits.
		r.Min += float64(c * (lo - r.Min))
		r.Max += float64(c * (hi - r.Max))
	}
	return r, nil
}

func percentile(s *Stats, p float64, symmetric bool) (quant.Range, error) {
	if !(p > 0 && p <= 100) {
		return quant.Range{}, fmt.Errorf("percentile %v, want above 0 and at most 100", p)
	}
	h := &s.Hist
	half := len(h.Counts) / 2
	if symmetric {
		// The smallest t such that at least P percent of the magnitudes lie below.
		need := rank(s.Count, p/100)
		var below uint64
		for i := range half {
			below += h.Counts[half+i] + h.Counts[half-1-i]
			if below >= need {
				t := h.Edge(half + i + 1)
				return quant.Range{Min: -t, Max: t}, nil
			}
		}
	}
	cut := (100 - p) / 200
	var r quant.Range
	// The bin of the first element that stays, and of the last.
	first, last := s.Count-rank(s.Count, 1-cut), rank(s.Count, 1-cut)
	var below uint64
	for i, n := range h.Counts {
		if below <= first && first < below+n {
			r.Min = h.Edge(i)
		}
		if below < last && last <= below+n {
			r.Max = h.Edge(i + 1)
		}
		below += n
	}
	return r, nil
}

// rank returns the least number of n elements that is a share of at least p,
// from 1 to n.
func rank(n uint64, p float64) uint64 {
	k := math.Ceil(p * float64(n))
	return uint64(math.Min(math.Max(k, 1), float64(n)))
}

// weighted is a histogram without empty bins.
type weighted struct {
	x     []float64 // middles
	n     []float64
	width float64
}

func (h *Histogram) weighted() weighted {
	w := weighted{width: h.Width()}
	for i, n := range h.Counts {
		if n > 0 {
			w.x = append(w.x, h.Edge(i)+w.width/2)
			w.n = append(w.n, float64(n))
		}
	}
	return w
}

// cost returns the expected sum of squared differences between elements and
// their quantized values, up to a constant; elements are taken to sit at the
// middles of their bins, or to be spread evenly where bins are wider than a
// step. It is +Inf where the range has no parameters.
func (w *weighted) cost(s quant.Scheme, r quant.Range) float64 {
	scale, zero, err := s.Scalar(r)
	if err != nil {
		return math.Inf(1)
	}
	step := float64(scale)
	lo := float64(s.Type.Min-zero) * step
	hi := float64(s.Type.Max-zero) * step
	sum := 0.0
	for i, x := range w.x {
		var d float64
		switch {
		case x < lo:
			d = float64((lo - x) * (lo - x))
		case x > hi:
			d = float64((x - hi) * (x - hi))
		case step <= w.width:
			d = step * step / 12
		default:
			d = x - float64(math.RoundToEven(x/step)*step)
			d *= d
		}
		sum += float64(w.n[i] * d)
	}
	return sum
}

// better reports whether a cost is lower by more than rounding errors are.
func better(a, b float64) bool { return a < b*(1-1e-9) }

// searchMSE looks for the range of the least cost: first both bounds shrink
// together, then each alone, in steps of a hundredth, and of a thousandth below
// a hundredth and about the best.
func searchMSE(s *Stats, scheme quant.Scheme) (quant.Range, error) {
	w := s.Hist.weighted()
	lo, hi := math.Min(float64(s.Min), 0), math.Max(float64(s.Max), 0)
	if scheme.Symmetric {
		hi = math.Max(-lo, hi)
		lo = -hi
	}
	at := func(a, b int) quant.Range {
		return quant.Range{Min: lo * float64(a) / 1000, Max: hi * float64(b) / 1000}
	}
	a, b := 1000, 1000
	best := w.cost(scheme, at(a, b))
	try := func(na, nb int) {
		if na < 1 || nb < 1 || na > 1000 || nb > 1000 {
			return
		}
		if c := w.cost(scheme, at(na, nb)); better(c, best) {
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
	return at(a, b), nil
}

// searchGreedy takes from the side whose next step covers more of the axis.
func searchGreedy(s *Stats, scheme quant.Scheme) (quant.Range, error) {
	h := &s.Hist
	w := h.weighted()
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
	cost := w.cost(scheme, best)
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
			return best, nil
		}
		r := clip(quant.Range{Min: h.Edge(lo), Max: h.Edge(hi)})
		c := w.cost(scheme, r)
		if !better(c, cost) {
			return best, nil
		}
		best, cost = r, c
	}
}
