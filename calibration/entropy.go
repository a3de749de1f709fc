package calibration

import (
	"fmt"
	"math"
	"slices"

	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/quant"
)

// smoothing is what an empty bin gets, so that the divergence is finite; the
// other bins give it up evenly.
const smoothing = 1e-4

// oneSidedSteps is the number of windows that are tried in the bins of one
// side.
const oneSidedSteps = 256

// entropyRange looks at all windows about 0 that are not wider than the
// elements; the first of equals wins.
func entropyRange(s *Stats, levels int, symmetric bool) (quant.Range, error) {
	h := &s.Hist
	half := len(h.Counts) / 2
	if levels < 2 || levels > half {
		return quant.Range{}, fmt.Errorf("%d levels for a histogram of %d bins a side, want 2 to %d", levels, half, half)
	}
	oneSided := !symmetric && (s.Min >= 0 || s.Max <= 0)
	counts := h.Counts
	if oneSided {
		// Zeros, of which rectifiers make many, are exact in any range; spread over
		// a group of bins they would ask for narrow ones.
		counts = slices.Clone(counts)
		next := half + 1
		if s.Min < 0 {
			next = half - 1
		}
		counts[half] = min(counts[half], counts[next])
	}
	e := newDivergences(counts, levels)
	used := 0 // bins of the wider side that hold elements
	for i, n := range h.Counts {
		if n > 0 {
			used = max(used, half-i, i-half+1)
		}
	}
	// The widest windows come first: they tend to be good, and tell many of the
	// narrow ones worse from what lies outside of these alone.
	best, found := math.Inf(1), span{0, len(h.Counts)}
	try := func(w span, d float64) {
		if d < best || d == best && w.n() < found.n() {
			best, found = d, w
		}
	}
	if !oneSided {
		for i := min(max(used, levels/2), half); i >= levels/2; {
			// Four windows at a time; those that are divided like the widest count.
			width := window(half, i).n() / levels
			count, worse := 0, true
			for ; count < 4 && i-count >= levels/2 && window(half, i-count).n()/levels == width; count++ {
				w := window(half, i-count)
				last := w.lo + (levels-1)*width
				worse = worse && e.atLeast(w, w.lo+width, last, last+width) > best
			}
			if !worse {
				d := e.centered(half-i, width)
				for t := range count {
					try(window(half, i-t), d[t])
				}
			}
			i -= count
		}
		return quant.Range{Min: h.Edge(found.lo), Max: h.Edge(found.hi)}, nil
	}
	step := max(half/oneSidedSteps, 1)
	var list []span
	for n := levels; n < max(used, levels)+step; n += step {
		n := min(n, half)
		w := span{half, half + n}
		if s.Min < 0 {
			w = span{half - n, half + 1} // zeros lie in the first bin of the other side
		}
		list = append(list, w)
	}
	slices.Reverse(list)
	for len(list) > 0 {
		var four []span
		for ; len(list) > 0 && len(four) < 4; list = list[1:] {
			if w := list[0]; !(e.atLeast(w, w.lo+w.n()/levels, w.lo+(levels-1)*w.n()/levels, w.hi) > best) {
				four = append(four, w)
			}
		}
		d := e.even(four)
		for t, w := range four {
			try(w, d[t])
		}
	}
	return quant.Range{Min: h.Edge(found.lo), Max: h.Edge(found.hi)}, nil
}

// span is the bins [lo, hi).
type span struct{ lo, hi int }

func (w span) n() int { return w.hi - w.lo }

// window is the one that reaches i bins to each side of the middle bin.
func window(half, i int) span { return span{half - i, min(half+i+1, 2*half)} }

// divergences computes the divergence of the quantized distribution Q from the
// clipped one P in windows [lo, hi) of bins. P has what lies outside added to
// its end bins. Q divides the bins into groups, and spreads what the group
// holds over its bins, rounded down, by the number of bins that P fills. All
// bins are smoothed.
//
// With prefix sums each group takes one step, and P alone takes none: over the
// bins that P fills, sum((c-e)*log(c-e)) = sum(c*log c) - e*(sum(log c)+n) +
// e²/2*sum(1/c) up to e³, where e is what smoothing takes from a bin.
type divergences struct {
	counts []uint64
	levels int
	// Sums over the bins before each bin, for the bins that are not empty:
	// count c, their number, c*log(c), log(c) and 1/c.
	count, full, clogc, logc, oneByC []float64

	means, weights []kernels.Lanes // of each group, for four windows
}

