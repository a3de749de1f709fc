package kernels

import (
	"fmt"
	"math"
	"sync"

	"github.com/onnxq/onnxq/internal/par"
)

// ConvSpec describes a convolution as the ONNX operators Conv and
// ConvTranspose do. The per-axis slices have one entry for each of the 1 to 3
// spatial axes; nil stands for ones in Stride and Dilation and for zeros in
// PadBegin, PadEnd and OutPad.
type ConvSpec struct {
	Cin, Cout, Groups int
	Kernel            []int
	Stride, Dilation  []int
	PadBegin, PadEnd  []int
	OutPad            []int // output_padding of ConvTranspose
	Clip              bool  // clamp the result to [Min, Max]; a NaN stays one
	Min, Max          float32
}

// Conv is a float32 convolution, ready to run on tensors in the layout N, C,
// spatial axes. It never changes, so goroutines may share it.
type Conv struct {
	spec       ConvSpec
	dims       int // spatial axes that the caller knows of
	axes       [3]axis
	transposed bool
	taps       int       // kernel positions
	w          []float32 // per group a matrix [Cout/G, Cin/G*taps]; transposed: [Cout/G*taps, Cin/G]
	bias       []float32
	lo, hi     float32
	block      *BlockConv // or nil: how to compute it on blocked images
	// The same for a pointwise convolution, made when it is first of use.
	pointBlock func() *BlockConv
}

type axis struct{ kernel, stride, dilation, begin, end, out int }

// Bounds of the sizes in a ConvSpec and of the elements of an image.
const (
	maxConvSize = 1 << 24
	maxTensor   = math.MaxInt >> 8
)

// NewConv prepares the convolution of s with the weights w of shape
// [Cout, Cin/Groups, Kernel...] and the bias of Cout values or nil. It may keep
// w and bias.
func NewConv(s ConvSpec, w, bias []float32) (*Conv, error) {
	c, err := newConv(s, len(w), bias)
	if err != nil {
		return nil, err
	}
	c.w = w
	// Few output channels would leave most lanes of a block idle.
	if c.pointwise() {
		c.pointBlock = sync.OnceValue(func() *BlockConv { return newBlockConv(c, w, false) })
	} else {
		c.useBlocks(w)
	}
	return c, nil
}

// useBlocks prepares the convolution for blocked images where that pays: few
// output channels would leave most lanes of a block idle.
func (c *Conv) useBlocks(w []float32) {
	if level >= AVX2 && (c.spec.Cout > fewOutputs || c.depthwise()) {
		c.block = newBlockConv(c, w, c.spec.Groups == 1 && c.spec.Cin < BlockSize)
	}
}

// NewConvTranspose prepares the transposed convolution of s with the weights
// w of shape [Cin, Cout/Groups, Kernel...] and the bias of Cout values or nil.
func NewConvTranspose(s ConvSpec, w, bias []float32) (*Conv, error) {
	c, err := newConv(s, len(w), bias)
	if err != nil {
		return nil, err
	}
	c.transposed = true
	c.useBlocks(w)
	cin, rows := s.Cin/s.Groups, s.Cout/s.Groups*c.taps
	c.w = make([]float32, len(w))
	for g := range s.Groups {
		transpose(level, c.w[g*cin*rows:], cin, w[g*cin*rows:], rows, rows, cin)
	}
	return c, nil
}

