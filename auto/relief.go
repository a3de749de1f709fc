package auto

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// Bounds of relief: the score in dB that it aims at, the shares of what integers
// save that may be given back and that has to be left in the end, the gain that this
// has to bring in all and with each part, the share of the noise that those tried have
// to answer for, how many parts of the model are tried apart, on how many samples, the
// nodes of all these candidates together, and how many sets of nodes are tried where
// it is known what starts at each.
const (
	reliefAim     = 20
	reliefShare   = 0.1
	reliefLeft    = 0.2
	reliefGain    = 1
	reliefStep    = 0.2
	reliefHope    = 0.15
	reliefParts   = 8
	reliefSamples = 4
	reliefWork    = 8_000
	reliefTries   = 5
)

// finerShare is the share of the weights that are stored in few bits that may
// get 16: where the others have 8, all take less than 0.3 of their bytes in float.
const finerShare = 0.15

// part is some anchors or weights that follow each other, by ID, and what they
// mean together.
type part struct {
	ids  []int
	work float64 // share of what float costs: see anchors and finer
	gain float64 // noise that goes away when they are float, or its share
}

// relieved reports whether nothing has to become float any more in c.
func (s *search) relieved(c *candidate) bool {
	return !s.o.FloatIslands || c.score >= s.aim || c.short.Text == "" && s.aim == reliefAim && c.score >= leastScore
}

// relief keeps those anchors float that cost the outputs most for what they save,
// where choosing the codes of weights is not enough.
func (s *search) relief(ctx context.Context, c *candidate) (*candidate, error) {
	if s.relieved(c) {
		return c, nil
	}
	for _, take := range []step{s.clipped, s.rounded} {
		next, err := take(ctx, c)
		if err != nil || s.relieved(next) {
			return next, err
		}
		c = next
	}
	anchors, err := s.anchors(ctx, c)
	if err != nil {
		return nil, err
	}
	left := 0.0 // of what integers saved at first
	for _, a := range anchors {
		left += a.work
	}
	keeping := func(ids []int) *candidate {
		return c.keeping(ids, "integers cost the outputs too much here: measured")
	}
	chosen, share, err := s.pick(ctx, c, anchors, min(s.share, left-reliefLeft), keeping, false)
	if err != nil {
		return nil, err
	}
	if len(chosen) == 0 {
		return c, nil
	}
	what := "the multiply-adds"
	if s.costs != nil {
		what = "the time that integers save"
	}
	return s.improved(ctx, c, keeping(chosen), s.worth(c), fmt.Sprintf("kept %d nodes with %.1f %% of %s float", len(chosen), 100*share, what))
}

// worth is what a change that costs time or bytes has to raise c's score by, in dB.
func (s *search) worth(c *candidate) float64 {
	return max(min(reliefGain, (s.aim-c.score)/2), reliefStep)
}

// pick chooses among items, nodes or weights, those that bring c closest to the
// float model for what they cost, at most the share most of it. Where the noise
// starts is known from one run beside the float model: those that answer for most of
// it for what they cost are varied together, as many as should do, then more or
// fewer. None are where those that can be afforded answer for less than the share
// reliefHope of it and less than is wanted. Where noise starts in nested graphs,
// parts of the items are tried instead; see byParts.
func (s *search) pick(ctx context.Context, c *candidate, items []part, most float64, vary func(ids []int) *candidate, weights bool) (chosen []int, share float64, err error) {
	nodes := 0
	for g := range c.base.Scopes() {
		nodes += g.NumNodes()
	}
	tries := reliefWork / max(nodes, 1)
	if tries < reliefParts/2 || len(items) < 2 {
		return nil, 0, nil
	}
	t := &trials{s: s, vary: vary, few: s.few(s.look)}
	whole, err := s.score(ctx, c, t.few)
	if err != nil {
		return nil, 0, err
	}
	from, err := s.origins(ctx, c)
	if err != nil {
		return nil, 0, err
	}
	if from == nil {
		return t.byParts(ctx, items, most, whole, weights, tries)
	}
	by := from.nodes
	if weights {
		by = from.weights
	}
	for i := range items {
		items[i].gain = by[items[i].ids[0]]
	}
	slices.SortStableFunc(items, func(a, b part) int { return cmp.Compare(b.gain*a.work, a.gain*b.work) })
	var list []part
	aim := whole + s.aim - c.score
	n, gain, want := 0, 0.0, 1-math.Pow(10, (whole-aim)/10) // want is the share of the noise that has to go
	for _, p := range items {
		if p.gain > 0 && share+p.work <= most {
			list, share = append(list, p), share+p.work
			if n == 0 || gain < want {
				n++
			}
			gain += p.gain
		}
	}
	if gain < min(reliefHope, want) {
		return nil, 0, nil
	}
	score, share := whole, 0
	for lo, hi, left := 0, len(list)+1, reliefTries; n > lo && n < hi && left > 0; left-- {
		all := divide(list[:n], 1)[0]
		scores, err := t.scores(ctx, []part{all})
		if err != nil {
			return nil, 0, err
		}
		got := scores[0]
		if got >= aim || got >= score+reliefStep {
			chosen, share, score = all.ids, all.work, got
		}
		if got >= aim {
			hi, n = n, (lo+n)/2
		} else {
			lo, n = n, min(2*n, (n+hi)/2)
		}
	}
	return chosen, share, nil
}

