package quant

import (
	"context"
	"math"

	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/kernels"
)

// Bounds of the choice of codes: the lines that are worked on together, how often
// codes and scales are gone through again, as long as that takes a share of the
// error away, and how often the codes of a cell.
const (
	panelLines = 64
	sweeps     = 4
	sweepGain  = 5e-3
	cellSweeps = 4
)

// nearScales are the multiples of the scale of a block that are tried.
var nearScales = []float64{0.85, 0.9, 0.94, 0.97, 1.03, 1.06, 1.1}

// Losses are sums of eᵀ·h·e over the errors e of all lines of a weight, with h of
// its Moment.
type Losses struct {
	// Nearest and Chosen are for the codes that are nearest with parameters that
	// cover the range, and for those that Compensate chose; Signal is for lines
	// of zeros.
	Nearest, Chosen, Signal float64
}

// Compensate chooses the codes and parameters of an Integer so that the errors
// of a line cancel on the inputs whose moments are given. The lines are divided
// evenly among the moments. First, elements are rounded one after the other,
// each one taking over what the rounding of those before it has done to the
// product, and the parameters of a block fit what its elements have become by
// then (C. Frantar et al., "GPTQ", 2022, in the form of J. Chee et al., "QuIP",
// 2023, section 3). Then single codes, scales and zero points move to where the
// error is least while all others stay, again and again. Where this gains
// nothing the codes stay the nearest ones.
//
// b is complete. pool may be nil. The error is that of the context or says that
// an element is not finite.
func (b *Blocks) Compensate(ctx context.Context, pool *par.Pool, l Lines, shared Shared, moments []*Moment) (*Coded, Losses, error) {
	plain := *b
	plain.Fit = Cover
	near, err := plain.Encode(ctx, pool, l, shared, 0, l.N(), nil)
	if err != nil {
		return nil, Losses{}, err
	}
	c := b.empty(l.N(), l.K, shared)
	each := l.N() / len(moments)
	panels := (each + panelLines - 1) / panelLines
	losses := make([]Losses, panels*len(moments))
	gain := make([]float64, len(losses))
	pool.For(len(losses), 1, func(at, _ int) {
		if ctx.Err() != nil {
			return
		}
		group, from := at/panels, at%panels*panelLines
		n := min(panelLines, each-from)
		s := newSolver(b, c, moments[group], group*each+from, n)
		losses[at], gain[at] = s.solve(l, near)
	})
	var sum Losses
	better := 0.0
	for i, x := range losses {
		sum.Nearest += x.Nearest
		sum.Chosen += x.Chosen
		sum.Signal += x.Signal
		better += gain[i]
	}
	if !(better > 0) {
		c, sum.Chosen = near, sum.Nearest
	}
	return c, sum, ctx.Err()
}

// solver chooses the codes of n lines. Matrices have a row for each line and the
// columns of the moment.
type solver struct {
	b    *Blocks
	c    *Coded
	m    *Moment
	from int // line
	n    int

	lines []float32 // as they are
	w     []float32 // what the codes shall stand for
	e     []float32 // w less what the codes stand for
	q     []float32 // codes less zero points
	// g is what the errors so far add to the elements that are not rounded yet;
	// later, e·h.
	g    []float32
	room []float32
	push []float32

	scale  []float32 // of the block that is worked on
	zero   []int32
	lo, hi int32
	worker worker
	cell   []float32
}

func newSolver(b *Blocks, c *Coded, m *Moment, from, n int) *solver {
	s := &solver{b: b, c: c, m: m, from: from, n: n}
	for _, x := range []*[]float32{&s.lines, &s.w, &s.e, &s.q, &s.g, &s.room, &s.push} {
		*x = make([]float32, n*m.k)
	}
	s.scale, s.zero = make([]float32, n), make([]int32, n)
	s.lo, s.hi, _ = b.codeRange()
	s.worker = worker{b: b, c: c}
	s.cell = make([]float32, min(m.size, cellSize))
	return s
}

