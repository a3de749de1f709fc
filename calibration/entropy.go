package calibration

import (
	"fmt"
	"math"
	"slices"
	"sync"

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
	defer e.free()
	used := 0 // bins of the wider side that hold elements
	for i, n := range h.Counts {
		if n > 0 {
			used = max(used, half-i, i-half+1)
		}
	}
	best, found := math.Inf(1), span{0, len(h.Counts)}
	try := func(w span, even bool) {
		d := e.of(w, even)
		if d < best || d == best && w.n() < found.n() {
			best, found = d, w
		}
	}
	if !oneSided {
		from, to := levels/2, min(max(used, levels/2), half)
		lower, most := e.bounds(from, to)
		for k, d := range lower {
			if !(d > min(most, best)) {
				try(window(half, from+k), false)
			}
		}
		return quant.Range{Min: h.Edge(found.lo), Max: h.Edge(found.hi)}, nil
	}
	// The widest windows come first: they tend to be good, and tell many of the
	// narrow ones worse from what lies outside of these alone.
	step := max(half/oneSidedSteps, 1)
	for n := levels + (max(used-levels, 0)+step-1)/step*step; n >= levels; n -= step {
		n := min(n, half)
		w := span{half, half + n}
		if s.Min < 0 {
			w = span{half - n, half + 1} // zeros lie in the first bin of the other side
		}
		if !(e.atLeast(w) > best) {
			try(w, true)
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

	means, weights []float64 // of each group
	logTotal       float64

	// Working memory of boundsOf.
	sums                            []groupSums
	factors                         [][5]float64
	floors, logs, sum, slack, terms []float64
}

// memory has what was freed, for other histograms.
var memory = sync.Pool{New: func() any { return new(divergences) }}

func (e *divergences) free() {
	e.counts = nil
	memory.Put(e)
}

// resized makes the length of s, of any content, n.
func resized[T any](s *[]T, n int) []T {
	*s = slices.Grow((*s)[:0], n)[:n]
	return *s
}

var logSmoothing = math.Log(smoothing)

func newDivergences(counts []uint64, levels int) *divergences {
	e := memory.Get().(*divergences)
	e.counts, e.levels = counts, levels
	for _, sums := range []*[]float64{&e.count, &e.full, &e.clogc, &e.logc, &e.oneByC} {
		resized(sums, len(counts)+1)[0] = 0
	}
	resized(&e.means, levels)
	resized(&e.weights, levels)
	logs := e.logc[1:]
	for i, c := range counts {
		logs[i] = float64(max(c, 1))
	}
	kernels.Logs(logs, logs)
	var count, full, clogc, logc, oneByC float64
	for i, c := range counts {
		if c > 0 {
			v, l := float64(c), logs[i]
			count += v
			full++
			clogc += float64(v * l)
			logc += l
			oneByC += 1 / v
		}
		e.count[i+1], e.full[i+1], e.clogc[i+1], e.logc[i+1], e.oneByC[i+1] = count, full, clogc, logc, oneByC
	}
	logTotal := [1]float64{max(count, 1)}
	kernels.Logs(logTotal[:], logTotal[:])
	e.logTotal = logTotal[0]
	return e
}

// total returns the number of elements; smoothing moves them, it adds none.
func (e *divergences) total() float64 { return e.count[len(e.counts)] }

// clipped is P in one window.
type clipped struct {
	span
	left, right float64    // what lies outside
	full        float64    // bins that P fills
	less        float64    // what smoothing takes from each of these
	first, last bool       // whether the end bins are filled by what lies outside alone
	ends        [2]float64 // what P has in the end bins, smoothed, where it fills them
	between     float64    // sum of P*log(P) over all other bins
}

func (e *divergences) clip(w span) clipped {
	lo, hi := w.lo, w.hi
	p := clipped{span: w, left: e.count[lo], right: e.total() - e.count[hi], full: e.full[hi] - e.full[lo]}
	ends := [2]float64{float64(e.counts[lo]), float64(e.counts[hi-1])}
	p.first, p.last = ends[0] == 0 && p.left > 0, ends[1] == 0 && p.right > 0
	if p.first {
		p.full++
	}
	if p.last {
		p.full++
	}
	if p.full == 0 {
		return p
	}
	n := float64(w.n())
	p.less = smoothing * (n - p.full) / p.full
	ends[0] += p.left
	ends[1] += p.right
	for i, v := range ends {
		if v > 0 {
			p.ends[i] = max(v-p.less, smoothing)
		}
	}
	a, b := lo+1, hi-1
	k := e.full[b] - e.full[a]
	p.between = e.clogc[b] - e.clogc[a] - float64(p.less*(e.logc[b]-e.logc[a]+k)) +
		float64(p.less*p.less/2*(e.oneByC[b]-e.oneByC[a])) + float64((n-p.full)*smoothing*logSmoothing)
	return p
}

// atLeast returns a bound from below of the divergence of a window that is
// divided evenly; 0 where it knows none. What lies outside is in the end bins of
// P, but not in Q: by the log sum inequality the divergence of the bins is at
// least that of these, taken together, from the others.
func (e *divergences) atLeast(w span) float64 {
	total, n := e.total(), float64(w.n())
	// Groups hold at least their elements, less one for each bin, which rounding
	// down takes.
	mass := e.count[w.hi] - e.count[w.lo] - n
	if mass <= 0 {
		return 0
	}
	mean := func(a, b int) float64 { return (e.count[b]-e.count[a])/max(e.full[b]-e.full[a], 1) + smoothing }
	first, last := w.lo+w.n()/e.levels, w.lo+(e.levels-1)*w.n()/e.levels
	var p, q float64
	for _, end := range [2][2]float64{
		{float64(e.counts[w.lo]) + e.count[w.lo], mean(w.lo, first)},
		{float64(e.counts[w.hi-1]) + total - e.count[w.hi], mean(last, w.hi)},
	} {
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
	slack := float64(full*less*less*less)/total + rounding // what clip neglects
	return p*math.Log(p/q) + (1-p)*math.Log((1-p)/(1-q)) - slack
}

// rounding is more than what rounding errors make of a divergence.
const rounding = 1e-9

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

// quantized is what Q has.
type quantized struct {
	mass   float64 // in all bins
	filled float64 // the number of bins that it fills
}

// add counts a group of bins with the same mean.
func (q *quantized) add(mean, bins float64) {
	if mean > 0 {
		q.mass += float64(mean * bins)
		q.filled += bins
	}
}

// less returns what smoothing takes from a bin of Q in a window of n bins.
func (q *quantized) less(n int) float64 {
	return smoothing * (float64(n) - q.filled) / max(q.filled, 1)
}

// of returns the divergence of a window. Its groups have the same number of
// bins, and the rest counts with the last group and stays empty in Q, as in
// onnxruntime; even windows are divided as evenly as it goes.
func (e *divergences) of(w span, even bool) float64 {
	p := e.clip(w)
	if p.full == 0 {
		return math.Inf(1)
	}
	width, more := w.n()/e.levels, 0
	if even {
		more = w.n() % e.levels
	}
	var q quantized
	last := e.levels - 1
	means, weights := e.means[:e.levels], e.weights[:e.levels]
	a := w.lo + width
	means[0], weights[0] = e.mean(&p, w.lo, a, a), e.weight(&p, w.lo, a)
	q.add(means[0], float64(width))
	left := more
	c0, k0 := e.count[a], e.full[a]
	for j := 1; j < last; j++ {
		b := a + width
		if left += more; left >= e.levels {
			left -= e.levels
			b++
		}
		c1, k1 := e.count[b], e.full[b]
		c, k, bins := c1-c0, k1-k0, float64(b-a)
		weights[j] = c - float64(k*p.less) + float64((bins-k)*smoothing)
		means[j] = 0
		if k > 0 {
			m := math.Floor(c / k)
			means[j] = m
			q.mass += float64(m * bins)
			q.filled += bins
		}
		a, c0, k0 = b, c1, k1
	}
	b := a + width
	if even {
		b = w.hi
	}
	means[last], weights[last] = e.mean(&p, a, b, w.hi), e.weight(&p, a, b)
	q.add(means[last], float64(b-a))
	if q.filled == 0 {
		return math.Inf(1)
	}
	less := q.less(w.n())
	for j, m := range means {
		x := smoothing
		if m-less > x {
			x = m - less
		}
		means[j] = x
	}
	kernels.Logs(means, means)
	var cross [4]float64
	for j, l := range means {
		cross[j%4] += float64(weights[j] * l)
	}
	logs := [3]float64{p.ends[0], p.ends[1], q.mass}
	for i, x := range logs[:2] {
		if x == 0 {
			logs[i] = 1
		}
	}
	kernels.Logs(logs[:], logs[:])
	entropy := p.between + float64(p.ends[0]*logs[0]) + float64(p.ends[1]*logs[1])
	sum := (cross[0] + cross[1]) + (cross[2] + cross[3]) + float64(e.weight(&p, b, w.hi)*logSmoothing)
	return (entropy-sum)/e.total() - e.logTotal + logs[2]
}

// bounds returns, for the windows about the middle bin that reach from up to to
// bins to each side, numbers that their divergences are not below, and one that
// the least of them is not above.
func (e *divergences) bounds(from, to int) (lower []float64, most float64) {
	half := len(e.counts) / 2
	lower, most = make([]float64, to-from+1), math.Inf(1)
	width := func(i int) int { return window(half, i).n() / e.levels }
	for i := from; i <= to; {
		end := i + 1
		for end <= to && width(end) == width(i) {
			end++
		}
		most = min(most, e.boundsOf(i, end-1, width(i), lower[i-from:end-from]))
		i = end
	}
	return lower, most
}

// groupSums sums up what groups of bins, but the first and the last of a window,
// have: c elements in k bins that are filled, with the mean m, rounded down,
// above 0.
type groupSums struct {
	cLog, kLog, log float64 // c, k and 1, times log(m)
	byMean          float64 // c/m
	mean, some      float64 // m and 1
}

// boundsOf is bounds of windows whose groups have the same width. Such windows
// share groups, so that sums over every width-th bin give what all groups of a
// window add, at one step for each bin that a group begins at. What smoothing
// takes from Q differs by window, and shifts the logarithms of the means by
// less/m up to (less/m)²/(1-less/m)/2.
func (e *divergences) boundsOf(from, to, width int, lower []float64) (most float64) {
	most = math.Inf(1)
	half, inner := len(e.counts)/2, (e.levels-2)*width
	if to-from < width {
		for i := range lower {
			lower[i] = math.Inf(-1)
		}
		return most
	}
	first := half - to + width // the first bin that an inner group begins at
	n := to - from + 1
	sums := resized(&e.sums, n+inner)
	clear(sums[:min(width, len(sums))])
	groups := max(len(sums)-width, 0)
	floors, logs := resized(&e.floors, groups), resized(&e.logs, groups)
	for i := range floors {
		a := first + i
		floors[i] = 1
		if k := e.full[a+width] - e.full[a]; k > 0 {
			floors[i] = math.Floor((e.count[a+width] - e.count[a]) / k)
		}
	}
	kernels.Logs(logs, floors)
	for i, l := range logs {
		a := first + i
		c, k := e.count[a+width]-e.count[a], e.full[a+width]-e.full[a]
		m, some := 0.0, 0.0
		if k > 0 {
			m, some = floors[i], 1
		}
		s, t := &sums[i], &sums[i+width]
		t.cLog = s.cLog + c*l
		t.kLog = s.kLog + k*l
		t.log = s.log + l
		t.byMean = s.byMean + c/floors[i]
		t.mean = s.mean + m
		t.some = s.some + some
	}
	// The divergence is sum + factors·log(terms), over the total.
	sum, slack := resized(&e.sum, n), resized(&e.slack, n)
	factors, terms := resized(&e.factors, n), resized(&e.terms, 5*n)
	bins := float64(width)
	for i := range n {
		w := window(half, from+i)
		p := e.clip(w)
		a, b := &sums[to-from-i], &sums[to-from-i+inner]
		q := quantized{mass: (b.mean - a.mean) * bins, filled: (b.some - a.some) * bins}
		last := w.hi - w.n() + (e.levels-1)*width
		means := [2]float64{e.mean(&p, w.lo, w.lo+width, w.lo+width), e.mean(&p, last, last+width, w.hi)}
		q.add(means[0], bins)
		q.add(means[1], bins)
		less, size := q.less(w.n()), float64(w.n())
		t := (*[5]float64)(terms[5*i:])
		factors[i], *t = [5]float64{}, [5]float64{1, 1, 1, 1, 1}
		if sum[i], slack[i] = math.Inf(1), 0; p.full == 0 || q.filled == 0 {
			continue
		}
		if less >= 0.5 {
			sum[i], slack[i] = 0, math.Inf(1)
			continue
		}
		sum[i] = p.between - (b.cLog - a.cLog) + (p.less+smoothing)*(b.kLog-a.kLog) - smoothing*bins*(b.log-a.log) +
			less*(b.byMean-a.byMean) - (e.weight(&p, last+width, w.hi)+smoothing*bins*(float64(e.levels-2)-(b.some-a.some)))*logSmoothing
		slack[i] = less*(p.less+smoothing)*p.full + less*smoothing*size + less*less/(1-less)*(p.full*(1+p.less)+smoothing*size)
		factors[i] = [5]float64{p.ends[0], p.ends[1], -e.weight(&p, w.lo, w.lo+width), -e.weight(&p, last, last+width), e.total()}
		for k, v := range [5]float64{p.ends[0], p.ends[1], max(means[0]-less, smoothing), max(means[1]-less, smoothing), q.mass} {
			if v > 0 {
				t[k] = v
			}
		}
	}
	kernels.Logs(terms, terms)
	for i := range n {
		d, t := sum[i], terms[5*i:5*i+5]
		for k, f := range factors[i] {
			d += f * t[k]
		}
		d = d/e.total() - e.logTotal
		near := slack[i]/e.total() + rounding
		lower[i] = d - near
		if d+near < most {
			most = d + near
		}
	}
	return most
}
