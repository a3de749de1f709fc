package kernels

import "github.com/onnxq/onnxq/internal/par"

// tapTile is a piece of one output channel: each of rows rows of columns
// outputs is bias plus the sum over taps of w[t] times the input from off[t]
// on. Input rows start xStep apart, output rows yStep. Assembly reads it by
// offset, and slices by their first word.
type tapTile struct {
	x, y, res, w                      []float32
	off                               []int // in elements from x
	taps, rows, columns, xStep, yStep int
	bias, lo, hi                      float32
}

// tapTileGo is the specification of the kernels of single channels. Each sum runs over
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

// planes is how a convolution of few output channels a group sees a padded
// channel: the columns are split by their remainder modulo the stride, so that
// a kernel position reads neighbouring outputs from neighbouring elements.
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

// fill copies n rows of a channel, from row first of the padded form on, into
// their padded, split form.
func (p planes) fill(dst, x []float32, axes *[3]axis, in [3]int, first, n int) {
	s := axes[2].stride
	at := 0
	for z := range p.depth {
		for y := first; y < first+n; y++ {
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

// fewOutputs is the number of output channels a group up to which a
// convolution is computed channel by channel, with neighbouring pixels in a
// vector: kernels of many channels would leave most lanes idle.
const fewOutputs = 4

// bandElements is the number of elements of the padded input that stay in the
// second cache.
const bandElements = 1 << 16

// runPlanar computes each output channel by itself, in bands of rows.
func (c *Conv) runPlanar(pool *par.Pool, x []float32, n int, in, out [3]int, y, residual []float32) {
	p := c.planes(out)
	az, ay, ax := c.axes[0], c.axes[1], c.axes[2]
	groups, cin, cout := c.spec.Groups, c.spec.Cin/c.spec.Groups, c.spec.Cout/c.spec.Groups
	pitch := p.line * ax.stride
	padded := ax.stride > 1 || in != [3]int{p.depth, p.height, p.width} || az.begin+ay.begin+ax.begin > 0
	extent := (ay.kernel-1)*ay.dilation + 1
	band := max((bandElements/(cin*p.depth*pitch)-extent)/ay.stride, 4*extent/ay.stride, 1)
	band = min(band, out[1], max(1, gemmWork/(cin*c.taps*out[0]*out[2]*cout)))
	bands := (out[1] + band - 1) / band
	height := p.height // rows of an image that the kernel reads
	if padded {
		height = (band-1)*ay.stride + extent
	}
	off := make([]int, 0, cin*c.taps)
	for ci := range cin {
		for kz := range az.kernel {
			for ky := range ay.kernel {
				for kx := range ax.kernel {
					col := kx * ax.dilation
					off = append(off, ((ci*p.depth+kz*az.dilation)*height+ky*ay.dilation)*pitch+col%ax.stride*p.line+col/ax.stride)
				}
			}
		}
	}
	// Rows are computed as one where little lies between them.
	joined := ay.stride == 1 && (pitch == out[2] || residual == nil && (pitch-out[2])*4 <= out[2])
	inSize, outSize, plane := volume(in), volume(out), out[1]*out[2]
	work := cin*c.taps*out[0]*band*out[2]*cout + cin*p.depth*height*pitch
	lv := level
	pool.For(n*groups*bands, max(1, gemmWork/64/work), func(first, last int) {
		s := gemmScratches.Get().(*gemmScratch)
		defer gemmScratches.Put(s)
		t := tapTile{off: off, taps: cin * c.taps, columns: out[2], xStep: ay.stride * pitch, yStep: out[2], lo: c.lo, hi: c.hi}
		for i := first; i < last; i++ {
			from := i % bands * band
			rows := min(band, out[1]-from)
			src := x[i/bands*cin*inSize:][:cin*inSize]
			if padded {
				size := p.depth * height * pitch
				buf := grow(&s.b, cin*size)
				for ci := range cin {
					p.fill(buf[ci*size:][:size], src[ci*inSize:][:inSize], &c.axes, in, from*ay.stride, height)
				}
				src = buf
			} else {
				src = src[from*ay.stride*pitch:]
			}
			t.rows = rows
			if joined {
				t.rows, t.columns = 1, (rows-1)*pitch+out[2]
			}
			for m := range cout {
				co := i/bands%groups*cout + m
				t.w = c.w[co*cin*c.taps:]
				if c.bias != nil {
					t.bias = c.bias[co]
				}
				for z := range out[0] {
					t.x = src[z*az.stride*height*pitch:]
					at := (i/bands*cout+m)*outSize + z*plane + from*out[2]
					to := y[at:][:rows*out[2]]
					if residual != nil {
						t.res = residual[at:][:rows*out[2]]
					}
					if t.y = to; !joined || pitch == out[2] {
						tapKernel(lv, &t)
						continue
					}
					t.y = grow(&s.c, t.columns)
					tapKernel(lv, &t)
					for r := range rows {
						copy(to[r*out[2]:][:out[2]], t.y[r*pitch:])
					}
				}
			}
		}
	})
}
