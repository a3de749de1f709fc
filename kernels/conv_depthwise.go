package kernels

import "github.com/onnxq/onnxq/internal/par"

// tapTile is a piece of a depthwise convolution: each of rows rows of columns
// outputs is bias plus the sum over taps of w[t] times the input from off[t]
// on. Input rows start xStep apart, output rows yStep. Assembly reads it by
// offset, and slices by their first word.
type tapTile struct {
	x, y, res, w                      []float32
	off                               []int // in elements from x
	taps, rows, columns, xStep, yStep int
	bias, lo, hi                      float32
}

// tapTileGo is the specification of the depthwise kernels. Each sum runs over
// the taps in order from 0, then adds the bias and the residual. Assembly
// fuses each multiplication with its addition; here they round separately.
func tapTileGo(t *tapTile) {
	for r := range t.rows {
		x, y := t.x[r*t.xStep:], t.y[r*t.yStep:][:t.columns]
		clear(y)
		for i, off := range t.off[:t.taps] {
			w := t.w[i]
			for j, v := range x[off:][:t.columns] {
				y[j] += float32(w * v)
			}
		}
		for j := range y {
			y[j] += t.bias
		}
		if t.res != nil {
			for j, v := range t.res[r*t.yStep:][:t.columns] {
				y[j] += v
			}
		}
		for j, v := range y {
			y[j] = clamp32(v, t.lo, t.hi)
		}
	}
}

// planes is how a depthwise convolution sees one padded channel: the columns
// are split by their remainder modulo the stride, so that a kernel position
// reads neighbouring outputs from neighbouring elements.
type planes struct {
	depth, height, width int // of the padded input that the outputs reach
	line                 int // elements of one remainder in a row
}

func (c *Conv) planes(out [3]int) planes {
	reach := func(i int) int { return (out[i]-1)*c.axes[i].stride + (c.axes[i].kernel-1)*c.axes[i].dilation + 1 }
	p := planes{depth: reach(0), height: reach(1), width: reach(2)}
	p.line = (p.width + c.axes[2].stride - 1) / c.axes[2].stride
	return p
}

// modest tells whether the padded form is not much larger than the image, as
// it is unless pads or dilations exceed it.
func (p planes) modest(in, out [3]int) bool {
	limit := 8*(volume(in)+volume(out)) + 1<<12
	return p.depth <= limit && p.height <= limit/p.depth && p.width <= limit/(p.depth*p.height)
}

// fill copies a channel into its padded, split form.
func (p planes) fill(dst, x []float32, axes *[3]axis, in [3]int) {
	s := axes[2].stride
	at := 0
	for z := range p.depth {
		for y := range p.height {
			row := dst[at : at+p.line*s]
			at += p.line * s
			iz, iy := z-axes[0].begin, y-axes[1].begin
			if uint(iz) >= uint(in[0]) || uint(iy) >= uint(in[1]) {
				clear(row)
				continue
			}
			src := x[(iz*in[1]+iy)*in[2]:][:in[2]]
			for r := range s {
				copyStrided(row[r*p.line:][:p.line], src, r-axes[2].begin, s)
			}
		}
	}
}

func (c *Conv) runDepthwise(pool *par.Pool, x []float32, n int, in, out [3]int, y, residual []float32) {
	p := c.planes(out)
	az, ay, ax := c.axes[0], c.axes[1], c.axes[2]
	pitch := p.line * ax.stride
	off := make([]int, 0, c.taps)
	for kz := range az.kernel {
		for ky := range ay.kernel {
			for kx := range ax.kernel {
				col := kx * ax.dilation
				off = append(off, (kz*az.dilation*p.height+ky*ay.dilation)*pitch+col%ax.stride*p.line+col/ax.stride)
			}
		}
	}
	per := c.spec.Cout / c.spec.Groups
	inSize, outSize, plane := volume(in), volume(out), out[1]*out[2]
	padded := ax.stride > 1 || in != [3]int{p.depth, p.height, p.width} || az.begin+ay.begin+ax.begin > 0
	work := c.taps*outSize*per + p.depth*p.height*pitch
	lv := level
	pool.For(n*c.spec.Cin, max(1, gemmWork/64/work), func(first, last int) {
		s := gemmScratches.Get().(*gemmScratch)
		defer gemmScratches.Put(s)
		t := tapTile{
			off: off, taps: c.taps, rows: out[1], columns: out[2],
			xStep: ay.stride * pitch, yStep: out[2], lo: c.lo, hi: c.hi,
		}
		for i := first; i < last; i++ {
			src := x[i*inSize:][:inSize]
			if padded {
				buf := grow(&s.b, p.depth*p.height*pitch)
				p.fill(buf, src, &c.axes, in)
				src = buf
			}
			for m := range per {
				co := i%c.spec.Cin*per + m
				t.w = c.w[co*c.taps:]
				if c.bias != nil {
					t.bias = c.bias[co]
				}
				for z := range out[0] {
					t.x = src[z*az.stride*p.height*pitch:]
					at := (i*per+m)*outSize + z*plane
					t.y = y[at:][:plane]
					if residual != nil {
						t.res = residual[at:][:plane]
					}
					tapKernel(lv, &t)
				}
			}
		}
	})
}
