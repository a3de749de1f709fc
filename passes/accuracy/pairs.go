package accuracy

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// PairSums says what the sums of two neighbouring products can reach in an
// integer kernel that multiplies u8 activations with i8 weights and adds
// products in pairs in 16 bits, as VPMADDUBSW does on x86 processors without
// VNNI: what leaves [-32768, 32767] is cut there.
//
// Neighbours are elements 2j and 2j+1 of the inputs of one output channel in
// the order of the kernel: the rows of a matrix, and in a convolution kernel
// position by kernel position, the channels of a group within each.
type PairSums struct {
	Node *graph.Node
	// Sums counts the pairs of all output channels, Over those of them whose sum
	// can leave 16 bits with activations within their bounds.
	Sums, Over int
	// Need is, by output channel, the greatest magnitude of a sum relative to
	// what 16 bits hold: the factor by which the channel's scale has to grow to
	// fit if it is above 1.
	Need []float64

	weight int // index in plan.Tensors
}

// Pairs foresees the pair sums of the nodes of m that the plan runs on u8
// activations and i8 weights, from the parameters that Resolve gave and the
// bounds of activation channels; where bounds gives nil, and where activations
// are quantized as they come, a channel may take any code. Depthwise
// convolutions are left out: their kernels add in 32 bits. Nodes are looked at on
// the given number of threads (0: one per processor), unless memo, which may be
// nil, knows them.
func Pairs(m *graph.Model, plan *qdq.Plan, params []quant.Params, bounds Bounds, memo *Memo, threads int) ([]PairSums, error) {
	values, err := plan.Values(m)
	if err != nil {
		return nil, err
	}
	at := make([]int, m.NumValues()) // 1 + index in plan.Tensors, by value ID
	for i, v := range values {
		if plan.Tensors[i].Kind != qdq.Bias && !plan.Tensors[i].AtLoad {
			at[v.ID] = i + 1
		}
	}
	var out []PairSums
	var unknown []search
	var found []bool
	i := 0
	for g := range m.Scopes() {
		for n := range g.Nodes() {
			how := plan.Nodes[i].How
			i++
			if how != qdq.Integer && how != qdq.FloatOutput && !how.IsDynamic() || n.NumInputs() < 2 || n.Input(0) == nil {
				continue
			}
			ports := []int{1}
			if n.Op.Type == "LSTM" {
				ports = []int{1, 2}
			}
			for _, port := range ports {
				x, w := n.Input(0), n.Input(port)
				if !holdsFloats(w) || at[w.ID] == 0 || params[at[w.ID]-1].Type.DType != tensor.Int8 {
					continue
				}
				s := PairSums{Node: n, weight: at[w.ID] - 1}
				var px *quant.Params
				if !how.IsDynamic() {
					if at[x.ID] == 0 || params[at[x.ID]-1].Type.DType != tensor.Uint8 {
						continue
					}
					px = &params[at[x.ID]-1]
				}
				u := search{at: len(out), port: port, px: px}
				u.lo, u.hi = bounds(x)
				e := memo.pair(useOf(n, port), px, &params[s.weight], u.lo, u.hi)
				if e != nil {
					s.Sums, s.Over, s.Need = e.sums.Sums, e.sums.Over, e.sums.Need
				} else {
					unknown = append(unknown, u)
				}
				out, found = append(out, s), append(found, e != nil && e.found)
			}
		}
	}
	par.Each(threads, len(unknown), func(i int) {
		u := &unknown[i]
		s := &out[u.at]
		found[u.at] = s.find(u.port, u.px, &params[s.weight], u.lo, u.hi)
	})
	for _, u := range unknown {
		s := &out[u.at]
		memo.keepPair(useOf(s.Node, u.port), u.px, &params[s.weight], u.lo, u.hi, s, found[u.at])
	}
	kept := out[:0]
	for i, s := range out {
		if found[i] {
			kept = append(kept, s)
		}
	}
	return kept, nil
}

// search is a PairSums to be found: where it is in the list, and the arguments of
// find.
type search struct {
	at, port int
	px       *quant.Params
	lo, hi   []float32
}

// half is the share of a step by which a code may lie off its weight.
const half = 0.5