func newConv(s ConvSpec, weights int, bias []float32) (*Conv, error) {
	c := &Conv{spec: s, dims: len(s.Kernel), bias: bias, taps: 1, lo: float32(math.Inf(-1)), hi: float32(math.Inf(1))}
	if s.Clip {
		c.lo, c.hi = s.Min, s.Max
	}
	if c.dims < 1 || c.dims > 3 {
		return nil, fmt.Errorf("convolution of %d spatial axes; 1 to 3 are supported", c.dims)
	}
	if s.Groups < 1 || s.Cin < 1 || s.Cout < 1 || s.Cin%s.Groups != 0 || s.Cout%s.Groups != 0 || max(s.Cin, s.Cout) > maxConvSize {
		return nil, fmt.Errorf("convolution of %d to %d channels in %d groups", s.Cin, s.Cout, s.Groups)
	}
	for i := range c.axes {
		c.axes[i] = axis{kernel: 1, stride: 1, dilation: 1}
	}
	off := 3 - c.dims
	for _, f := range []struct {
		name   string
		values []int
		least  int
		field  func(*axis) *int
	}{
		{"kernel_shape", s.Kernel, 1, func(a *axis) *int { return &a.kernel }},
		{"strides", s.Stride, 1, func(a *axis) *int { return &a.stride }},
		{"dilations", s.Dilation, 1, func(a *axis) *int { return &a.dilation }},
		{"pads", s.PadBegin, 0, func(a *axis) *int { return &a.begin }},
		{"pads", s.PadEnd, 0, func(a *axis) *int { return &a.end }},
		{"output_padding", s.OutPad, 0, func(a *axis) *int { return &a.out }},
	} {
		if f.values == nil {
			continue
		}
		if len(f.values) != c.dims {
			return nil, fmt.Errorf("convolution with %d values of %s for %d spatial axes", len(f.values), f.name, c.dims)
		}
		for i, v := range f.values {
			if v < f.least || v > maxConvSize {
				return nil, fmt.Errorf("convolution with %s %v", f.name, f.values)
			}
			*f.field(&c.axes[off+i]) = v
		}
	}
	per := s.Cin / s.Groups * s.Cout
	for _, a := range c.axes {
		if weights%a.kernel != 0 {
			return nil, fmt.Errorf("convolution with %d weights for kernel_shape %v", weights, s.Kernel)
		}
		weights /= a.kernel
		c.taps *= a.kernel
	}
	if weights != per {
		return nil, fmt.Errorf("convolution with %d weights a kernel position where %d to %d channels in %d groups need %d", weights, s.Cin, s.Cout, s.Groups, per)
	}
	if bias != nil && len(bias) != s.Cout {
		return nil, fmt.Errorf("convolution with %d bias values for %d channels", len(bias), s.Cout)
	}
	return c, nil
}

// Out returns the spatial part of the output shape for the given spatial part
// of the input shape.
func (c *Conv) Out(spatial []int) ([]int, error) {
	out, err := c.out(spatial)
	if err != nil {
		return nil, err
	}
	return append([]int(nil), out[3-c.dims:]...), nil
}

func (c *Conv) out(spatial []int) (out [3]int, err error) {
	if len(spatial) != c.dims {
		return out, fmt.Errorf("convolution of %d spatial axes on an input of %d", c.dims, len(spatial))
	}
	in := c.in(spatial)
	size := max(c.spec.Cin, c.spec.Cout)
	for i, a := range c.axes {
		const most = math.MaxInt >> 2
		if in[i] < 1 || in[i] > most/a.stride || a.kernel > most/a.dilation {
			return out, fmt.Errorf("convolution of spatial shape %v with kernel_shape %v", spatial, c.spec.Kernel)
		}
		extent := (a.kernel-1)*a.dilation + 1
		if c.transposed {
			out[i] = (in[i]-1)*a.stride + extent + a.out - a.begin - a.end
		} else if room := in[i] + a.begin + a.end - extent; room >= 0 {
			out[i] = room/a.stride + 1
		}
		if out[i] < 1 {
			return out, fmt.Errorf("convolution of spatial shape %v with kernel_shape %v has an empty output", spatial, c.spec.Kernel)
		}
		if size > maxTensor/max(in[i], out[i]) {
			return out, fmt.Errorf("convolution of spatial shape %v with kernel_shape %v is too large", spatial, c.spec.Kernel)
		}
		size *= max(in[i], out[i])
	}
	return out, nil
}

// in widens a spatial shape to three axes.
func (c *Conv) in(spatial []int) [3]int {
	in := [3]int{1, 1, 1}
	copy(in[3-c.dims:], spatial)
	return in
}