// solve sets the codes of the lines. gain is how far what was to be made small
// falls below its value for the codes near.
func (s *solver) solve(l Lines, near *Coded) (out Losses, gain float64) {
	m, k := s.m, s.m.k
	plain := make([]float32, s.n*k)
	l.Read(plain, s.from, s.from+s.n)
	for i := range s.n {
		s.arrange(s.lines[i*k:], plain[i*k:])
		near.Decode(plain[i*k:][:k], s.from+i)
		s.arrange(s.room[i*k:], plain[i*k:])
	}
	copy(plain, s.room)
	copy(s.w, s.lines)
	if m.shift != nil {
		kernels.GemmPacked(nil, s.n, kernels.Matrix{Data: s.lines, Ld: k}, m.shift, s.w, k, nil)
		kernels.Binary(kernels.Add, s.w, s.w, s.lines)
	}
	// loss is that of what the codes stand for, as errors of want.
	loss := func(want, have []float32) float64 {
		kernels.Binary(kernels.Sub, s.e, want, have)
		s.gradient()
		return s.loss(m.damping)
	}
	out.Nearest = loss(s.lines, plain)
	gain = loss(s.w, plain)
	clear(plain)
	out.Signal = loss(s.lines, plain)

	clear(s.e)
	clear(s.g)
	for i := range m.blocks {
		s.round(&m.blocks[i])
	}
	s.gradient()
	last := s.loss(0)
	for range sweeps {
		for i := range m.blocks {
			b := &m.blocks[i]
			s.load(b)
			for j := range b.cells {
				s.descend(&b.cells[j])
			}
			s.refit(b)
			s.save(b)
		}
		now := s.loss(0)
		if !(now < last*(1-sweepGain)) {
			break
		}
		last = now
	}
	for i := range s.n {
		codes := s.c.Codes[(s.from+i)*k:][:k]
		for r, at := range m.order {
			_, z := s.params(i, at/m.size)
			codes[at] = byte(int32(s.q[i*k+r]) + z)
		}
		s.c.Decode(s.push[:k], s.from+i)
		s.arrange(plain[i*k:], s.push)
	}
	gain -= loss(s.w, plain)
	out.Chosen = loss(s.lines, plain)
	return out, gain
}

// arrange stores the elements of a line in the order of the moment.
func (s *solver) arrange(dst, line []float32) {
	for r, at := range s.m.order {
		dst[r] = line[at]
	}
}

// loss returns Σ eᵀ·h·e, h without what damping added. Next to that it may be too
// little to be told from 0.
func (s *solver) loss(damping float32) float64 {
	sum := 0.0
	for i, x := range s.e {
		sum += float64(x) * (float64(s.g[i]) - float64(x)*float64(damping))
	}
	return max(sum, 0)
}

// gradient sets g to e·h.
func (s *solver) gradient() {
	clear(s.g)
	for i := range s.m.blocks {
		for j := range s.m.blocks[i].cells {
			s.g = s.add(s.g, s.e, &s.m.blocks[i].cells[j])
		}
	}
}

// add returns g with the part of x·h added that the columns of a cell make. g
// becomes room for another result.
func (s *solver) add(g, x []float32, c *momentCell) []float32 {
	k := s.m.k
	kernels.GemmPacked(nil, s.n, kernels.Matrix{Data: x[c.from:], Ld: k}, c.rows, s.push, k, &kernels.Epilogue{Residual: g, LdRes: k})
	out := s.push
	s.push = g
	return out
}

// params returns the scale and zero point of a block of line i.
func (s *solver) params(i, block int) (scale float32, zero int32) {
	at := (s.from+i)*len(s.m.blocks) + block
	if s.c.Zero == nil {
		return s.c.Scale[at], s.b.Middle()
	}
	return s.c.Scale[at], s.c.Zero[at]
}

func (s *solver) load(b *momentBlock) {
	for i := range s.n {
		s.scale[i], s.zero[i] = s.params(i, b.index)
	}
}

func (s *solver) save(b *momentBlock) {
	for i := range s.n {
		at := (s.from+i)*len(s.m.blocks) + b.index
		s.c.Scale[at] = s.scale[i]
		if s.c.Zero != nil {
			s.c.Zero[at] = s.zero[i]
		}
	}
}

// limits returns the least and greatest code less the zero point z.
func (s *solver) limits(z int32) (lo, hi float32) { return float32(s.lo - z), float32(s.hi - z) }

// round chooses the parameters of a block for what the errors of the blocks
// before it ask for, and rounds its elements one after the other.
func (s *solver) round(b *momentBlock) {
	k, m := s.m.k, s.m
	target := make([]float32, b.to-b.from)
	for i := range s.n {
		kernels.Binary(kernels.Add, target, s.w[i*k+b.from:][:len(target)], s.g[i*k+b.from:][:len(target)])
		s.scale[i], s.zero[i] = s.worker.fit(target, m.d[b.from:b.to], kernels.MinMax(target))
		if len(b.cells) == 1 {
			s.adjust(&b.cells[0], i, target)
		}
	}
	s.save(b)
	for j := range b.cells {
		c := &b.cells[j]
		width := c.to - c.from
		for i := range s.n {
			w, e, q := s.w[i*k+c.from:][:width], s.e[i*k+c.from:][:width], s.q[i*k+c.from:][:width]
			kernels.Binary(kernels.Add, target[:width], w, s.g[i*k+c.from:][:width])
			scale := s.scale[i]
			lo, hi := s.limits(s.zero[i])
			for r := range width {
				t := target[r]
				for j, f := range c.upper[r*width:][:r] {
					t += f * e[j]
				}
				v := max(lo, min(hi, float32(math.RoundToEven(float64(t/scale)))))
				q[r] = v
				e[r] = w[r] - v*scale
			}
		}
		if c.rest == nil {
			continue
		}
		rest := k - c.to
		kernels.GemmPacked(nil, s.n, kernels.Matrix{Data: s.e[c.from:], Ld: k}, c.rest, s.push, rest, nil)
		for i := range s.n {
			g := s.g[i*k+c.to:][:rest]
			kernels.Binary(kernels.Add, g, g, s.push[i*rest:][:rest])
		}
	}
}

