package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

// reduceSpecs lists the operators that reduce, scan or order along axes.
func reduceSpecs() []Spec {
	specs := []Spec{argSpec("ArgMax", true), argSpec("ArgMin", false), scanSpec("CumSum", 11, false), scanSpec("CumProd", 26, true), topKSpec}
	for i := range reductions {
		specs = append(specs, reductions[i].spec())
	}
	return specs
}

// axisRun is a run of axes of one kind, joined.
type axisRun struct {
	n, stride int
	reduced   bool
}

// layout is the input of a reduction, seen as alternating runs of kept and
// reduced axes. Where the last run is reduced, each output is a sum over rows;
// else rows of outputs are sums of rows.
type layout struct {
	kept, over []axisRun // all but the last, outermost first
	last       axisRun
	count      int // elements that make one output
}

// newLayout returns the layout of a reduction of a tensor of the given shape
// over the axes that are set.
func newLayout(shape []int, reduced []bool) *layout {
	var spans []axisRun // from the last axis on
	stride, count := 1, 1
	for axis := len(shape) - 1; axis >= 0; axis-- {
		d := shape[axis]
		if reduced[axis] {
			count *= d
		}
		if d != 1 {
			if k := len(spans) - 1; k >= 0 && spans[k].reduced == reduced[axis] {
				spans[k].n *= d
			} else {
				spans = append(spans, axisRun{n: d, stride: stride, reduced: reduced[axis]})
			}
		}
		stride *= d
	}
	l := &layout{last: axisRun{n: 1, stride: 1}, count: count}
	if len(spans) > 0 {
		l.last, spans = spans[0], spans[1:]
	}
	for i := len(spans) - 1; i >= 0; i-- {
		if spans[i].reduced {
			l.over = append(l.over, spans[i])
		} else {
			l.kept = append(l.kept, spans[i])
		}
	}
	return l
}

// base returns where output o (row of outputs o) begins in the input.
func (l *layout) base(o int) int {
	if len(l.kept) == 1 {
		return o * l.kept[0].stride
	}
	at := 0
	for i := len(l.kept) - 1; i >= 0; i-- {
		s := l.kept[i]
		at += o % s.n * s.stride
		o /= s.n
	}
	return at
}

// each calls f for the offsets of the rows that make the output at base.
func (l *layout) each(base int, f func(at int)) { eachRun(l.over, base, f) }

func eachRun(over []axisRun, base int, f func(at int)) {
	if len(over) == 0 {
		f(base)
		return
	}
	for i := range over[0].n {
		eachRun(over[1:], base+i*over[0].stride, f)
	}
}

// reduceBy reduces elements of T by way of an accumulator A.
type reduceBy[T, A any] struct {
	start  A
	step   func(acc A, x T) A
	row    func(acc A, x []T, at int) A // step over a row, which begins at element at, or nil
	finish func(acc A, n int) T         // of n elements
}

const (
	reduceWork  = 8192 // elements that make a piece of a reduction
	columnBlock = 1024 // outputs of a row that are reduced at a time
)

func (r *reduceBy[T, A]) run(c *Call, dst, src []T, l *layout) error {
	if len(dst) == 0 {
		return nil
	}
	if l.count == 0 {
		for i := range dst {
			dst[i] = r.finish(r.start, 0)
		}
		return nil
	}
	if l.last.reduced {
		n := l.last.n
		return c.For(len(dst), max(1, reduceWork/l.count), func(lo, hi int) {
			for o := lo; o < hi; o++ {
				acc := r.start
				if r.row == nil && len(l.over) == 0 {
					at := l.base(o)
					for _, x := range src[at : at+n] {
						acc = r.step(acc, x)
					}
					dst[o] = r.finish(acc, n)
					continue
				}
				l.each(l.base(o), func(at int) {
					if r.row != nil {
						acc = r.row(acc, src[at:at+n], at)
						return
					}
					for _, x := range src[at : at+n] {
						acc = r.step(acc, x)
					}
				})
				dst[o] = r.finish(acc, l.count)
			}
		})
	}
	return l.columns(c, len(dst), func(at, out, w int) {
		acc := make([]A, w)
		for i := range acc {
			acc[i] = r.start
		}
		l.each(at, func(at int) {
			for i, x := range src[at : at+w] {
				acc[i] = r.step(acc[i], x)
			}
		})
		for i, a := range acc {
			dst[out+i] = r.finish(a, l.count)
		}
	})
}

