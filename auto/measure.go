package auto

import (
	"context"
	"fmt"
	"maps"

	"github.com/onnxq/onnxq/eval"
	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/ops"
)

// yardstick is what candidates are held against.
type yardstick struct {
	samples   []map[string]ops.Data
	selection *eval.Selection
	outputs   int // of the model
	ref       [][]ops.Data
	picked    []map[string]ops.Data
	names     []string
	kinds     []Kind
}

// newYardstick runs the float model m on samples.
func newYardstick(ctx context.Context, m *graph.Model, e exec.Engine, o exec.SessionOptions, samples []map[string]ops.Data) (*yardstick, error) {
	y := &yardstick{samples: samples, selection: eval.NewSelection(m), outputs: len(m.Graph.Outputs())}
	y.names, y.kinds = y.selection.Names(m), Kinds(m, y.selection.Beside())
	m = y.selection.Reference(m)
	if e == nil {
		e = exec.Embedded{}
	}
	x, err := e.Compile(ctx, m, exec.Options{})
	if err != nil {
		return nil, err
	}
	defer x.Close()
	r, err := x.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for _, in := range samples {
		out, err := r.Run(ctx, in, nil, nil)
		if err != nil {
			return nil, err
		}
		ref, picked := y.selection.Split(out)
		y.ref, y.picked = append(y.ref, ref), append(y.picked, picked)
	}
	return y, nil
}

// measure sets the score of c, in dB, of which more is better, and what c
// misses of the contract.
func (s *search) measure(ctx context.Context, c *candidate) error {
	if c.known != nil && c.known.all {
		s.count()
		c.score, c.short = c.known.score(), c.known.Short
		return nil
	}
	score, compared, err := s.compare(ctx, c, s.few(len(s.o.Samples)))
	if err != nil {
		return err
	}
	c.score = score
	c.short = s.o.Contract.Check(s.yard.kinds, compared.Outputs(), score)
	return nil
}

// score returns the score of c on a few of the samples.
func (s *search) score(ctx context.Context, c *candidate, few []int) (float64, error) {
	if c.known != nil && c.known.all == (len(few) == len(s.o.Samples)) {
		s.count()
		return c.known.score(), nil
	}
	score, _, err := s.compare(ctx, c, few)
	return score, err
}

// count counts a measurement.
func (s *search) count() {
	s.runs++
	if s.o.Progress != nil {
		s.o.Progress(s.runs)
	}
}

// compare runs c on some of the samples.
func (s *search) compare(ctx context.Context, c *candidate, places []int) (float64, *eval.Comparison, error) {
	s.count()
	if err := s.realize(ctx, c); err != nil {
		return 0, nil, err
	}
	return s.yard.compare(ctx, c.model, s.o.Target.PairSums, s.o.Session, places)
}

// feeds returns a sample, with what the float model picks of it if that is an input.
func (y *yardstick) feeds(i int, picks bool) map[string]ops.Data {
	in := y.samples[i]
	if picks && len(y.picked[i]) > 0 {
		in = maps.Clone(in)
		maps.Copy(in, y.picked[i])
	}
	return in
}

// compare runs m on some of the samples.
func (y *yardstick) compare(ctx context.Context, m *graph.Model, saturate bool, o exec.SessionOptions, places []int) (float64, *eval.Comparison, error) {
	names, aligned := y.names, y.selection.Quantized(m)
	if aligned != nil {
		m = aligned
	} else {
		names = names[:y.outputs]
	}
	prog, err := exec.Compile(m, exec.Options{Saturate: saturate})
	if err != nil {
		return 0, nil, err
	}
	session := prog.NewSession(o)
	score, compared := eval.NewScore(len(names)), eval.NewComparison(names)
	for _, i := range places {
		ref := y.ref[i][:len(names)]
		out, err := session.Run(ctx, y.feeds(i, aligned != nil), nil, nil)
		if err != nil {
			return 0, nil, err
		}
		if err := score.Add(ref, out); err != nil {
			return 0, nil, err
		}
		if err := compared.Add(ref, out); err != nil {
			return 0, nil, err
		}
	}
	return score.DB(), compared, nil
}

// better is improved for what is left of the work of trying candidates.
func (s *search) better(ctx context.Context, c, next *candidate, gain float64, note string) (*candidate, error) {
	if !s.afford(next) {
		return c, nil
	}
	return s.improved(ctx, c, next, gain, note)
}

// improved builds and measures next and returns it if it beats c by gain dB.
func (s *search) improved(ctx context.Context, c, next *candidate, gain float64, note string) (*candidate, error) {
	if err := s.build(ctx, next); err != nil {
		return nil, err
	}
	if next.empty() {
		return c, nil
	}
	if err := s.measure(ctx, next); err != nil {
		return nil, err
	}
	if next.score < c.score+gain {
		return c, nil
	}
	next.found = append(next.found, fmt.Sprintf("%s: score %.1f → %.1f dB on calibration samples", note, c.score, next.score))
	return next, nil
}

// afford takes the work of trying c from what is left, and reports whether
// there was enough.
func (s *search) afford(c *candidate) bool {
	for g := range c.base.Scopes() {
		s.left -= g.NumNodes()
	}
	return s.left >= 0
}

// few returns the places of at most n samples, evenly spaced.
func (s *search) few(n int) []int {
	n = min(n, len(s.o.Samples))
	out := make([]int, n)
	for i := range out {
		out[i] = i * len(s.o.Samples) / n
	}
	return out
}
