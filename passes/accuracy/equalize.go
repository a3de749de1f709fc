package accuracy

import (
	"math"
	"slices"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/tensor"
)

// Bounds gives the least and greatest value of each channel of an activation
// over the calibration samples, or nil.
type Bounds func(v *graph.Value) (lo, hi []float32)

// Equalize evens out the ranges of the channels of activations between
// convolutions, so that one scale serves all of them: channel c is divided by s_c
// in the weights and biases that make it and multiplied in those that read it,
// which changes nothing but rounding where only operators stand between that
// commute with a positive factor per channel (Nagel et al., 2019, section 4.1).
// Residual connections and concatenations tie channels of several activations to
// one factor, with as many makers and readers as there are. A channel of which
// anything else reads or makes a part keeps its factor of 1.
//
// With a_c the greatest magnitude of channel c relative to that of its activation,
// the most over the activations tied to it, s_c is a_c^strength, which evens the
// activations out, or √(a_c / w_c), which divides the difficulty between activations
// and weights, where w_c is the greatest share of input channel c in the range of a
// row of the weights that read it (G. Xiao et al., "SmoothQuant", 2023, equation 4
// with α = 1/2). Between these, and none, the expected squared error of the outputs
// of the readers decides, for activations together that are tied: that of rounding
// activations, all of whose channels share a step, and that of rounding weights,
// whose rows have a step each.
//
// Other inputs than the samples reach further in single channels, and a range that
// all channels fill leaves no room for that: hence strength. A channel that no
// sample reached gets the factor with which its weights do not widen the rows. Clip,
// which commutes with factors on the samples alone, ends what can be equalized.
//
// It edits m, a prepared float model, and returns the number of values that
// convolutions read equalized. Ranges observed before do not hold for these
// values afterwards. means are those of channels, which estimate E[x_c²].
func Equalize(m *graph.Model, bounds Bounds, means Means) int {
	count := 0
	for g := range m.Scopes() {
		if g.Function() == nil {
			count += equalize(g, bounds, means)
		}
	}
	return count
}

// widest bounds how far the scales of two channels may lie apart.
const widest = 1 << 10

// strength bounds how far the ranges of channels are evened out: see Equalize.
const strength = 0.7

// channels are those along axis 1 of a value of the given rank, as consecutive
// indices of a ties.
type channels struct{ first, n, rank int }

// sets are disjoint sets of consecutive integers.
type sets []int

func (s *sets) add() int {
	*s = append(*s, len(*s))
	return len(*s) - 1
}

func (s sets) of(i int) int {
	for s[i] != i {
		s[i] = s[s[i]]
		i = s[i]
	}
	return i
}

func (s sets) join(a, b int) { s[s.of(a)] = s.of(b) }

// ties finds which channels of a graph have to have the same factor.
type ties struct {
	g      *graph.Graph
	of     map[*graph.Value]channels
	same   sets // channels of one factor
	group  sets // channels of activations with a channel of one factor: relative to each other
	pinned []bool
}

// mostTied bounds the channels that are looked at.
const mostTied = 1 << 24

// add takes in v, whose channels are n, unless there are too many.
func (t *ties) add(v *graph.Value, n, rank int) channels {
	if len(t.same)+n > mostTied {
		return channels{}
	}
	c := channels{len(t.same), n, rank}
	for range n {
		t.pinned = append(t.pinned, false)
		t.same.add()
		t.group.join(t.group.add(), c.first)
	}
	t.of[v] = c
	return c
}

// tie gives all channels of values the same factors.
func (t *ties) tie(a, b channels) {
	for i := range a.n {
		t.same.join(a.first+i, b.first+i)
		t.group.join(a.first+i, b.first+i)
	}
}

// share ties what nodes with the same weight read, and what they give, so that it stays
// one weight; where not all of its readers are known it stays as it is.
func (t *ties) share() {
	seen := map[*graph.Value]bool{}
	for n := range t.g.Nodes() {
		if n.Op.Domain != graph.OnnxDomain || n.Op.Type != "Conv" && !isProduct(n) || n.NumInputs() < 2 {
			continue
		}
		w := n.Input(1)
		if floats(w) == nil || seen[w] || len(w.Uses()) < 2 {
			continue
		}
		seen[w] = true
		in, out, same := t.reads(n), t.made(n), true
		for _, u := range w.Uses() {
			k := u.Node
			same = same && k != nil && u.Index == 1 && k.Graph() == t.g && k.Op == n.Op && t.reads(k).n == in.n && t.made(k).n == out.n &&
				k.Int("group", 1) == n.Int("group", 1) && k.Int("transB", 0) == n.Int("transB", 0)
		}
		for _, u := range w.Uses() {
			switch {
			case same:
				t.tie(t.reads(u.Node), in)
				t.tie(t.made(u.Node), out)
			case u.Node != nil && u.Node.Graph() == t.g:
				for _, v := range slices.Concat(u.Node.Inputs(), u.Node.Outputs()) {
					if v != nil {
						t.pin(v)
					}
				}
			}
		}
	}
}

