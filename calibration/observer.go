package calibration

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/onnxq/onnxq/kernels"
)

// The number of histogram bins on each side of 0: by default, and at most.
const (
	DefaultBins = 2048
	MaxBins     = 1 << 16
)

// maskLimit is the value from which downwards an element is taken for the
// mask of an attention, which a Softmax turns into 0.
const maskLimit = -1e30

// chunk is the number of elements that pass through the caches together. The
// sums of a call depend on it, so it is part of the results.
const chunk = 1 << 15

// extremes is the number of elements at each end that are kept exactly.
const extremes = 8

// maxRanges is the number of samples whose range is kept, those of the highest
// Index: what a moving average by the default constant has of earlier ones is
// below the precision of a float64.
const maxRanges = 4096

// minExp is the exponent of the narrowest bins: no float32 lies between their
// edges.
const minExp = -149

// Histogram counts values in bins of width 2^Exp with edges at its multiples:
// Counts[i] those from (i-B)*2^Exp up to, but not including, (i-B+1)*2^Exp,
// where B is half of len(Counts). Exp is the smallest, and at least -149, with
// which all values fit.
type Histogram struct {
	Exp    int
	Counts []uint64
}

// fits reports whether values from lo to hi have bins of width 2^exp.
func (h *Histogram) fits(lo, hi float32, exp int) bool {
	edge := math.Ldexp(float64(len(h.Counts)/2), exp)
	return float64(hi) < edge && float64(lo) >= -edge
}

// cover widens the bins until lo and hi fit, moving pairs of bins together.
func (h *Histogram) cover(lo, hi float32) {
	exp := h.Exp
	if h.fits(lo, hi, exp) {
		return
	}
	_, e := math.Frexp(math.Max(math.Abs(float64(lo)), math.Abs(float64(hi))))
	_, b := math.Frexp(float64(len(h.Counts) / 2))
	exp = max(exp, e-b-1)
	for !h.fits(lo, hi, exp) {
		exp++
	}
	h.widen(exp)
}

func (h *Histogram) widen(exp int) {
	d := exp - h.Exp
	if d <= 0 {
		return
	}
	half := len(h.Counts) / 2
	// Towards 0 on each side, so that a bin is read before it is written.
	for i := range half {
		if n := h.Counts[half+i]; n > 0 {
			h.Counts[half+i] = 0
			h.Counts[half+i>>min(d, 62)] += n
		}
		if n := h.Counts[half-1-i]; n > 0 {
			h.Counts[half-1-i] = 0
			h.Counts[half+(-1-i)>>min(d, 62)] += n
		}
	}
	h.Exp = exp
}

// Width returns the width of a bin.
func (h *Histogram) Width() float64 { return math.Ldexp(1, h.Exp) }

// Edge returns the lower edge of bin i, for i up to len(Counts).
func (h *Histogram) Edge(i int) float64 {
	return math.Ldexp(float64(i-len(h.Counts)/2), h.Exp)
}

// SampleRange is the range of a value within one sample.
type SampleRange struct {
	Index    int // Sample.Index
	Min, Max float32
}

// Channels are statistics along one axis of a value. For a channel without
// elements Min is +Inf and Max is -Inf.
type Channels struct {
	Axis     int
	Min, Max []float32
	Sum      []Sum
	Count    []uint64
}

// Mean returns the mean of each channel, 0 for one without elements.
func (c *Channels) Mean() []float64 {
	out := make([]float64, len(c.Sum))
	for i := range out {
		if c.Count[i] > 0 {
			out[i] = c.Sum[i].Float64() / float64(c.Count[i])
		}
	}
	return out
}

// Stats are the statistics of one value over samples, from which every Method
// makes its range. NaN, infinite and masked elements are counted and enter
// nothing else; masked are those of -1e30 and below, -Inf included.
type Stats struct {
	Count    uint64 // elements that enter the statistics
	NaN, Inf uint64
	Masked   uint64
	// Min and Max are +Inf and -Inf where Count is 0.
	Min, Max float32
	// Sums of the elements, of their squares and of their magnitudes.
	Sum, Squares, Magnitudes Sum
	Hist                     Histogram
	// Lowest holds the eight least elements, or all where there are fewer, from
	// the least on, and Highest the greatest, from the greatest on. What
	// occurs several times counts as often.
	Lowest, Highest []float32
	// Samples holds the samples with at least one element, by Index: of many
	// the last 4096.
	Samples []SampleRange
	// Channels is nil where none were asked for.
	Channels *Channels
}

