package ops

import (
	"fmt"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/kernels"
	"github.com/onnxq/onnxq/tensor"
)

func convSpecs() []Spec {
	window := []AttrSpec{
		{Name: "auto_pad", Kind: graph.AttrString}, {Name: "dilations", Kind: graph.AttrInts},
		{Name: "group", Kind: graph.AttrInt}, {Name: "kernel_shape", Kind: graph.AttrInts},
		{Name: "pads", Kind: graph.AttrInts}, {Name: "strides", Kind: graph.AttrInts},
	}
	y := []Port{{Name: "Y", Role: Activation}}
	conv := []Port{
		{Name: "X", Role: Activation}, {Name: "W", Role: Weight, Axis: 0}, {Name: "B", Role: Bias, Optional: true},
	}
	return []Spec{
		{
			Type: "Conv", Flow: Compute, Pure: true, In: conv, Out: y, Attrs: window,
			Infer: inferConv, Compile: compileConv,
		},
		{
			Domain: msDomain, Type: "FusedConv", Flow: Compute, Pure: true,
			In: append(conv[:3:3], Port{Name: "Z", Role: Activation, Optional: true}), Out: y,
			Attrs: append(window[:6:6],
				AttrSpec{Name: "activation", Kind: graph.AttrString}, AttrSpec{Name: "activation_params", Kind: graph.AttrFloats}),
			Infer: inferConv, Compile: compileConv,
		},
		{
			// The output channels of group g are channels of axis 1 in the rows
			// of W that belong to g, so a parameter per index of axis 1 serves
			// one channel of each group.
			Type: "ConvTranspose", Flow: Compute, Pure: true, Out: y,
			In: []Port{
				{Name: "X", Role: Activation}, {Name: "W", Role: Weight, Axis: 1}, {Name: "B", Role: Bias, Optional: true},
			},
			Attrs: append(window[:6:6],
				AttrSpec{Name: "output_padding", Kind: graph.AttrInts}, AttrSpec{Name: "output_shape", Kind: graph.AttrInts}),
			Infer: inferConvTranspose, Compile: compileConvTranspose,
		},
	}
}

// msDomain is the domain of ONNX Runtime's own operators.
const msDomain = "com.microsoft"

// Fusion is arithmetic that the executor moves into a Conv, ConvTranspose,
// Gemm or MatMul: y = clip(product + node's bias + Bias + residual).
type Fusion struct {
	// Bias has one value per output channel (Conv, ConvTranspose) or per
	// column of the output (Gemm, MatMul); nil for none.
	Bias []float32
	// Residual is the index of the call's input that is added to the output
	// and has its shape; 0 for none.
	Residual int
	// Clip says that the result is kept within Min and Max, where a NaN stays
	// one.
	Clip     bool
	Min, Max float32
}

