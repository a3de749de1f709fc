package ops

import (
	"fmt"
	"sync/atomic"

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
	// Inner says of Sigmoid and Tanh that only nodes read the result: it has
	// the arithmetic of the runtime's kernels, of which the absolute error is
	// small but not the relative one.
	Inner bool
}

func inferConv(c *Inference) error {
	w, err := newWindow(c.Node)
	if err != nil {
		return c.Errorf("%w", err)
	}
	if g := c.Node.Int("group", 1); g < 1 {
		return c.Errorf("group is %d", g)
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
	ready  preparedConv
}

// preparedConv keeps the kernel of a node with constant weights and bias for
// the geometry that it ran with last.
type preparedConv struct {
	weights []float32 // nil unless weights and bias are constant
	last    atomic.Pointer[preparedFor]
}

type preparedFor struct {
	conv                *kernels.Conv
	begin, end, surplus [3]int
}

// set notes the constants of s.
func (p *preparedConv) set(s *Site) {
	w, b := s.Const(1), s.Const(2)
	if w == nil || !isFloat32ish(w.DType()) || s.Has(2) && (b == nil || !isFloat32ish(b.DType())) {
		return
	}
	p.weights, _ = tensor.Float32s(w) // float types always convert
}

// isFloat32ish reports whether the type is computed in float32.
func isFloat32ish(d tensor.DType) bool { return d == tensor.Float32 || isHalf(d) }

// get returns the kernel for g, whose output along each axis is surplus
// elements longer than its pads imply (transposed convolutions only).
func (p *preparedConv) get(weights *tensor.Tensor, bias []float32, g *geometry, surplus [3]int, cin, cout, groups int, f *Fusion, transposed bool) (*kernels.Conv, error) {
	if p.weights != nil {
		if l := p.last.Load(); l != nil && l.begin == g.begin && l.end == g.end && l.surplus == surplus {
			return l.conv, nil
		}
	}
	w := p.weights
	if w == nil {
		w = tensor.As[float32](weights)
	}
	spec, bias, err := p.spec(bias, g, cin, cout, groups, f)
	if err != nil {
		return nil, err
	}
	build := kernels.NewConv
	if transposed {
		build, spec.OutPad = kernels.NewConvTranspose, surplus[3-g.rank:]
	}
	conv, err := build(spec, w, bias)
	if err == nil && p.weights != nil {
		p.last.Store(&preparedFor{conv, g.begin, g.end, surplus})
	}
	return conv, err
}

// spec returns what a kernel for g is made from, with the node's bias or nil.
func (p *preparedConv) spec(bias []float32, g *geometry, cin, cout, groups int, f *Fusion) (kernels.ConvSpec, []float32, error) {
	if bias != nil || f != nil && f.Bias != nil {
		sum := append([]float32(nil), bias...)
		if f != nil && f.Bias != nil {
			if len(f.Bias) != cout {
				return kernels.ConvSpec{}, nil, fmt.Errorf("fused bias of %d values for %d channels", len(f.Bias), cout)
			}
			if bias == nil {
				sum = f.Bias
			} else {
				for i, v := range f.Bias {
					sum[i] += v
				}
			}
		}
		bias = sum
	}
	off := 3 - g.rank
	spec := kernels.ConvSpec{
		Cin: cin, Cout: cout, Groups: groups, Kernel: g.kernel[off:], Stride: g.stride[off:], Dilation: g.dilation[off:],
		PadBegin: g.begin[off:], PadEnd: g.end[off:],
	}
	if f != nil && f.Clip {
		spec.Clip, spec.Min, spec.Max = true, f.Min, f.Max
	}
	return spec, bias, nil
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
	cv.ready.set(s)
	if s.Chain != nil {
		return (&chained{convolution: cv, chain: *s.Chain}).run, nil
	}
	return widened(cv.run), nil
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

func (cv *convolution) run(c *Call) error {
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
	if err != nil || y.Len() == 0 {
		return err
	}
	switch x.DType() {
	case tensor.Float32:
		res, err := residual[float32](c, cv.z, y)
		if err != nil {
			return err
		}
		conv, err := cv.ready.get(w, vector[float32](b), g, [3]int{}, ch, m, cv.group, cv.fused, false)
		if err != nil {
			return err
		}
		if err := conv.Run(c.Pool, tensor.As[float32](x), n, x.Shape()[2:], tensor.As[float32](y), res); err != nil {
			return err
		}
		if cv.act != nil {
			activate(cv.act, tensor.As[float32](y))
		}
		return c.Ctx.Err()
	case tensor.Float64:
		res, err := residual[float64](c, cv.z, y)
		if err != nil {
			return err
		}
		ys := tensor.As[float64](y)
		if err := convolve64(c, tensor.As[float64](x), tensor.As[float64](w), ys, n, ch, m, cv.group, g); err != nil {
			return err
		}
		if err := finishChannels(c, ys, n, m, vector[float64](b), cv.fused, res); err != nil {
			return err
		}
		if cv.act != nil {
			activate(cv.act, ys)
		}
		return nil
	}
	return fmt.Errorf("input of type %v", x.DType())
}

// vector returns the elements of t, or nil.
func vector[T tensor.Number](t *tensor.Tensor) []T {
	if t == nil {
		return nil
	}
	return tensor.As[T](t)
}

// residual returns input i, which is to be added to y; nil for i = 0.
func residual[T float32 | float64](c *Call, i int, y *tensor.Tensor) ([]T, error) {
	if i == 0 {
		return nil, nil
	}
	z := c.In(i)
	if z == nil || z.DType() != y.DType() || z.Len() != y.Len() {
		return nil, fmt.Errorf("residual input %v for output %v", z, y)
	}
	return tensor.As[T](z), nil
}

// finishChannels applies bias and f to n images y [n, m, ...].
func finishChannels(c *Call, y []float64, n, m int, bias []float64, f *Fusion, res []float64) error {
	if f == nil {
		f = &Fusion{}
	}
	if f.Bias != nil && len(f.Bias) != m {
		return fmt.Errorf("fused bias of %d values for %d channels", len(f.Bias), m)
	}
	size := len(y) / (n * m)
	return c.For(n*m, 8, func(lo, hi int) {
		for p := lo; p < hi; p++ {
			plane := y[p*size:][:size]
			var sum float64
			if bias != nil {
				sum = bias[p%m]
			}
			if f.Bias != nil {
				sum += float64(f.Bias[p%m])
			}
			for i := range plane {
				plane[i] += sum
			}
			if res != nil {
				for i, r := range res[p*size:][:size] {
					plane[i] += r
				}
			}
			if f.Clip {
				clip(plane, float64(f.Min), float64(f.Max))
			}
		}
	})
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

// convolve64 computes the convolution of x [n, ch, in] with w [m, ch/group,
// kernel] as products with the unfolded input.
func convolve64(c *Call, x, w, y []float64, n, ch, m, group int, g *geometry) error {
	in, out, ks := g.inSize(), g.outSize(), g.kernelSize()
	cg, mg := ch/group, m/group
	k := cg * ks
	rows := g.out[0] * g.out[1]
	step := max(min(rows, columnElements/max(k*g.out[2], 1)), 1)
	col, err := scratch[float64](c, k*step*g.out[2])
	if err != nil {
		return err
	}
	for img := range n {
		for gr := range group {
			xg := x[(img*ch+gr*cg)*in:][:cg*in]
			wg := w[gr*mg*k:][:mg*k]
			for r := 0; r < rows; r += step {
				cnt := min(step, rows-r) * g.out[2]
				if err := c.For(k, 8, func(lo, hi int) {
					for i := lo; i < hi; i++ {
						unfold(col[i*cnt:][:cnt], xg[i/ks*in:][:in], g, i%ks, r, cnt/g.out[2], 0)
					}
				}); err != nil {
					return err
				}
				product(c, mg, cnt, k, wg, k, false, col, cnt, false, y[(img*m+gr*mg)*out+r*g.out[2]:], out)
			}
		}
	}
	return nil
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
	if g := c.Node.Int("group", 1); g < 1 {
		return c.Errorf("group is %d", g)
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
	t := &convTranspose{window: w, group: group, fused: s.Fused}
	t.ready.set(s)
	return widened(t.run), nil
}

// convTranspose is a ConvTranspose bound to its attributes and constants.
type convTranspose struct {
	window *transposeWindow
	group  int
	fused  *Fusion
	ready  preparedConv
}

func (t *convTranspose) run(c *Call) error {
	x, w, b := c.In(0), c.In(1), c.In(2)
	if x.Rank() < 3 || x.Rank() != w.Rank() || w.DType() != x.DType() || b != nil && b.DType() != x.DType() {
		return fmt.Errorf("input %v, weights %v", x, w)
	}
	n, ch, m := x.Shape()[0], x.Shape()[1], w.Shape()[1]*t.group
	if ch != w.Shape()[0] || ch%t.group != 0 || b != nil && b.Len() != m {
		return fmt.Errorf("input %v, weights %v, bias %v, group %d", x, w, b, t.group)
	}
	spatial := x.Rank() - 2
	if err := t.window.check(spatial, w.Shape()[2:]); err != nil {
		return err
	}
	// g is the geometry of the convolution that leads from y to x; surplus is
	// by how much the output exceeds what the pads imply.
	g := unitGeometry(spatial)
	var surplus [3]int
	shape := []int{n, m}
	for i := range spatial {
		k := 3 - spatial + i
		g.out[k], g.kernel[k] = x.Shape()[2+i], w.Shape()[2+i]
		g.stride[k], g.dilation[k] = at(t.window.stride, i, 1), at(t.window.dilation, i, 1)
		g.in[k], g.begin[k] = t.window.outSize(spatial, i, g.out[k], g.kernel[k])
		rest := g.stride[k]*(g.out[k]-1) + (g.kernel[k]-1)*g.dilation[k] + 1 - g.begin[k] - g.in[k]
		g.end[k], surplus[k] = max(rest, 0), max(-rest, 0)
		shape = append(shape, g.in[k])
	}
	y, err := c.Out(0, x.DType(), shape...)
	if err != nil || y.Len() == 0 {
		return err
	}
	z := 0
	if t.fused != nil {
		z = t.fused.Residual
	}
	switch x.DType() {
	case tensor.Float32:
		res, err := residual[float32](c, z, y)
		if err != nil {
			return err
		}
		conv, err := t.ready.get(w, vector[float32](b), g, surplus, ch, m, t.group, t.fused, true)
		if err != nil {
			return err
		}
		if err := conv.Run(c.Pool, tensor.As[float32](x), n, x.Shape()[2:], tensor.As[float32](y), res); err != nil {
			return err
		}
		return c.Ctx.Err()
	case tensor.Float64:
		res, err := residual[float64](c, z, y)
		if err != nil {
			return err
		}
		ys := tensor.As[float64](y)
		if err := convolveTransposed64(c, tensor.As[float64](x), tensor.As[float64](w), ys, n, ch, m, t.group, g); err != nil {
			return err
		}
		return finishChannels(c, ys, n, m, vector[float64](b), t.fused, res)
	}
	return fmt.Errorf("input of type %v", x.DType())
}

// convolveTransposed64 computes the transpose of the convolution g with the
// weights w [ch, m/group, kernel].
func convolveTransposed64(c *Call, x, w, y []float64, n, ch, m, group int, g *geometry) error {
	in, out, ks, cg, mg := g.outSize(), g.inSize(), g.kernelSize(), ch/group, m/group
	clear(y)
	col, err := scratch[float64](c, mg*ks*in)
	if err != nil {
		return err
	}
	for img := range n {
		for gr := range group {
			product(c, mg*ks, in, cg, w[gr*cg*mg*ks:], mg*ks, true, x[(img*ch+gr*cg)*in:], in, false, col, in)
			if err := c.For(mg, 1, func(lo, hi int) {
				for i := lo; i < hi; i++ {
					for tap := range ks {
						fold(y[(img*m+gr*mg+i)*out:][:out], col[(i*ks+tap)*in:][:in], g, tap)
					}
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
func fold(y, col []float64, g *geometry, tap int) {
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