// adjust looks for better parameters of the block of line i, a single cell,
// around those that there are: those with which rounding one element after the
// other leaves the least for the blocks behind.
func (s *solver) adjust(c *momentCell, i int, target []float32) {
	k := s.m.k
	width := len(target)
	w, e, d := s.w[i*k+c.from:][:width], s.cell[:width], s.m.d[c.from:c.to]
	least := float32(math.Inf(1))
	try := func(scale float32, zero int32) {
		lo, hi := s.limits(zero)
		sum := float32(0)
		for r, t := range target {
			for j, f := range c.upper[r*width:][:r] {
				t += f * e[j]
			}
			v := max(lo, min(hi, float32(math.RoundToEven(float64(t/scale))))) * scale
			e[r] = w[r] - v
			t -= v
			if sum += d[r] * t * t; sum >= least {
				return
			}
		}
		least, s.scale[i], s.zero[i] = sum, scale, zero
	}
	scale, zero := s.scale[i], s.zero[i]
	reach := int32(0)
	if s.c.Zero != nil {
		reach = 1
	}
	try(scale, zero)
	for _, f := range nearScales {
		x := s.worker.store(float64(scale) * f)
		for z := max(s.lo, zero-reach); z <= min(s.hi, zero+reach); z++ {
			try(x, z)
		}
	}
}

// descend moves the codes of a cell to where the error is least while the others
// stay.
func (s *solver) descend(c *momentCell) {
	k := s.m.k
	width := c.to - c.from
	g := s.cell[:width]
	for i := range s.n {
		scale := s.scale[i]
		lo, hi := s.limits(s.zero[i])
		e, q, moved := s.e[i*k+c.from:][:width], s.q[i*k+c.from:][:width], s.room[i*k+c.from:][:width]
		clear(moved)
		copy(g, s.g[i*k+c.from:])
		for range cellSweeps {
			changed := false
			for r := range g {
				row := c.square[r*width:][:width]
				v := max(lo, min(hi, float32(math.RoundToEven(float64(q[r]+g[r]/(row[r]*scale))))))
				if v == q[r] {
					continue
				}
				step := (q[r] - v) * scale
				q[r] = v
				e[r] += step
				moved[r] += step
				for j, f := range row {
					g[j] += f * step
				}
				changed = true
			}
			if !changed {
				break
			}
		}
	}
	s.g = s.add(s.g, s.room, c)
}

// refit moves the scales and zero points of a block to where the error is least
// with the codes that there are.
func (s *solver) refit(b *momentBlock) {
	k := s.m.k
	hq := s.room
	clear(hq)
	for j := range b.cells {
		hq = s.add(hq, s.q, &b.cells[j])
	}
	s.room = hq
	sum := 0.0
	for _, x := range b.sum[b.from:b.to] {
		sum += float64(x)
	}
	width := b.to - b.from
	for i := range s.n {
		e, g, q, h := s.e[i*k+b.from:][:width], s.g[i*k:][:k], s.q[i*k+b.from:][:width], hq[i*k:][:k]
		slope, curve := 0.0, 0.0
		for r, x := range q {
			slope += float64(x) * float64(g[b.from+r])
			curve += float64(x) * float64(h[b.from+r])
		}
		if curve > 0 {
			scale := s.worker.store(float64(s.scale[i]) + slope/curve)
			// A step of the scale takes step·q away from e.
			if step := float64(scale) - float64(s.scale[i]); step*(step*curve-2*slope) < 0 {
				f := float32(step)
				for r, x := range q {
					e[r] -= f * x
				}
				for r, x := range h {
					g[r] -= f * x
				}
				s.scale[i] = scale
			}
		}
		if s.c.Zero == nil || !(sum > 0) {
			continue
		}
		// A step of the zero point takes as much from all q, and adds step·scale
		// to e.
		slope = 0
		for _, x := range g[b.from:b.to] {
			slope += float64(x)
		}
		step := math.RoundToEven(-slope / (sum * float64(s.scale[i])))
		zero := int32(max(float64(s.lo), min(float64(s.hi), float64(s.zero[i])+step)))
		if zero == s.zero[i] {
			continue
		}
		f := float32(zero-s.zero[i]) * s.scale[i]
		for r := range q {
			q[r] -= float32(zero - s.zero[i])
			e[r] += f
		}
		for r, x := range b.sum {
			g[r] += f * x
		}
		s.zero[i] = zero
	}
}
