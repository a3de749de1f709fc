package quant

import (
	"math"
	"slices"

	"github.com/onnxq/onnxq/kernels"
)

// Bounds of the search for parameters: how many scales are tried, down to which
// share of the scale that covers the range by bits, and how often what was
// found is refined.
const (
	clipSteps   = 20
	refineSteps = 3
	hqqSteps    = 20
)

// shrink returns the smallest share of the covering scale that is tried.
func shrink(bits int) float64 {
	switch {
	case bits <= 2:
		return 0.3
	case bits <= 4:
		return 0.5
	}
	return 0.85
}

// params are a scale, as it is stored, and a zero point.
type params struct {
	scale float32
	zero  int32
}

// search looks for better parameters than those that cover the range [lo, hi]
// of x.
func (w *worker) search(x, importance []float32, lo, hi float64, scale float32, zero int32) (float32, int32) {
	w.try = slices.Grow(w.try[:0], len(x))[:len(x)]
	start := params{scale, zero}
	weights := importance
	var found params
	switch w.b.Fit {
	case HQQ:
		found = w.halfQuadratic(x, importance, start)
	case KQuant:
		weights = w.magnitudes(x, importance)
		found = w.clip(x, weights, lo, hi, start, true)
	default:
		found = w.clip(x, weights, lo, hi, start, false)
	}
	return found.scale, found.zero
}

// magnitudes returns weights that grow with the magnitude of an element.
func (w *worker) magnitudes(x, importance []float32) []float32 {
	mean := kernels.ReduceSumSquares(x) / float64(len(x))
	w.weights = slices.Grow(w.weights[:0], len(x))[:len(x)]
	for i, v := range x {
		g := math.Sqrt(mean + float64(float64(v)*float64(v)))
		if importance != nil {
			g *= float64(importance[i])
		}
		w.weights[i] = float32(g)
	}
	return w.weights
}

// loss returns Σ weights·(x - value)² for parameters p.
func (w *worker) loss(x, weights []float32, p params) float32 {
	lo, hi, _ := w.b.codeRange()
	kernels.FakeQuantize(w.try, x, p.scale, p.zero, lo, hi)
	var a, b float32
	try := w.try[:len(x)]
	if weights == nil {
		i := 0
		for ; i+1 < len(x); i += 2 {
			d, e := x[i]-try[i], x[i+1]-try[i+1]
			a += float32(d * d) // without fused operations, alike everywhere
			b += float32(e * e)
		}
		if i < len(x) {
			d := x[i] - try[i]
			a += float32(d * d)
		}
		return a + b
	}
	weights = weights[:len(x)]
	for i, v := range x {
		d := v - try[i]
		a += float32(float32(weights[i]*d) * d)
	}
	return a
}

// clip tries scales that leave out a growing part of the range, refines the
// best and returns the parameters of the least loss. With joint set, each try
// is refined.
func (w *worker) clip(x, weights []float32, lo, hi float64, start params, joint bool) params {
	b := w.b
	qlo, qhi, _ := b.codeRange()
	best, least := start, w.loss(x, weights, start)
	take := func(p params) {
		if l := w.loss(x, weights, p); l < least {
			best, least = p, l
		}
	}
	step := (1 - shrink(b.Bits)) / clipSteps
	for i := range clipSteps + 1 {
		f := 1 - float64(step*float64(i))
		if joint {
			f += 2 * step // scales beyond that of the range as well
		}
		p := params{w.store(float64(start.scale) * f), start.zero}
		if b.Zero == Asymmetric {
			z := math.RoundToEven(float64(qlo) - lo*f/float64(p.scale))
			p.zero = int32(math.Max(float64(qlo), math.Min(float64(qhi), z)))
		}
		take(p)
		if joint {
			take(w.refine(x, weights, p))
		}
		if b.Zero == Full {
			take(params{-p.scale, p.zero})
		}
	}
	for range refineSteps {
		was := best
		if take(w.refine(x, weights, best)); best == was {
			break
		}
	}
	return best
}

// refine returns the parameters that are best for the codes that p gives: those
// of a weighted linear regression of x on the codes.
func (w *worker) refine(x, weights []float32, p params) params {
	b := w.b
	lo, hi, _ := b.codeRange()
	var n, sq, sqq, sx, sqx float64
	for i, v := range x {
		q := math.RoundToEven(float64(v / p.scale))
		q = math.Max(float64(lo-p.zero), math.Min(float64(hi-p.zero), q))
		g := 1.0
		if weights != nil {
			g = float64(weights[i])
		}
		n += g
		sq += float64(g * q)
		sqq += float64(g * q * q)
		sx += float64(g * float64(v))
		sqx += float64(g * q * float64(v))
	}
	if b.Zero != Asymmetric {
		if sqq == 0 || sqx == 0 {
			return p
		}
		return params{w.store(sqx / sqq), p.zero}
	}
	det := n*sqq - sq*sq
	if det <= 0 {
		return p
	}
	scale := (n*sqx - sq*sx) / det
	if !(scale > 0) {
		return p
	}
	offset := (sx - scale*sq) / n // x ≈ scale·q + offset
	s := w.store(scale)
	shift := math.RoundToEven(float64(p.zero) - offset/float64(s))
	return params{s, int32(math.Max(float64(lo), math.Min(float64(hi), shift)))}
}

// halfQuadratic alternates between the part e of the error that the 0.7-norm
// forgives and the parameters that are best for x - e.
func (w *worker) halfQuadratic(x, importance []float32, start params) params {
	const (
		norm   = 0.7
		growth = 1.01
	)
	b := w.b
	lo, hi, _ := b.codeRange()
	loss := func(p params) float64 {
		kernels.FakeQuantize(w.try, x, p.scale, p.zero, lo, hi)
		sum := 0.0
		for i, v := range x {
			d := math.Pow(math.Abs(float64(v-w.try[i])), norm)
			if importance != nil {
				d *= math.Pow(float64(importance[i]), norm/2)
			}
			sum += d
		}
		return sum
	}
	// Errors are measured in steps, so that one weight of the quadratic term
	// serves all blocks.
	beta := 10.0
	best, least := start, loss(start)
	p := start
	kept := make([]float32, len(x))
	for range hqqSteps {
		kernels.FakeQuantize(w.try, x, p.scale, p.zero, lo, hi)
		step := math.Abs(float64(p.scale))
		for i, v := range x {
			d := float64(v-w.try[i]) / step
			a := math.Abs(d)
			e := 0.0
			if a > 0 {
				e = math.Copysign(math.Max(0, a-math.Pow(a, norm-1)/beta), d)
			}
			kept[i] = float32(float64(v) - e*step)
		}
		next := w.refine(kept, importance, p)
		if l := loss(next); l < least {
			best, least = next, l
		} else if next == p {
			break
		}
		p = next
		beta *= growth
	}
	return best
}
