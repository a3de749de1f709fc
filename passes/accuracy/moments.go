package accuracy

import (
	"context"
	"slices"

	"github.com/onnxq/onnxq/exec"
	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/internal/par"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/qdq"
	"github.com/onnxq/onnxq/quant"
	"github.com/onnxq/onnxq/tensor"
)

// Samples calls f with each of some samples; it can be called again.
type Samples func(ctx context.Context, f func(feeds map[string]ops.Data) error) error

// Bounds of the second moments: the most inputs of one output channel, the rows
// that are drawn for each input and at most in all, and the memory in bytes that
// the moments of the weights that are rounded together may take.
const (
	maxInputs     = 4096
	rowsPerInput  = 4
	maxRows       = 8192
	momentsMemory = 128 << 20
)

// product is a constant weight that the plan stores as codes, and what it is
// multiplied with.
type product struct {
	tensor int // index in plan.Tensors
	weight *graph.Value
	groups int
	k      int // inputs of one output channel
	n      int // output channels of a group
	// byColumn says that the weight is stored as [k][n] rather than [n][k].
	byColumn bool
	inputs   []origin
	// lookedUp says that the channels are rows of a Gather as well.
	lookedUp bool
}

// origin is where the inputs of products come from: the last axis of a value, or
// its patches under the window of a Conv.
type origin struct {
	value  *graph.Value
	window window
}

// equal reports whether two origins give the same inputs.
func (s *origin) equal(t *origin) bool {
	return s.value == t.value && s.window.same == t.window.same && slices.EqualFunc(
		[][]int{s.window.kernel, s.window.stride, s.window.dilation, s.window.begin, s.window.end},
		[][]int{t.window.kernel, t.window.stride, t.window.dilation, t.window.begin, t.window.end}, slices.Equal)
}

// window is the geometry of a Conv over d spatial axes.
type window struct {
	kernel, stride, dilation, begin, end []int
	// same computes the pads, with an odd one at the end (1) or begin (-1).
	same int
}

// taps returns the number of places of the kernel.
func (w *window) taps() int {
	n := 1
	for _, k := range w.kernel {
		n *= k
	}
	return n
}

// pads returns what is added before and behind axis a of the given length.
func (w *window) pads(a, length int) (begin, end int) {
	if w.same == 0 {
		return w.begin[a], w.end[a]
	}
	out := (length + w.stride[a] - 1) / w.stride[a]
	total := max(0, (out-1)*w.stride[a]+(w.kernel[a]-1)*w.dilation[a]+1-length)
	if w.same > 0 {
		return total / 2, total - total/2
	}
	return total - total/2, total / 2
}

// products lists the weights of m that can be rounded: those of weights in
// blocks, or the others. All readers of a weight have to multiply with it in the
// same way, or look its rows up; others than weights in blocks have one.
func products(m *graph.Model, plan *qdq.Plan, blocks bool) ([]product, error) {
	values, err := plan.Values(m)
	if err != nil {
		return nil, err
	}
	var out []product
	for i, v := range values {
		e := &plan.Tensors[i]
		if e.Kind != qdq.Weight || e.Type == qdq.Float16 || e.Form == "" && e.Type == quant.F8E4M3.Name || (e.Form != "") != blocks || !blocks && len(v.Uses()) != 1 {
			continue
		}
		p := product{tensor: i, weight: v}
		if p.read() && len(p.inputs) > 0 && p.k > 0 && p.k <= maxInputs && p.n > 0 {
			out = append(out, p)
		}
	}
	return out, nil
}

// read finds the readers of the weight, and reports whether it can be rounded
// for all of them.
func (p *product) read() bool {
	for _, u := range p.weight.Uses() {
		if u.Node == nil || u.Node.Op.Domain != graph.OnnxDomain {
			return false
		}
		if u.Node.Op.Type == "Gather" && u.Index == 0 && p.weight.Const.Rank() == 2 && u.Node.Int("axis", 0) == 0 {
			p.lookedUp = true
			continue
		}
		readers, turned := []graph.Use{u}, false
		if t := qdq.Transposed(u.Node, p.weight); t != nil {
			readers, turned = t.Uses(), true
		}
		for _, r := range readers {
			if r.Node == nil || r.Node.Op.Domain != graph.OnnxDomain || !p.reader(r, turned) {
				return false
			}
		}
	}
	// Rows are looked up: they have to be output channels.
	return !p.lookedUp || !p.byColumn
}

