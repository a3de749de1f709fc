package ops

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

func poolSpecs() []Spec {
	x := []Port{{Name: "X", Role: Activation}}
	y := []Port{{Name: "Y", Role: Activation}}
	box := []AttrSpec{
		{Name: "auto_pad", Kind: graph.AttrString}, {Name: "ceil_mode", Kind: graph.AttrInt},
		{Name: "dilations", Kind: graph.AttrInts}, {Name: "kernel_shape", Kind: graph.AttrInts, Required: true},
		{Name: "pads", Kind: graph.AttrInts}, {Name: "strides", Kind: graph.AttrInts},
	}
	with := func(name string) []AttrSpec { return append(box[:6:6], AttrSpec{Name: name, Kind: graph.AttrInt}) }
	return []Spec{
		{
			Type: "MaxPool", Flow: Pass, Pure: true, In: x,
			Out:   []Port{{Name: "Y", Role: Activation}, {Name: "Indices", Role: Index, Optional: true}},
			Attrs: with("storage_order"), Infer: inferPool, Compile: compileMaxPool,
		},
		{
			Domain: msDomain, Type: "NhwcMaxPool", Flow: Pass, Pure: true, In: x, Out: y,
			Attrs: box, Infer: inferNhwcPool, Compile: compileNhwcMaxPool,
		},
		{
			Type: "AveragePool", Flow: Compute, Pure: true, In: x, Out: y,
			Attrs: with("count_include_pad"), Infer: inferPool, Compile: compileAveragePool,
		},
		{
			Type: "LpPool", Flow: Compute, Pure: true, In: x, Out: y,
			Attrs: with("p"), Infer: inferPool, Compile: compileLpPool,
		},
		{Type: "GlobalMaxPool", Flow: Pass, Pure: true, In: x, Out: y, Infer: inferGlobalPool, Compile: compileGlobalPool},
		{Type: "GlobalAveragePool", Flow: Compute, Pure: true, In: x, Out: y, Infer: inferGlobalPool, Compile: compileGlobalPool},
		{
			Type: "GlobalLpPool", Flow: Compute, Pure: true, In: x, Out: y,
			Attrs: []AttrSpec{{Name: "p", Kind: graph.AttrInt}}, Infer: inferGlobalPool, Compile: compileGlobalPool,
		},
		{
			Type: "MaxUnpool", Since: 9, Flow: Opaque, Pure: true, Out: y,
			In: []Port{
				{Name: "X", Role: Activation}, {Name: "I", Role: Index}, {Name: "output_shape", Role: Index, Optional: true},
			},
			Attrs: []AttrSpec{
				{Name: "kernel_shape", Kind: graph.AttrInts, Required: true}, {Name: "pads", Kind: graph.AttrInts},
				{Name: "strides", Kind: graph.AttrInts},
			},
			Infer: inferMaxUnpool, Compile: compileMaxUnpool,
		},
	}
}

func inferPool(c *Inference) error {
	w, err := newWindow(c.Node)
	if err != nil {
		return c.Errorf("%w", err)
	}
	x := c.Shape(0)
	var channels graph.Dim
	if len(x) > 1 {
		channels = bareDim(x[1])
	}
	out, err := w.infer(x, channels, nil)
	if err != nil {
		return c.Errorf("%w", err)
	}
	c.Tensor(0, c.Elem(0), out)
	c.Tensor(1, tensor.Int64, out)
	return nil
}

// wants reports whether the node declares output i.
func (c *Call) wants(i int) bool { return i < len(c.Wanted) && c.Wanted[i] }

// poolGeometry returns the geometry of w over x and allocates the output.
func poolGeometry[T tensor.Number](c *Call, w *window) (g *geometry, x, y []T, planes int, err error) {
	t := c.In(0)
	if t.Rank() < 3 {
		return nil, nil, nil, 0, fmt.Errorf("input %v", t)
	}
	n, ch := t.Shape()[0], t.Shape()[1]
	if g, err = w.over(t.Shape()[2:], nil); err != nil {
		return nil, nil, nil, 0, err
	}
	out, err := c.Out(0, t.DType(), g.shape(n, ch)...)
	if err != nil {
		return nil, nil, nil, 0, err
	}
	return g, tensor.As[T](t), tensor.As[T](out), n * ch, nil
}

