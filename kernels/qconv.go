package kernels

import (
	"encoding/binary"
	"fmt"

	"github.com/onnxq/onnxq/internal/par"
)

// qIm2row is the matrix of a quantized convolution's input: row output
// position, column (kernel position, channel).
type qIm2row struct {
	x        []byte
	cin      int // channels of a group
	channels int // of the input
	zero     byte
	axes     *[3]axis
	in, out  [3]int
}

// pack writes the rows m0 to m0+m to dst, ld bytes apart.
func (q *qIm2row) pack(dst []byte, ld, m0, m int) {
	az, ay, ax := q.axes[0], q.axes[1], q.axes[2]
	// Kernel positions that lie side by side in the input are one copy.
	joined := ax.dilation == 1 && q.cin == q.channels
	imageSize := volume(q.in) * q.channels
	for i := range m {
		p := m0 + i
		x0 := p%q.out[2]*ax.stride - ax.begin
		p /= q.out[2]
		y0 := p%q.out[1]*ay.stride - ay.begin
		p /= q.out[1]
		z0 := p%q.out[0]*az.stride - az.begin
		image := q.x[p/q.out[0]*imageSize:]
		row := dst[i*ld : (i+1)*ld]
		for kz := range az.kernel {
			for ky := range ay.kernel {
				z, y := z0+kz*az.dilation, y0+ky*ay.dilation
				line := row[:ax.kernel*q.cin]
				row = row[len(line):]
				if uint(z) >= uint(q.in[0]) || uint(y) >= uint(q.in[1]) {
					fillBytes(line, q.zero)
					continue
				}
				src := image[(z*q.in[1]+y)*q.in[2]*q.channels:]
				if joined {
					lo, hi := min(max(0, -x0), ax.kernel), max(0, min(ax.kernel, q.in[2]-x0))
					if lo < hi {
						fillBytes(line[:lo*q.cin], q.zero)
						copy(line[lo*q.cin:hi*q.cin], src[(x0+lo)*q.cin:])
						fillBytes(line[hi*q.cin:], q.zero)
					} else {
						fillBytes(line, q.zero)
					}
					continue
				}
				for kx := range ax.kernel {
					d := line[kx*q.cin : (kx+1)*q.cin]
					if x := x0 + kx*ax.dilation; uint(x) < uint(q.in[2]) {
						copy(d, src[x*q.channels:])
					} else {
						fillBytes(d, q.zero)
					}
				}
			}
		}
	}
}

func fillBytes(d []byte, v byte) {
	for i := range d {
		d[i] = v
	}
}

// QConv is a convolution of 8-bit integers in the layout N, spatial axes, C.
// It never changes, so goroutines may share it.
type QConv struct {
	conv   *Conv
	level  Level
	groups []*PackedQB
	// Of a depthwise convolution: w minus its zero point as [taps][pitch], and
	// the sums over the taps.
	w     []int32
	sums  []int32
	pitch int
}

// NewQConv prepares the convolution of s with the integer weights w of shape
// [Cout, Cin/Groups, Kernel...] and their zero points: one, Cout, or nil for 0.
// The float fields of s are not used.
func NewQConv(s ConvSpec, w []byte, signed bool, zero []int32) (*QConv, error) {
	c, err := newConv(s, len(w), nil)
	if err != nil {
		return nil, err
	}
	if len(zero) > 1 && len(zero) != s.Cout {
		return nil, fmt.Errorf("convolution with %d zero points for %d channels", len(zero), s.Cout)
	}
	q := &QConv{conv: c, level: level}
	m := QMatrix{Signed: signed}
	if c.depthwise() && s.Cout == s.Cin {
		q.pitch = (s.Cout + 15) &^ 15
		q.w, q.sums = make([]int32, c.taps*q.pitch), make([]int32, q.pitch)
		for co := range s.Cout {
			z := int32(0)
			if len(zero) > 0 {
				z = zero[min(co, len(zero)-1)]
			}
			for t := range c.taps {
				v := m.value(w[co*c.taps+t]) - z
				q.w[t*q.pitch+co] = v
				q.sums[co] += v
			}
		}
		return q, nil
	}
	cin, cout := s.Cin/s.Groups, s.Cout/s.Groups
	k := cin * c.taps
	buf := make([]byte, cout*k)
	for g := range s.Groups {
		// From [Cout, Cin, taps] to [Cout, taps, Cin].
		src := w[g*cout*k:]
		for co := range cout {
			for ci := range cin {
				for t := range c.taps {
					buf[co*k+t*cin+ci] = src[co*k+ci*c.taps+t]
				}
			}
		}
		z := zero
		if len(zero) > 1 {
			z = zero[g*cout : (g+1)*cout]
		}
		q.groups = append(q.groups, PackQB(k, cout, QMatrix{buf, signed, k, true}, z))
	}
	return q, nil
}

// Out returns the spatial part of the output shape for the given spatial part
// of the input shape.
func (q *QConv) Out(spatial []int) ([]int, error) { return q.conv.Out(spatial) }

