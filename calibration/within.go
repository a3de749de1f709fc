package calibration

import (
	"math"
	"slices"
)

// Within returns the statistics of s that ranges follow from as they are if all
// elements beyond lo and hi are at these bounds, to within a bin: Count, Min, Max,
// Hist, the ranges of samples, and of channels their counts and ranges. It is s
// where no element lies beyond them.
func (s *Stats) Within(lo, hi float64) *Stats {
	if s.Count == 0 || float64(s.Min) >= lo && float64(s.Max) <= hi {
		return s
	}
	clamp := func(x float32) float32 { return float32(math.Min(math.Max(float64(x), lo), hi)) }
	out := &Stats{Count: s.Count, NaN: s.NaN, Inf: s.Inf, Masked: s.Masked, Min: clamp(s.Min), Max: clamp(s.Max)}
	out.Hist = Histogram{Exp: s.Hist.Exp, Counts: slices.Clone(s.Hist.Counts)}
	h := &out.Hist
	h.cover(out.Min, out.Max)
	first, last := h.bin(out.Min), h.bin(out.Max)
	for i, n := range h.Counts {
		if k := min(max(i, first), last); k != i {
			h.Counts[i] = 0
			h.Counts[k] += n
		}
	}
	for _, r := range s.Samples {
		r.Min, r.Max = clamp(r.Min), clamp(r.Max)
		out.Samples = append(out.Samples, r)
	}
	if c := s.Channels; c != nil {
		out.Channels = &Channels{Axis: c.Axis, Count: c.Count, Min: make([]float32, len(c.Min)), Max: make([]float32, len(c.Max))}
		for i := range c.Min {
			out.Channels.Min[i], out.Channels.Max[i] = clamp(c.Min[i]), clamp(c.Max[i])
		}
	}
	return out
}

// bin returns the index of the bin of x, which the bins cover.
func (h *Histogram) bin(x float32) int {
	return len(h.Counts)/2 + int(math.Floor(math.Ldexp(float64(x), -h.Exp)))
}
