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
	// window is one-sided, its bins are divided evenly, and the bin of zeros has
	// no more elements than its neighbour, since zeros are exact in any range;
	// unless the range is to be symmetric (onnxruntime: half of the groups stay
	// empty). The histogram is finer: 2048 bins a side instead of 64.
	Entropy Method = "entropy"
	// MSE minimizes the expected squared difference between the elements and
	// their quantized values under MethodOptions.Scheme.
	MSE Method = "mse"
	// L1 is MSE with magnitudes of differences in place of squares, and Lp with
	// their powers of MethodOptions.Norm.
	L1 Method = "l1"
	Lp Method = "lp"
	// Weighted is MSE with each element's square weighted by what an error
	// there does to the output of the nodes that read the value:
	// MethodOptions.Sensitivity of its channel. Statistics do not say which
	// channel an element is of, so a bin has the mean over the channels whose
	// ranges include it. Without sensitivities it is MSE.
	Weighted Method = "weighted"
	// Auto takes that of MinMax and Percentile whose expected error, as Weighted
	// counts it, is less; unless the range of Weighted, widened to clip no more
	// than one element in ten thousand, has at most half of it.
	Auto Method = "auto"
	// HistogramSearch narrows the range from both ends by steps of equal counts
	// as long as the expected squared difference falls (the greedy search of
	// PyTorch's HistogramObserver): it stops at the first minimum where MSE
	// takes the least.
	HistogramSearch Method = "histogram"
)

// Methods lists all methods.
func Methods() []Method {
	return []Method{MinMax, MovingAverage, HistogramSearch, Entropy, Percentile, MSE, L1, Lp, Weighted, Auto}
}

// UsesSensitivity reports whether MethodOptions.Sensitivity changes what m gives.
func (m Method) UsesSensitivity() bool { return m == Weighted || m == Auto }

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
	// Norm is the power of Lp, above 0 [2.4].
	Norm float64
	// Sensitivity holds, for each channel of Stats.Channels, the mean square of
	// the factors with which its elements enter sums; nil where all are alike.
	Sensitivity []float64
	// Scheme is how values will be quantized [unsigned 8 bits]. With Symmetric
	// set, ranges are [-t, t].
	Scheme quant.Scheme
}

// ErrNoElements is returned by Range for a value without elements that count:
// it was empty, or masked, in every sample.
var ErrNoElements = errors.New("no sample gave it an element that counts")

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
	if !(o.Percentile > 0 && o.Percentile <= 100) {
		return quant.Range{}, fmt.Errorf("percentile %v, want above 0 and at most 100", o.Percentile)
	}
	if o.Average == 0 {
		o.Average = 0.01
	}
	if o.Levels == 0 {
		o.Levels = 128
	}
	if o.Norm == 0 {
		o.Norm = 2.4
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
		r = percentile(s, o.Percentile, o.Scheme.Symmetric)
	case Entropy:
		r, err = entropyRange(s, o.Levels, o.Scheme.Symmetric)
	case MSE:
		r = newWeighted(s, 2, nil).search(o.Scheme)
	case L1:
		r = newWeighted(s, 1, nil).search(o.Scheme)
	case Lp:
		if !(o.Norm > 0 && o.Norm <= 100) {
			return quant.Range{}, fmt.Errorf("norm %v, want above 0 and at most 100", o.Norm)
		}
		r = newWeighted(s, o.Norm, nil).search(o.Scheme)
	case Weighted:
		r = newWeighted(s, 2, o.Sensitivity).search(o.Scheme)
	case Auto:
		r = searchAuto(s, o)
	case HistogramSearch:
		r = newWeighted(s, 2, nil).searchGreedy(o.Scheme)
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

func percentile(s *Stats, p float64, symmetric bool) quant.Range {
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
				return quant.Range{Min: -t, Max: t}
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
	return r
}

// rank returns the least number of n elements that is a share of at least p,
// from 1 to n.
func rank(n uint64, p float64) uint64 {
	k := math.Ceil(p * float64(n))
	return uint64(math.Min(math.Max(k, 1), float64(n)))
}