// columns calls f for blocks of at most columnBlock neighbouring outputs: where
// their first row begins in the input, where they begin in the output, and how
// many they are.
func (l *layout) columns(c *Call, outputs int, f func(at, out, w int)) error {
	n := l.last.n
	blocks := (n + columnBlock - 1) / columnBlock
	work := min(n, columnBlock) * l.count
	return c.For(outputs/n*blocks, max(1, reduceWork/work), func(lo, hi int) {
		for u := lo; u < hi; u++ {
			row, from := u/blocks, u%blocks*columnBlock
			f(l.base(row)+from, row*n+from, min(n-from, columnBlock))
		}
	})
}

// rows32 reduces rows of float32 into rows of outputs with vectorized loops,
// one row after the other: the order of ONNX Runtime, so that differences of
// large sums agree with it. That runtime takes the sums of a middle run of axes
// for products with a row of ones: four rows are added, then the rest by two and
// one, and each of these to the output.
type rows32 struct {
	sum    bool                       // op is Add and nothing comes before it
	op     kernels.BinaryOp           // Add, Min or Max
	before func(dst, src []float32)   // applied to every row, or nil
	after  func(acc []float32, n int) // applied to the result, or nil
}

func (r *rows32) run(c *Call, dst, src []float32, l *layout) error {
	if r.sum && len(l.kept) == 1 && len(l.over) == 1 {
		return r.middle(c, dst, src, l)
	}
	return l.columns(c, len(dst), func(at, out, w int) {
		var tmp []float32
		if r.before != nil {
			tmp = make([]float32, w)
		}
		acc, first := dst[out:out+w], true
		l.each(at, func(at int) {
			x := src[at : at+w]
			if r.before != nil {
				r.before(tmp, x)
				x = tmp
			}
			if first {
				copy(acc, x)
				first = false
				return
			}
			if w >= shortRow || !r.sum {
				kernels.Binary(r.op, acc, acc, x)
				return
			}
			for i, v := range x {
				acc[i] += v
			}
		})
		if r.after != nil {
			r.after(acc, l.count)
		}
	})
}

// middle sums a run of axes between two that are kept.
func (r *rows32) middle(c *Call, dst, src []float32, l *layout) error {
	n, stride := l.over[0].n, l.over[0].stride
	return l.columns(c, len(dst), func(at, out, w int) {
		acc, group := dst[out:out+w], make([]float32, w)
		for k := 0; k < n; {
			rows := 4
			for k+rows > n {
				rows /= 2
			}
			copy(group, src[at+k*stride:])
			for i := k + 1; i < k+rows; i++ {
				kernels.Binary(kernels.Add, group, group, src[at+i*stride:][:w])
			}
			if k == 0 {
				copy(acc, group)
			} else {
				kernels.Binary(kernels.Add, acc, group, acc)
			}
			k += rows
		}
		if r.after != nil {
			r.after(acc, l.count)
		}
	})
}

// logSum is an accumulator of log Σ exp(x): high + log(sum).
type logSum struct{ high, sum float64 }

func (s logSum) add(x float64) logSum {
	switch {
	case x <= s.high && !math.IsInf(s.high, 0):
		s.sum += math.Exp(x - s.high)
	case x == s.high && x < 0: // nothing but -Inf so far
	case x == s.high:
		s.sum++
	case x < s.high: // +Inf absorbs it
	default:
		scale := math.Exp(s.high - x)
		if math.IsInf(s.high, -1) {
			scale = 0
		}
		s = logSum{x, s.sum*scale + 1}
	}
	return s
}

func (s logSum) value() float64 { return s.high + math.Log(s.sum) }

// reduction is an entry of the table of reductions.
type reduction struct {
	name  string
	since int // the version from which on axes are an input
	f32   *reduceBy[float32, float64]
	rows  *rows32
	log   bool // log-sum-exp, which has another accumulator
	f64   *reduceBy[float64, float64]
	i64   *reduceBy[int64, int64]
	u64   *reduceBy[uint64, uint64]
	b8    *reduceBy[uint8, uint8]
	// dims is the reduction of propagated dimensions, or nil.
	dims func(a, b graph.Dim) graph.Dim
}

func firstOf[T, A any](acc A, _ int) A { return acc }