// reader adds what u multiplies the weight, or its transpose, with.
func (p *product) reader(u graph.Use, turned bool) bool {
	n, shape := u.Node, p.weight.Const.Shape()
	if u.Index != 1 || n.Input(0) == nil {
		return false
	}
	s, groups := origin{value: n.Input(0)}, 1
	var k, out int
	byColumn := false
	switch {
	case n.Op.Type == "Conv" && len(shape) > 2:
		groups = int(n.Int("group", 1))
		w, ok := windowOf(n, shape[2:])
		if !ok || groups < 1 || shape[0]%groups != 0 {
			return false
		}
		s.window, out, k = w, shape[0]/groups, p.weight.Const.Len()/shape[0]
	case n.Op.Type == "MatMul" && len(shape) == 2, n.Op.Type == "Gemm" && n.Int("transA", 0) == 0 && n.Float("alpha", 1) == 1:
		byColumn = (n.Op.Type == "MatMul" || n.Int("transB", 0) == 0) != turned
		if k, out = shape[1], shape[0]; byColumn {
			k, out = out, k
		}
	default:
		return false
	}
	if len(p.inputs) > 0 && (p.k != k || p.n != out || p.groups != groups || p.byColumn != byColumn) {
		return false
	}
	p.k, p.n, p.groups, p.byColumn = k, out, groups, byColumn
	p.inputs = append(p.inputs, s)
	return true
}

// lines takes the weight apart into its output channels.
func (p *product) lines() quant.Lines {
	if p.byColumn {
		return quant.Lines{T: p.weight.Const, Outer: 1, K: p.k, Inner: p.n}
	}
	return quant.Lines{T: p.weight.Const, Outer: p.groups * p.n, K: p.k, Inner: 1}
}

// windowOf reads the geometry of a Conv with the given kernel; ok is false
// where it makes no sense.
func windowOf(n *graph.Node, kernel []int) (w window, ok bool) {
	d := len(kernel)
	ints := func(name string, length, otherwise int) []int {
		out := slices.Repeat([]int{otherwise}, length)
		if a := n.Ints(name); len(a) == length {
			for i, x := range a {
				out[i] = int(x)
			}
		}
		return out
	}
	pads := ints("pads", 2*d, 0)
	w = window{kernel: kernel, stride: ints("strides", d, 1), dilation: ints("dilations", d, 1), begin: pads[:d], end: pads[d:]}
	switch n.String("auto_pad", "NOTSET") {
	case "SAME_UPPER":
		w.same = 1
	case "SAME_LOWER":
		w.same = -1
	}
	return w, !slices.ContainsFunc(slices.Concat(w.stride, w.dilation), func(x int) bool { return x < 1 })
}

// moments are Σ x·xᵀ of the inputs x that one origin gives to products, one k×k
// matrix a group.
type moments struct {
	origin
	groups, k int
	limit     int  // rows of a sample at most
	halves    bool // those of half the samples are wanted
	sums      [][]float32
	// cross is Σ (y-x)·xᵀ where x are inputs in another model and y those in the
	// model itself; nil if there is no other.
	cross [][]float32
	// sumsOfHalf and crossOfHalf are those of every other flush, nil where they are
	// not wanted; if there are few rows, the second begins in the middle of the
	// samples.
	sumsOfHalf, crossOfHalf [][]float32
	flushed, middle         int
	count                   int // rows that were summed up
	// rows are inputs that are not summed up yet, by group, and others those of
	// the other model.
	rows, others [][]float32
}

// momentRows is the number of rows that are multiplied with each other at once
// at least.
const momentRows = 256

// drawRows is the number of rows that a thread draws at a time.
const drawRows = 32

// flush adds the rows that wait. square is room for k×k elements.
func (s *moments) flush(pool *par.Pool, square []float32) {
	square = square[:s.k*s.k]
	pool.Begin()
	defer pool.End()
	s.flushed++
	s.count += len(s.rows[0]) / s.k
	add := func(sums, halves [][]float32, g int, y, x []float32) {
		count := len(x) / s.k
		kernels.Gemm(pool, s.k, s.k, count, kernels.Matrix{Data: y, Ld: s.k, Trans: true}, kernels.Matrix{Data: x, Ld: s.k}, square, s.k, nil)
		kernels.Binary(kernels.Add, sums[g], sums[g], square)
		if halves != nil && s.flushed%2 == 0 {
			kernels.Binary(kernels.Add, halves[g], halves[g], square)
		}
	}
	for g, x := range s.rows {
		if len(x) == 0 {
			continue
		}
		if y := s.others[g]; s.cross != nil {
			x, y = y, x
			kernels.Binary(kernels.Sub, y, y, x)
			add(s.cross, s.crossOfHalf, g, y, x)
		}
		add(s.sums, s.sumsOfHalf, g, x, x)
		s.rows[g], s.others[g] = s.rows[g][:0], s.others[g][:0]
	}
}