func inferConv(c *Inference) error {
	w, err := newWindow(c.Node)
	if err != nil {
		return c.Errorf("%w", err)
	}
	x, ws := c.Shape(0), c.Shape(1)
	var channels graph.Dim
	var kernel graph.Shape
	if ws != nil {
		if x != nil && len(ws) != len(x) {
			return c.Errorf("input of shape %v, weights of shape %v", x, ws)
		}
		if len(ws) < 3 {
			return c.Errorf("weights of shape %v", ws)
		}
		channels, kernel = bareDim(ws[0]), ws[2:]
	}
	out, err := w.infer(x, channels, kernel)
	if err != nil {
		return c.Errorf("%w", err)
	}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

// convolution is a Conv bound to its attributes and constants.
type convolution struct {
	window *window
	group  int
	fused  *Fusion
	z      int         // index of the input to be added, or 0
	act    *activation // of FusedConv, or nil
}

func compileConv(s *Site) (Kernel, error) {
	w, err := newWindow(s.Node)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	cv := &convolution{window: w, group: int(s.Node.Int("group", 1)), fused: s.Fused}
	if cv.group < 1 {
		return nil, s.Errorf("group is %d", cv.group)
	}
	if s.Fused != nil {
		cv.z = s.Fused.Residual
	}
	if s.Node.Op.Type == "FusedConv" {
		if s.Has(3) {
			if cv.z != 0 {
				return nil, s.Errorf("two residual inputs")
			}
			cv.z = 3
		}
		if cv.act, err = fusedActivation(s.Node); err != nil {
			return nil, s.Errorf("%w", err)
		}
	}
	return widened(func(c *Call) error {
		switch x := c.In(0); x.DType() {
		case tensor.Float32:
			return convRun[float32](cv, c)
		case tensor.Float64:
			return convRun[float64](cv, c)
		default:
			return fmt.Errorf("input of type %v", x.DType())
		}
	}), nil
}

// convShapes checks the operands of a convolution and returns the number of
// images, input channels and output channels.
func convShapes(x, w, b *tensor.Tensor, group int) (n, ch, m int, err error) {
	if x.Rank() < 3 || x.Rank() != w.Rank() {
		return 0, 0, 0, fmt.Errorf("input %v, weights %v", x, w)
	}
	n, ch, m = x.Shape()[0], x.Shape()[1], w.Shape()[0]
	if ch != w.Shape()[1]*group || m%group != 0 {
		return 0, 0, 0, fmt.Errorf("input %v, weights %v, group %d", x, w, group)
	}
	if b != nil && b.Len() != m {
		return 0, 0, 0, fmt.Errorf("bias %v for %d output channels", b, m)
	}
	return n, ch, m, nil
}

func convRun[T float32 | float64](cv *convolution, c *Call) error {
	x, w, b := c.In(0), c.In(1), c.In(2)
	n, ch, m, err := convShapes(x, w, b, cv.group)
	if err != nil {
		return err
	}
	if w.DType() != x.DType() || b != nil && b.DType() != x.DType() {
		return fmt.Errorf("operands of types %v and %v", x.DType(), w.DType())
	}
	g, err := cv.window.over(x.Shape()[2:], w.Shape()[2:])
	if err != nil {
		return err
	}
	y, err := c.Out(0, x.DType(), g.shape(n, m)...)
	if err != nil {
		return err
	}
	e := channelEnd[T]{act: cv.act, fused: cv.fused}
	if e.bias, err = sumBias[T](b, cv.fused, m); err != nil {
		return err
	}
	if cv.z > 0 {
		if e.residual, err = residual[T](c, cv.z, y); err != nil {
			return err
		}
	}
	return convolve(c, tensor.As[T](x), tensor.As[T](w), tensor.As[T](y), n, ch, m, cv.group, g, &e)
}

// sumBias adds the node's bias b, which may be nil, and the fused one.
func sumBias[T float32 | float64](b *tensor.Tensor, f *Fusion, m int) ([]T, error) {
	var bias []T
	if b != nil {
		bias = tensor.As[T](b)
	}
	if f == nil || f.Bias == nil {
		return bias, nil
	}
	if len(f.Bias) != m {
		return nil, fmt.Errorf("fused bias of %d values for %d channels", len(f.Bias), m)
	}
	sum := make([]T, m)
	for i, v := range f.Bias {
		sum[i] = T(v)
		if bias != nil {
			sum[i] += bias[i]
		}
	}
	return sum, nil
}

// residual returns input i, which is to be added to y.
func residual[T float32 | float64](c *Call, i int, y *tensor.Tensor) ([]T, error) {
	z := c.In(i)
	if z == nil || z.DType() != y.DType() || z.Len() != y.Len() {
		return nil, fmt.Errorf("residual input %v for output %v", z, y)
	}
	return tensor.As[T](z), nil
}

// channelEnd is what happens to sums before they become the output
// [N, M, ...] of a convolution.
type channelEnd[T float32 | float64] struct {
	bias     []T // per channel, or nil
	residual []T // like the output, or nil
	fused    *Fusion
	act      *activation
}

// apply finishes the piece y of channel ch that starts at element off of the
// output.
func (e *channelEnd[T]) apply(y []T, ch, off int) {
	if e.bias != nil {
		b := e.bias[ch]
		for i := range y {
			y[i] += b
		}
	}
	if e.residual != nil {
		for i, r := range e.residual[off:][:len(y)] {
			y[i] += r
		}
	}
	if f := e.fused; f != nil && f.Clip {
		clip(y, T(f.Min), T(f.Max))
	}
	if e.act != nil {
		activate(e.act, y)
	}
}

func clip[T float32 | float64](y []T, lo, hi T) {
	for i, v := range y {
		if v < lo {
			y[i] = lo
		} else if v > hi {
			y[i] = hi
		}
	}
}

// columnElements bounds the unfolded input that a convolution holds at a time.
const columnElements = 1 << 19

// convolve computes the convolution of x [n, ch, in] with w [m, ch/group,
// kernel] as products with the unfolded input.
func convolve[T float32 | float64](c *Call, x, w, y []T, n, ch, m, group int, g *geometry, e *channelEnd[T]) error {
	in, out, ks := g.inSize(), g.outSize(), g.kernelSize()
	if len(y) == 0 {
		return nil
	}
	cg, mg := ch/group, m/group
	if cg == 1 && mg <= 4 {
		return convolveDepthwise(c, x, w, y, n, ch, m, g, e)
	}
	k := cg * ks
	pointwise := g.pointwise()
	rows := g.out[0] * g.out[1]
	step := max(min(rows, columnElements/max(k*g.out[2], 1)), 1)
	var col []T
	if !pointwise {
		var err error
		if col, err = scratch[T](c, k*step*g.out[2]); err != nil {
			return err
		}
	}
	for img := range n {
		for gr := range group {
			xg := x[(img*ch+gr*cg)*in:][:cg*in]
			wg := w[gr*mg*k:][:mg*k]
			first := img*m + gr*mg // output plane
			if pointwise {
				product(c, mg, out, k, wg, k, false, xg, in, false, y[first*out:], out)
				continue
			}
			for r := 0; r < rows; r += step {
				cnt := min(step, rows-r) * g.out[2]
				if err := c.For(k, 8, func(lo, hi int) {
					for i := lo; i < hi; i++ {
						unfold(col[i*cnt:][:cnt], xg[i/ks*in:][:in], g, i%ks, r, cnt/g.out[2], 0)
					}
				}); err != nil {
					return err
				}
				product(c, mg, cnt, k, wg, k, false, col, cnt, false, y[first*out+r*g.out[2]:], out)
			}
		}
	}
	return c.For(n*m, 8, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			e.apply(y[i*out:][:out], i%m, i*out)
		}
	})
}