// Mean returns the mean, 0 where Count is 0.
func (s *Stats) Mean() float64 {
	if s.Count == 0 {
		return 0
	}
	return s.Sum.Float64() / float64(s.Count)
}

// MeanSquare returns the mean of the squares, 0 where Count is 0.
func (s *Stats) MeanSquare() float64 {
	if s.Count == 0 {
		return 0
	}
	return s.Squares.Float64() / float64(s.Count)
}

// MeanMagnitude returns the mean of the magnitudes, 0 where Count is 0.
func (s *Stats) MeanMagnitude() float64 {
	if s.Count == 0 {
		return 0
	}
	return s.Magnitudes.Float64() / float64(s.Count)
}

// Variance returns the mean square of the differences from the mean, 0 where
// Count is 0.
func (s *Stats) Variance() float64 {
	m := s.Mean()
	return math.Max(s.MeanSquare()-float64(m*m), 0)
}

// Observer gathers the Stats of one value as it is produced. The statistics do
// not depend on the order of samples, nor on how they are divided between
// observers that are merged. One goroutine at a time may use an Observer.
type Observer struct {
	stats Stats
	axis  int
	clean []float32
	part  []float32
	row   []float64
	lows  []float32
	highs []float32
}

// NewObserver returns an observer with the given number of histogram bins on
// each side of 0 (0: DefaultBins; at most MaxBins), and statistics of each
// channel along axis unless that is negative.
func NewObserver(bins, axis int) *Observer {
	if bins <= 0 {
		bins = DefaultBins
	}
	bins = min(bins, MaxBins)
	inf := float32(math.Inf(1))
	o := &Observer{axis: axis}
	o.stats = Stats{Min: inf, Max: -inf, Hist: Histogram{minExp, make([]uint64, 2*bins)}}
	if axis >= 0 {
		o.stats.Channels = &Channels{Axis: axis}
	}
	return o
}

// Stats returns the statistics so far; they change with the observer.
func (o *Observer) Stats() *Stats { return &o.stats }

// Update adds the elements x, of the given shape, that the value has in the
// sample of the given Index. A value that a sample produces several times (in
// a loop) is updated each time. It is an error if the number of channels
// changes or len(x) is not that of the shape.
func (o *Observer) Update(sample int, shape []int, x []float32) error {
	s := &o.stats
	if c := s.Channels; c != nil {
		n, inner, err := c.dims(shape, len(x))
		if err != nil {
			return err
		}
		if len(x) > 0 {
			if err := c.grow(n); err != nil {
				return err
			}
			e := kernels.MinMax(x)
			switch {
			case rare(e):
				o.rareChannels(0, n, inner, x)
			case inner > 1:
				o.rows(n, inner, x)
				s.sample(SampleRange{sample, e.Min, e.Max})
				return nil
			default:
				o.columns(0, n, x)
			}
		}
	}
	for len(x) > 0 {
		part := x[:min(len(x), chunk)]
		x = x[len(part):]
		o.elements(sample, part, kernels.MinMax(part))
	}
	return nil
}

// rare reports whether some of the elements whose extrema are e do not enter.
func rare(e kernels.Extrema) bool { return e.NaN+e.Inf > 0 || e.Min <= maskLimit }

// elements takes in elements of a sample whose extrema are e, but for channels.
func (o *Observer) elements(sample int, x []float32, e kernels.Extrema) {
	if rare(e) {
		x, e = o.filter(x)
	}
	if len(x) == 0 {
		return
	}
	s := &o.stats
	sum, squares, magnitudes := kernels.Moments(x)
	s.Sum.Add(sum)
	s.Squares.Add(squares)
	s.Magnitudes.Add(magnitudes)
	s.add(x, e)
	s.sample(SampleRange{sample, e.Min, e.Max})
}

// add takes in elements, but for their sums; those of a sample they are part of
// have the extrema e.
func (s *Stats) add(x []float32, e kernels.Extrema) {
	s.Count += uint64(len(x))
	s.Min, s.Max = min(s.Min, e.Min), max(s.Max, e.Max)
	s.Hist.cover(e.Min, e.Max)
	kernels.HistogramWithin(s.Hist.Counts, x, e, s.Hist.Exp, -len(s.Hist.Counts)/2)
	if n := len(s.Lowest); n < extremes || e.Min < s.Lowest[n-1] {
		s.Lowest = outermost(s.Lowest, x, -1)
	}
	if n := len(s.Highest); n < extremes || e.Max > s.Highest[n-1] {
		s.Highest = outermost(s.Highest, x, 1)
	}
}

