package auto

import (
	"context"
	"fmt"
	"math"
)

// settle makes the result of c, or of variants with less and less on integers
// where c does not keep the contract.
func (s *search) settle(ctx context.Context, c *candidate) (*Result, error) {
	var best *Result
	closest := math.Inf(1)
	for try := 0; ; try++ {
		if c.short.Text == "" || !s.o.FloatIslands || try == maxRetreats {
			kept := c.short.Text == ""
			res, loss, err := s.accept(ctx, c)
			if err != nil {
				return nil, err
			}
			if kept && res.Short != "" && c.base != s.float && s.first != nil {
				next, err := s.simpler(ctx)
				if err != nil {
					return nil, err
				}
				if next.short.Text == "" {
					other, less, err := s.accept(ctx, next)
					if err != nil {
						return nil, err
					}
					if other.Short == "" || less < loss {
						c, res, loss = next, other, less
					}
				}
			}
			if best == nil || loss < closest {
				best, closest = res, loss
			}
			if res.Short == "" {
				return res, nil
			}
		}
		if !s.o.FloatIslands || try == maxRetreats {
			return best, nil
		}
		next, err := s.retreat(ctx, c, try)
		if err != nil {
			return nil, err
		}
		c = next
	}
}

// accept makes the result of c and has it judged; loss is that of Options.Accept.
func (s *search) accept(ctx context.Context, c *candidate) (res *Result, loss float64, err error) {
	if err := s.realize(ctx, c); err != nil {
		return nil, 0, err
	}
	if err := s.finish(ctx, c); err != nil {
		return nil, 0, err
	}
	res = s.result(c)
	if s.o.Accept != nil && c.model != nil {
		if c.short, loss, err = s.o.Accept(ctx, c.model); err != nil {
			return nil, 0, err
		}
	}
	res.Short = c.short.Text
	return res, loss, nil
}

// simpler searches once more from the first candidate on, without the passes that
// rescale channels, for a model that kept the contract on the samples of the search and
// not on others: channels that were evened out leave no room for what is larger there.
func (s *search) simpler(ctx context.Context) (*candidate, error) {
	c := s.first
	s.first, s.left, s.saves, s.aim, s.share = nil, maxWork, 0, reliefAim, reliefShare
	s.o.Equalize, s.o.Split, s.o.Smooth = false, false, false
	if err := s.build(ctx, c); err != nil {
		return nil, err
	}
	if err := s.measure(ctx, c); err != nil {
		return nil, err
	}
	return s.improve(ctx, c)
}

// finish calibrates c on all samples and builds it.
func (s *search) finish(ctx context.Context, c *candidate) error {
	if !s.o.Unseen {
		return nil
	}
	if err := s.calibrate(ctx, c, false); err != nil {
		return err
	}
	s.final = true
	defer func() { s.final = false }()
	c.known = nil
	return s.build(ctx, c)
}

// maxRetreats is the number of retreats of settle: two times with the weights in
// 16 bits that cost the outputs most or more and more of the time that integers
// save given back, then no integers, then weights in 16 bits.
const maxRetreats = 5

// retreat returns a variant of c that is closer to the float model.
func (s *search) retreat(ctx context.Context, c *candidate, try int) (*candidate, error) {
	gain := float64(retreatGain)
	if c.short.DB > 0 {
		gain = c.short.DB + retreatMargin
	}
	s.aim = c.score + gain*float64(1+min(try, 1))
	next, note := c.variant(), "left all products float"
	next.qdq.Keep = map[int]string{}
	quantized, anchors := quantizedNodes(c.base, c.plan), 0
	for g := range c.base.Scopes() {
		for n := range g.Nodes() {
			if why, kept := c.qdq.Keep[n.ID]; kept {
				next.qdq.Keep[n.ID] = why
			} else if quantized[n.ID] && depth(n) > 0 && n.Op.Type != "Gather" {
				next.qdq.Keep[n.ID] = "integers cost the outputs too much: measured"
				anchors++
			}
		}
	}
	switch {
	case anchors > 0 && try < 2:
		s.share = []float64{0.35, 0.8}[try]
		if r, err := s.finer(ctx, c, finerShare); err != nil || r != c {
			return r, err
		}
		return s.relief(ctx, c)
	case anchors > 0 && try == 2:
		if s.o.Store { // what weights take was chosen for a model on integers
			next.qdq.Store, next.qdq.Half = codes, nil
			small, err := s.small(next)
			if err != nil {
				return nil, err
			}
			next.qdq.Half = next.halving(small).qdq.Half
		}
	default:
		if try < maxRetreats-1 {
			for _, most := range []float64{finerShare, 1} {
				if r, err := s.finer(ctx, c, most); err != nil || r != c {
					return r, err
				}
			}
		}
		order, err := s.costliest(ctx, c, atLoad(c.plan))
		if err != nil {
			return nil, err
		}
		if try < maxRetreats-1 {
			order = order[:(len(order)+1)/2]
		}
		next.qdq.Half = c.halving(order).qdq.Half
		note = fmt.Sprintf("stored %d weights in 16 bits", len(order))
	}
	if err := s.build(ctx, next); err != nil {
		return nil, err
	}
	if next.empty() {
		next.score, next.short = math.Inf(1), Shortfall{}
		return next, nil
	}
	if err := s.measure(ctx, next); err != nil {
		return nil, err
	}
	next.found = append(next.found, fmt.Sprintf("%s, since %s: score %.1f → %.1f dB on calibration samples", note, c.short.Text, c.score, next.score))
	if anchors == 0 || !s.o.Round || s.o.Visits == 0 || next.round || s.good(next) {
		return next, nil
	}
	// Without integers the codes of weights are all that is left to choose.
	rounded := next.variant()
	rounded.round = true
	return s.improved(ctx, next, rounded, roundGain, roundNote)
}

// A retreat is to raise the score by what the contract lacks and retreatMargin, or by
// retreatGain where that is no matter of noise alone; all in dB.
const (
	retreatGain   = 4
	retreatMargin = 0.5
)