// scratch returns uninitialized memory for n elements until the kernel
// returns.
func scratch[T tensor.Number](c *Call, n int) ([]T, error) {
	t := tensor.Of[T](nil)
	b, err := c.Mem.Scratch(t.DType().Bytes(n))
	if err != nil || n == 0 {
		return nil, err
	}
	if t, err = tensor.FromBytes(t.DType(), []int{n}, b); err != nil {
		return nil, err
	}
	return tensor.As[T](t), nil
}

// unfold writes to dst, for each position in the given output rows (numbered
// over the first two axes), the element of x under kernel position tap, and
// pad where that lies outside.
func unfold[T any](dst, x []T, g *geometry, tap, row, rows int, pad T) {
	k2 := tap % g.kernel[2]
	k1 := tap / g.kernel[2] % g.kernel[1]
	k0 := tap / g.kernel[2] / g.kernel[1]
	lo, hi := g.valid(2, k2)
	ow, s := g.out[2], g.stride[2]
	for r := range rows {
		d := dst[r*ow:][:ow]
		p0 := (row+r)/g.out[1]*g.stride[0] - g.begin[0] + k0*g.dilation[0]
		p1 := (row+r)%g.out[1]*g.stride[1] - g.begin[1] + k1*g.dilation[1]
		if p0 < 0 || p0 >= g.in[0] || p1 < 0 || p1 >= g.in[1] || lo == hi {
			fill(d, pad)
			continue
		}
		src := x[(p0*g.in[1]+p1)*g.in[2]+lo*s-g.begin[2]+k2*g.dilation[2]:]
		fill(d[:lo], pad)
		if s == 1 {
			copy(d[lo:hi], src)
		} else {
			for i := range hi - lo {
				d[lo+i] = src[i*s]
			}
		}
		fill(d[hi:], pad)
	}
}