func compileMaxPool(s *Site) (Kernel, error) {
	w, err := newWindow(s.Node)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	columns := s.Node.Int("storage_order", 0) != 0
	if s.Chain != nil {
		return func(c *Call) error { return blockPool(c, w, s.Chain, false, false) }, nil
	}
	return widened(func(c *Call) error {
		switch x := c.In(0); x.DType() {
		case tensor.Float32:
			return maxPool(c, w, columns, float32(math.Inf(-1)))
		case tensor.Float64:
			return maxPool(c, w, columns, math.Inf(-1))
		case tensor.Int8:
			return maxPool[int8](c, w, columns, math.MinInt8)
		case tensor.Uint8:
			return maxPool[uint8](c, w, columns, 0)
		default:
			return fmt.Errorf("input of type %v", x.DType())
		}
	}), nil
}

func inferNhwcPool(c *Inference) error {
	w, err := newWindow(c.Node)
	if err != nil {
		return c.Errorf("%w", err)
	}
	x := c.Shape(0)
	if x == nil {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	if len(x) < 3 {
		return c.Errorf("input of shape %v", x)
	}
	channels := bareDim(x[len(x)-1])
	out, err := w.infer(append(graph.Shape{x[0], channels}, x[1:len(x)-1]...), channels, nil)
	if err != nil {
		return c.Errorf("%w", err)
	}
	c.Tensor(0, c.Elem(0), append(append(graph.Shape{out[0]}, out[2:]...), out[1]))
	return nil
}

// compileNhwcMaxPool finds the maxima of images with one or two spatial axes in
// the layout N, spatial axes, C, as windows of one along a further axis.
func compileNhwcMaxPool(s *Site) (Kernel, error) {
	w, err := newWindow(s.Node)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	return func(c *Call) error {
		x := c.In(0)
		if !isByte(x.DType()) || x.Rank() < 3 || x.Rank() > 4 {
			return fmt.Errorf("input %v", x)
		}
		n, channels := x.Shape()[0], x.Shape()[x.Rank()-1]
		g, err := w.over(x.Shape()[1:x.Rank()-1], nil)
		if err != nil {
			return err
		}
		y, err := c.Out(0, x.DType(), append(append([]int{n}, g.shape(n, channels)[2:]...), channels)...)
		if err != nil || y.Len() == 0 {
			return err
		}
		if x.DType() == tensor.Int8 {
			return nhwcMax(c, g, tensor.As[int8](x), tensor.As[int8](y), n, channels, math.MinInt8)
		}
		return nhwcMax(c, g, x.Bytes(), y.Bytes(), n, channels, 0)
	}, nil
}

// nhwcMax folds the input rows of an output row, then the columns of all
// windows of that row at once, and picks those that are wanted.
func nhwcMax[T int8 | uint8](c *Call, g *geometry, x, y []T, n, channels int, lowest T) error {
	line, taps, step := g.in[2]*channels, g.kernel[2], g.dilation[2]*channels
	return c.For(n*g.out[1], max(1, 1<<14/line), func(lo, hi int) {
		room := make([]T, 2*line)
		rows, windows := room[:line], room[line:]
		for i := lo; i < hi; i++ {
			image, out := x[i/g.out[1]*g.in[1]*line:], y[i*g.out[2]*channels:][:g.out[2]*channels]
			first, last, pos := g.taps(1, i%g.out[1])
			if first == last {
				fill(out, lowest)
				continue
			}
			copy(rows, image[pos*line:][:line])
			for range last - first - 1 {
				pos += g.dilation[1]
				maxInto(rows, image[pos*line:][:line])
			}
			copy(windows, rows)
			for k := 1; k < taps && k*step < line; k++ {
				maxInto(windows[:line-k*step], rows[k*step:])
			}
			for o := range g.out[2] {
				first, last, pos := g.taps(2, o)
				pixel := out[o*channels:][:channels]
				switch {
				case first == last:
					fill(pixel, lowest)
				case last-first == taps:
					copy(pixel, windows[pos*channels:])
				default:
					copy(pixel, rows[pos*channels:])
					for k := range last - first - 1 {
						maxInto(pixel, rows[pos*channels+(k+1)*step:][:channels])
					}
				}
			}
		}
	})
}

func maxPool[T float32 | float64 | int8 | uint8](c *Call, w *window, columns bool, lowest T) error {
	g, x, y, planes, err := poolGeometry[T](c, w)
	if err != nil {
		return err
	}
	if !c.wants(1) {
		return reduceWindows(c, g, x, y, planes, maxPooling(lowest))
	}
	idx, err := c.Out(1, tensor.Int64, g.shape(c.In(0).Shape()[0], c.In(0).Shape()[1])...)
	if err != nil {
		return err
	}
	is := tensor.As[int64](idx)
	in, out := g.inSize(), g.outSize()
	return c.For(planes, 1, func(lo, hi int) {
		for p := lo; p < hi; p++ {
			maxPoolPlane(g, x[p*in:][:in], y[p*out:][:out], is[p*out:][:out], int64(p*in), columns, lowest)
		}
	})
}

// pooling combines the elements of windows: zero is the result of none, into
// combines dst with src, and row, if not nil, does windows of a whole row, as
// kernels.MaxRow does.
type pooling[T tensor.Number] struct {
	zero T
	into func(dst, src []T)
	row  func(dst, src []T, taps, dilation, stride int)
}

func maxPooling[T float32 | float64 | int8 | uint8](lowest T) pooling[T] {
	f := pooling[T]{zero: lowest, into: maxInto[T]}
	if row, ok := any(kernels.MaxRow).(func(dst, src []T, taps, dilation, stride int)); ok {
		f.row = row
	}
	return f
}

func sumPooling[T float32 | float64]() pooling[T] {
	f := pooling[T]{into: addInto[T]}
	if row, ok := any(kernels.SumRow).(func(dst, src []T, taps, dilation, stride int)); ok {
		f.row = row
	}
	return f
}

// maxInto raises dst to src; a NaN stays one.
func maxInto[T float32 | float64 | int8 | uint8](dst, src []T) {
	src = src[:len(dst)]
	switch d := any(dst).(type) {
	case []float32:
		kernels.Binary(kernels.Max, d, d, any(src).([]float32))
		return
	case []uint8:
		kernels.MaxU8(d, d, any(src).([]uint8))
		return
	case []int8:
		kernels.MaxI8(d, d, any(src).([]int8))
		return
	}
	for i, v := range src {
		if v > dst[i] || v != v {
			dst[i] = v
		}
	}
}

// maxPoolPlane finds the maximum of each window and its index, counted from
// base, in row-major order or, with columns, with the first axis fastest.
func maxPoolPlane[T float32 | float64 | int8 | uint8](g *geometry, x, y []T, idx []int64, base int64, columns bool, lowest T) {
	o := 0
	stride := [3]int{g.in[1] * g.in[2], g.in[2], 1}
	if columns {
		stride = [3]int{1, g.in[0], g.in[0] * g.in[1]}
		if g.rank < 3 {
			stride = [3]int{0, 1, g.in[1]}
		}
	}
	for o0 := range g.out[0] {
		a0, b0, p0 := g.taps(0, o0)
		for o1 := range g.out[1] {
			a1, b1, p1 := g.taps(1, o1)
			for o2 := range g.out[2] {
				a2, b2, p2 := g.taps(2, o2)
				best, arg, found := lowest, int64(0), false
				for k0 := range b0 - a0 {
					for k1 := range b1 - a1 {
						i0, i1 := p0+k0*g.dilation[0], p1+k1*g.dilation[1]
						row := x[(i0*g.in[1]+i1)*g.in[2]:][:g.in[2]]
						for k2 := range b2 - a2 {
							i2 := p2 + k2*g.dilation[2]
							if v := row[i2]; !found || v > best || v != v && best == best {
								best, found = v, true
								arg = int64(i0*stride[0] + i1*stride[1] + i2*stride[2])
							}
						}
					}
				}
				y[o], idx[o] = best, base+arg
				o++
			}
		}
	}
}

// reduceWindows folds the elements of each window of each plane of x, one axis
// after the other.
func reduceWindows[T tensor.Number](c *Call, g *geometry, x, y []T, planes int, f pooling[T]) error {
	last := -1
	for d := range 3 {
		if g.kernel[d] > 1 || g.in[d] != g.out[d] || g.begin[d] != 0 {
			last = d
		}
	}
	if last < 0 {
		return c.For(len(y), 1<<16, func(lo, hi int) {
			fill(y[lo:hi], f.zero)
			f.into(y[lo:hi], x[lo:hi])
		})
	}
	size := g.in
	for d := range last + 1 {
		if d < last && g.kernel[d] == 1 && g.in[d] == g.out[d] && g.begin[d] == 0 {
			continue
		}
		outer, inner := planes, 1
		for i, s := range size {
			if i < d {
				outer *= s
			} else if i > d {
				inner *= s
			}
		}
		dst := y
		if d < last {
			var err error
			if dst, err = scratch[T](c, outer*g.out[d]*inner); err != nil {
				return err
			}
		}
		src, n, m := x, g.in[d], g.out[d]
		if err := c.For(outer, max(1, 1<<15/max(n*inner, 1)), func(lo, hi int) {
			for i := lo; i < hi; i++ {
				reduceAxis(g, d, src[i*n*inner:][:n*inner], dst[i*m*inner:][:m*inner], inner, f)
			}
		}); err != nil {
			return err
		}
		x, size[d] = dst, m
	}
	return nil
}

// reduceAxis slides the window along axis d only, over rows of inner
// elements.
func reduceAxis[T tensor.Number](g *geometry, d int, x, y []T, inner int, f pooling[T]) {
	if inner > 1 {
		for o := range g.out[d] {
			lo, hi, pos := g.taps(d, o)
			row := y[o*inner:][:inner]
			if lo == hi {
				fill(row, f.zero)
				continue
			}
			copy(row, x[pos*inner:])
			for range hi - lo - 1 {
				pos += g.dilation[d]
				f.into(row, x[pos*inner:])
			}
		}
		return
	}
	s := g.stride[d]
	if from, _ := g.valid(d, 0); f.row != nil {
		if _, to := g.valid(d, g.kernel[d]-1); from < to { // windows that lie inside
			f.row(y[from:to], x[from*s-g.begin[d]:], g.kernel[d], g.dilation[d], s)
			edge := func(lo, hi int) {
				fill(y[lo:hi], f.zero)
				for o := lo; o < hi; o++ {
					first, last, pos := g.taps(d, o)
					for range last - first {
						f.into(y[o:o+1], x[pos:])
						pos += g.dilation[d]
					}
				}
			}
			edge(0, from)
			edge(to, g.out[d])
			return
		}
	}
	fill(y, f.zero)
	var picked [64]T
	for k := range g.kernel[d] {
		lo, hi := g.valid(d, k)
		if lo == hi {
			continue
		}
		src := x[lo*s-g.begin[d]+k*g.dilation[d]:]
		if s == 1 {
			f.into(y[lo:hi], src)
			continue
		}
		for ; lo < hi; lo += len(picked) {
			n := min(len(picked), hi-lo)
			for i := range n {
				picked[i] = src[i*s]
			}
			f.into(y[lo:lo+n], picked[:n])
			src = src[min(n*s, len(src)):]
		}
	}
}

func addInto[T float32 | float64](dst, src []T) {
	src = src[:len(dst)]
	if d, ok := any(dst).([]float32); ok {
		kernels.Binary(kernels.Add, d, d, any(src).([]float32))
		return
	}
	for i, v := range src {
		dst[i] += v
	}
}

// floatPool returns a kernel that runs the function for the input's type.
func floatPool(f32, f64 func(c *Call) error) Kernel {
	return widened(func(c *Call) error {
		switch x := c.In(0); x.DType() {
		case tensor.Float32:
			return f32(c)
		case tensor.Float64:
			return f64(c)
		default:
			return fmt.Errorf("input of type %v", x.DType())
		}
	})
}

func compileAveragePool(s *Site) (Kernel, error) {
	w, err := newWindow(s.Node)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	pad := s.Node.Int("count_include_pad", 0) != 0
	if s.Chain != nil {
		return func(c *Call) error { return blockPool(c, w, s.Chain, true, pad) }, nil
	}
	return floatPool(
		func(c *Call) error { return averagePool[float32](c, w, pad) },
		func(c *Call) error { return averagePool[float64](c, w, pad) }), nil
}

// counts returns, for each output position along axis d, the number of kernel
// positions that lie inside the input or, with pad, in the padded input.
func (g *geometry) counts(d int, pad bool) []int {
	n := make([]int, g.out[d])
	for o := range n {
		lo, hi, _ := g.taps(d, o)
		n[o] = hi - lo
		if pad {
			room := g.in[d] + g.begin[d] + g.end[d] - o*g.stride[d]
			n[o] = min(g.kernel[d], (room+g.dilation[d]-1)/g.dilation[d])
		}
	}
	return n
}

func averagePool[T float32 | float64](c *Call, w *window, pad bool) error {
	g, x, y, planes, err := poolGeometry[T](c, w)
	if err != nil {
		return err
	}
	if err := reduceWindows(c, g, x, y, planes, sumPooling[T]()); err != nil {
		return err
	}
	n0, n1, n2 := g.counts(0, pad), g.counts(1, pad), g.counts(2, pad)
	rows := g.out[0] * g.out[1]
	return c.For(planes*rows, 64, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			n := n0[r%rows/g.out[1]] * n1[r%g.out[1]]
			row := y[r*g.out[2]:][:g.out[2]]
			for i := range row {
				row[i] /= T(n * n2[i])
			}
		}
	})
}