func newDivergences(counts []uint64, levels int) *divergences {
	n := len(counts) + 1
	all := make([]float64, 5*n)
	e := &divergences{
		counts: counts, levels: levels,
		count: all[:n], full: all[n : 2*n], clogc: all[2*n : 3*n], logc: all[3*n : 4*n], oneByC: all[4*n:],
		means: make([]kernels.Lanes, levels), weights: make([]kernels.Lanes, levels),
	}
	for i, c := range counts {
		e.count[i+1], e.full[i+1] = e.count[i], e.full[i]
		e.clogc[i+1], e.logc[i+1], e.oneByC[i+1] = e.clogc[i], e.logc[i], e.oneByC[i]
		if c > 0 {
			v := float64(c)
			l := logOf(c)
			e.count[i+1] += v
			e.full[i+1]++
			e.clogc[i+1] += float64(v * l)
			e.logc[i+1] += l
			e.oneByC[i+1] += 1 / v
		}
	}
	return e
}

// smallLogs has the logarithms of numbers that most bins hold.
var smallLogs = func() (logs [1024]float64) {
	for i := range logs {
		logs[i] = math.Log(float64(i))
	}
	return logs
}()

func logOf(n uint64) float64 {
	if n < uint64(len(smallLogs)) {
		return smallLogs[n]
	}
	return math.Log(float64(n))
}

// clipped is P in one window.
type clipped struct {
	span
	left, right float64 // what lies outside
	full        float64 // bins that P fills
	less        float64 // what smoothing takes from each of these
	first, last bool    // whether the end bins are filled by what lies outside alone
	entropy     float64 // sum of P*log(P)
}

func (e *divergences) clip(w span) clipped {
	lo, hi := w.lo, w.hi
	p := clipped{span: w, left: e.count[lo], right: e.count[len(e.counts)] - e.count[hi], full: e.full[hi] - e.full[lo]}
	first, last := float64(e.counts[lo]), float64(e.counts[hi-1])
	p.first, p.last = first == 0 && p.left > 0, last == 0 && p.right > 0
	for _, alone := range []bool{p.first, p.last} {
		if alone {
			p.full++
		}
	}
	if p.full == 0 {
		return p
	}
	n := float64(w.n())
	p.less = smoothing * (n - p.full) / p.full
	k := e.full[hi] - e.full[lo]
	p.entropy = e.clogc[hi] - e.clogc[lo] - float64(p.less*(e.logc[hi]-e.logc[lo]+k)) + float64(p.less*p.less/2*(e.oneByC[hi]-e.oneByC[lo]))
	// An end bin with what lies outside is taken out and put in again.
	for _, end := range [2][2]float64{{first, p.left}, {last, p.right}} {
		old, more := end[0], end[1]
		if more == 0 {
			continue
		}
		if old > 0 {
			p.entropy -= float64(old*math.Log(old)) - float64(p.less*(math.Log(old)+1)) + p.less*p.less/2/old
		}
		v := old + more - p.less
		p.entropy += float64(v * math.Log(v))
	}
	p.entropy += float64((n - p.full) * smoothing * math.Log(smoothing))
	return p
}

// atLeast returns a bound from below of the divergence of a window whose first
// group is [lo, b0) and whose last is [a1, b1), with what is behind it counted
// there; 0 where it knows none. What lies outside is in the end bins of P, but
// not in Q, where what is behind the last group is next to nothing: by the log
// sum inequality the divergence of the bins is at least that of these, taken
// together, from the others.
func (e *divergences) atLeast(w span, b0, a1, b1 int) float64 {
	total, n := e.count[len(e.counts)], float64(w.n())
	// Groups hold at least their elements, less one for each bin, which rounding
	// down takes.
	mass := e.count[b1] - e.count[w.lo] - n
	if mass <= 0 {
		return 0
	}
	mean := func(a, b, end int) float64 { return (e.count[end] - e.count[a]) / max(e.full[b]-e.full[a], 1) }
	last := [2]float64{float64(e.counts[w.hi-1]) + total - e.count[w.hi], mean(a1, b1, w.hi) + smoothing}
	if b1 < w.hi {
		last = [2]float64{total - e.count[b1], smoothing * float64(w.hi-b1)}
	}
	var p, q float64
	for _, end := range [2][2]float64{{float64(e.counts[w.lo]) + e.count[w.lo], mean(w.lo, b0, b0) + smoothing}, last} {
		// Smoothing takes less than smoothing*n from all bins.
		if pe, qe := (end[0]-smoothing*n)/total, end[1]/mass; pe > qe {
			p, q = p+pe, q+qe
		}
	}
	if p == 0 || p >= 1 {
		return 0
	}
	full := max(e.full[w.hi]-e.full[w.lo], 1)
	less := smoothing * n / full
	slack := float64(full*less*less*less)/total + 1e-9 // what clip neglects, and rounding
	return p*math.Log(p/q) + (1-p)*math.Log((1-p)/(1-q)) - slack
}