// sums returns a reduction Σ of f(x), with end applied to the sum of n terms.
func sums(name string, since int, row func(x []float32, at int) float64, f func(x float64) float64, end func(sum float64, n int) float64) reduction {
	if end == nil {
		end = func(sum float64, _ int) float64 { return sum }
	}
	f32 := &reduceBy[float32, float64]{
		step:   func(a float64, x float32) float64 { return a + f(float64(x)) },
		finish: func(a float64, n int) float32 { return float32(end(a, n)) },
	}
	if row != nil {
		f32.row = func(a float64, x []float32, at int) float64 { return a + row(x, at) }
	}
	return reduction{name: name, since: since, f32: f32,
		f64: &reduceBy[float64, float64]{step: func(a, x float64) float64 { return a + f(x) }, finish: end},
		i64: &reduceBy[int64, int64]{
			step:   func(a, x int64) int64 { return a + int64(f(float64(x))) },
			finish: func(a int64, n int) int64 { return int64(end(float64(a), n)) }},
		u64: &reduceBy[uint64, uint64]{
			step:   func(a, x uint64) uint64 { return a + uint64(f(float64(x))) },
			finish: func(a uint64, n int) uint64 { return uint64(end(float64(a), n)) }},
	}
}

func square(x float64) float64 { return x * x }

func squareRow(dst, src []float32) { kernels.Binary(kernels.Mul, dst, src, src) }

// lineSum is the row function of sums that the runtime adds in float32.
func lineSum(x []float32, at int) float64 { return float64(kernels.LineSum(x, at)) }

func squaresOf(x []float32, _ int) float64 { return kernels.ReduceSumSquares(x) }

func magnitudes(x []float32, _ int) float64 {
	_, _, m := kernels.Moments(x)
	return m
}

var reductions = []reduction{reduceSum, reduceMean, reduceMax, reduceMin, reduceProd, reduceL1, reduceL2, reduceLogSum, reduceLogSumExp, reduceSumSquare}

var reduceSum = func() reduction {
	r := sums("ReduceSum", 13, lineSum, itself[float64], nil)
	r.rows = &rows32{op: kernels.Add, sum: true}
	r.i64 = &reduceBy[int64, int64]{step: add[int64], finish: firstOf[int64, int64]}
	r.u64 = &reduceBy[uint64, uint64]{step: add[uint64], finish: firstOf[uint64, uint64]}
	r.dims = dimAdd
	return r
}()

var reduceMean = func() reduction {
	r := sums("ReduceMean", 18, lineSum, itself[float64], func(s float64, n int) float64 { return s / float64(n) })
	r.rows = &rows32{op: kernels.Add, sum: true, after: func(acc []float32, n int) {
		kernels.Binary(kernels.Div, acc, acc, []float32{float32(n)})
	}}
	r.i64 = &reduceBy[int64, int64]{step: add[int64], finish: func(s int64, n int) int64 { return s / int64(max(n, 1)) }}
	r.u64 = &reduceBy[uint64, uint64]{step: add[uint64], finish: func(s uint64, n int) uint64 { return s / uint64(max(n, 1)) }}
	return r
}()

var reduceL1 = func() reduction {
	r := sums("ReduceL1", 18, magnitudes, math.Abs, nil)
	r.rows = &rows32{op: kernels.Add, before: func(dst, src []float32) { kernels.Unary(kernels.Abs, dst, src) }}
	r.i64.step = func(a, x int64) int64 { return a + absInt(x) }
	r.u64.step = add[uint64]
	return r
}()

var reduceL2 = func() reduction {
	r := sums("ReduceL2", 18, squaresOf, square, func(s float64, _ int) float64 { return math.Sqrt(s) })
	r.rows = &rows32{op: kernels.Add, before: squareRow, after: func(acc []float32, _ int) { kernels.Unary(kernels.Sqrt, acc, acc) }}
	return r
}()

var reduceSumSquare = func() reduction {
	r := sums("ReduceSumSquare", 18, squaresOf, square, nil)
	r.rows = &rows32{op: kernels.Add, before: squareRow}
	r.i64 = &reduceBy[int64, int64]{step: func(a, x int64) int64 { return a + x*x }, finish: firstOf[int64, int64]}
	r.u64 = &reduceBy[uint64, uint64]{step: func(a, x uint64) uint64 { return a + x*x }, finish: firstOf[uint64, uint64]}
	return r
}()