func compileLpPool(s *Site) (Kernel, error) {
	w, err := newWindow(s.Node)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	p := s.Node.Int("p", 2)
	if p < 1 {
		return nil, s.Errorf("p is %d", p)
	}
	return floatPool(
		func(c *Call) error { return lpPool[float32](c, w, p) },
		func(c *Call) error { return lpPool[float64](c, w, p) }), nil
}

func lpPool[T float32 | float64](c *Call, w *window, p int64) error {
	g, x, y, planes, err := poolGeometry[T](c, w)
	if err != nil {
		return err
	}
	powers, err := scratch[T](c, len(x))
	if err != nil {
		return err
	}
	if err := c.For(len(x), 1<<13, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			powers[i] = power(x[i], p)
		}
	}); err != nil {
		return err
	}
	if err := reduceWindows(c, g, powers, y, planes, sumPooling[T]()); err != nil {
		return err
	}
	return c.For(len(y), 1<<13, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			y[i] = root(y[i], p)
		}
	})
}

// power returns |v|^p.
func power[T float32 | float64](v T, p int64) T {
	switch p {
	case 1:
		return T(math.Abs(float64(v)))
	case 2:
		return v * v
	}
	return T(math.Pow(math.Abs(float64(v)), float64(p)))
}

// root returns the p-th root of v >= 0.
func root[T float32 | float64](v T, p int64) T {
	switch p {
	case 1:
		return v
	case 2:
		return T(math.Sqrt(float64(v)))
	}
	return T(math.Pow(float64(v), 1/float64(p)))
}