// Run convolves n images of the given spatial shape and writes the result as
// out says, whose per-column values are those of the output channels and whose
// Ld is not used. The bytes of x are int8 where signed is set and stand for
// differences from zero, which pads hold too.
func (q *QConv) Run(pool *par.Pool, x []byte, signed bool, zero int32, n int, spatial []int, out *QOut) error {
	c, s := q.conv, &q.conv.spec
	osp, err := c.out(spatial)
	if err != nil {
		return err
	}
	in := c.in(spatial)
	size := max(len(out.Words), len(out.Floats), len(out.Bytes))
	if n < 0 || len(x) != n*s.Cin*volume(in) || size != n*s.Cout*volume(osp) {
		return fmt.Errorf("convolution of %d images %v: %d inputs and %d outputs do not fit %d to %d channels", n, spatial, len(x), size, s.Cin, s.Cout)
	}
	perChannel := func(name string, n, least int) error {
		if n != s.Cout && (n > 1 || n < least) {
			return fmt.Errorf("convolution with %d values of %s for %d channels", n, name, s.Cout)
		}
		return nil
	}
	least := 1
	if out.Words != nil {
		least = 0
	}
	if err := perChannel("scale", len(out.Scale), least); err != nil {
		return err
	}
	if out.Init != nil && len(out.Init) != s.Cout || out.Bias != nil && len(out.Bias) != s.Cout {
		return fmt.Errorf("convolution with %d and %d bias values for %d channels", len(out.Init), len(out.Bias), s.Cout)
	}
	a := QMatrix{Data: x, Signed: signed, Ld: s.Cin}
	if q.w != nil {
		if p := c.planes(osp); p.modest(in, osp) {
			q.runDepthwise(pool, a, zero, n, in, osp, out)
			return nil
		}
		return fmt.Errorf("depthwise convolution of spatial shape %v with kernel_shape %v spreads too far", spatial, s.Kernel)
	}
	cin, cout := s.Cin/s.Groups, s.Cout/s.Groups
	for g, b := range q.groups {
		o := *out
		o.Ld = s.Cout
		if s.Groups > 1 {
			o.Init, o.Bias = part(out.Init, g*cout, cout), part(out.Bias, g*cout, cout)
			if len(out.Scale) > 1 {
				o.Scale = part(out.Scale, g*cout, cout)
			}
			o.Words, o.Floats, o.Bytes = from(out.Words, g*cout), from(out.Floats, g*cout), from(out.Bytes, g*cout)
		}
		j := qJob{m: n * volume(osp), a: a, b: b, out: &o, zero: zero + int32(a.flip())}
		if c.pointwise() {
			j.a.Data = from(x, g*cin)
		} else {
			j.im = &qIm2row{x: from(x, g*cin), cin: cin, channels: s.Cin, zero: byte(zero), axes: &c.axes, in: in, out: osp}
		}
		j.run(pool)
	}
	return nil
}

// part is s[at:at+n], or nil where s is.
func part[T any](s []T, at, n int) []T {
	if s == nil {
		return nil
	}
	return s[at : at+n]
}

// from is s[at:], or nil where s is.
func from[T any](s []T, at int) []T {
	if s == nil {
		return nil
	}
	return s[min(at, len(s)):]
}

// qTapTile is a row of a depthwise integer convolution: for each of columns
// positions and channels channels, the sum over taps of x[off[t]] times w.
// Assembly reads it by offset, and slices by their first word. The per-channel
// slices and rows of w hold a multiple of 16 channels.
type qTapTile struct {
	x, c              []byte
	w                 []int32 // [taps][pitch], each between -255 and 255
	off               []int
	init              []int32
	scale, bias       []float32
	taps, pitch       int
	columns, channels int
	xStep, cStep      int // bytes from position to position
	mode              int
	lo, hi            float32
	zero              int32
	flip              uint32
}

// qTapTileGo is the specification of the depthwise integer kernels, for the
// channels from first on.
func qTapTileGo(t *qTapTile, first int, words []int32, floats []float32) {
	for i := range t.columns {
		for ch := first; ch < t.channels; ch++ {
			s := t.init[ch]
			for k, off := range t.off[:t.taps] {
				s += (int32(t.x[i*t.xStep+off+ch]) ^ int32(t.flip)) * t.w[k*t.pitch+ch]
			}
			switch t.mode {
			case qWords:
				words[i*t.cStep/4+ch] = s
			case qFloats:
				floats[i*t.cStep/4+ch] = float32(float32(s)*t.scale[ch]) + t.bias[ch]
			case qBytes:
				t.c[i*t.cStep+ch] = byte(requantize(s, t.scale[ch], t.lo, t.hi, t.zero))
			}
		}
	}
}

