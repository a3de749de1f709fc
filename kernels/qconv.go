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
	channels int // of the input
	zero     byte
	runs     qRuns
	axes     *[3]axis
	in, out  [3]int
}

// qRuns says how the bytes that an output position reads are ordered: runs of
// size bytes that lie side by side in the input, one for each kernel row or
// each kernel position, each padded to stride bytes.
type qRuns struct {
	joined       bool // a run spans the kernel's width
	count        int
	size, stride int
	cin          int // channels of a group
}

func (c *Conv) qRuns(l Level, saturating bool) qRuns {
	kx := c.axes[2]
	r := qRuns{cin: c.spec.Cin / c.spec.Groups, joined: kx.dilation == 1 && c.spec.Groups == 1}
	r.count, r.size = c.taps, r.cin
	if r.joined {
		r.count, r.size = c.taps/kx.kernel, r.cin*kx.kernel
	}
	r.stride = r.size
	if !c.pointwise() {
		unit, _ := qUnit(l, saturating)
		r.stride = (r.size + unit - 1) / unit * unit
	}
	if saturating {
		r.stride = r.size // so that pairs are those of the whole row
	}
	return r
}

// at is the place of a kernel position and channel in the order of the runs.
func (r qRuns) at(tap, width, ci int) int {
	if r.joined {
		return tap/width*r.stride + tap%width*r.cin + ci
	}
	return tap*r.stride + ci
}

// pack writes the rows m0 to m0+m to dst, ld bytes apart.
func (q *qIm2row) pack(dst []byte, ld, m0, m int) {
	az, ay, ax := q.axes[0], q.axes[1], q.axes[2]
	imageSize := volume(q.in) * q.channels
	kernelRow := q.runs.stride
	if !q.runs.joined {
		kernelRow *= ax.kernel
	}
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
				line := row[:kernelRow]
				row = row[kernelRow:]
				if uint(z) >= uint(q.in[0]) || uint(y) >= uint(q.in[1]) {
					fillBytes(line, q.zero)
					continue
				}
				src := image[(z*q.in[1]+y)*q.in[2]*q.channels:]
				if q.runs.joined {
					lo, hi := min(max(0, -x0), ax.kernel), max(0, min(ax.kernel, q.in[2]-x0))
					if lo >= hi { // wholly in the padding, where x0 may lie behind the last row
						fillBytes(line, q.zero)
						continue
					}
					fillBytes(line[:lo*q.channels], q.zero)
					copy(line[lo*q.channels:hi*q.channels], src[(x0+lo)*q.channels:])
					fillBytes(line[hi*q.channels:], q.zero)
					continue
				}
				for kx := range ax.kernel {
					d := line[kx*q.runs.stride:][:q.runs.stride]
					size := 0
					if x := x0 + kx*ax.dilation; uint(x) < uint(q.in[2]) {
						size = copy(d[:q.runs.cin], src[x*q.channels:])
					}
					fillBytes(d[size:], q.zero)
				}
			}
		}
	}
}

func fillBytes(d []byte, v byte) {
	if len(d) == 0 {
		return
	}
	d[0] = v
	for n := 1; n < len(d); n *= 2 {
		copy(d[n:], d[:n])
	}
}

// qDirectWidth is the number of output pixels in a row from which on the
// direct kernel, which works along rows, has enough of them at once.
const qDirectWidth = 4

// QConv is a convolution of 8-bit integers in the layout N, spatial axes, C.
// It never changes, so goroutines may share it.
type QConv struct {
	conv   *Conv
	level  Level
	groups []*PackedQB
	runs   qRuns
	// Of a depthwise convolution: w minus its zero point as [taps][pitch], or as
	// pairPositions says, and the sums over the taps.
	w     []int32
	sums  []int32
	pitch int
	wide  []byte // of a depthwise convolution, as in qTapTile, or nil
}