// made returns the channels that the weights of n give.
func (t *ties) made(n *graph.Node) channels {
	if n.Op == (graph.OpKey{Type: "Conv"}) {
		return t.of[n.Output(0)]
	}
	return channels{}
}

func (t *ties) pin(v *graph.Value) {
	c := t.of[v]
	for i := range c.n {
		t.pinned[c.first+i] = true
	}
}

// follow looks at a node, whose inputs have been looked at. What it does not
// know to commute with factors pins what it reads.
func (t *ties) follow(n *graph.Node) {
	if !t.commutes(n) {
		for _, v := range n.Inputs() {
			if v != nil {
				t.pin(v)
			}
		}
	}
}

// commutes takes in the output of n; it reports whether factors per channel of its
// inputs can be taken out of it.
func (t *ties) commutes(n *graph.Node) bool {
	if n.Op.Domain != graph.OnnxDomain || n.NumInputs() == 0 || n.Input(0) == nil || len(n.Outputs()) != 1 {
		return false
	}
	x, y := n.Input(0), n.Output(0)
	in := t.of[x]
	switch n.Op.Type {
	case "Conv":
		w := n.Input(1)
		if floats(w) == nil || w.Const.Rank() < 3 || n.NumInputs() > 2 && n.Input(2) != nil && floats(n.Input(2)) == nil {
			return false
		}
		shape, groups := w.Const.Shape(), int(n.Int("group", 1))
		if groups < 1 || shape[0]%groups != 0 || slices.Contains(shape, 0) {
			return false
		}
		t.add(y, shape[0], len(shape))
		return t.reads(n).n > 0
	case "MatMul", "Gemm":
		added := n.NumInputs() > 2 && n.Input(2) != nil && !n.Input(2).IsConst()
		return !added && t.reads(n).n > 0
	case "Relu", "LeakyRelu", "AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool":
		if in.n == 0 {
			return false
		}
	case "PRelu":
		if in.n == 0 || floats(n.Input(1)) == nil {
			return false
		}
	case "ReduceMean":
		axes := n.Ints("axes")
		if v := n.Input(1); v != nil && v.IsConst() && v.Const.DType() == tensor.Int64 {
			axes = tensor.As[int64](v.Const)
		}
		if in.n == 0 || len(axes) == 0 {
			return false
		}
		for _, a := range axes {
			if a < 0 {
				a += int64(in.rank)
			}
			if a < 2 {
				return false
			}
		}
		if n.Int("keepdims", 1) == 0 {
			in.rank -= len(axes)
		}
	case "Flatten":
		// One position alone: the channels stay what they are.
		from := x.DefNode()
		if in.n == 0 || n.Int("axis", 1) != 1 || from == nil || from.Op.Type != "GlobalAveragePool" && from.Op.Type != "GlobalMaxPool" {
			return false
		}
		in.rank = 2
	case "Mul", "Div":
		k := n.Input(1)
		if n.Op.Type == "Mul" && x.IsConst() {
			x, k = k, x
			in = t.of[x]
		}
		if in.n == 0 || floats(k) == nil || !perChannel(k.Const.Shape(), in) {
			return false
		}
	case "Add", "Sub", "Sum", "Max", "Min":
		for _, v := range n.Inputs() {
			if c := t.of[v]; c.n == 0 || c.n != in.n || c.rank != in.rank {
				return false
			}
		}
		for _, v := range n.Inputs() {
			t.tie(t.of[v], in)
		}
	case "Concat":
		axis, total := int(n.Int("axis", 0)), 0
		for _, v := range n.Inputs() {
			c := t.of[v]
			if c.n == 0 || c.rank != in.rank {
				return false
			}
			total += c.n
		}
		if axis != 1 && axis+in.rank != 1 {
			return false
		}
		out := t.add(y, total, in.rank)
		if out.n == 0 {
			return false
		}
		for _, v := range n.Inputs() {
			c := t.of[v]
			t.tie(c, out)
			out.first += c.n
		}
		return true
	default:
		return false
	}
	t.of[y] = in
	return true
}