func inferGlobalPool(c *Inference) error {
	x := c.Shape(0)
	if x == nil {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	if len(x) < 2 {
		return c.Errorf("input of shape %v", x)
	}
	out := graph.Shape{bareDim(x[0]), bareDim(x[1])}
	for range x[2:] {
		out = append(out, graph.D(1))
	}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

func compileGlobalPool(s *Site) (Kernel, error) {
	p := s.Node.Int("p", 2)
	if p < 1 {
		return nil, s.Errorf("p is %d", p)
	}
	op := s.Node.Op.Type
	if s.Chain != nil && op == "GlobalAveragePool" {
		channels := s.Chain.Channels
		return func(c *Call) error { return blockMean(c, channels) }, nil
	}
	return floatPool(
		func(c *Call) error { return globalPool[float32](c, op, p) },
		func(c *Call) error { return globalPool[float64](c, op, p) }), nil
}

func globalPool[T float32 | float64](c *Call, op string, p int64) error {
	t := c.In(0)
	if t.Rank() < 2 {
		return fmt.Errorf("input %v", t)
	}
	shape := append([]int{}, t.Shape()...)
	size := 1
	for i := range shape[2:] {
		size *= shape[2+i]
		shape[2+i] = 1
	}
	out, err := c.Out(0, t.DType(), shape...)
	if err != nil {
		return err
	}
	x, y := tensor.As[T](t), tensor.As[T](out)
	if size == 0 {
		return fmt.Errorf("input %v has no elements to pool", t)
	}
	return c.For(len(y), max(1, 1<<14/size), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			y[i] = poolAll(x[i*size:][:size], op, p)
		}
	})
}

