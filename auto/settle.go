package auto

import (
	"context"
	"fmt"
	"math"
	"slices"
)

// outcome is a result and what Options.Accept says of it.
type outcome struct {
	of   *candidate
	res  *Result
	loss float64
}

// or returns the better of two outcomes; other may be nil.
func (v *outcome) or(other *outcome) *outcome {
	if other != nil && v.res.Short != "" && v.loss >= other.loss {
		return other
	}
	return v
}

// settle makes the result of c or, where that does not keep the contract, of variants
// that the passes have come closer with, and then with less and less on integers.
func (s *search) settle(ctx context.Context, c *candidate) (*Result, error) {
	var best *outcome
	last := !s.o.FloatIslands
	for try := 0; ; try++ {
		last = last || try == maxRetreats
		if kept := c.short.Text == ""; kept || last {
			v, err := s.accept(ctx, c)
			if err != nil {
				return nil, err
			}
			if kept && s.want == 0 {
				if v, err = s.closer(ctx, v); err != nil {
					return nil, err
				}
			}
			if best = v.or(best); v.res.Short == "" || last {
				return best.res, nil
			}
			c = v.of
		}
		next, err := s.retreat(ctx, c, try)
		if err != nil {
			return nil, err
		}
		switch {
		case next != nil:
			c = next
		case best != nil:
			return best.res, nil
		default:
			last = true
		}
	}
}

// accept makes the result of c, calibrated on all samples, and has it judged.
func (s *search) accept(ctx context.Context, c *candidate) (*outcome, error) {
	final, err := s.finished(ctx, c)
	if err != nil {
		return nil, err
	}
	v := &outcome{of: c, res: s.result(final)}
	if s.o.Accept != nil && final.model != nil {
		if c.short, v.loss, err = s.o.Accept(ctx, final.model); err != nil {
			return nil, err
		}
	}
	if v.res.Short = c.short.Text; v.res.Short != "" && c.known == nil && c.model == nil {
		err = s.build(ctx, c) // for what comes next
	}
	return v, err
}

// closer looks for an outcome that keeps the contract in place of v, which keeps it on
// the samples of the search and not on others, without leaving more float: by a search
// that begins again without the passes that rescale channels, since channels that were
// evened out leave no room for what is larger on other samples, and then by those
// passes that were not tried because the score was good enough. It returns v where
// neither comes closer.
func (s *search) closer(ctx context.Context, v *outcome) (*outcome, error) {
	for _, take := range []step{s.simpler, s.improveMore} {
		if v.res.Short == "" {
			break
		}
		next, err := take(ctx, v.of)
		if err != nil {
			return nil, err
		}
		if next == v.of || next.short.Text != "" {
			continue
		}
		other, err := s.accept(ctx, next)
		if err != nil {
			return nil, err
		}
		v = other.or(v)
	}
	return v, nil
}

// simpler searches once more from the first candidate on, without the passes that
// rescale channels, if c is what these made.
func (s *search) simpler(ctx context.Context, c *candidate) (*candidate, error) {
	if c.base == s.float || s.first == nil {
		return c, nil
	}
	first := s.first
	s.first, s.left, s.saves, s.aim, s.share = nil, maxWork, 0, reliefAim, reliefShare
	s.o.Equalize, s.o.Split, s.o.Smooth = false, false, false
	if err := s.build(ctx, first); err != nil {
		return nil, err
	}
	if err := s.measure(ctx, first); err != nil {
		return nil, err
	}
	return s.improve(ctx, first)
}

// improveMore lets the passes lower the error of c by what it misses on other samples.
func (s *search) improveMore(ctx context.Context, c *candidate) (*candidate, error) {
	if c.empty() || math.IsInf(c.score, 0) {
		return c, nil
	}
	s.want, s.left = c.score+c.lacks(), maxWork
	return s.inTurn(ctx, c, s.ranges, s.equalize, s.split, s.smooth, s.again, s.biases, s.clipped, s.rounded)
}

// finished returns c as it is when ranges know all samples. Where that is another
// candidate, c lets go of its model meanwhile.
func (s *search) finished(ctx context.Context, c *candidate) (*candidate, error) {
	if !s.o.Unseen {
		return c, s.realize(ctx, c)
	}
	final := c.variant()
	c.model, c.from, c.traced = nil, nil, false
	if err := s.calibrate(ctx, final, false); err != nil {
		return nil, err
	}
	s.final = true
	defer func() { s.final = false }()
	return final, s.build(ctx, final)
}

// maxRetreats is the number of retreats of settle at most, and maxPartial of those of
// them that give back a part of the time that integers save.
const (
	maxRetreats = 10
	maxPartial  = 4
)

// partialShares are the parts of that time that a retreat may give back; the next is
// for where the one before does not bring c closer.
var partialShares = []float64{0.35, 0.8}