// outermost adds x to the list of the outermost elements on one side.
func outermost(list, x []float32, sign float32) []float32 {
	const block = 512
	for len(x) > block {
		if e := kernels.MinMax(x[:block]); len(list) < extremes || max(e.Min*sign, e.Max*sign) > list[extremes-1]*sign {
			list = outermost(list, x[:block], sign)
		}
		x = x[block:]
	}
	for _, v := range x {
		if len(list) == extremes && v*sign <= list[extremes-1]*sign {
			continue
		}
		k := len(list)
		for k > 0 && v*sign > list[k-1]*sign {
			k--
		}
		list = slices.Insert(list, k, v+0)
		list = list[:min(len(list), extremes)]
	}
	return list
}

// rows takes in elements, all of which count, whose channels lie in rows of
// inner elements.
func (o *Observer) rows(n, inner int, x []float32) {
	s := &o.stats
	c := s.Channels
	o.row = append(o.row[:0], make([]float64, n)...)
	var squares, magnitudes float64
	each := uint64(len(x) / n)
	k := 0
	for len(x) > 0 {
		part := x[:min(len(x), max(chunk/inner, 1)*inner)]
		x = x[len(part):]
		all := kernels.NoExtrema()
		for at := 0; at < len(part); at += inner {
			row := part[at : at+inner]
			e := kernels.MinMax(row)
			sum, sq, mag := kernels.Moments(row)
			c.Min[k], c.Max[k] = min(c.Min[k], e.Min), max(c.Max[k], e.Max)
			o.row[k] += sum
			squares += sq
			magnitudes += mag
			all = all.Merge(e)
			if k++; k == n {
				k = 0
			}
		}
		s.add(part, all)
	}
	for k, sum := range o.row {
		c.Sum[k].Add(sum)
		c.Count[k] += each
		s.Sum.Add(sum)
	}
	s.Squares.Add(squares)
	s.Magnitudes.Add(magnitudes)
}

// UpdateBlocks is Update of elements in blocks of channels: a value of the shape
// [N, channels, ...] whose elements lie as [N, C/16, ..., 16], where C, which
// stands in shape, is channels rounded up to a multiple of 16. What is behind
// channels does not enter.
func (o *Observer) UpdateBlocks(sample int, shape []int, channels int, x []float32) error {
	const size = kernels.BlockSize
	s := &o.stats
	c := s.Channels
	if c != nil {
		if c.Axis != 1 {
			return fmt.Errorf("channels of axis %d in blocks", c.Axis)
		}
		if err := c.grow(channels); err != nil {
			return err
		}
	}
	if len(x) == 0 {
		return nil
	}
	if c == nil && channels%size == 0 {
		return o.Update(sample, shape, x)
	}
	blocks := shape[1] / size
	each := len(x) / (shape[0] * blocks) // elements of a block
	for k := 0; len(x) > 0; {
		at := k % blocks * size
		n := min((channels-at)/size, max(chunk/each, 1)) // whole blocks that pass through the caches together
		if n == 0 {
			last := channels - at
			o.part = o.part[:0]
			for i := 0; i < each; i += size {
				o.part = append(o.part, x[i:i+last]...)
			}
			o.mixed(sample, at, last, o.part)
			n = 1
		} else {
			o.whole(sample, at, each, x[:n*each])
		}
		x = x[n*each:]
		k += n
	}
	return nil
}

// whole takes in blocks of so many elements each, from channel at on.
func (o *Observer) whole(sample, at, each int, x []float32) {
	if o.stats.Channels == nil {
		for block := range slices.Chunk(x, each) {
			o.mixed(sample, at, kernels.BlockSize, block)
			at += kernels.BlockSize
		}
		return
	}
	all, from, to := kernels.NoExtrema(), 0, 0 // elements whose sums are in
	flush := func() {
		for part := range slices.Chunk(x[from:to], chunk) {
			o.stats.add(part, all)
		}
		if to > from {
			o.stats.sample(SampleRange{sample, all.Min, all.Max})
		}
		all, from = kernels.NoExtrema(), to
	}
	for block := range slices.Chunk(x, each) {
		for part := range slices.Chunk(block, chunk) {
			b, finite := kernels.BlockMoments(part)
			if e := b.Extrema(); finite && !rare(e) {
				o.lanes(at, len(part)/kernels.BlockSize, &b)
				all = all.Merge(e)
				to += len(part)
				continue
			}
			flush()
			o.mixed(sample, at, kernels.BlockSize, part)
			to += len(part)
			from = to
		}
		at += kernels.BlockSize
	}
	flush()
}