// trials measures variants of a candidate on a few samples.
type trials struct {
	s    *search
	vary func(ids []int) *candidate
	few  []int
}

// scores returns the scores of the variants with the items of one part each varied.
func (t *trials) scores(ctx context.Context, list []part) ([]float64, error) {
	next := make([]*candidate, len(list))
	for i := range list {
		next[i] = t.vary(list[i].ids)
	}
	if err := t.s.ahead(ctx, next, t.few); err != nil {
		return nil, err
	}
	out := make([]float64, len(list))
	for i, c := range next {
		if err := t.s.build(ctx, c); err != nil {
			return nil, err
		}
		if out[i] = math.Inf(1); c.empty() {
			continue
		}
		var err error
		if out[i], err = t.s.score(ctx, c, t.few); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// byParts is pick by trials alone: parts of the items are varied one at a time,
// those that matter most are divided and tried again, and the best are tried
// together. Of weights all are varied first, and none where that takes away less of
// the noise than one part has to answer for.
func (t *trials) byParts(ctx context.Context, items []part, most, whole float64, weights bool, tries int) (chosen []int, share float64, err error) {
	noise := math.Pow(10, -whole/10)
	try := func(list []part) error {
		scores, err := t.scores(ctx, list)
		for i, db := range scores {
			list[i].gain = noise - math.Pow(10, -db/10)
		}
		return err
	}
	if weights {
		all := divide(items, 1)
		if err := try(all); err != nil || all[0].gain < reliefHope*noise {
			return nil, 0, err
		}
	}
	parts := divide(items, min(reliefParts, tries/2))
	if err := try(parts); err != nil {
		return nil, 0, err
	}
	// The parts that matter most are divided.
	slices.SortStableFunc(parts, func(a, b part) int { return cmp.Compare(b.gain, a.gain) })
	if parts[0].gain < reliefHope*noise && len(parts[0].ids) > 1 {
		return nil, 0, nil
	}
	var small []part
	for left := min(tries/2, reliefParts); len(parts) > 0 && left > 1 && len(small) < reliefParts; parts = parts[1:] {
		if len(parts[0].ids) == 1 {
			small = append(small, parts[0])
			continue
		}
		pieces := divide(pieces(parts[0], items), left)
		left -= len(pieces)
		if err := try(pieces); err != nil {
			return nil, 0, err
		}
		small = append(small, pieces...)
	}
	small = append(small, parts...)
	slices.SortStableFunc(small, func(a, b part) int { return cmp.Compare(b.gain*a.work, a.gain*b.work) })
	// Gains do not simply add up, so each is measured with those before it.
	score := whole
	for left := reliefParts / 2; len(small) > 0 && left > 0 && score < t.s.aim; small = small[1:] {
		p := small[0]
		if p.gain < noise/50 || share+p.work > most {
			continue
		}
		if len(chosen) > 0 {
			left--
			trial := []part{{ids: slices.Concat(chosen, p.ids)}}
			if err := try(trial); err != nil {
				return nil, 0, err
			}
			p.ids, p.gain = trial[0].ids, trial[0].gain
		}
		if got := -10 * math.Log10(noise-p.gain); got >= score+reliefStep {
			chosen, share, score = p.ids, share+p.work, got
		}
	}
	return chosen, share, nil
}

// finer gives 16 bits to those of the weights that are decoded when the model is
// loaded whose rounding costs the outputs most for the bytes that it saves, at most
// the share most of them, and 32 where all have 16.
func (s *search) finer(ctx context.Context, c *candidate, most float64) (*candidate, error) {
	values, err := c.plan.Values(c.base)
	if err != nil {
		return nil, err
	}
	var items []part
	total := 0.0
	list, bits := fewest(c.plan)
	for _, i := range list {
		v := values[i]
		items = append(items, part{ids: []int{v.ID}, work: float64(v.Const.Len())})
		total += float64(v.Const.Len())
	}
	for i := range items {
		items[i].work /= max(total, 1)
	}
	chosen, share, err := s.pick(ctx, c, items, most, func(ids []int) *candidate { return c.storing(ids, bits) }, true)
	if err != nil || len(chosen) == 0 {
		return c, err
	}
	return s.improved(ctx, c, c.storing(chosen, bits), s.worth(c), fmt.Sprintf("stored %d weights, %.1f %% of those that are decoded at load, in %d bits", len(chosen), 100*share, bits))
}

// storing returns a variant of c in which weights that are decoded when the model
// is loaded have so many bits.
func (c *candidate) storing(ids []int, bits int) *candidate {
	next := c.variant()
	next.qdq.Least = map[int]int{}
	maps.Copy(next.qdq.Least, c.qdq.Least)
	for _, id := range ids {
		next.qdq.Least[id] = bits
	}
	return next
}

// keeping returns a variant of c in which nodes stay float, and why.
func (c *candidate) keeping(ids []int, why string) *candidate {
	next := c.variant()
	next.qdq.Keep = map[int]string{}
	maps.Copy(next.qdq.Keep, c.qdq.Keep)
	for _, id := range ids {
		next.qdq.Keep[id] = why
	}
	return next
}

// anchors lists the nodes that multiply on integers under c's plan, in order,
// with what each saves in one sample: its share of the time that all integers save
// at first or, where costs are not known, of the multiply-adds.
func (s *search) anchors(ctx context.Context, c *candidate) ([]part, error) {
	quantized := quantizedNodes(c.base, c.plan)
	var out []part
	var nodes []*graph.Node
	taps := make([]bool, c.base.NumValues())
	at := map[int]int{} // by ID of the output
	for g := range c.base.Scopes() {
		for n := range g.Nodes() {
			if !quantized[n.ID] || depth(n) == 0 {
				continue
			}
			y := n.Output(0)
			taps[y.ID], at[y.ID] = true, len(out)
			out, nodes = append(out, part{ids: []int{n.ID}}), append(nodes, n)
		}
	}
	prog, err := exec.Compile(c.base, exec.Options{Taps: taps})
	if err != nil {
		return nil, err
	}
	total := 0.0
	tap := func(v *graph.Value, t *tensor.Tensor) error {
		if i, ok := at[v.ID]; ok {
			w := float64(t.Len()) * float64(depth(nodes[i]))
			if s.costs != nil {
				w = s.costs.saved(nodes[i])
			}
			out[i].work += w
			total += w
		}
		return nil
	}
	if _, err := prog.NewSession(s.o.Session).Run(ctx, s.o.Samples[0], tap, nil); err != nil {
		return nil, err
	}
	if s.saves == 0 {
		s.saves = max(total, 1)
	}
	for i := range out {
		out[i].work /= s.saves
	}
	return out, nil
}

// divide joins consecutive parts to n of about equal length.
func divide(list []part, n int) []part {
	n = min(n, len(list))
	out := make([]part, n)
	for i := range n {
		for _, p := range list[i*len(list)/n : (i+1)*len(list)/n] {
			out[i].ids = append(out[i].ids, p.ids...)
			out[i].work += p.work
		}
	}
	return out
}

// pieces returns the single items of p.
func pieces(p part, items []part) []part {
	var out []part
	for _, a := range items {
		if slices.Contains(p.ids, a.ids[0]) {
			out = append(out, a)
		}
	}
	return out
}