func (q *QConv) runDepthwise(pool *par.Pool, a QMatrix, zero int32, n int, in, out [3]int, o *QOut) {
	c, ch := q.conv, q.conv.spec.Cout
	az, ay, ax := c.axes[0], c.axes[1], c.axes[2]
	p := c.planes(out)
	// A line is a padded input row; only as many rows as a task needs exist.
	lineSize := p.width * ch
	off := make([]int, 0, c.taps)
	padded := in != [3]int{p.depth, p.height, p.width} || az.begin+ay.begin+ax.begin > 0
	height := in[1]
	extent := (ay.kernel-1)*ay.dilation + 1
	rows := min(out[1], max(1, (1<<15)/(out[2]*ch)))
	if padded {
		height = (rows-1)*ay.stride + extent
	}
	for kz := range az.kernel {
		for ky := range ay.kernel {
			for kx := range ax.kernel {
				line := kz*az.dilation*height + ky*ay.dilation
				if padded {
					line = kz*height + ky*ay.dilation
				}
				off = append(off, line*lineSize+kx*ax.dilation*ch)
			}
		}
	}
	outJob := qJob{out: o, b: &PackedQB{n: ch, sums: q.sums}, zero: zero + int32(a.flip())}
	cols := outJob.prepare()
	bands := (out[1] + rows - 1) / rows
	lv := min(q.level, level)
	size := 4
	if outJob.mode == qBytes {
		size = 1
	}
	pool.For(n*out[0]*bands, 1, func(first, last int) {
		s := qScratches.Get().(*qScratch)
		defer qScratches.Put(s)
		for i := first; i < last; i++ {
			y0 := i % bands * rows
			image, z := i/bands/out[0], i/bands%out[0]
			m := min(rows, out[1]-y0)
			src := a.Data[image*volume(in)*ch:]
			if padded {
				need := (m-1)*ay.stride + extent
				buf := growTo(&s.a, az.kernel*height*lineSize)
				for kz := range az.kernel {
					iz := z*az.stride + kz*az.dilation - az.begin
					for r := range need {
						line := buf[(kz*height+r)*lineSize:][:lineSize]
						iy := y0*ay.stride + r - ay.begin
						if uint(iz) >= uint(in[0]) || uint(iy) >= uint(in[1]) {
							fillBytes(line, byte(zero))
							continue
						}
						lead := min(ax.begin, p.width)
						k := min(p.width-lead, in[2])
						fillBytes(line[:lead*ch], byte(zero))
						copy(line[lead*ch:(lead+k)*ch], src[(iz*in[1]+iy)*in[2]*ch:])
						fillBytes(line[(lead+k)*ch:], byte(zero))
					}
				}
				src = buf
			} else {
				src = src[(z*az.stride*in[1]+y0*ay.stride)*lineSize:]
			}
			t := qTapTile{
				w: q.w, off: off, init: cols.init, scale: cols.scale, bias: cols.bias, taps: c.taps, pitch: q.pitch,
				columns: out[2], channels: ch, xStep: ax.stride * ch, cStep: ch * size, mode: outJob.mode,
				lo: outJob.lo, hi: outJob.hi, zero: o.Zero, flip: uint32(a.flip()),
			}
			for r := range m {
				t.x = src[r*ay.stride*lineSize:]
				at := ((image*out[0]+z)*out[1] + y0 + r) * out[2] * ch
				var words []int32
				var floats []float32
				switch t.mode {
				case qWords:
					words = o.Words[at : at+out[2]*ch]
				case qFloats:
					floats = o.Floats[at : at+out[2]*ch]
				default:
					t.c = o.Bytes[at : at+out[2]*ch]
				}
				qTapKernel(lv, &t, words, floats)
			}
		}
	})
	qColumnsPool.Put(cols)
}

// Transpose8 writes the transposed rows×cols matrix of bytes src to dst: the
// change of an image between the layouts C, H, W and H, W, C.
func Transpose8(dst, src []byte, rows, cols int) {
	_, _ = dst[:rows*cols], src[:rows*cols]
	i := 0
	for ; i+8 <= rows; i += 8 {
		j := 0
		for ; j+8 <= cols; j += 8 {
			var w [8]uint64
			for r := range w {
				w[r] = binary.LittleEndian.Uint64(src[(i+r)*cols+j:])
			}
			// Blocks of 4, 2 and 1 change places across the diagonal.
			for r := range 4 {
				a, b := w[r], w[r+4]
				w[r], w[r+4] = a&0xffffffff|b<<32, a>>32|b&0xffffffff00000000
			}
			for _, r := range [4]int{0, 1, 4, 5} {
				const m = 0x0000ffff0000ffff
				a, b := w[r], w[r+2]
				w[r], w[r+2] = a&m|b&m<<16, a>>16&m|b&^uint64(m)
			}
			for r := 0; r < 8; r += 2 {
				const m = 0x00ff00ff00ff00ff
				a, b := w[r], w[r+1]
				w[r], w[r+1] = a&m|b&m<<8, a>>8&m|b&^uint64(m)
			}
			for r := range w {
				binary.LittleEndian.PutUint64(dst[(j+r)*rows+i:], w[r])
			}
		}
		for ; j < cols; j++ {
			for r := i; r < i+8; r++ {
				dst[j*rows+r] = src[r*cols+j]
			}
		}
	}
	for ; i < rows; i++ {
		for j := range cols {
			dst[j*rows+i] = src[i*cols+j]
		}
	}
}