// weight returns what P has, smoothed, in the bins [a, b) of the window.
func (e *divergences) weight(p *clipped, a, b int) float64 {
	if a == b {
		return 0
	}
	c, k := e.count[b]-e.count[a], e.full[b]-e.full[a]
	if a == p.lo {
		c += p.left
		if p.first {
			k++
		}
	}
	if b == p.hi {
		c += p.right
		if p.last {
			k++
		}
	}
	return c - float64(k*p.less) + float64((float64(b-a)-k)*smoothing)
}

// mean returns the mean of the bins [a, b) that P fills, rounded down, where
// the bins up to end count as well.
func (e *divergences) mean(p *clipped, a, b, end int) float64 {
	k := e.full[b] - e.full[a]
	if p.first && a == p.lo {
		k++
	}
	if p.last && b == p.hi && b > a {
		k++
	}
	if k == 0 {
		return 0
	}
	return math.Floor((e.count[end] - e.count[a]) / k)
}

// finish returns the divergences of four windows whose groups are in place;
// rest is the weight of bins that stay empty in Q, mass what all bins have in Q
// and filled how many are filled there.
func (e *divergences) finish(p *[4]clipped, rest, mass, filled *kernels.Lanes) kernels.Lanes {
	var less, cross, d kernels.Lanes
	for t := range p {
		less[t] = smoothing * (float64(p[t].n()) - filled[t]) / max(filled[t], 1)
	}
	kernels.CrossLogs(&cross, e.means, e.weights, &less, smoothing)
	total := e.count[len(e.counts)] // smoothing moves mass, it adds none
	for t := range p {
		d[t] = math.Inf(1)
		if p[t].full > 0 && filled[t] > 0 {
			d[t] = (p[t].entropy-cross[t]-float64(rest[t]*math.Log(smoothing)))/total - math.Log(total) + math.Log(mass[t])
		}
	}
	return d
}

// centered returns the divergences of the windows about the middle bin that
// begin at lo to lo+3. Groups have width bins each; the rest counts with the
// last group and stays empty in Q, as in onnxruntime. A window of a histogram
// of fewer than four bins a side may begin before it: it has no divergence.
func (e *divergences) centered(lo, width int) kernels.Lanes {
	half := len(e.counts) / 2
	var p [4]clipped
	var less, rest, mass, filled kernels.Lanes
	for t := range p {
		if i := half - lo - t; i >= 0 && i <= half {
			p[t] = e.clip(window(half, i))
			less[t] = p[t].less
		}
	}
	last := e.levels - 1
	if lo < 0 || lo+3+e.levels*width >= len(e.count) {
		clear(e.means)
		clear(e.weights)
		for t := range p {
			for j := 1; j < last && p[t].full > 0; j++ {
				a := p[t].lo + j*width
				if a+width <= p[t].hi {
					e.group(&p[t], t, j, a, a+width, a+width, width, &mass, &filled)
				}
			}
		}
	} else {
		total := kernels.GroupMeans(e.means[1:last], e.weights[1:last], e.count[lo+width:], e.full[lo+width:], width, &less, smoothing)
		for t := range p {
			mass[t], filled[t] = total[0][t]*float64(width), total[1][t]*float64(width)
		}
	}
	for t := range p {
		w := &p[t]
		if w.full == 0 || w.lo+e.levels*width > w.hi {
			w.full = 0
			e.means[0][t], e.weights[0][t], e.means[last][t], e.weights[last][t] = 0, 0, 0, 0
			continue
		}
		e.group(w, t, 0, w.lo, w.lo+width, w.lo+width, width, &mass, &filled)
		a := w.lo + last*width
		e.group(w, t, last, a, a+width, w.hi, width, &mass, &filled)
		rest[t] = e.weight(w, a+width, w.hi)
	}
	return e.finish(&p, &rest, &mass, &filled)
}

// group puts group j of window t in place: the bins [a, b), of which those up
// to end count.
func (e *divergences) group(p *clipped, t, j, a, b, end, width int, mass, filled *kernels.Lanes) {
	q := e.mean(p, a, b, end)
	e.means[j][t], e.weights[j][t] = q, e.weight(p, a, b)
	if q > 0 {
		mass[t] += float64(q * float64(width))
		filled[t] += float64(width)
	}
}

// even returns the divergences of up to four windows that are divided evenly.
func (e *divergences) even(list []span) kernels.Lanes {
	var p [4]clipped
	var rest, mass, filled kernels.Lanes
	clear(e.means)
	clear(e.weights)
	for t, w := range list {
		p[t] = e.clip(w)
		a := w.lo
		for j := range e.levels {
			b := w.lo + (j+1)*w.n()/e.levels
			e.group(&p[t], t, j, a, b, b, b-a, &mass, &filled)
			a = b
		}
	}
	return e.finish(&p, &rest, &mass, &filled)
}