// perChannel reports whether a constant of this shape has one element or one for
// each channel.
func perChannel(shape []int, c channels) bool {
	if len(shape) > c.rank {
		return false
	}
	for i, d := range shape {
		if at := c.rank - len(shape) + i; d != 1 && (at != 1 || d != c.n) {
			return false
		}
	}
	return true
}

// scaling is what is known of the channels of one factor.
type scaling struct {
	pinned, made, read bool
	dense              bool    // a reader shares scales between channels
	a, share           float64 // see Equalize
	s                  float64
}

func equalize(g *graph.Graph, bounds Bounds, means Means) int {
	t := &ties{g: g, of: map[*graph.Value]channels{}}
	for n := range g.Nodes() {
		t.follow(n)
	}
	for v := range t.of {
		for _, u := range v.Uses() {
			if u.Node == nil || u.Node.Graph() != g {
				t.pin(v)
			}
		}
	}
	t.share()
	all := t.factors(bounds, means)
	if all == nil {
		return 0
	}
	at := func(c channels, i int) float64 { return all[t.same.of(c.first+i)].s }
	moved := func(c channels) bool {
		for i := range c.n {
			if at(c, i) != 1 {
				return true
			}
		}
		return false
	}
	type edit struct {
		n    *graph.Node
		port int
		data []float32
	}
	var edits []edit
	bad := false
	change := func(n *graph.Node, port int, by func(i int) float64) {
		old := floats(n.Input(port))
		data := make([]float32, len(old))
		for i, v := range old {
			data[i] = float32(float64(v) * by(i))
			bad = bad || data[i]-data[i] != 0
		}
		edits = append(edits, edit{n, port, data})
	}
	equalized := map[*graph.Value]bool{}
	for n := range g.Nodes() {
		in, out := t.reads(n), t.made(n)
		into, outOf := moved(in), moved(out)
		if into {
			equalized[n.Input(0)] = true
		}
		if !into && !outOf {
			continue
		}
		if n.Op.Type != "Conv" {
			_, channel := rowOf(n)
			change(n, 1, func(i int) float64 { return at(in, channel(i)) })
			continue
		}
		shape, size := n.Input(1).Const.Shape(), n.Input(1).Const.Len()
		groups, row := int(n.Int("group", 1)), size/shape[0]
		change(n, 1, func(i int) float64 {
			f := 1.0
			if into {
				f = at(in, inputChannel(i, size, shape, groups))
			}
			if outOf {
				f /= at(out, i/row)
			}
			return f
		})
		if outOf && n.NumInputs() > 2 && n.Input(2) != nil {
			change(n, 2, func(c int) float64 { return 1 / at(out, c) })
		}
	}
	if bad {
		return 0
	}
	weights := replacements{}
	for _, e := range edits {
		if e.port == 1 {
			weights.replace(e.n, func() []float32 { return e.data })
		} else {
			replace(e.n, e.port, e.data)
		}
	}
	return len(equalized)
}

// reads returns the channels that n multiplies with weights.
func (t *ties) reads(n *graph.Node) channels {
	if n.Op.Domain != graph.OnnxDomain || n.NumInputs() < 2 || n.Input(0) == nil || floats(n.Input(1)) == nil {
		return channels{}
	}
	c, shape := t.of[n.Input(0)], n.Input(1).Const.Shape()
	switch n.Op.Type {
	case "Conv":
		if len(shape) > 2 && c.n == shape[1]*int(n.Int("group", 1)) {
			return c
		}
	case "MatMul", "Gemm":
		if len(shape) == 2 && c.rank == 2 && isProduct(n) {
			if rows, _ := rowOf(n); rows == c.n {
				return c
			}
		}
	}
	return channels{}
}