func fill[T any](dst []T, v T) {
	for i := range dst {
		dst[i] = v
	}
}

// convolveDepthwise is convolve with one input channel per group.
func convolveDepthwise[T float32 | float64](c *Call, x, w, y []T, n, ch, m int, g *geometry, e *channelEnd[T]) error {
	in, out, ks, mult := g.inSize(), g.outSize(), g.kernelSize(), m/ch
	return c.For(n*m, 1, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			plane, src := y[i*out:][:out], x[i/mult*in:][:in]
			clear(plane)
			for tap, v := range w[i%m*ks:][:ks] {
				addTap(plane, src, g, tap, v)
			}
			e.apply(plane, i%m, i*out)
		}
	})
}

// addTap adds v times the elements of x under kernel position tap to y.
func addTap[T float32 | float64](y, x []T, g *geometry, tap int, v T) {
	k2 := tap % g.kernel[2]
	k1 := tap / g.kernel[2] % g.kernel[1]
	k0 := tap / g.kernel[2] / g.kernel[1]
	lo, hi := g.valid(2, k2)
	if lo == hi {
		return
	}
	ow, s := g.out[2], g.stride[2]
	for r := range g.out[0] * g.out[1] {
		p0 := r/g.out[1]*g.stride[0] - g.begin[0] + k0*g.dilation[0]
		p1 := r%g.out[1]*g.stride[1] - g.begin[1] + k1*g.dilation[1]
		if p0 < 0 || p0 >= g.in[0] || p1 < 0 || p1 >= g.in[1] {
			continue
		}
		d := y[r*ow+lo : r*ow+hi]
		src := x[(p0*g.in[1]+p1)*g.in[2]+lo*s-g.begin[2]+k2*g.dilation[2]:]
		if s == 1 {
			for i, a := range src[:len(d)] {
				d[i] += T(v * a)
			}
			continue
		}
		for i := range d {
			d[i] += T(v * src[i*s])
		}
	}
}

// product computes the m×n matrix y = a·b of an m×k and a k×n matrix, whose
// rows (columns where transposed) are lda, ldb and ldy elements apart.
func product[T float32 | float64 | int32 | int64 | uint32 | uint64](c *Call, m, n, k int, a []T, lda int, ta bool, b []T, ldb int, tb bool, y []T, ldy int) {
	if m == 0 || n == 0 {
		return
	}
	if a, ok := any(a).([]float32); ok {
		kernels.Gemm(c.Pool, m, n, k, kernels.Matrix{Data: a, Ld: lda, Trans: ta},
			kernels.Matrix{Data: any(b).([]float32), Ld: ldb, Trans: tb}, any(y).([]float32), ldy, nil)
		return
	}
	ai, ak := lda, 1
	if ta {
		ai, ak = 1, lda
	}
	bk, bj := ldb, 1
	if tb {
		bk, bj = 1, ldb
	}
	c.Pool.For(m, max(1, 1<<16/max(n*k, 1)), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			row := y[i*ldy:][:n]
			clear(row)
			for l := range k {
				v := a[i*ai+l*ak]
				if bj == 1 {
					for j, w := range b[l*bk:][:n] {
						row[j] += T(v * w)
					}
					continue
				}
				for j := range row {
					row[j] += T(v * b[l*bk+j*bj])
				}
			}
		}
	})
}

// transposeWindow is the window of a ConvTranspose: that of the convolution
// whose input is this operator's output.
type transposeWindow struct {
	*window
	outPad, outShape []int64
}