// NewQConv prepares the convolution of s with the integer weights w of shape
// [Cout, Cin/Groups, Kernel...] and their zero points: one, Cout, or nil for 0.
// The float fields of s are not used. With saturate, products saturate as
// PackQB says, but for depthwise ones, which are exact; the factors of a product
// are ordered by kernel position, then channel.
func NewQConv(s ConvSpec, w []byte, signed bool, zero []int32, saturate bool) (*QConv, error) {
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
		if q.level == AVX2 {
			q.pairPositions()
		}
		q.packWide()
		return q, nil
	}
	saturate = saturate && signed
	q.runs = c.qRuns(level, saturate)
	cin, cout := s.Cin/s.Groups, s.Cout/s.Groups
	k := q.runs.count * q.runs.stride
	buf := make([]byte, cout*k)
	if !signed {
		// Packed, 128 is no contribution, as 0 is where bytes are signed.
		fillBytes(buf, 128)
	}
	for g := range s.Groups {
		src := w[g*cout*cin*c.taps:]
		for co := range cout {
			for ci := range cin {
				for t := range c.taps {
					buf[co*k+q.runs.at(t, c.axes[2].kernel, ci)] = src[(co*cin+ci)*c.taps+t]
				}
			}
		}
		z := zero
		if len(zero) > 1 {
			z = zero[g*cout : (g+1)*cout]
		}
		q.groups = append(q.groups, PackQB(k, cout, QMatrix{buf, signed, k, true}, z, saturate))
	}
	return q, nil
}

// pairPositions turns q.w into what the AVX2 kernel reads: for each 16 channels
// and each two kernel positions 16 words, the lower half of which is the weight
// of the first position, in the order of that kernel's sums.
func (q *QConv) pairPositions() {
	taps := q.conv.taps
	pairs := (taps + 1) / 2
	w := make([]int32, pairs*q.pitch)
	for t := range taps {
		for ch := range q.conv.spec.Cout {
			lane := ch & 15
			if q.folded() {
				lane = ch
			}
			for ; lane < 16; lane += q.conv.spec.Cout {
				at := (ch/16*pairs+t/2)*16 + lane&3 + lane&4<<1 + lane&8>>1
				w[at] |= int32(uint32(uint16(q.w[t*q.pitch+ch])) << (t % 2 * 16))
				if !q.folded() {
					break
				}
			}
		}
	}
	q.w = w
}

// wideAt is the place of channel ch in a block of 64 in the order of the sums
// of the kernel for such blocks.
func wideAt(ch int) int { return ch%16/4*16 + ch/16*4 + ch%4 }

// wideBlocks is the number of blocks of 64 channels that the kernel for such
// blocks computes; a small rest is left to the other.
func (q *QConv) wideBlocks() int {
	const least = 22
	ch := q.conv.spec.Cout
	if q.folded() || ch%64 >= least {
		return (ch + 63) / 64
	}
	return ch / 64
}

// qLanes is the number of channels that the depthwise kernel of a level computes
// at once.
func qLanes(l Level) int {
	if l == AVX2 {
		return 16
	}
	return 64
}

// folded tells whether neighbouring pixels fill the lanes of the kernel.
func (q *QConv) folded() bool {
	ch, lanes := q.conv.spec.Cout, qLanes(q.level)
	return ch < lanes && lanes%ch == 0 && q.conv.axes[2].stride == 1
}

