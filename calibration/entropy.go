package calibration

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/quant"
)

// smoothing is what an empty bin gets, so that the divergence is finite; the
// other bins give it up evenly.
const smoothing = 1e-4

// prefix holds sums over the bins before each bin, for the bins that are not
// empty: their number, count c, c*log(c), log(c) and 1/c.
type prefix struct {
	full, count         []uint64
	clogc, logc, oneByC []float64
}

func prefixSums(counts []uint64) *prefix {
	n := len(counts) + 1
	p := &prefix{make([]uint64, n), make([]uint64, n), make([]float64, n), make([]float64, n), make([]float64, n)}
	for i, c := range counts {
		p.full[i+1], p.count[i+1] = p.full[i], p.count[i]+c
		p.clogc[i+1], p.logc[i+1], p.oneByC[i+1] = p.clogc[i], p.logc[i], p.oneByC[i]
		if c > 0 {
			v := float64(c)
			l := math.Log(v)
			p.full[i+1]++
			p.clogc[i+1] += v * l
			p.logc[i+1] += l
			p.oneByC[i+1] += 1 / v
		}
	}
	return p
}

// entropyRange looks at all windows; the first of equals wins.
func entropyRange(s *Stats, levels int, symmetric bool) (quant.Range, error) {
	h := &s.Hist
	half := len(h.Counts) / 2
	if levels < 2 || levels > half {
		return quant.Range{}, fmt.Errorf("%d levels for a histogram of %d bins a side, want 2 to %d", levels, half, half)
	}
	p := prefixSums(h.Counts)
	best, from, to := math.Inf(1), 0, len(h.Counts)
	try := func(lo, hi int, even bool) {
		if d := divergence(h.Counts, p, lo, hi, levels, even); d < best {
			best, from, to = d, lo, hi
		}
	}
	switch {
	case symmetric || s.Min < 0 && s.Max > 0:
		for i := levels / 2; i <= half; i++ {
			try(half-i, min(half+i+1, len(h.Counts)), false)
		}
	case s.Min >= 0:
		for i := levels; i <= half; i++ {
			try(half, half+i, true)
		}
	default:
		// Zeros lie in the first bin of the other side.
		for i := levels; i <= half; i++ {
			try(half-i, half+1, true)
		}
	}
	return quant.Range{Min: h.Edge(from), Max: h.Edge(to)}, nil
}

// divergence returns the divergence of the quantized distribution Q from the
// clipped one P over the bins [lo, hi). P has what lies outside added to its
// end bins. Q divides the bins into groups, and spreads what the group holds
// over its bins, rounded down, by the number of bins that P fills. With even
// unset, groups have (hi-lo)/levels bins, rounded down; the rest counts with the
// last group and stays empty in Q, as in onnxruntime. All bins are smoothed.
//
// With prefix sums each group takes one step: over the bins that P fills,
// sum((c-e)*log(c-e)) = sum(c*log c) - e*(sum(log c)+n) + e²/2*sum(1/c) up to
// e³, where e is what smoothing takes from a bin.
func divergence(counts []uint64, p *prefix, lo, hi, levels int, even bool) float64 {
	n := hi - lo
	total := p.count[len(counts)]
	left, right := p.count[lo], total-p.count[hi]
	first, last := counts[lo], counts[hi-1]
	full := int(p.full[hi] - p.full[lo])
	if first == 0 && left > 0 {
		full++
	}
	if last == 0 && right > 0 {
		full++
	}
	if full == 0 {
		return math.Inf(1)
	}
	// Groups of Q: bounds, value and whether it is filled.
	bound := func(j int) int {
		if even {
			return lo + j*n/levels
		}
		return lo + j*(n/levels)
	}
	emptyQ := n
	var sumQ float64
	q := make([]float64, levels)
	for j := range q {
		a, b := bound(j), bound(j+1)
		sum := p.count[b] - p.count[a]
		if j == levels-1 {
			sum += p.count[hi] - p.count[b]
		}
		fill := p.full[b] - p.full[a]
		if first == 0 && left > 0 && a == lo {
			fill++
		}
		if last == 0 && right > 0 && b == hi && b > a {
			fill++
		}
		if fill > 0 {
			q[j] = float64(sum / fill)
		}
		if q[j] > 0 {
			emptyQ -= b - a
			sumQ += q[j] * float64(b-a)
		}
	}
	if emptyQ == n {
		return math.Inf(1)
	}
	eP := smoothing * float64(n-full) / float64(full)
	eQ := smoothing * float64(emptyQ) / float64(n-emptyQ)
	massP := float64(total) // smoothing moves mass, it adds none
	massQ := sumQ

	plogp, cross := 0.0, 0.0 // sums of P*log(P) and P*log(Q)
	group := func(a, b int, logQ float64) {
		if a == b {
			return
		}
		k := float64(p.full[b] - p.full[a])
		c := float64(p.count[b] - p.count[a])
		pl := p.clogc[b] - p.clogc[a] - eP*(p.logc[b]-p.logc[a]+k) + eP*eP/2*(p.oneByC[b]-p.oneByC[a])
		// An end bin with what lies outside is taken out and put in again.
		end := func(old, more uint64) {
			if more == 0 {
				return
			}
			if old > 0 {
				v := float64(old)
				pl -= v*math.Log(v) - eP*(math.Log(v)+1) + eP*eP/2/v
				k--
				c -= v
			}
			v := float64(old + more)
			pl += (v - eP) * math.Log(v-eP)
			k++
			c += v
		}
		if a == lo {
			end(first, left)
		}
		if b == hi {
			end(last, right)
		}
		none := float64(b-a) - k
		plogp += pl + none*smoothing*math.Log(smoothing)
		cross += (c - k*eP + none*smoothing) * logQ
	}
	for j := range q {
		logQ := math.Log(smoothing)
		if q[j] > 0 {
			logQ = math.Log(q[j] - eQ)
		}
		group(bound(j), bound(j+1), logQ)
	}
	group(bound(levels), hi, math.Log(smoothing))
	return (plogp-cross)/massP - math.Log(massP) + math.Log(massQ)
}