// manySamples is the number of samples that parts are tried on in a retreat.
const manySamples = 16

// retreat returns a variant of c that is closer to the float model, or c where it looked
// for one that gives back less than the next will. It returns nil where none is left.
func (s *search) retreat(ctx context.Context, c *candidate, try int) (*candidate, error) {
	s.look, s.aim = manySamples, c.score+c.lacks()*float64(1+min(s.stuck, 1))
	var anchors []int
	quantized := quantizedNodes(c.base, c.plan)
	for g := range c.base.Scopes() {
		for n := range g.Nodes() {
			if quantized[n.ID] && depth(n) > 0 && n.Op.Type != "Gather" {
				anchors = append(anchors, n.ID)
			}
		}
	}
	switch {
	case len(anchors) > 0 && try < maxPartial && s.stuck < len(partialShares):
		s.share = partialShares[s.stuck]
		if r, err := s.finer(ctx, c, finerShare); err != nil || r != c {
			return r, err
		}
		r, err := s.relief(ctx, c)
		if r == c {
			s.stuck++
		}
		return r, err
	case len(anchors) > 0:
		return s.withoutIntegers(ctx, c, anchors)
	default:
		return s.withMoreBits(ctx, c)
	}
}

// withoutIntegers returns a variant of c in which the anchors, by ID, stay float.
func (s *search) withoutIntegers(ctx context.Context, c *candidate, anchors []int) (*candidate, error) {
	next := c.keeping(anchors, "integers cost the outputs too much: measured")
	if s.o.Store { // what weights take was chosen for a model on integers
		next.qdq.Store, next.qdq.Least = codes, nil
		small, err := s.small(next)
		if err != nil {
			return nil, err
		}
		next.qdq.Least = next.storing(small, 16).qdq.Least
	}
	if err := s.retreated(ctx, c, next, "left all products float"); err != nil {
		return nil, err
	}
	// The codes of weights are all that is left to choose.
	if rounded := s.rounding(next); rounded != nil && !next.empty() {
		return s.improved(ctx, next, rounded, roundGain, roundNote)
	}
	return next, nil
}

// withMoreBits returns a variant of c, which multiplies nothing on integers, whose
// weights have more bits: as few of them as come to what is missing or, where that is
// not found, first half of those with the fewest, then all. Tables whose codes are
// looked up count among the last of 16 bits. It returns nil where nothing is left but the
// float model.
func (s *search) withMoreBits(ctx context.Context, c *candidate) (*candidate, error) {
	for _, most := range []float64{finerShare, 1} {
		if r, err := s.finer(ctx, c, most); err != nil || r != c {
			return r, err
		}
	}
	list, bits := fewest(c.plan)
	rest := quantizedNodes(c.base, c.plan)
	tables := slices.Contains(rest, true)
	if bits == 32 && tables {
		list, bits = nil, 16
	}
	order, err := s.costliest(ctx, c, list)
	if err != nil {
		return nil, err
	}
	if bits == 16 && 2*len(order) > len(stored(c.plan)) {
		order, tables = order[:(len(order)+1)/2], false
	}
	if len(order) == 0 && !tables {
		return nil, nil
	}
	next := c.storing(order, bits)
	if tables {
		var ids []int
		for g := range c.base.Scopes() {
			for n := range g.Nodes() {
				if !rest[n.ID] {
					continue
				}
				ids = append(ids, n.ID)
				for _, v := range n.Inputs() {
					if v != nil && v.IsConst() {
						next.qdq.Least[v.ID] = bits
						order = append(order, v.ID)
					}
				}
			}
		}
		next = next.keeping(ids, "codes cost the outputs too much: measured")
	}
	if err := s.retreated(ctx, c, next, fmt.Sprintf("stored %d weights in %d bits", len(order), bits)); err != nil || next.empty() {
		return nil, err
	}
	return next, nil
}

// retreated builds and measures next, to which the search retreats from c.
func (s *search) retreated(ctx context.Context, c, next *candidate, note string) error {
	if err := s.build(ctx, next); err != nil {
		return err
	}
	if next.empty() {
		next.score, next.short = math.Inf(1), Shortfall{}
		return nil
	}
	if err := s.measure(ctx, next); err != nil {
		return err
	}
	next.found = append(next.found, fmt.Sprintf("%s, since %s: score %.1f → %.1f dB on calibration samples", note, c.short.Text, c.score, next.score))
	return nil
}

// lacks is by how much the score of c should rise, in dB: by what the contract lacks
// and lackMargin, or by lackGain where that is no matter of noise alone.
func (c *candidate) lacks() float64 {
	if c.short.DB > 0 {
		return c.short.DB + lackMargin
	}
	return lackGain
}

const (
	lackGain   = 4
	lackMargin = 0.5
)