// packWide sets q.wide where the weights have 8 bits.
func (q *QConv) packWide() {
	blocks, taps := q.wideBlocks(), q.conv.taps
	if q.level < AVX512VNNI || blocks == 0 {
		return
	}
	groups := (taps + 3) / 4
	wide := make([]byte, blocks*groups*256)
	for t := range taps {
		for ch := range blocks * 64 {
			if ch >= q.conv.spec.Cout && !q.folded() {
				break
			}
			v := q.w[t*q.pitch+ch%q.conv.spec.Cout]
			if v != int32(int8(v)) {
				return
			}
			wide[(ch/64*groups+t/4)*256+4*wideAt(ch%64)+t%4] = byte(v)
		}
	}
	q.wide = wide
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
	modest := c.planes(osp).modest(in, osp)
	if q.w != nil {
		if !modest {
			return fmt.Errorf("depthwise convolution of spatial shape %v with kernel_shape %v spreads too far", spatial, s.Kernel)
		}
		q.runDepthwise(pool, a, zero, n, in, osp, out)
		return nil
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
		switch {
		case c.pointwise():
			j.a.Data = from(x, g*cin)
		case modest && !b.sumsRows && !b.saturating && osp[2] >= qDirectWidth:
			q.runDirect(pool, &j, g*cin, zero, n, in, osp)
			continue
		default:
			j.im = &qIm2row{x: from(x, g*cin), channels: s.Cin, zero: byte(zero), runs: q.runs, axes: &c.axes, in: in, out: osp}
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
	w                 []int32 // [taps][pitch], each between -255 and 255, or as AVX2 has them
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
	// For blocks of 64 channels, the last of which may have less, at AVX512VNNI:
	// the weights of four taps at a time as bytes, with init and scale in the
	// order of its sums.
	wide   []byte
	init4  []int32
	scale4 []float32
	blocks int    // of 64 channels
	groups int    // of four taps; at AVX2 of two
	last   uint64 // the channels of the last block
}

// qTapTileGo is the specification of the depthwise integer kernels.
func qTapTileGo(t *qTapTile, words []int32, floats []float32) {
	for i := range t.columns {
		for ch := range t.channels {
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

// qBands divides a convolution's output into bands of rows. The input of a
// band is copied with its padding where there is any.
type qBands struct {
	axes          *[3]axis
	in, out       [3]int
	channels      int
	copied        bool
	element       int  // bytes of an element of the input of a band
	flip          byte // what words have been exclusive-ored with
	size          int  // elements of a padded row
	width, height int  // pixels and rows of a slice of a padded band, or of the image
	rows, bands   int  // output rows of a band, bands of a slice of the output
}

// bands makes bands whose input has about work elements, and which have at most
// the given number of rows, for kernels of level l, which may want words; always
// asks for copies even where there is no padding.
func (c *Conv) bands(l Level, in, out [3]int, work, rows int, flip byte, always bool) *qBands {
	p := c.planes(out)
	ay := c.axes[1]
	b := &qBands{axes: &c.axes, in: in, out: out, channels: c.spec.Cin, element: qWide(l, false), flip: flip, width: p.width, height: in[1]}
	b.size = p.width * c.spec.Cin
	b.copied = always || b.element > 1 || in != [3]int{p.depth, p.height, p.width} || c.axes[0].begin+ay.begin+c.axes[2].begin > 0
	rows = max(rows, 2*b.extent()-2) // what bands share is made in each
	b.rows = min(out[1], max(1, min(rows, work/(ay.stride*b.size))))
	b.bands = (out[1] + b.rows - 1) / b.rows
	if b.copied {
		b.height = (b.rows-1)*ay.stride + b.extent()
	}
	return b
}

func (b *qBands) extent() int { return (b.axes[1].kernel-1)*b.axes[1].dilation + 1 }

// at is the place in bytes of a kernel position in the input of a band.
func (b *qBands) at(kz, ky, kx int) int {
	if !b.copied {
		kz *= b.axes[0].dilation
	}
	return ((kz*b.height+ky*b.axes[1].dilation)*b.size + kx*b.axes[2].dilation*b.channels) * b.element
}

// qBand is a band: m output rows from y on of slice z of an image, and their
// input, which has 16 more elements behind it where it is copied.
type qBand struct {
	src            []byte
	image, z, y, m int
}

// qBandRows is how many of the output's rows, of so many multiplications each, a
// band should have at most: small images then keep several threads busy.
func qBandRows(pool *par.Pool, l Level, n int, out [3]int, row int) int {
	row = max(row, 1)
	return max(1, share(pool, l, n*out[0]*out[1]*row)/row)
}

// band returns band i of the images x.
func (b *qBands) band(l Level, s *qScratch, x []byte, i int, zero byte) qBand {
	az, ay, ax := b.axes[0], b.axes[1], b.axes[2]
	r := qBand{y: i % b.bands * b.rows, image: i / b.bands / b.out[0], z: i / b.bands % b.out[0]}
	r.m = min(b.rows, b.out[1]-r.y)
	r.src = x[r.image*volume(b.in)*b.channels:]
	if !b.copied {
		r.src = r.src[(r.z*az.stride*b.in[1]+r.y*ay.stride)*b.size:]
		return r
	}
	e := b.element
	buf := growTo(&s.wide, (az.kernel*b.height*b.size+16)*e)
	pad := growTo(&s.a, b.size*e) // a row of padding
	fillBytes(pad[:e], 0)
	pad[0] = zero
	if e > 1 {
		pad[0] ^= b.flip
	}
	for n := e; n < len(pad); n *= 2 {
		copy(pad[n:], pad[:n])
	}
	lead := min(ax.begin, b.width)
	k := min(b.width-lead, b.in[2])
	for kz := range az.kernel {
		iz := r.z*az.stride + kz*az.dilation - az.begin
		for row := range (r.m-1)*ay.stride + b.extent() {
			line := buf[(kz*b.height+row)*b.size*e:][:b.size*e]
			iy := r.y*ay.stride + row - ay.begin
			if uint(iz) >= uint(b.in[0]) || uint(iy) >= uint(b.in[1]) {
				copy(line, pad)
				continue
			}
			copy(line[:lead*b.channels*e], pad)
			from := r.src[(iz*b.in[1]+iy)*b.in[2]*b.channels:][:k*b.channels]
			if to := line[lead*b.channels*e:]; e > 1 {
				widen(l, to, from, b.flip)
			} else {
				copy(to, from)
			}
			copy(line[(lead+k)*b.channels*e:], pad)
		}
	}
	r.src = buf
	return r
}

// runDirect multiplies the bytes where they lie in the bands; those of j's
// group start at element first of a pixel. The zero points of the weights are
// 0 as packed.
func (q *QConv) runDirect(pool *par.Pool, j *qJob, first int, zero int32, n int, in, out [3]int) {
	c := q.conv
	unit, _ := qUnit(j.b.level, false)
	// A run's last unit may reach past it.
	row := out[2] * c.taps * (c.spec.Cin / c.spec.Groups) * (c.spec.Cout / c.spec.Groups)
	bands := c.bands(j.b.level, in, out, 1<<16, qBandRows(pool, j.b.level, n, out, row), j.a.flip(), q.runs.size < q.runs.stride)
	runs := make([]run, 0, q.runs.count)
	width := c.axes[2].kernel
	for r := range q.runs.count {
		t := r
		if q.runs.joined {
			t = r * width
		}
		row := t / width
		off := bands.at(row/c.axes[1].kernel, row%c.axes[1].kernel, t%width) + first*bands.element
		runs = append(runs, run{off, q.runs.stride / unit})
	}
	cols := j.prepare()
	j.columns = cols
	flip := uint32(j.a.flip()^qSign(j.b.level)) * 0x01010101
	pool.For(n*out[0]*bands.bands, 1, func(lo, hi int) {
		s := qScratches.Get().(*qScratch)
		defer qScratches.Put(s)
		t := qTile{
			rows: out[2], per: tileRows(j.b.level, panelWidth(j.b.level), out[2]), runs: runs, count: len(runs), lda: c.axes[2].stride * bands.channels * bands.element,
			mode: j.mode, lo: j.lo, hi: j.hi, zero: j.out.Zero, flip: [4]uint32{flip, flip, flip, flip},
		}
		for i := lo; i < hi; i++ {
			b := bands.band(j.b.level, s, j.a.Data, i, byte(zero))
			for r := range b.m {
				t.a = b.src[r*c.axes[1].stride*bands.size*bands.element:]
				j.panels(&t, ((b.image*out[0]+b.z)*out[1]+b.y+r)*out[2], 0, j.b.n)
			}
		}
	})
	qColumnsPool.Put(cols)
}

func (q *QConv) runDepthwise(pool *par.Pool, a QMatrix, zero int32, n int, in, out [3]int, o *QOut) {
	c, ch := q.conv, q.conv.spec.Cout
	az, ay, ax := c.axes[0], c.axes[1], c.axes[2]
	work := 1 << 15
	if qWide(q.level, false) > 1 {
		work = 1 << 16 // what neighbouring bands share is made twice
	}
	bands := c.bands(q.level, in, out, work, qBandRows(pool, q.level, n, out, out[2]*c.taps*ch), a.flip(), false)
	off := make([]int, 0, c.taps)
	for kz := range az.kernel {
		for ky := range ay.kernel {
			for kx := range ax.kernel {
				off = append(off, bands.at(kz, ky, kx))
			}
		}
	}
	j := qJob{out: o, b: &PackedQB{n: ch, sums: q.sums}, zero: zero + int32(a.flip())}
	cols := j.prepare()
	lv := q.level
	blocks := 0
	if lv == AVX512VNNI && q.wide != nil && j.mode == qBytes {
		blocks = q.wideBlocks()
		// Taps that fill the last group have no weight.
		for len(off)%4 != 0 {
			off = append(off, off[0])
		}
		cols.init4, cols.scale4 = growTo(&cols.init4, 64*blocks), growTo(&cols.scale4, 64*blocks)
		for c := range 64 * blocks {
			at := c&^63 + wideAt(c&63)
			cols.init4[at], cols.scale4[at] = cols.init[c%ch], cols.scale[c%ch]
		}
	}
	group := 4
	if lv == AVX2 {
		if group = 2; len(off)%2 != 0 {
			off = append(off, off[0])
		}
		if q.folded() {
			for c := ch; c < q.pitch; c++ {
				cols.init[c] = cols.init[c%ch]
				if j.mode == qBytes {
					cols.scale[c] = cols.scale[c%ch]
				}
			}
		}
	}
	folds := j.mode == qBytes && q.folded() && (blocks > 0 || lv == AVX2)
	size := 4
	if j.mode == qBytes {
		size = 1
	}
	pool.For(n*out[0]*bands.bands, 1, func(first, last int) {
		s := qScratches.Get().(*qScratch)
		defer qScratches.Put(s)
		t := qTapTile{
			w: q.w, off: off, init: cols.init, scale: cols.scale, bias: cols.bias, taps: c.taps, pitch: q.pitch,
			columns: out[2], channels: ch, xStep: ax.stride * ch * bands.element, cStep: ch * size, mode: j.mode,
			lo: j.lo, hi: j.hi, zero: o.Zero, flip: uint32(a.flip()),
			wide: q.wide, init4: cols.init4, scale4: cols.scale4, blocks: blocks, groups: len(off) / group,
			last: ^uint64(0) >> max(0, 64*blocks-ch),
		}
		for i := first; i < last; i++ {
			b := bands.band(lv, s, a.Data, i, byte(zero))
			for r := range b.m {
				t.x = b.src[r*ay.stride*bands.size*bands.element:]
				at := ((b.image*out[0]+b.z)*out[1] + b.y + r) * out[2] * ch
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
				if folds {
					t.foldedRow(lv, bands.element)
				} else {
					qTapKernel(lv, &t, words, floats)
				}
			}
		}
	})
	qColumnsPool.Put(cols)
}

// foldedRow computes a row of bytes of pixels as if neighbouring bytes were the
// channels of one. An element of the input has the given size.
func (t *qTapTile) foldedRow(l Level, element int) {
	r, lanes := *t, qLanes(l)
	r.channels, r.xStep, r.cStep, r.last = lanes, lanes*element, lanes, ^uint64(0)
	n := len(t.c)
	if r.columns = n / lanes; r.columns > 0 {
		qTapKernel(l, &r, nil, nil)
	}
	if rest := n % lanes; rest > 0 {
		r.x, r.c = t.x[(n-rest)*element:], t.c[n-rest:]
		r.columns, r.channels, r.last = 1, rest, ^uint64(0)>>(64-rest)
		qTapKernel(l, &r, nil, nil)
	}
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