var reduceLogSum = func() reduction {
	r := sums("ReduceLogSum", 18, lineSum, itself[float64], func(s float64, _ int) float64 { return math.Log(s) })
	r.rows = &rows32{op: kernels.Add, after: func(acc []float32, _ int) { kernels.Unary(kernels.Log, acc, acc) }}
	return r
}()

var reduceLogSumExp = reduction{name: "ReduceLogSumExp", since: 18, log: true}

var reduceProd = reduction{name: "ReduceProd", since: 18, dims: dimMul,
	f32: &reduceBy[float32, float64]{start: 1,
		step:   func(a float64, x float32) float64 { return a * float64(x) },
		finish: func(a float64, _ int) float32 { return float32(a) }},
	f64: &reduceBy[float64, float64]{start: 1, step: times[float64], finish: firstOf[float64, float64]},
	i64: &reduceBy[int64, int64]{start: 1, step: times[int64], finish: firstOf[int64, int64]},
	u64: &reduceBy[uint64, uint64]{start: 1, step: times[uint64], finish: firstOf[uint64, uint64]},
}

var reduceMax = reduction{name: "ReduceMax", since: 18, dims: dimMax, rows: &rows32{op: kernels.Max},
	f32: &reduceBy[float32, float64]{start: math.Inf(-1),
		step: func(a float64, x float32) float64 { return max(a, float64(x)) },
		row: func(a float64, x []float32, _ int) float64 {
			if len(x) < shortRow {
				for _, v := range x {
					a = max(a, float64(v))
				}
				return a
			}
			return max(a, float64(kernels.ReduceMax(x)))
		},
		finish: func(a float64, _ int) float32 { return float32(a) }},
	f64: &reduceBy[float64, float64]{start: math.Inf(-1), step: larger[float64], finish: firstOf[float64, float64]},
	i64: &reduceBy[int64, int64]{start: math.MinInt64, step: larger[int64], finish: firstOf[int64, int64]},
	u64: &reduceBy[uint64, uint64]{step: larger[uint64], finish: firstOf[uint64, uint64]},
	b8:  &reduceBy[uint8, uint8]{step: func(a, x uint8) uint8 { return a | x }, finish: firstOf[uint8, uint8]},
}

var reduceMin = reduction{name: "ReduceMin", since: 18, dims: dimMin, rows: &rows32{op: kernels.Min},
	f32: &reduceBy[float32, float64]{start: math.Inf(1),
		step: func(a float64, x float32) float64 { return min(a, float64(x)) },
		row: func(a float64, x []float32, _ int) float64 {
			if len(x) < shortRow {
				for _, v := range x {
					a = min(a, float64(v))
				}
				return a
			}
			return min(a, float64(kernels.ReduceMin(x)))
		},
		finish: func(a float64, _ int) float32 { return float32(a) }},
	f64: &reduceBy[float64, float64]{start: math.Inf(1), step: lesser[float64], finish: firstOf[float64, float64]},
	i64: &reduceBy[int64, int64]{start: math.MaxInt64, step: lesser[int64], finish: firstOf[int64, int64]},
	u64: &reduceBy[uint64, uint64]{start: math.MaxUint64, step: lesser[uint64], finish: firstOf[uint64, uint64]},
	b8:  &reduceBy[uint8, uint8]{start: 1, step: func(a, x uint8) uint8 { return a & x }, finish: firstOf[uint8, uint8]},
}

func (r *reduction) spec() Spec {
	return Spec{
		Type: r.name, Since: 1, Flow: Compute, Pure: true,
		In:  []Port{{Name: "data", Role: Activation}, {Name: "axes", Role: Index, Optional: true}},
		Out: []Port{{Name: "reduced", Role: Activation}},
		Attrs: []AttrSpec{{Name: "axes", Kind: graph.AttrInts}, {Name: "keepdims", Kind: graph.AttrInt},
			{Name: "noop_with_empty_axes", Kind: graph.AttrInt}},
		Infer:   r.infer,
		Compile: r.compile,
	}
}

// reducedAxes returns which axes of a tensor of the given rank a list of axes
// selects; an empty list selects all, or none with noop.
func reducedAxes(axes []int64, rank int, noop bool) ([]bool, error) {
	reduced := make([]bool, rank)
	if len(axes) == 0 {
		for i := range reduced {
			reduced[i] = !noop
		}
		return reduced, nil
	}
	at, err := normalAxes(axes, rank)
	if err != nil {
		return nil, err
	}
	for _, a := range at {
		reduced[a] = true
	}
	return reduced, nil
}