func poolAll[T float32 | float64](x []T, op string, p int64) T {
	if x, ok := any(x).([]float32); ok {
		switch op {
		case "GlobalMaxPool":
			return T(kernels.ReduceMax(x))
		case "GlobalAveragePool":
			return T(kernels.ReduceSum(x) / float64(len(x)))
		}
	}
	if op == "GlobalMaxPool" {
		best := x[0]
		for _, v := range x {
			if v > best || v != v {
				best = v
			}
		}
		return best
	}
	// Four sums side by side: a fixed order that keeps the adders busy.
	var s [4]float64
	for i, v := range x {
		if op == "GlobalLpPool" {
			v = power(v, p)
		}
		s[i&3] += float64(v)
	}
	sum := s[0] + s[1] + (s[2] + s[3])
	if op == "GlobalLpPool" {
		return root(T(sum), p)
	}
	return T(sum / float64(len(x)))
}

func unpoolShape(w *window, in []int) ([]int, error) {
	out := append([]int{}, in...)
	if err := w.check(len(in)-2, nil); err != nil {
		return nil, err
	}
	n := len(in) - 2
	for i := range n {
		out[2+i] = max((in[2+i]-1)*at(w.stride, i, 1)+int(w.kernel[i])-at(w.pads, i, 0)-at(w.pads, i+n, 0), 0)
	}
	return out, nil
}