// mixed takes in elements of n channels, from channel at on, that lie side by
// side, whatever they are.
func (o *Observer) mixed(sample, at, n int, x []float32) {
	for len(x) > 0 {
		part := x[:min(len(x), chunk/n*n)]
		x = x[len(part):]
		e := kernels.MinMax(part)
		switch {
		case o.stats.Channels == nil:
		case rare(e):
			o.rareChannels(at, n, 1, part)
		default:
			o.columns(at, n, part)
		}
		o.elements(sample, part, e)
	}
}

// lanes takes in the sums, and those of 16 channels from channel at on, of so
// many rows.
func (o *Observer) lanes(at, rows int, b *kernels.BlockStats) {
	s := &o.stats
	c := s.Channels
	for k := range kernels.BlockSize {
		c.Min[at+k], c.Max[at+k] = min(c.Min[at+k], b.Min[k]), max(c.Max[at+k], b.Max[k])
		c.Sum[at+k].Add(b.Sum[k])
		c.Count[at+k] += uint64(rows)
		s.Sum.Add(b.Sum[k])
	}
	s.Squares.Add(b.Squares)
	s.Magnitudes.Add(b.Magnitudes)
}

// columns adds to the statistics of n channels, from channel at on, that lie side
// by side.
func (o *Observer) columns(at, n int, x []float32) {
	c := o.stats.Channels
	o.lows, o.highs = append(o.lows[:0], c.Min[at:at+n]...), append(o.highs[:0], c.Max[at:at+n]...)
	kernels.MinMaxChannels(o.lows, o.highs, x, 1)
	o.row = append(o.row[:0], make([]float64, n)...)
	for i := 0; i < len(x); i += n {
		kernels.AddColumns(o.row, x[i:i+n])
	}
	each := uint64(len(x) / n)
	for k := range n {
		c.Min[at+k], c.Max[at+k] = min(c.Min[at+k], o.lows[k]), max(c.Max[at+k], o.highs[k])
		c.Sum[at+k].Add(o.row[k])
		c.Count[at+k] += each
	}
}

// filter copies the elements that enter the statistics and counts the others.
func (o *Observer) filter(x []float32) ([]float32, kernels.Extrema) {
	o.clean = o.clean[:0]
	for _, v := range x {
		switch {
		case v != v:
			o.stats.NaN++
		case v <= maskLimit:
			o.stats.Masked++
		case v > math.MaxFloat32:
			o.stats.Inf++
		default:
			o.clean = append(o.clean, v)
		}
	}
	return o.clean, kernels.MinMax(o.clean)
}

func bySample(a, b SampleRange) int { return cmp.Compare(a.Index, b.Index) }

// sample widens the range of a sample.
func (s *Stats) sample(r SampleRange) {
	n := len(s.Samples)
	i, found := n, false
	if n > 0 && s.Samples[n-1].Index >= r.Index {
		i, found = slices.BinarySearchFunc(s.Samples, r, bySample)
	}
	switch {
	case found:
		p := &s.Samples[i]
		p.Min, p.Max = min(p.Min, r.Min), max(p.Max, r.Max)
	case n < maxRanges:
		s.Samples = slices.Insert(s.Samples, i, r)
	case i > 0:
		copy(s.Samples, s.Samples[1:i])
		s.Samples[i-1] = r
	}
}

func (c *Channels) grow(n int) error {
	if len(c.Min) == 0 {
		inf := float32(math.Inf(1))
		c.Min, c.Max = slices.Repeat([]float32{inf}, n), slices.Repeat([]float32{-inf}, n)
		c.Sum, c.Count = make([]Sum, n), make([]uint64, n)
	}
	if len(c.Min) != n {
		return fmt.Errorf("axis %d has %d channels, and %d before", c.Axis, n, len(c.Min))
	}
	return nil
}

// dims returns the number of channels of a shape, and the product of the
// dimensions behind their axis.
func (c *Channels) dims(shape []int, elements int) (n, inner int, err error) {
	if c.Axis >= len(shape) {
		return 0, 0, fmt.Errorf("no axis %d in shape %s", c.Axis, shapeText(shape))
	}
	n, inner = shape[c.Axis], 1
	total := 1
	for i, d := range shape {
		total *= d
		if i > c.Axis {
			inner *= d
		}
	}
	if total != elements {
		return 0, 0, fmt.Errorf("%d elements for shape %s", elements, shapeText(shape))
	}
	return n, inner, nil
}