// collectMoments runs the samples and sums up the second moments of list, whose
// values are those of m. With another model, a clone of m with other weights,
// they are those of its values, and cross is summed up as well.
func collectMoments(ctx context.Context, m, other *drawer, list []*moments, samples Samples, o exec.SessionOptions) error {
	most := 0
	matrices := func(s *moments) [][]float32 {
		out := make([][]float32, s.groups)
		for g := range out {
			out[g] = make([]float32, s.k*s.k)
		}
		return out
	}
	for _, s := range list {
		s.sums, s.rows, s.others = matrices(s), make([][]float32, s.groups), make([][]float32, s.groups)
		if other != nil {
			s.cross = matrices(s)
		}
		if s.halves {
			s.sumsOfHalf = matrices(s)
			if other != nil {
				s.crossOfHalf = matrices(s)
			}
		}
		most = max(most, s.k*s.k)
	}
	pool := par.New(o.Threads)
	square := make([]float32, most)
	draw := func(d *drawer, ctx context.Context, feeds map[string]ops.Data, rows func(*moments) [][]float32) error {
		return d.run(ctx, feeds, func(id int, t *tensor.Tensor) {
			for _, s := range list {
				if s.value.ID == id {
					pool.Begin()
					s.draw(pool, rows(s), t)
					pool.End()
				}
			}
		})
	}
	done := 0
	err := samples(ctx, func(feeds map[string]ops.Data) error {
		done++
		err := draw(m, ctx, feeds, func(s *moments) [][]float32 { return s.rows })
		if err == nil && other != nil {
			err = draw(other, ctx, feeds, func(s *moments) [][]float32 { return s.others })
		}
		if err != nil {
			return err
		}
		for _, s := range list {
			if other != nil {
				s.align()
			}
			if n := len(s.rows[0]); n >= momentRows*s.k || n > 0 && s.flushed == 0 && done >= s.middle {
				s.flush(pool, square)
			}
		}
		return nil
	})
	for _, s := range list {
		s.flush(pool, square)
		s.rows, s.others = nil, nil
	}
	return err
}

// align makes rows and others of equal length: what a model computes may differ
// in its shape where weights do.
func (s *moments) align() {
	for g := range s.rows {
		n := min(len(s.rows[g]), len(s.others[g]))
		s.rows[g], s.others[g] = s.rows[g][:n], s.others[g][:n]
	}
}

// draw appends to the rows of each group at most limit inputs of it in x, evenly
// spaced.
func (s *moments) draw(pool *par.Pool, rows [][]float32, x *tensor.Tensor) {
	data, err := tensor.Float32s(x)
	if err != nil {
		return
	}
	shape := x.Shape()
	if s.window.kernel == nil {
		if len(shape) == 0 || shape[len(shape)-1] != s.k {
			return
		}
		count := len(data) / s.k
		take := min(count, s.limit)
		for g := range rows {
			for i := range take {
				at := i * count / take * s.k
				rows[g] = append(rows[g], data[at:at+s.k]...)
			}
		}
		return
	}
	from, plane, ok := s.patches(shape)
	if !ok || len(data) == 0 {
		return
	}
	taps := s.window.taps()
	channels, take := s.k/taps, len(from)/taps
	dst := make([][]float32, len(rows))
	for g := range rows {
		n := len(rows[g])
		rows[g] = slices.Grow(rows[g], take*s.k)[:n+take*s.k]
		dst[g] = rows[g][n:]
	}
	parts := (take + drawRows - 1) / drawRows
	pool.For(parts*len(rows), 1, func(task, _ int) {
		g, first := task/parts, task%parts*drawRows
		end := min(first+drawRows, take)
		for c := range channels {
			x := data[(g*channels+c)*plane:]
			for i := first; i < end; i++ {
				to := dst[g][i*s.k+c*taps:][:taps]
				for t, p := range from[i*taps:][:taps] {
					to[t] = 0
					if p >= 0 {
						to[t] = x[p]
					}
				}
			}
		}
	})
}

// patches returns where the taps of each row lie that is drawn of a value of the
// given shape, in its first channel, -1 for padding, and the elements of a
// channel; ok is false where the shape does not fit.
func (s *moments) patches(shape []int) (from []int, plane int, ok bool) {
	w := &s.window
	d := len(w.kernel)
	if len(shape) != d+2 {
		return nil, 0, false
	}
	taps, plane := w.taps(), 1
	out, begin := make([]int, d), make([]int, d)
	positions := shape[0]
	for i := range d {
		plane *= shape[2+i]
		span := (w.kernel[i]-1)*w.dilation[i] + 1
		var end int
		begin[i], end = w.pads(i, shape[2+i])
		padded := shape[2+i] + begin[i] + end
		if padded < span {
			return nil, 0, false
		}
		out[i] = (padded-span)/w.stride[i] + 1
		positions *= out[i]
	}
	if s.k/taps*s.groups != shape[1] {
		return nil, 0, false
	}
	take := min(positions, s.limit)
	from = make([]int, take*taps)
	at := make([]int, d)
	for i := range take {
		rest := i * positions / take
		for a := d - 1; a >= 0; a-- {
			at[a] = rest%out[a]*w.stride[a] - begin[a]
			rest /= out[a]
		}
		for t := range taps {
			offset, step, r := rest*shape[1]*plane, 1, t
			for a := d - 1; a >= 0 && offset >= 0; a-- {
				pos := at[a] + r%w.kernel[a]*w.dilation[a]
				r /= w.kernel[a]
				if offset += pos * step; pos < 0 || pos >= shape[2+a] {
					offset = -1
				}
				step *= shape[2+a]
			}
			from[i*taps+t] = offset
		}
	}
	return from, plane, true
}