func newTransposeWindow(n *graph.Node) (*transposeWindow, error) {
	w, err := newWindow(n)
	if err != nil {
		return nil, err
	}
	t := &transposeWindow{window: w, outPad: n.Ints("output_padding"), outShape: n.Ints("output_shape")}
	for _, list := range [][]int64{t.outPad, t.outShape} {
		for _, v := range list {
			if v < 0 || v > maxExtent {
				return nil, fmt.Errorf("%d as output padding or shape", v)
			}
		}
	}
	return t, nil
}

// check is window.check for the attributes of ConvTranspose; output_shape may
// include the batch and channel axes.
func (t *transposeWindow) check(spatial int, weights []int) error {
	if err := t.window.check(spatial, weights); err != nil {
		return err
	}
	if t.outPad != nil && len(t.outPad) != spatial {
		return fmt.Errorf("output_padding has %d entries for %d spatial axes", len(t.outPad), spatial)
	}
	if n := len(t.outShape); t.outShape != nil && n != spatial && n != spatial+2 {
		return fmt.Errorf("output_shape has %d entries for %d spatial axes", n, spatial)
	}
	return nil
}

// outSize returns the output size and the padding at the start along axis i
// of a tensor with the given number of spatial axes.
func (t *transposeWindow) outSize(spatial, i, in, kernel int) (out, begin int) {
	s, dil := at(t.stride, i, 1), at(t.dilation, i, 1)
	full := s*(in-1) + at(t.outPad, i, 0) + (kernel-1)*dil + 1
	switch {
	case t.outShape != nil:
		out = int(t.outShape[len(t.outShape)-spatial+i])
	case t.auto == "SAME_UPPER" || t.auto == "SAME_LOWER":
		out = in * s
	case t.auto == "VALID":
		return max(full, 0), 0
	default:
		return max(full-at(t.pads, i, 0)-at(t.pads, i+spatial, 0), 0), at(t.pads, i, 0)
	}
	total := max(full-out, 0)
	if begin = total / 2; t.auto != "SAME_UPPER" {
		begin = total - begin
	}
	return out, begin
}

func inferConvTranspose(c *Inference) error {
	t, err := newTransposeWindow(c.Node)
	if err != nil {
		return c.Errorf("%w", err)
	}
	x, ws := c.Shape(0), c.Shape(1)
	if x == nil {
		c.Tensor(0, c.Elem(0), nil)
		return nil
	}
	if len(x) < 3 || ws != nil && len(ws) != len(x) {
		return c.Errorf("input of shape %v, weights of shape %v", x, ws)
	}
	n := len(x) - 2
	out := graph.UnknownShape(len(x))
	out[0] = bareDim(x[0])
	if ws != nil && ws[1].Known {
		out[1] = graph.D(ws[1].Size * c.Node.Int("group", 1))
	}
	var kernel []int
	if ws != nil {
		if k, ok := ws[2:].Dims(); ok {
			kernel = k
		}
	}
	if kernel != nil || t.kernel != nil {
		if err := t.check(n, kernel); err != nil {
			return c.Errorf("%w", err)
		}
		for i := range n {
			k := at(t.kernel, i, 0)
			if kernel != nil {
				k = kernel[i]
			}
			if d := x[2+i]; d.Known {
				size, _ := t.outSize(n, i, int(d.Size), k)
				out[2+i] = graph.D(int64(size))
			} else if t.outShape != nil {
				out[2+i] = graph.D(t.outShape[len(t.outShape)-n+i])
			}
		}
	}
	c.Tensor(0, c.Elem(0), out)
	return nil
}

func compileConvTranspose(s *Site) (Kernel, error) {
	w, err := newTransposeWindow(s.Node)
	if err != nil {
		return nil, s.Errorf("%w", err)
	}
	group := int(s.Node.Int("group", 1))
	if group < 1 {
		return nil, s.Errorf("group is %d", group)
	}
	return widened(func(c *Call) error {
		switch x := c.In(0); x.DType() {
		case tensor.Float32:
			return convTransposeRun[float32](c, w, group, s.Fused)
		case tensor.Float64:
			return convTransposeRun[float64](c, w, group, s.Fused)
		default:
			return fmt.Errorf("input of type %v", x.DType())
		}
	}), nil
}