// rareChannels adds to the statistics of n channels, from channel at on, what
// counts among elements of which some do not.
func (o *Observer) rareChannels(at, n, inner int, x []float32) {
	c := o.stats.Channels
	o.row = append(o.row[:0], make([]float64, n)...)
	for i, v := range x {
		if v != v || v <= maskLimit || v > math.MaxFloat32 {
			continue
		}
		k := i / inner % n
		v += 0
		c.Min[at+k], c.Max[at+k] = min(c.Min[at+k], v), max(c.Max[at+k], v)
		c.Count[at+k]++
		o.row[k] += float64(v)
	}
	for k, v := range o.row {
		c.Sum[at+k].Add(v)
	}
}

// Merge adds the statistics of another observer of the same value. It is an
// error if the two were made differently.
func (o *Observer) Merge(p *Observer) error { return o.stats.Merge(&p.stats) }

// Merge adds the statistics of other samples of the same value: in any order
// and grouping the result is the same. It is an error if the numbers of bins or
// the channels differ; s is then unchanged.
func (s *Stats) Merge(t *Stats) error {
	if len(s.Hist.Counts) != len(t.Hist.Counts) {
		return fmt.Errorf("histograms of %d and %d bins", len(s.Hist.Counts), len(t.Hist.Counts))
	}
	a, b := s.Channels, t.Channels
	if (a == nil) != (b == nil) || a != nil && a.Axis != b.Axis {
		return fmt.Errorf("channels of different axes")
	}
	if a != nil && len(b.Min) > 0 {
		if err := a.grow(len(b.Min)); err != nil {
			return err
		}
		for k := range b.Min {
			a.Min[k], a.Max[k] = min(a.Min[k], b.Min[k]), max(a.Max[k], b.Max[k])
			a.Sum[k].Merge(b.Sum[k])
			a.Count[k] += b.Count[k]
		}
	}
	s.Count += t.Count
	s.NaN += t.NaN
	s.Inf += t.Inf
	s.Masked += t.Masked
	s.Min, s.Max = min(s.Min, t.Min), max(s.Max, t.Max)
	s.Sum.Merge(t.Sum)
	s.Squares.Merge(t.Squares)
	s.Magnitudes.Merge(t.Magnitudes)
	s.Lowest = outermost(s.Lowest, t.Lowest, -1)
	s.Highest = outermost(s.Highest, t.Highest, 1)
	s.Hist.widen(t.Hist.Exp)
	half := len(s.Hist.Counts) / 2
	d := min(s.Hist.Exp-t.Hist.Exp, 62)
	for i, n := range t.Hist.Counts {
		if n > 0 {
			s.Hist.Counts[half+(i-half)>>d] += n
		}
	}
	s.Samples = mergeSamples(s.Samples, t.Samples)
	return nil
}

// mergeSamples returns the ranges of two lists by Index, those of the same one
// joined, of many the last. It may reuse a.
func mergeSamples(a, b []SampleRange) []SampleRange {
	var out []SampleRange
	if len(a) == 0 || len(b) == 0 || a[len(a)-1].Index < b[0].Index {
		out = append(a, b...)
	} else {
		out = make([]SampleRange, 0, len(a)+len(b))
		for len(a) > 0 && len(b) > 0 {
			switch x, y := a[0], b[0]; {
			case x.Index < y.Index:
				out, a = append(out, x), a[1:]
			case x.Index > y.Index:
				out, b = append(out, y), b[1:]
			default:
				out = append(out, SampleRange{x.Index, min(x.Min, y.Min), max(x.Max, y.Max)})
				a, b = a[1:], b[1:]
			}
		}
		out = append(append(out, a...), b...)
	}
	if n := len(out) - maxRanges; n > 0 {
		out = slices.Clone(out[n:])
	}
	return out
}

// Clone returns a copy that shares no memory with s.
func (s *Stats) Clone() *Stats {
	c := new(Stats)
	c.set(s)
	return c
}

// set makes s a copy of t that shares no memory with it, in the memory of s as
// far as that suffices.
func (s *Stats) set(t *Stats) {
	was := *s
	*s = *t
	s.Hist.Counts = append(was.Hist.Counts[:0], t.Hist.Counts...)
	s.Samples = append(was.Samples[:0], t.Samples...)
	s.Lowest, s.Highest = append(was.Lowest[:0], t.Lowest...), append(was.Highest[:0], t.Highest...)
	if t.Channels == nil {
		return
	}
	s.Channels = was.Channels
	if s.Channels == nil {
		s.Channels = new(Channels)
	}
	c, d := s.Channels, t.Channels
	c.Axis = d.Axis
	c.Min, c.Max = append(c.Min[:0], d.Min...), append(c.Max[:0], d.Max...)
	c.Sum, c.Count = append(c.Sum[:0], d.Sum...), append(c.Count[:0], d.Count...)
}
