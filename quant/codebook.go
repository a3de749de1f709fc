package quant

import (
	"fmt"
	"math"
	"slices"
)

// Bounds of the search for a codebook: the number of equal intervals that the
// range of the elements is counted in, and of rounds.
const (
	bookBins   = 1 << 14
	bookRounds = 100
)

// lloyd returns n values in rising order that lower the squared error of the
// nearest of them (S. Lloyd, "Least Squares Quantization in PCM", 1982; in one
// dimension this is k-means). It starts from quantiles. The error says so if an
// element is NaN or infinite.
func lloyd(l Lines, n int) ([]float32, error) {
	e := l.Extrema(nil)
	if e.NaN+e.Inf > 0 {
		return nil, fmt.Errorf("%w (%d of %d elements)", ErrNotFinite, e.NaN+e.Inf, l.T.Len())
	}
	if l.T.Len() == 0 {
		return make([]float32, n), nil
	}
	lo, width := float64(e.Min), float64(e.Max)-float64(e.Min)
	count, sum := make([]float64, bookBins), make([]float64, bookBins)
	all := Lines{l.T, 1, 1, l.T.Len()}
	x := make([]float32, min(panel, l.T.Len()))
	for at := 0; at < l.T.Len(); at += len(x) {
		x = x[:min(len(x), l.T.Len()-at)]
		all.elements(x, at)
		for _, v := range x {
			b := 0
			if width > 0 {
				b = min(int((float64(v)-lo)/width*bookBins), bookBins-1)
			}
			count[b]++
			sum[b] += float64(v)
		}
	}
	// Running totals make the mean of any interval of bins a difference.
	counts, sums := make([]float64, bookBins+1), make([]float64, bookBins+1)
	for i := range count {
		counts[i+1], sums[i+1] = counts[i]+count[i], sums[i]+sum[i]
	}
	values := make([]float64, n)
	for i := range values {
		want := (float64(i) + 0.5) / float64(n) * counts[bookBins]
		b, _ := slices.BinarySearch(counts, want)
		values[i] = lo + width*(float64(b)-0.5)/bookBins
	}
	for range bookRounds {
		moved := false
		from := 0
		for i := range values {
			to := bookBins
			if i+1 < n {
				middle := (values[i] + values[i+1]) / 2
				to = from
				if width > 0 {
					to = min(max(int(math.Round((middle-lo)/width*bookBins)), from), bookBins)
				}
			}
			if c := counts[to] - counts[from]; c > 0 {
				if v := (sums[to] - sums[from]) / c; v != values[i] {
					values[i], moved = v, true
				}
			}
			from = to
		}
		slices.Sort(values)
		if !moved {
			break
		}
	}
	out := make([]float32, n)
	for i, v := range values {
		out[i] = float32(v)
	}
	return out, nil
}