// find fills s in for the weight at a port, which channels between from and to are
// multiplied with; it reports whether the kernel adds in pairs.
func (s *PairSums) find(port int, px, pw *quant.Params, from, to []float32) bool {
	n := s.Node
	w, shape := floats(n.Input(port)), n.Input(port).Const.Shape()
	var outs, k, channels int // output channels, inputs of one, channels among them
	var place []int           // of the first output channel's weights
	var step int              // from those of an output channel to those of the next
	group := func(int) int { return 0 }
	pad := false
	switch {
	case n.Op.Type == "Conv" && len(shape) > 2:
		groups := int(n.Int("group", 1))
		outs, channels, k = shape[0], shape[1], len(w)/shape[0]
		if groups < 1 || outs%groups != 0 || channels == 1 && groups == outs && groups > 1 {
			return false
		}
		taps := k / channels
		place, step = make([]int, k), k
		for i := range place {
			place[i] = i%channels*taps + i/channels
		}
		group = func(o int) int { return o / (outs / groups) * channels }
		pad = true
	case isProduct(n) && len(shape) == 2:
		k, outs = shape[0], shape[1]
		between := outs
		step = 1
		if n.Op.Type == "Gemm" && n.Int("transB", 0) != 0 {
			k, outs = shape[1], shape[0]
			between, step = 1, k
		}
		place, channels = spaced(k, between), k
	case n.Op.Type == "LSTM" && len(shape) == 3:
		outs, k = shape[0]*shape[1], shape[2] // of all directions
		place, step, channels = spaced(k, 1), k, k
	default:
		return false
	}
	var lo, hi []float64
	if px != nil {
		lo, hi = codeBounds(px, pad, from, to, n)
	}
	s.Need = make([]float64, outs)
	s.Sums = outs * ((k + 1) / 2)
	// The bounds of the inputs of one output channel, a zero behind an odd number.
	least, most := make([]float64, k+1), make([]float64, k+1)
	last := -1
	// Weights over their scale, of several output channels, since these may lie
	// side by side; a zero behind an odd number.
	var codes [pairBlock][]float64
	for i := range codes {
		codes[i] = make([]float64, k+1)
	}
	for first := 0; first < outs; first += pairBlock {
		block := codes[:min(pairBlock, outs-first)]
		var inverse [pairBlock]float64
		for j := range block {
			scale := pw.Scale[0]
			if pw.Axis >= 0 {
				scale = pw.Scale[(first+j)%len(pw.Scale)]
			}
			inverse[j] = 1 / float64(scale)
		}
		for i, at := range place {
			at += first * step
			for j, c := range block {
				c[i] = float64(w[at]) * inverse[j]
				at += step
			}
		}
		for j, c := range block {
			o := first + j
			if at := group(o); at != last {
				last = at
				for i := range k {
					least[i], most[i] = 0, 255
					if lo != nil {
						least[i], most[i] = lo[at+i%channels], hi[at+i%channels]
					}
				}
			}
			s.Need[o] = s.channel(c, least, most, float64(pw.Type.Min), float64(pw.Type.Max))
		}
	}
	return true
}

// spaced returns the multiples of step from 0 on.
func spaced(n, step int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i * step
	}
	return out
}

// pairBlock is the number of output channels that find reads together.
const pairBlock = 16

// channel returns the need of an output channel and counts its sums over 16
// bits. c has the weights over their scale, which from and to bound, and least
// and most what they are multiplied with, codes that are not negative; the
// number of inputs, or one less, is even.
func (s *PairSums) channel(c, least, most []float64, from, to float64) (need float64) {
	product := func(i int) (low, high float64) {
		up, down := min(c[i], to), 0.0
		if up < 0 {
			up, down = 0, max(up, from)
		}
		return float64(least[i]*up) + float64(most[i]*down), float64(most[i]*up) + float64(least[i]*down)
	}
	for i := 0; i+1 < len(c); i += 2 {
		low, high := product(i)
		l, h := product(i + 1)
		low, high = low+l, high+h
		// What rounding adds to a sum does not shrink with the weights.
		slack := half * (most[i] + most[i+1])
		above, below := math.MaxInt16-slack, math.MinInt16+slack
		if high > above || low < below {
			s.Over++
		}
		if high > need*above || low < need*below {
			need = max(high/above, low/below)
		}
	}
	return need
}

// codeBounds returns the codes that bound each channel of the activation of n,
// whose values l and h bound, or nil if any code is possible. Padding adds the zero point.
func codeBounds(p *quant.Params, pad bool, l, h []float32, n *graph.Node) (lo, hi []float64) {
	channels := n.Input(1).Const.Len()
	if n.Op.Type == "Conv" {
		channels = n.Input(1).Const.Shape()[1] * int(n.Int("group", 1))
	} else if rows, _ := rowOf(n); true {
		channels = rows
	}
	if len(l) != channels {
		return nil, nil
	}
	lo, hi = make([]float64, channels), make([]float64, channels)
	for c := range lo {
		a, b := l[c], h[c]
		if a > b { // no element
			a, b = 0, 0
		}
		lo[c], hi[c] = float64(p.Code(a, 0)), float64(p.Code(b, 0))
		if pad {
			lo[c], hi[c] = math.Min(lo[c], float64(p.Zero[0])), math.Max(hi[c], float64(p.Zero[0]))
		}
	}
	return lo, hi
}

// FitPairs raises the scales of those output channels whose pair sums can leave
// 16 bits, so that the plan gives the same results on processors that add in
// pairs, for the least loss of precision: a channel that fits keeps all its
// codes, and none has to do with less than 7 bits. It edits params, those of
// Resolve, and returns the number of output channels changed and of nodes that
// they belong to. memo and threads are as for Pairs.
func FitPairs(m *graph.Model, plan *qdq.Plan, params []quant.Params, bounds Bounds, memo *Memo, threads int) (channels, nodes int, err error) {
	list, err := Pairs(m, plan, params, bounds, memo, threads)
	if err != nil {
		return 0, 0, err
	}
	raise := map[int][]float64{} // by index in plan.Tensors: a weight may have several readers
	var last *graph.Node
	for _, s := range list {
		if s.Over == 0 {
			continue
		}
		if s.Node != last {
			nodes++
			last = s.Node
		}
		p := &params[s.weight]
		if raise[s.weight] == nil {
			raise[s.weight] = make([]float64, len(p.Scale))
		}
		for o, need := range s.Need {
			if need > 1 {
				channels++
			}
			o %= len(p.Scale)
			raise[s.weight][o] = math.Max(raise[s.weight][o], need)
		}
	}
	for i := range plan.Tensors {
		for o, need := range raise[i] {
			if need <= 1 {
				continue
			}
			scale := math.Nextafter32(float32(float64(params[i].Scale[o])*need), float32(math.Inf(1)))
			if scale-scale != 0 {
				return 0, 0, fmt.Errorf("weight %q: scale of channel %d overflows", plan.Tensors[i].Tensor, o)
			}
			params[i].Scale[o] = scale
		}
	}
	return channels, nodes, nil
}