// factors returns the factor of each channel, by its representative in t.same, or
// nil where all are 1.
func (t *ties) factors(bounds Bounds, means Means) []scaling {
	all := make([]scaling, len(t.same))
	for i, pinned := range t.pinned {
		f := &all[t.same.of(i)]
		f.pinned = f.pinned || pinned
	}
	readers := map[int][]*reader{} // by representative of the group
	for n := range t.g.Nodes() {
		out := t.made(n)
		for i := range out.n {
			all[t.same.of(out.first+i)].made = true
		}
		if r := t.read(n, all, bounds, means); r != nil {
			k := t.group.of(r.at[0])
			readers[k] = append(readers[k], r)
		}
		t.seen(n, bounds, all)
	}
	groups := make([][]int, len(all))
	for i := range all {
		if f := &all[i]; t.same.of(i) == i {
			f.s = 1
			if !f.pinned && f.made && f.read {
				groups[t.group.of(i)] = append(groups[t.group.of(i)], i)
			}
		}
	}
	changed := false
	for k, members := range groups {
		if len(members) > 0 && even(all, members, readers[k]) {
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return all
}

// worth is the part of the expected error that equalizing may at most leave.
const worth = 0.95

// even sets the factors of the members of a group, which its readers read; it
// reports whether that is worth it.
func even(all []scaling, members []int, readers []*reader) bool {
	ways := []func(f *scaling) float64{func(f *scaling) float64 { return math.Pow(f.a, strength) }}
	if slices.ContainsFunc(members, func(i int) bool { return all[i].dense }) {
		ways = append(ways, func(f *scaling) float64 {
			if f.share == 0 {
				return f.a
			}
			return math.Sqrt(f.a / f.share)
		})
	}
	least := worth * errorOf(all, readers)
	found := false
	chosen := make([]float64, len(members))
	for _, way := range ways {
		most, widestShare := 0.0, 0.0
		for _, i := range members {
			f := &all[i]
			f.s = way(f)
			most, widestShare = math.Max(most, f.s), math.Max(widestShare, f.s*f.share)
		}
		for _, i := range members {
			f := &all[i]
			switch {
			case most == 0:
				f.s = 1
				continue
			case f.a > 0:
			case f.share > 0: // its weights must not widen the rows
				f.s = math.Min(most, widestShare/f.share)
			default:
				f.s = most
			}
			f.s = max(f.s/most, 1.0/widest)
		}
		if e := errorOf(all, readers); e < least {
			least, found = e, true
			for k, i := range members {
				chosen[k] = all[i].s
			}
		}
	}
	spread := false
	for k, i := range members {
		if all[i].s = 1; found {
			all[i].s = chosen[k]
		}
		spread = spread || all[i].s != 1
	}
	return spread
}

// errorOf returns the expected error of readers, that of each relative to its
// output.
func errorOf(all []scaling, readers []*reader) float64 {
	sum := 0.0
	for _, r := range readers {
		sum += r.error(all)
	}
	return sum
}

// reader is a node that multiplies channels with weights.
type reader struct {
	at            []int     // by input channel: index in scalings
	lo, hi, power []float64 // by input channel: bounds and E[x²]
	weights       []float64 // by input channel: Σ w²
	most          []float32 // by row and input channel of its group: the greatest magnitude
	columns       int       // channels of a row
	rows          int       // of a group
	taps          float64   // weights for an input and an output channel
}

// step returns the step of the activation.
func (r *reader) step(all []scaling) float64 {
	lo, hi := 0.0, 0.0
	for c, i := range r.at {
		lo, hi = math.Min(lo, r.lo[c]/all[i].s), math.Max(hi, r.hi[c]/all[i].s)
	}
	return (hi - lo) / 255
}

// error returns the expected squared error of the output relative to its square.
func (r *reader) error(all []scaling) float64 {
	step, noise, signal := r.step(all), 0.0, 0.0
	for c, i := range r.at {
		noise += float64(step * step * r.weights[c] * all[i].s * all[i].s)
		signal += float64(r.weights[c] * r.power[c])
	}
	for first := 0; first < len(r.at); first += r.columns {
		power := 0.0
		for c := first; c < first+r.columns; c++ {
			s := all[r.at[c]].s
			power += r.taps * r.power[c] / (s * s)
		}
		for o := first / r.columns * r.rows; o < (first/r.columns+1)*r.rows; o++ {
			most := 0.0
			for k, w := range r.most[o*r.columns:][:r.columns] {
				most = math.Max(most, float64(w)*all[r.at[first+k]].s)
			}
			noise += float64(most * most / (127 * 127) * power)
		}
	}
	if signal == 0 {
		return 0
	}
	return noise / signal
}

// read notes what n multiplies with weights, and returns it where the ranges are
// known.
func (t *ties) read(n *graph.Node, all []scaling, bounds Bounds, means Means) *reader {
	c := t.reads(n)
	if c.n == 0 {
		return nil
	}
	w, shape := floats(n.Input(1)), n.Input(1).Const.Shape()
	r := &reader{columns: c.n}
	var row, channel func(i int) int
	if n.Op.Type == "Conv" {
		groups, size := int(n.Int("group", 1)), len(w)/shape[0]
		r.columns, r.rows = shape[1], shape[0]/groups
		row, channel = func(i int) int { return i / size }, func(i int) int { return inputChannel(i, len(w), shape, groups) }
	} else {
		r.rows = len(w) / c.n
		_, channel = rowOf(n)
		if row = func(i int) int { return i % shape[1] }; n.Op.Type == "Gemm" && n.Int("transB", 0) != 0 {
			row = func(i int) int { return i / shape[1] }
		}
	}
	r.taps = float64(len(w)) / float64(c.n*r.rows)
	dense := r.columns > 1
	r.at = make([]int, c.n)
	for i := range r.at {
		r.at[i] = t.same.of(c.first + i)
		f := &all[r.at[i]]
		f.read, f.dense = true, f.dense || dense
	}
	r.weights, r.most = make([]float64, c.n), make([]float32, c.n*r.rows)
	for i, v := range w {
		k, o := channel(i), row(i)
		r.weights[k] += float64(float64(v) * float64(v))
		m := &r.most[o*r.columns+k%r.columns]
		*m = max(*m, v, -v)
	}
	for o := 0; dense && o < len(r.most); o += r.columns {
		line := r.most[o:][:r.columns]
		most := slices.Max(line)
		for k, v := range line {
			if v > 0 {
				f := &all[r.at[o/r.columns/r.rows*r.columns+k]]
				f.share = math.Max(f.share, float64(v)/float64(most))
			}
		}
	}
	lo, hi := bounds(n.Input(0))
	mean := means(n.Input(0))
	if len(lo) != c.n || len(mean) != c.n {
		return nil
	}
	for i := range c.n {
		l, h := math.Min(float64(lo[i]), 0), math.Max(float64(hi[i]), 0)
		r.lo, r.hi = append(r.lo, l), append(r.hi, h)
		r.power = append(r.power, powerOf(l, h, mean[i]))
	}
	return r
}

// powerOf estimates the mean square of what lies within bounds around 0 and has
// this mean: as if it fell off exponentially from 0, or evenly on both sides.
func powerOf(lo, hi, mean float64) float64 {
	if lo == 0 {
		return math.Min(2*mean*mean, hi*hi)
	}
	spread := (hi - lo) / 8
	return float64(mean*mean) + float64(spread*spread)
}

// seen notes the ranges of the channels of the output of n.
func (t *ties) seen(n *graph.Node, bounds Bounds, all []scaling) {
	for _, y := range n.Outputs() {
		c, ok := t.of[y]
		if !ok {
			continue
		}
		lo, hi := bounds(y)
		if len(lo) != c.n {
			continue
		}
		top := 0.0
		for i := range lo {
			top = math.Max(top, math.Max(-float64(lo[i]), float64(hi[i])))
		}
		for i := range c.n {
			f := &all[t.same.of(c.first+i)]
			switch {
			case top-top != 0:
				f.pinned = true
			case top > 0:
				f.a = math.Max(f.a, math.Max(-float64(lo[i]), float64(hi[i]))/top)
			}
		}
	}
}

// inputChannel returns the input channel that weight element i of a
// convolution multiplies.
func inputChannel(i, n int, shape []int, groups int) int {
	inner := n / (shape[0] * shape[1])
	o := i / (shape[1] * inner)
	return o/(shape[0]/groups)*shape[1] + i/inner%shape[1]
}

// holdsFloats reports whether v is a float32 constant.
func holdsFloats(v *graph.Value) bool {
	return v != nil && v.IsConst() && v.Const.DType() == tensor.Float32
}

func floats(v *graph.Value) []float32 {
	if !holdsFloats(v) {
		return nil
	}
	return tensor.As[float32](v.Const)
}

// replace gives input i of n, a constant, other elements.
func replace(n *graph.Node, i int, data []float32) {
	put(n, i, tensor.Of(data, n.Input(i).Const.Shape()...))
}

// replacements are the weights that stand for others, which several nodes may read.
type replacements map[*graph.Value]*graph.Value

// replace gives the weight of n, its input 1, other elements, the same as for the
// nodes before that read it.
func (r replacements) replace(n *graph.Node, data func() []float32) {
	old := n.Input(1)
	if w := r[old]; w != nil {
		n.SetInput(1, w)
		settle(w, old)
		return
	}
	replace(n, 1, data())
	r[old] = n.Input(1)
}