func (r *reduction) infer(c *Inference) error {
	shape := c.Shape(0)
	keep, noop := c.Node.Int("keepdims", 1) != 0, c.Node.Int("noop_with_empty_axes", 0) != 0
	axes, given, known := c.list("axes", r.since, 1)
	if shape == nil {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	if !known {
		out := graph.Shape(nil)
		if n := c.Shape(1); keep {
			out = graph.UnknownShape(len(shape))
		} else if given && len(n) == 1 && n[0].Known && n[0].Size > 0 && n[0].Size <= int64(len(shape)) {
			out = graph.UnknownShape(len(shape) - int(n[0].Size))
		}
		c.Tensor(0, c.Elem(0), out)
		return nil
	}
	reduced, err := reducedAxes(axes, len(shape), noop)
	if err != nil {
		return err
	}
	out := graph.Shape{}
	for i, d := range shape {
		switch {
		case !reduced[i]:
			out = append(out, d)
		case keep:
			out = append(out, graph.D(1))
		}
	}
	c.Tensor(0, c.Elem(0), bare(out))
	if dims, ok := c.Dims(0); ok && r.dims != nil && len(shape) == 1 && reduced[0] && len(dims) > 0 {
		acc := dims[0]
		acc.Extra = nil
		for _, d := range dims[1:] {
			acc = r.dims(acc, d)
		}
		c.SetDims(0, []graph.Dim{acc})
	}
	return nil
}

func (r *reduction) compile(s *Site) (Kernel, error) {
	keep, noop := s.Node.Int("keepdims", 1) != 0, s.Node.Int("noop_with_empty_axes", 0) != 0
	list := s.list("axes", r.since, 1)
	return func(c *Call) error {
		x, err := c.tensor(0)
		if err != nil {
			return err
		}
		axes, err := list.get(c)
		if err != nil {
			return err
		}
		reduced, err := reducedAxes(axes, x.Rank(), noop)
		if err != nil {
			return err
		}
		shape := make([]int, 0, x.Rank())
		for i, d := range x.Shape() {
			switch {
			case !reduced[i]:
				shape = append(shape, d)
			case keep:
				shape = append(shape, 1)
			}
		}
		l := newLayout(x.Shape(), reduced)
		switch k := carrierOf(x.DType()); {
		case x.DType() == tensor.Bool && r.b8 != nil:
			out, err := c.Out(0, tensor.Bool, shape...)
			if err != nil {
				return err
			}
			return r.b8.run(c, tensor.As[uint8](out), tensor.As[uint8](x), l)
		case k != noCarrier && r.log && k != carryF64:
			return reduceTensor(c, x, shape, func(dst, src []float32) error { return logReducer[float32]().run(c, dst, src, l) })
		case k == carryF64 && r.log:
			return reduceTensor(c, x, shape, func(dst, src []float64) error { return logReducer[float64]().run(c, dst, src, l) })
		case k == carryF32:
			return reduceTensor(c, x, shape, func(dst, src []float32) error {
				if r.rows != nil && !l.last.reduced && (l.last.n >= shortRow || r.rows.sum) && l.count > 0 && len(dst) > 0 {
					return r.rows.run(c, dst, src, l)
				}
				return r.f32.run(c, dst, src, l)
			})
		case k == carryF64:
			return reduceTensor(c, x, shape, func(dst, src []float64) error { return r.f64.run(c, dst, src, l) })
		case k == carryI64:
			return reduceTensor(c, x, shape, func(dst, src []int64) error { return r.i64.run(c, dst, src, l) })
		case k == carryU64:
			return reduceTensor(c, x, shape, func(dst, src []uint64) error { return r.u64.run(c, dst, src, l) })
		}
		return fmt.Errorf("not defined for %v", x.DType())
	}, nil
}

func logReducer[T float32 | float64]() *reduceBy[T, logSum] {
	return &reduceBy[T, logSum]{
		start:  logSum{high: math.Inf(-1)},
		step:   func(s logSum, x T) logSum { return s.add(float64(x)) },
		finish: func(s logSum, _ int) T { return T(s.value()) },
	}
}

// reduceTensor computes output 0, of the type of x and the given shape, in T.
func reduceTensor[T tensor.Real](c *Call, x *tensor.Tensor, shape []int, f func(dst, src []T) error) error {
	src, err := load[T](c, x)
	if err != nil {
		return err
	}
	out, err := newOutput[T](c, 0, -1, x.DType(), shape)
	if err != nil {
		return err
	}
	if err := f(out.data, src); err != nil {
		return err
	}
	return out.store(c)
}

// lines is a tensor seen as outer × n × inner; operators work along n.
type lines struct{ outer, n, inner int }

func newLines(shape []int, axis int) lines {
	l := lines{1, shape[axis], 1}
	for _, d := range shape[:axis] {
		l.outer *= d
	}
	for _, d := range shape[axis+1:] {
		l.inner *= d
	}
	return l
}

// begin returns where line i of the outer·inner lines begins.
func (l lines) begin(i int) int { return i/l.inner*l.n*l.inner + i%l.inner }

// argSpec returns ArgMax (largest) or ArgMin.
func argSpec(name string, largest bool) Spec {
	return Spec{
		Type: name, Since: 1, Flow: Integers, Pure: true,
		In:  []Port{{Name: "data"}},
		Out: []Port{{Name: "reduced", Role: Index}},
		Attrs: []AttrSpec{{Name: "axis", Kind: graph.AttrInt}, {Name: "keepdims", Kind: graph.AttrInt},
			{Name: "select_last_index", Kind: graph.AttrInt}},
		Infer: func(c *Inference) error {
			shape := bare(c.Shape(0))
			if shape == nil {
				c.Tensor(0, tensor.Int64, nil)
				return nil
			}
			axis, err := c.axis("axis", 0, len(shape))
			if err != nil {
				return err
			}
			if c.Node.Int("keepdims", 1) != 0 {
				shape[axis] = graph.D(1)
			} else {
				shape = append(shape[:axis], shape[axis+1:]...)
			}
			c.Tensor(0, tensor.Int64, shape)
			return nil
		},
		Compile: func(s *Site) (Kernel, error) {
			at, keep, last := s.Node.Int("axis", 0), s.Node.Int("keepdims", 1) != 0, s.Node.Int("select_last_index", 0) != 0
			return func(c *Call) error {
				x, err := c.tensor(0)
				if err != nil {
					return err
				}
				axis, err := NormalAxis(at, x.Rank())
				if err != nil {
					return err
				}
				shape := append([]int{}, x.Shape()...)
				if keep {
					shape[axis] = 1
				} else {
					shape = append(shape[:axis], shape[axis+1:]...)
				}
				l := newLines(x.Shape(), axis)
				if n, _ := tensor.NumElements(shape); l.n == 0 && n > 0 {
					return fmt.Errorf("axis %d of %v is empty", axis, x)
				}
				out, err := c.Out(0, tensor.Int64, shape...)
				if err != nil {
					return err
				}
				dst := tensor.As[int64](out)
				switch carrierOf(x.DType()) {
				case carryF32:
					return argBest[float32](c, x, dst, l, largest, last)
				case carryF64:
					return argBest[float64](c, x, dst, l, largest, last)
				case carryI64:
					return argBest[int64](c, x, dst, l, largest, last)
				case carryU64:
					return argBest[uint64](c, x, dst, l, largest, last)
				}
				return fmt.Errorf("not defined for %v", x.DType())
			}, nil
		},
	}
}

func argBest[T tensor.Real](c *Call, x *tensor.Tensor, dst []int64, l lines, largest, last bool) error {
	src, err := load[T](c, x)
	if err != nil || len(dst) == 0 {
		return err
	}
	return c.For(l.outer*l.inner, max(1, reduceWork/l.n), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			at := l.begin(i)
			best, index := src[at], 0
			for k := 1; k < l.n; k++ {
				at += l.inner
				v := src[at]
				if largest && v > best || !largest && v < best || last && v == best {
					best, index = v, k
				}
			}
			dst[i] = int64(index)
		}
	})
}