func inferMaxUnpool(c *Inference) error {
	w, err := newWindow(c.Node)
	if err != nil {
		return c.Errorf("%w", err)
	}
	x := c.Shape(0)
	var out graph.Shape
	if x != nil {
		out = graph.UnknownShape(len(x))
	}
	if dims, known := x.Dims(); known && c.Node.Input(2) == nil {
		if len(dims) < 3 {
			return c.Errorf("input of shape %v", x)
		}
		s, err := unpoolShape(w, dims)
		if err != nil {
			return c.Errorf("%w", err)
		}
		out = graph.ShapeOf(s...)
	} else if dims, ok := c.Dims(2); ok {
		out = append(graph.Shape{}, dims...)
	}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

func compileMaxUnpool(s *Site) (Kernel, error) {
	w, err := newWindow(s.Node)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	return floatPool(
		func(c *Call) error { return maxUnpool[float32](c, w) },
		func(c *Call) error { return maxUnpool[float64](c, w) }), nil
}

// maxUnpool scatters the inputs by their indices, which count in the shape
// that the attributes imply. An output_shape that is larger has that shape in
// its first corner.
func maxUnpool[T float32 | float64](c *Call, w *window) error {
	t, it := c.In(0), c.In(1)
	if t.Rank() < 3 || it.DType() != tensor.Int64 || it.Len() != t.Len() {
		return fmt.Errorf("input %v, indices %v", t, it)
	}
	inner, err := unpoolShape(w, t.Shape())
	if err != nil {
		return err
	}
	shape := inner
	if st := c.In(2); st != nil {
		if st.DType() != tensor.Int64 || st.Len() != t.Rank() {
			return fmt.Errorf("output_shape %v for input %v", st, t)
		}
		shape = make([]int, t.Rank())
		for i, d := range tensor.As[int64](st) {
			if d < int64(inner[i]) || d > maxExtent {
				return fmt.Errorf("output_shape %v, unpooling gives %v", tensor.As[int64](st), inner)
			}
			shape[i] = int(d)
		}
	}
	out, err := c.Out(0, t.DType(), shape...)
	if err != nil {
		return err
	}
	y := tensor.As[T](out)
	clear(y)
	total, _ := tensor.NumElements(inner)
	for k, i := range tensor.As[int64](it) {
		if i < 0 || i >= int64(total) {
			return fmt.Errorf("index %d is not in [0, %d)", i, total)
		}
		pos, at, mul := int(i), 0, 1
		for d := len(inner) - 1; d >= 0; d-- {
			at += pos % inner[d] * mul
			pos /= inner[d]
			mul *= shape[d]
		}
		y[at] = tensor.As[T](t)[k]
	}
	return nil
}