func convTransposeRun[T float32 | float64](c *Call, win *transposeWindow, group int, fused *Fusion) error {
	x, w, b := c.In(0), c.In(1), c.In(2)
	if x.Rank() < 3 || x.Rank() != w.Rank() || w.DType() != x.DType() || b != nil && b.DType() != x.DType() {
		return fmt.Errorf("input %v, weights %v", x, w)
	}
	n, ch, mg := x.Shape()[0], x.Shape()[1], w.Shape()[1]
	m := mg * group
	if ch != w.Shape()[0] || ch%group != 0 || b != nil && b.Len() != m {
		return fmt.Errorf("input %v, weights %v, bias %v, group %d", x, w, b, group)
	}
	spatial := x.Rank() - 2
	if err := win.check(spatial, w.Shape()[2:]); err != nil {
		return err
	}
	// g is the geometry of the convolution that leads from y to x.
	g := unitGeometry(spatial)
	shape := []int{n, m}
	for i := range spatial {
		k := 3 - spatial + i
		g.out[k], g.kernel[k] = x.Shape()[2+i], w.Shape()[2+i]
		g.stride[k], g.dilation[k] = at(win.stride, i, 1), at(win.dilation, i, 1)
		g.in[k], g.begin[k] = win.outSize(spatial, i, g.out[k], g.kernel[k])
		shape = append(shape, g.in[k])
	}
	y, err := c.Out(0, x.DType(), shape...)
	if err != nil {
		return err
	}
	e := channelEnd[T]{fused: fused}
	if e.bias, err = sumBias[T](b, fused, m); err != nil {
		return err
	}
	if fused != nil && fused.Residual > 0 {
		if e.residual, err = residual[T](c, fused.Residual, y); err != nil {
			return err
		}
	}
	xs, ws, ys := tensor.As[T](x), tensor.As[T](w), tensor.As[T](y)
	in, out, ks, cg := g.outSize(), g.inSize(), g.kernelSize(), ch/group
	clear(ys)
	col, err := scratch[T](c, mg*ks*in)
	if err != nil {
		return err
	}
	for img := range n {
		for gr := range group {
			product(c, mg*ks, in, cg, ws[gr*cg*mg*ks:], mg*ks, true, xs[(img*ch+gr*cg)*in:], in, false, col, in)
			if err := c.For(mg, 1, func(lo, hi int) {
				for i := lo; i < hi; i++ {
					ch := gr*mg + i
					off := (img*m + ch) * out
					for tap := range ks {
						fold(ys[off:][:out], col[(i*ks+tap)*in:][:in], g, tap)
					}
					e.apply(ys[off:][:out], ch, off)
				}
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// fold adds each element of col to the element of y under kernel position tap
// for its output position, if that lies inside: the transpose of unfold.
func fold[T float32 | float64](y, col []T, g *geometry, tap int) {
	k2 := tap % g.kernel[2]
	k1 := tap / g.kernel[2] % g.kernel[1]
	k0 := tap / g.kernel[2] / g.kernel[1]
	lo, hi := g.valid(2, k2)
	if lo == hi {
		return
	}
	ow, s := g.out[2], g.stride[2]
	for r := range g.out[0] * g.out[1] {
		p0 := r/g.out[1]*g.stride[0] - g.begin[0] + k0*g.dilation[0]
		p1 := r%g.out[1]*g.stride[1] - g.begin[1] + k1*g.dilation[1]
		if p0 < 0 || p0 >= g.in[0] || p1 < 0 || p1 >= g.in[1] {
			continue
		}
		dst := y[(p0*g.in[1]+p1)*g.in[2]+lo*s-g.begin[2]+k2*g.dilation[2]:]
		for i, v := range col[r*ow+lo : r*ow+hi] {
			dst[i*s] += v
		}
	}
}