// scanSpec returns CumSum or CumProd.
func scanSpec(name string, since int, product bool) Spec {
	return Spec{
		Type: name, Since: since, Flow: Compute, Pure: true,
		In:    []Port{{Name: "x", Role: Activation}, {Name: "axis", Role: Index}},
		Out:   []Port{{Name: "y", Role: Activation}},
		Attrs: []AttrSpec{{Name: "exclusive", Kind: graph.AttrInt}, {Name: "reverse", Kind: graph.AttrInt}},
		Infer: func(c *Inference) error {
			c.Tensor(0, c.Elem(0), bare(c.Shape(0)))
			return nil
		},
		Compile: func(s *Site) (Kernel, error) {
			exclusive, reverse := s.Node.Int("exclusive", 0) != 0, s.Node.Int("reverse", 0) != 0
			return func(c *Call) error {
				x, err := c.tensor(0)
				if err != nil {
					return err
				}
				at, err := c.int(1, 0)
				if err != nil {
					return err
				}
				axis, err := NormalAxis(at, x.Rank())
				if err != nil {
					return err
				}
				l := newLines(x.Shape(), axis)
				switch carrierOf(x.DType()) {
				case carryF32:
					return scanLines[float32](c, x, l, product, exclusive, reverse)
				case carryF64:
					return scanLines[float64](c, x, l, product, exclusive, reverse)
				case carryI64:
					return scanLines[int64](c, x, l, product, exclusive, reverse)
				case carryU64:
					return scanLines[uint64](c, x, l, product, exclusive, reverse)
				}
				return fmt.Errorf("not defined for %v", x.DType())
			}, nil
		},
	}
}