func volume(s [3]int) int { return s[0] * s[1] * s[2] }

// Run convolves n images of the given spatial shape from x to y, which do not
// overlap. A residual of y's shape, or nil, is added before the clamp.
func (c *Conv) Run(pool *par.Pool, x []float32, n int, spatial []int, y, residual []float32) error {
	out, err := c.out(spatial)
	if err != nil {
		return err
	}
	in := c.in(spatial)
	if n < 0 || len(x) != n*c.spec.Cin*volume(in) || len(y) != n*c.spec.Cout*volume(out) || residual != nil && len(residual) != len(y) {
		return fmt.Errorf("convolution of %d images %v: %d inputs, %d outputs and %d residuals do not fit %d to %d channels",
			n, spatial, len(x), len(y), len(residual), c.spec.Cin, c.spec.Cout)
	}
	if b := c.blockFor(out); b != nil {
		xm, err := b.Border(Image{C: c.spec.Cin, H: in[1], W: in[2], Planar: b.planar})
		if err != nil {
			return err
		}
		if xm.modest(c.spec.Cin*volume(in) + c.spec.Cout*volume(out)) {
			return c.runBlocked(pool, b, x, n, xm, y, residual)
		}
	}
	switch {
	case c.transposed:
		c.runTransposed(pool, x, n, in, out, y, residual)
	case c.spec.Cout/c.spec.Groups <= fewOutputs && c.planes(out).modest(in, out):
		c.runPlanar(pool, x, n, in, out, y, residual)
	default:
		c.runGemm(pool, x, n, in, out, y, residual)
	}
	return nil
}

func (c *Conv) depthwise() bool { return c.spec.Cin == c.spec.Groups && c.spec.Groups > 1 }

// blockFor returns how to compute outputs of the given size on blocked images,
// or nil where that does not pay. For a pointwise convolution it does where the
// last panel of a product in place would be rather empty.
func (c *Conv) blockFor(out [3]int) *BlockConv {
	nr, size := panelWidth(level), volume(out)
	if c.pointBlock == nil || level < AVX2 || min(c.spec.Cin, c.spec.Cout) < 2*BlockSize || (size+nr-1)/nr*nr*10 < size*11 {
		return c.block
	}
	return c.pointBlock()
}

// pointwise tells whether the input is the im2col matrix.
func (c *Conv) pointwise() bool {
	for _, a := range c.axes {
		if a.kernel != 1 || a.stride != 1 || a.begin != 0 || a.end != 0 {
			return false
		}
	}
	return true
}

func (c *Conv) runGemm(pool *par.Pool, x []float32, n int, in, out [3]int, y, residual []float32) {
	groups, size := c.spec.Groups, volume(out)
	cin, cout := c.spec.Cin/groups, c.spec.Cout/groups
	g := gemmJob{
		level: level, m: cout, n: size, k: cin * c.taps, batch: n * groups, groups: groups,
		a: Matrix{Data: c.w, Ld: cin * c.taps}, sa: cout * cin * c.taps,
		b: Matrix{Data: x, Ld: size}, sb: cin * volume(in),
		c: y, ldc: size, sc: cout * size,
	}
	if c.pointwise() {
		g.depth = pointwiseDepth
	} else {
		g.im = &im2col{axes: &c.axes, in: in, out: out}
	}
	g.run(pool, &Epilogue{RowBias: c.bias, Residual: residual, LdRes: size, Clip: c.spec.Clip, Min: c.spec.Min, Max: c.spec.Max})
}

// blockedElements bounds the elements of the images that are in blocked form
// at a time.
const blockedElements = 1 << 22

