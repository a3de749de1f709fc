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
	"github.com/onnxq/onnxq/tensor"
)

// Samples calls f with each of some samples; it can be called again.
type Samples func(ctx context.Context, f func(feeds map[string]ops.Data) error) error

// Bounds of the second moments: the most inputs of one output channel, the rows
// that are drawn for each input and at least and most in all, and the memory in
// bytes that the moments of the nodes that are rounded together may take.
const (
	maxInputs     = 4096
	rowsPerInput  = 4
	minRows       = 1024
	maxRows       = 8192
	momentsMemory = 128 << 20
)

// product is a node that multiplies patches of its input with a constant weight
// that the plan stores as codes.
type product struct {
	node   *graph.Node
	tensor int // index in plan.Tensors
	weight *graph.Value
	groups int
	k      int // inputs of one output channel
	n      int // output channels of a group
	// byColumn says that the weight is stored as [k][n] rather than [n][k].
	byColumn bool
	window   window // of a Conv
}

// window is the geometry of a Conv over d spatial axes.
type window struct {
	kernel, stride, dilation, begin, end []int
	// same computes the pads, with an odd one at the end (1) or begin (-1).
	same int
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

// products lists the nodes of m whose weights can be rounded, one for each
// weight that no other node reads: those of weights in blocks, or the others.
func products(m *graph.Model, plan *qdq.Plan, blocks bool) ([]product, error) {
	values, err := plan.Values(m)
	if err != nil {
		return nil, err
	}
	var out []product
	for i, v := range values {
		e := &plan.Tensors[i]
		n := v.OnlyUse()
		if e.Kind != qdq.Weight || e.Type == qdq.Float16 || (e.Form != "") != blocks || n == nil || n.Input(1) != v || n.Input(0) == nil || n.Op.Domain != graph.OnnxDomain {
			continue
		}
		p := product{node: n, tensor: i, weight: v, groups: 1}
		shape := v.Const.Shape()
		switch {
		case n.Op.Type == "Conv" && len(shape) > 2:
			p.groups = int(n.Int("group", 1))
			w, ok := windowOf(n, shape[2:])
			if !ok || p.groups < 1 || shape[0]%p.groups != 0 {
				continue
			}
			p.window, p.n, p.k = w, shape[0]/p.groups, v.Const.Len()/shape[0]
		case n.Op.Type == "MatMul" && len(shape) == 2, n.Op.Type == "Gemm" && n.Int("transA", 0) == 0 && n.Float("alpha", 1) == 1:
			p.k, p.n, p.byColumn = shape[0], shape[1], true
			if n.Op.Type == "Gemm" && n.Int("transB", 0) != 0 {
				p.k, p.n, p.byColumn = shape[1], shape[0], false
			}
		default:
			continue
		}
		if p.k > 0 && p.k <= maxInputs && p.n > 0 {
			out = append(out, p)
		}
	}
	return out, nil
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

// moments are Σ x·xᵀ of the inputs x of a product, one k×k matrix a group.
type moments [][]float32

// collectMoments runs the samples and sums the second moments of the inputs of
// each product over at most share rows of each sample.
func collectMoments(ctx context.Context, m *graph.Model, list []product, share []int, samples Samples, o exec.SessionOptions) ([]moments, error) {
	sums := make([]moments, len(list))
	readers := map[int][]int{} // by value ID
	taps := make([]bool, m.NumValues())
	for i, p := range list {
		sums[i] = make(moments, p.groups)
		for g := range sums[i] {
			sums[i][g] = make([]float32, p.k*p.k)
		}
		x := p.node.Input(0)
		readers[x.ID] = append(readers[x.ID], i)
		taps[x.ID] = true
	}
	prog, err := exec.Compile(m, exec.Options{Taps: taps})
	if err != nil {
		return nil, err
	}
	session := prog.NewSession(o)
	pool := par.New(o.Threads)
	pool.Begin()
	defer pool.End()
	var rows, square []float32
	err = samples(ctx, func(feeds map[string]ops.Data) error {
		_, err := session.Run(ctx, feeds, func(v *graph.Value, t *tensor.Tensor) error {
			if t.DType() != tensor.Float32 {
				return nil
			}
			for _, i := range readers[v.ID] {
				p := &list[i]
				for g := range p.groups {
					var count int
					rows, count = p.rows(rows[:0], t, g, share[i])
					if count == 0 {
						continue
					}
					square = slices.Grow(square[:0], p.k*p.k)[:p.k*p.k]
					x := kernels.Matrix{Data: rows, Ld: p.k}
					kernels.Gemm(pool, p.k, p.k, count, kernels.Matrix{Data: rows, Ld: p.k, Trans: true}, x, square, p.k, nil)
					kernels.Binary(kernels.Add, sums[i][g], sums[i][g], square)
				}
			}
			return nil
		}, nil)
		return err
	})
	return sums, err
}

// rows appends to dst at most limit input patches of group g in x, evenly
// spaced, and returns how many.
func (p *product) rows(dst []float32, x *tensor.Tensor, g, limit int) ([]float32, int) {
	data, shape := tensor.As[float32](x), x.Shape()
	if p.window.kernel == nil {
		if len(shape) == 0 || shape[len(shape)-1] != p.k {
			return dst, 0
		}
		count := len(data) / p.k
		take := min(count, limit)
		for i := range take {
			at := i * count / take * p.k
			dst = append(dst, data[at:at+p.k]...)
		}
		return dst, take
	}
	w := &p.window
	d := len(w.kernel)
	if len(shape) != d+2 || len(data) == 0 {
		return dst, 0
	}
	taps := 1
	out, begin := make([]int, d), make([]int, d)
	positions := shape[0]
	for i := range d {
		taps *= w.kernel[i]
		span := (w.kernel[i]-1)*w.dilation[i] + 1
		var end int
		begin[i], end = w.pads(i, shape[2+i])
		padded := shape[2+i] + begin[i] + end
		if padded < span {
			return dst, 0
		}
		out[i] = (padded-span)/w.stride[i] + 1
		positions *= out[i]
	}
	channels := p.k / taps
	if channels*p.groups != shape[1] {
		return dst, 0
	}
	plane := len(data) / (shape[0] * shape[1])
	take := min(positions, limit)
	at, tap := make([]int, d), make([]int, d)
	for i := range take {
		rest := i * positions / take
		for a := d - 1; a >= 0; a-- {
			at[a] = rest%out[a]*w.stride[a] - begin[a]
			rest /= out[a]
		}
		base := (rest*shape[1] + g*channels) * plane
		start := len(dst)
		dst = slices.Grow(dst, p.k)[:start+p.k]
		clear(dst[start:])
		for t := range taps {
			r, offset, inside := t, 0, true
			for a := d - 1; a >= 0; a-- {
				tap[a] = r % w.kernel[a]
				r /= w.kernel[a]
			}
			for a := range d {
				pos := at[a] + tap[a]*w.dilation[a]
				inside = inside && pos >= 0 && pos < shape[2+a]
				offset = offset*shape[2+a] + pos
			}
			if !inside {
				continue
			}
			for c := range channels {
				dst[start+c*taps+t] = data[base+c*plane+offset]
			}
		}
	}
	return dst, take
}