// sumRows adds each row of src to the row of dst before it, or behind it.
func sumRows[T tensor.Real](dst, src []T, inner int, reverse bool) {
	n := len(src) / inner
	for r := range n {
		at, from := r*inner, (r-1)*inner
		if reverse {
			at = (n - 1 - r) * inner
			from = at + inner
		}
		d, s := dst[at:at+inner], src[at:at+inner]
		if r == 0 {
			for i, x := range s {
				d[i] = 0 + x
			}
			continue
		}
		if p, ok := any(dst).([]float32); ok {
			kernels.Binary(kernels.Add, p[at:at+inner], p[from:from+inner], any(s).([]float32))
			continue
		}
		before := dst[from : from+inner]
		for i, x := range s {
			d[i] = before[i] + x
		}
	}
}

func scanLines[T tensor.Real](c *Call, x *tensor.Tensor, l lines, product, exclusive, reverse bool) error {
	return reduceTensor(c, x, x.Shape(), func(dst, src []T) error {
		if l.inner >= shortRow && !product && !exclusive {
			return c.For(l.outer, max(1, reduceWork/max(l.n*l.inner, 1)), func(lo, hi int) {
				for i := lo; i < hi; i++ {
					at := i * l.n * l.inner
					sumRows(dst[at:at+l.n*l.inner], src[at:at+l.n*l.inner], l.inner, reverse)
				}
			})
		}
		return c.For(l.outer*l.inner, max(1, reduceWork/max(l.n, 1)), func(lo, hi int) {
			for i := lo; i < hi; i++ {
				at, step := l.begin(i), l.inner
				if reverse {
					at, step = at+(l.n-1)*l.inner, -l.inner
				}
				var acc T
				if product {
					acc = 1
				}
				for range l.n {
					before := acc
					if product {
						acc *= src[at]
					} else {
						acc += src[at]
					}
					dst[at] = acc
					if exclusive {
						dst[at] = before
					}
					at += step
				}
			}
		})
	})
}