// runBlocked brings images into blocked form, a few at a time, and the results
// back.
func (c *Conv) runBlocked(pool *par.Pool, b *BlockConv, x []float32, n int, xm Image, y, residual []float32) error {
	ym, err := b.Out(xm)
	if err != nil {
		return err
	}
	if b.taps {
		b.runTaps(pool, n, x, xm, y, ym, residual, true, true)
		return nil
	}
	s := convScratches.get()
	defer convScratches.put(s)
	xSize, ySize := xm.C*xm.H*xm.W, ym.C*ym.H*ym.W
	for first, some := 0, max(1, blockedElements/(xm.Len()+ym.Len())); first < n; first += some {
		k := min(some, n-first)
		xb := grow(&s.a, k*xm.Len())
		xm.ClearBorder(k, xb)
		xm.ToImage(pool, k, xb, x[first*xSize:])
		if len(b.phases) == 1 {
			var r []float32
			if residual != nil {
				r = residual[first*ySize:]
			}
			b.compute(pool, k, xb, xm, y[first*ySize:], ym, r, ym, true)
			continue
		}
		yb := grow(&s.b, k*ym.Len())
		var rb []float32
		if residual != nil {
			rb = grow(&s.c, k*ym.Len())
			ym.ToImage(pool, k, rb, residual[first*ySize:])
		}
		if err := b.Run(pool, k, xb, xm, yb, ym, rb, ym); err != nil {
			return err
		}
		ym.FromImage(pool, k, y[first*ySize:], yb)
	}
	return nil
}

// im2col is the matrix of a convolution's input: row (channel, kernel
// position), column output position.
type im2col struct {
	axes    *[3]axis
	in, out [3]int
}

// pack writes rows k0 to k0+k and columns j0 to j0+n as a panel [k][nr].
func (m *im2col) pack(dst []float32, nr, k, n int, x []float32, k0, j0 int) {
	az, ay, ax := &m.axes[0], &m.axes[1], &m.axes[2]
	if n < nr {
		clear(dst[:k*nr])
	}
	// The columns fall into runs of one output row each.
	type run struct{ at, n, z, y, x int }
	var room [32]run
	runs := room[:0]
	for at := 0; at < n; {
		p := j0 + at
		r := run{at: at, x: p % m.out[2]}
		r.n = min(n-at, m.out[2]-r.x)
		p /= m.out[2]
		r.y, r.z = p%m.out[1]*ay.stride-ay.begin, p/m.out[1]*az.stride-az.begin
		r.x = r.x*ax.stride - ax.begin
		runs = append(runs, r)
		at += r.n
	}
	kx := k0 % ax.kernel
	rest := k0 / ax.kernel
	ky := rest % ay.kernel
	rest /= ay.kernel
	kz := rest % az.kernel
	ci := rest / az.kernel
	for i := range k {
		row := dst[i*nr : i*nr+nr]
		for _, r := range runs {
			d := row[r.at : r.at+r.n]
			z, y := r.z+kz*az.dilation, r.y+ky*ay.dilation
			if uint(z) >= uint(m.in[0]) || uint(y) >= uint(m.in[1]) {
				clear(d)
				continue
			}
			copyStrided(d, x[((ci*m.in[0]+z)*m.in[1]+y)*m.in[2]:][:m.in[2]], r.x+kx*ax.dilation, ax.stride)
		}
		if kx++; kx == ax.kernel {
			kx = 0
			if ky++; ky == ay.kernel {
				ky = 0
				if kz++; kz == az.kernel {
					kz = 0
					ci++
				}
			}
		}
	}
}

// copyStrided sets dst[i] to src[at+i*stride], or to zero where that lies
// outside src.
func copyStrided(dst, src []float32, at, stride int) {
	lead := 0
	if at < 0 {
		lead = min(len(dst), (-at+stride-1)/stride)
		clear(dst[:lead])
		at += lead * stride
	}
	dst = dst[lead:]
	fit := 0
	if at < len(src) {
		fit = min(len(dst), (len(src)-at+stride-1)/stride)
	}
	clear(dst[fit:])
	if fit == 0 {
		return
	}
	if stride == 1 {
		copy(dst[:fit], src[at:])
		return
	}
	for i := range dst[:fit] {
		dst[i] = src[at]
		at += stride
	}
}