var topKSpec = Spec{
	Type: "TopK", Since: 1, Flow: Pass, Pure: true,
	In:  []Port{{Name: "X", Role: Activation}, {Name: "K", Role: Index, Optional: true}},
	Out: []Port{{Name: "Values", Role: Activation}, {Name: "Indices", Role: Index}},
	Attrs: []AttrSpec{{Name: "axis", Kind: graph.AttrInt}, {Name: "k", Kind: graph.AttrInt},
		{Name: "largest", Kind: graph.AttrInt}, {Name: "sorted", Kind: graph.AttrInt}},
	Infer: func(c *Inference) error {
		shape := bare(c.Shape(0))
		if shape == nil {
			c.Tensor(0, c.Elem(0), nil)
			c.Tensor(1, tensor.Int64, nil)
			return nil
		}
		axis, err := c.axis("axis", -1, len(shape))
		if err != nil {
			return err
		}
		out := append(graph.Shape{}, shape...)
		out[axis] = graph.Dim{}
		if c.Opset < 10 {
			out[axis] = graph.D(c.Node.Int("k", 0))
		} else if k, ok := c.Dims(1); ok && len(k) == 1 && (!k[0].Known || k[0].Size >= 0) {
			out[axis] = k[0]
			out[axis].Extra = nil
		}
		c.Tensor(0, c.Elem(0), out)
		c.Tensor(1, tensor.Int64, out)
		return nil
	},
	Compile: func(s *Site) (Kernel, error) {
		at, largest, attr := s.Node.Int("axis", -1), s.Node.Int("largest", 1) != 0, s.Node.Int("k", 0)
		version := s.Opset
		return func(c *Call) error {
			x, err := c.tensor(0)
			if err != nil {
				return err
			}
			k := attr
			if version >= 10 {
				if c.In(1) == nil {
					return fmt.Errorf("input K is missing")
				}
				if k, err = c.int(1, 0); err != nil {
					return err
				}
			}
			axis, err := NormalAxis(at, x.Rank())
			if err != nil {
				return err
			}
			if k < 0 || k > int64(x.Shape()[axis]) {
				return fmt.Errorf("input K is %d for axis %d of %v", k, axis, x)
			}
			switch carrierOf(x.DType()) {
			case carryF32:
				return topK[float32](c, x, axis, int(k), largest)
			case carryF64:
				return topK[float64](c, x, axis, int(k), largest)
			case carryI64:
				return topK[int64](c, x, axis, int(k), largest)
			case carryU64:
				return topK[uint64](c, x, axis, int(k), largest)
			}
			return fmt.Errorf("not defined for %v", x.DType())
		}, nil
	},
}

// ranked is an element with its place along the axis.
type ranked[T tensor.Real] struct {
	v T
	i int
}

// worse reports whether a comes after b in the order of TopK: by value, NaN
// last, then by index.
func worse[T tensor.Real](a, b ranked[T], largest bool) bool {
	switch {
	case a.v == b.v || a.v != a.v && b.v != b.v:
		return a.i > b.i
	case a.v != a.v:
		return true
	case b.v != b.v:
		return false
	case largest:
		return a.v < b.v
	}
	return a.v > b.v
}

// sink restores the order of a heap whose worst element comes first.
func sink[T tensor.Real](heap []ranked[T], at int, largest bool) {
	for {
		child := 2*at + 1
		if child >= len(heap) {
			return
		}
		if child+1 < len(heap) && worse(heap[child+1], heap[child], largest) {
			child++
		}
		if !worse(heap[child], heap[at], largest) {
			return
		}
		heap[at], heap[child] = heap[child], heap[at]
		at = child
	}
}

func topK[T tensor.Real](c *Call, x *tensor.Tensor, axis, k int, largest bool) error {
	src, err := load[T](c, x)
	if err != nil {
		return err
	}
	shape := append([]int{}, x.Shape()...)
	shape[axis] = k
	values, err := newOutput[T](c, 0, -1, x.DType(), shape)
	if err != nil {
		return err
	}
	var indices []int64
	if len(c.Outs) > 1 {
		t, err := c.Out(1, tensor.Int64, shape...)
		if err != nil {
			return err
		}
		indices = tensor.As[int64](t)
	}
	l := newLines(x.Shape(), axis)
	if k == 0 || len(values.data) == 0 {
		return nil
	}
	err = c.For(l.outer*l.inner, max(1, costlyChunk/l.n), func(lo, hi int) {
		heap := make([]ranked[T], k)
		for i := lo; i < hi; i++ {
			at := l.begin(i)
			for r := range k {
				heap[r] = ranked[T]{src[at+r*l.inner], r}
			}
			for r := k/2 - 1; r >= 0; r-- {
				sink(heap, r, largest)
			}
			for r := k; r < l.n; r++ {
				if e := (ranked[T]{src[at+r*l.inner], r}); worse(heap[0], e, largest) {
					heap[0] = e
					sink(heap, 0, largest)
				}
			}
			out := i/l.inner*k*l.inner + i%l.inner
			for r := k - 1; r >= 0; r-- {
				o := out + r*l.inner
				values.data[o] = heap[0].v
				if indices != nil {
					indices[o] = int64(heap[0].i)
				}
				heap[0] = heap[r]
				sink(heap[:r], 0, largest)
			}
		}
	})
	if err != nil {
		return err
	}
	return values.store(c)
}
