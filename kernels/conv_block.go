package kernels

import (
	"fmt"

	"github.com/onnxq/onnxq/internal/par"
)

// BlockSize is the number of channels in a block of an Image.
const BlockSize = 16

// Image is the layout of one image of C channels of H×W pixels with a border
// of Top, Left, Bottom and Right pixels around it: blocks of 16 channels,
// [ceil(C/16)][Top+H+Bottom][Left+W+Right][16], or with Planar set
// [C][Top+H+Bottom][Left+W+Right]. A convolution reads its padding from the
// border, which holds zeros then, as do the channels past C.
type Image struct {
	C, H, W                  int
	Top, Left, Bottom, Right int
	Planar                   bool
}

// Len returns the number of elements of the image, border included.
func (m Image) Len() int {
	n := (m.Top + m.H + m.Bottom) * m.line()
	if m.Planar {
		return m.C * n
	}
	return (m.C + BlockSize - 1) / BlockSize * n
}

// lanes is the number of neighbouring elements of a pixel.
func (m Image) lanes() int {
	if m.Planar {
		return 1
	}
	return BlockSize
}

// line is the number of elements from row to row, plane from block to block,
// or channel to channel of a planar image.
func (m Image) line() int  { return (m.Left + m.W + m.Right) * m.lanes() }
func (m Image) plane() int { return (m.Top + m.H + m.Bottom) * m.line() }

// at is the place of pixel (y, x), which may lie in the border, in a plane.
func (m Image) at(y, x int) int { return (m.Top+y)*m.line() + (m.Left+x)*m.lanes() }

// column tells whether the image is one column of pixels, and turned is then
// its layout as one row.
func (m Image) column() bool { return m.W == 1 && m.Left|m.Right == 0 }

func (m Image) turned() Image {
	m.H, m.W, m.Top, m.Left, m.Bottom, m.Right = m.W, m.H, m.Left, m.Top, m.Right, m.Bottom
	return m
}

// dense tells whether rows follow each other without a border.
func (m Image) dense() bool { return m.Top|m.Left|m.Bottom|m.Right == 0 }

// ClearBorder sets the borders of n images to zero.
func (m Image) ClearBorder(n int, x []float32) {
	if m.dense() {
		return
	}
	for ; n > 0; n-- {
		for p := x[:m.Len()]; len(p) > 0; p = p[m.plane():] {
			clear(p[:m.Top*m.line()])
			for y := range m.H {
				row := p[(m.Top+y)*m.line():][:m.line()]
				clear(row[:m.Left*m.lanes()])
				clear(row[(m.Left+m.W)*m.lanes():])
			}
			clear(p[(m.Top+m.H)*m.line() : m.plane()])
		}
		x = x[m.Len():]
	}
}

// reorderWork is the number of elements that one task of a change of layout
// moves.
const reorderWork = 1 << 15

// ToImage copies n images from the layout [C][H][W] into layout m and sets the
// channels past C to zero. It leaves the border as it is.
func (m Image) ToImage(pool *par.Pool, n int, dst, src []float32) {
	m.reorder(pool, n, dst, src, true)
}

// FromImage copies n images from layout m to the layout [C][H][W].
func (m Image) FromImage(pool *par.Pool, n int, dst, src []float32) {
	m.reorder(pool, n, src, dst, false)
}

// reorder moves between the images x in layout m and plain images.
func (m Image) reorder(pool *par.Pool, n int, x, plain []float32, to bool) {
	lanes := m.lanes()
	blocks, pixels := (m.C+lanes-1)/lanes, m.H*m.W
	_, _ = x[:n*m.Len()], plain[:n*m.C*pixels]
	rows, width := m.H, m.W
	if m.Left|m.Right == 0 {
		rows, width = 1, pixels
	}
	lv := level
	pool.For(n*blocks, max(1, reorderWork/(pixels*lanes)), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			image, block := i/blocks, i%blocks
			b := x[image*m.Len()+block*m.plane():][:m.plane()]
			p := plain[(image*m.C+block*lanes)*pixels:]
			c := min(lanes, m.C-block*lanes)
			for y := range rows {
				row := b[m.at(y, 0):][:width*lanes]
				switch {
				case m.Planar && to:
					copy(row, p[y*width:])
				case m.Planar:
					copy(p[y*width:][:width], row)
				case to:
					interleave(lv, row, p[y*width:], pixels, c)
				default:
					deinterleave(lv, p[y*width:], pixels, row, c)
				}
			}
		}
	})
}

// interleave sets dst[i*16+j] to src[j*step+i] for j below c and to zero for
// the other lanes.
func interleave(l Level, dst, src []float32, step, c int) {
	n := len(dst) / BlockSize
	first := 0
	for ; first+8 <= c && n >= 8 && l >= AVX2; first += 8 {
		_ = src[(first+7)*step+n-1]
		transpose8(dst[first:], BlockSize, 8*BlockSize, src[first*step:], step, 8, n/8)
		if n%8 != 0 {
			transpose8(dst[(n-8)*BlockSize+first:], BlockSize, 0, src[first*step+n-8:], step, 0, 1)
		}
	}
	for j := first; j < c; j++ {
		for i, v := range src[j*step:][:n] {
			dst[i*BlockSize+j] = v
		}
	}
	if c < BlockSize {
		for i := range n {
			clear(dst[i*BlockSize+c : (i+1)*BlockSize])
		}
	}
}

// deinterleave sets dst[j*step+i] to src[i*16+j] for j below c.
func deinterleave(l Level, dst []float32, step int, src []float32, c int) {
	n := len(src) / BlockSize
	first := 0
	for ; first+8 <= c && n >= 8 && l >= AVX2; first += 8 {
		_ = dst[(first+7)*step+n-1]
		transpose8(dst[first*step:], step, 8, src[first:], BlockSize, 8*BlockSize, n/8)
		if n%8 != 0 {
			transpose8(dst[first*step+n-8:], step, 0, src[(n-8)*BlockSize+first:], BlockSize, 0, 1)
		}
	}
	for j := first; j < c; j++ {
		for i := range dst[j*step:][:n] {
			dst[j*step+i] = src[i*BlockSize+j]
		}
	}
}

// run is a run of consecutive input elements that a product takes in: its
// place from the pixel on, and its length.
type run struct{ off, n int }

// blockTile is a piece of a direct convolution: rows pixels of one output row
// times one panel of 16 or 32 output channels. Assembly reads it by offset,
// and slices by their first word.
type blockTile struct {
	x, w      []float32 // w: [sum of the runs][width]
	y0, y1    []float32 // the two blocks of a panel of 32
	r0, r1    []float32 // residual, or nil
	bias      []float32
	runs      []run
	count     int // of runs
	lda       int // elements from pixel to pixel of x
	rows, per int // pixels, and how many to compute at once
	lo, hi    float32
	work      [6]uintptr
}

// blockTileGo is the specification of the direct convolution kernels. Each sum
// runs over the runs in order from 0, then adds the bias and the residual.
// Assembly fuses each multiplication with its addition; here they round
// separately.
func blockTileGo(t *blockTile, width int) {
	for i := range t.rows {
		var s [2 * BlockSize]float32
		w := t.w
		for _, r := range t.runs[:t.count] {
			for _, x := range t.x[i*t.lda+r.off:][:r.n] {
				for j, v := range w[:width] {
					s[j] += float32(x * v)
				}
				w = w[width:]
			}
		}
		for j := range width {
			s[j] += t.bias[j]
		}
		out := [2][2][]float32{{t.y0, t.r0}, {t.y1, t.r1}}
		for b := range width / BlockSize {
			y, r := out[b][0][i*BlockSize:], out[b][1]
			for j, v := range s[b*BlockSize:][:BlockSize] {
				if r != nil {
					v += r[i*BlockSize+j]
				}
				y[j] = clamp32(v, t.lo, t.hi)
			}
		}
	}
}

// blockTapTile is a piece of a depthwise convolution: rows pixels of one
// output row of one block. Assembly reads it by offset, and slices by their
// first word.
type blockTapTile struct {
	x, w, y, r, bias []float32 // w: [taps][16]
	off              []int
	taps, lda, rows  int
	lo, hi           float32
}

// blockTapTileGo is the specification of the blocked depthwise kernels; its
// order of sums is that of blockTileGo.
func blockTapTileGo(t *blockTapTile) {
	for i := range t.rows {
		var s [BlockSize]float32
		for k, off := range t.off[:t.taps] {
			w := t.w[k*BlockSize:][:BlockSize]
			for j, x := range t.x[i*t.lda+off:][:BlockSize] {
				s[j] += float32(x * w[j])
			}
		}
		y := t.y[i*BlockSize:][:BlockSize]
		for j := range y {
			v := s[j] + t.bias[j]
			if t.r != nil {
				v += t.r[i*BlockSize+j]
			}
			y[j] = clamp32(v, t.lo, t.hi)
		}
	}
}

// BlockConv is a float32 convolution over one or two spatial axes on blocked
// images, computed directly. It never changes, so goroutines may share it.
type BlockConv struct {
	conv   *Conv
	level  Level
	planar bool
	taps   bool // depthwise
	panels []blockPanel
	k      int // products of an output element, per group
}

type blockPanel struct {
	w, bias      []float32
	width        int
	block, group int
}

// NewBlockConv prepares the convolution of s, as NewConv does, for planar or
// blocked input. It serves one or two spatial axes, the first of which is
// the rows where there are two, and blocked input in several groups where the
// channels of a group are whole blocks or one each; for other convolutions it
// returns nil and no error.
func NewBlockConv(s ConvSpec, w, bias []float32, planar bool) (*BlockConv, error) {
	c, err := newConv(s, len(w), bias)
	if err != nil {
		return nil, err
	}
	cin, cout := s.Cin/s.Groups, s.Cout/s.Groups
	b := &BlockConv{conv: c, level: level, planar: planar, k: cin * c.taps}
	b.taps = s.Groups > 1 && cin == 1 && cout == 1
	if c.dims > 2 || s.Groups > 1 && (planar || !b.taps && (cin%BlockSize != 0 || cout%BlockSize != 0)) {
		return nil, nil
	}
	if b.taps {
		for at := 0; at < s.Cout; at += BlockSize {
			p := blockPanel{w: make([]float32, c.taps*BlockSize), bias: panelBias(bias, at, s.Cout), width: BlockSize, block: at / BlockSize}
			for j := range min(BlockSize, s.Cout-at) {
				for t := range c.taps {
					p.w[t*BlockSize+j] = w[(at+j)*c.taps+t]
				}
			}
			b.panels = append(b.panels, p)
		}
		return b, nil
	}
	most := BlockSize
	if b.level >= AVX512 {
		most = 2 * BlockSize
	}
	for g := range s.Groups {
		for at := 0; at < cout; {
			width := most
			if cout-at <= BlockSize {
				width = BlockSize
			}
			p := blockPanel{
				w: make([]float32, b.k*width), bias: panelBias(bias, g*cout+at, (g+1)*cout),
				width: width, block: (g*cout + at) / BlockSize, group: g,
			}
			for j := range min(width, cout-at) {
				src := w[(g*cout+at+j)*b.k:][:b.k]
				to := 0
				b.order(cin, func(ci, tap int) {
					p.w[to*width+j] = src[ci*c.taps+tap]
					to++
				})
			}
			b.panels = append(b.panels, p)
			at += width
		}
	}
	return b, nil
}

// panelBias returns 32 values of s from at on, zeros from end on or where s is
// nil.
func panelBias(s []float32, at, end int) []float32 {
	d := make([]float32, 2*BlockSize)
	if s != nil {
		copy(d, s[at:min(end, at+len(d))])
	}
	return d
}

// order calls f for every product of an output element in the order of its
// sum: by channel and kernel position for planar input, else by block, kernel
// position and channel.
func (b *BlockConv) order(cin int, f func(ci, tap int)) {
	if b.planar {
		for ci := range cin {
			for t := range b.conv.taps {
				f(ci, t)
			}
		}
		return
	}
	for at := 0; at < cin; at += BlockSize {
		for t := range b.conv.taps {
			for ci := at; ci < min(at+BlockSize, cin); ci++ {
				f(ci, t)
			}
		}
	}
}

// runs returns the runs of an output element's products on images like m.
func (b *BlockConv) runs(m Image, ay, ax axis) []run {
	c := b.conv
	cin := c.spec.Cin / c.spec.Groups
	lanes := m.lanes()
	var r []run
	for at := 0; at < cin; at += lanes {
		for ky := range ay.kernel {
			for kx := range ax.kernel {
				n := min(lanes, cin-at)
				off := at/lanes*m.plane() + ky*ay.dilation*m.line() + kx*ax.dilation*lanes
				if k := len(r) - 1; k >= 0 && r[k].off+r[k].n == off {
					r[k].n += n
				} else {
					r = append(r, run{off, n})
				}
			}
		}
	}
	return r
}

// Out returns the layout of the output for images like m, without a border.
func (b *BlockConv) Out(m Image) (Image, error) {
	spatial := []int{m.H, m.W}
	if b.conv.dims == 1 {
		spatial = spatial[1:]
	}
	out, err := b.conv.out(spatial)
	if err != nil {
		return Image{}, err
	}
	if m.C != b.conv.spec.Cin || b.conv.dims == 1 && m.H != 1 {
		return Image{}, fmt.Errorf("convolution of %d channels and %d axes on images of %d channels and %d rows", b.conv.spec.Cin, b.conv.dims, m.C, m.H)
	}
	return Image{C: b.conv.spec.Cout, H: out[1], W: out[2]}, nil
}

// Border returns m with the border that Run reads, or more where m has it.
func (b *BlockConv) Border(m Image) (Image, error) {
	out, err := b.Out(m)
	if err != nil {
		return m, err
	}
	ay, ax := b.conv.axes[1], b.conv.axes[2]
	m.Top, m.Left = max(m.Top, ay.begin), max(m.Left, ax.begin)
	m.Bottom = max(m.Bottom, (out.H-1)*ay.stride+(ay.kernel-1)*ay.dilation+1-ay.begin-m.H)
	m.Right = max(m.Right, (out.W-1)*ax.stride+(ax.kernel-1)*ax.dilation+1-ax.begin-m.W)
	return m, nil
}

// Run convolves n images x of layout xm, whose border is at least that of
// Border and zero, and writes the pixels of the images y of layout ym. A
// residual of layout rm, or nil, is added before the clamp.
func (b *BlockConv) Run(pool *par.Pool, n int, x []float32, xm Image, y []float32, ym Image, residual []float32, rm Image) error {
	need, err := b.Border(xm)
	if err != nil {
		return err
	}
	out, _ := b.Out(xm)
	fits := func(m Image) bool { return m.C == out.C && m.H == out.H && m.W == out.W && !m.Planar }
	if need != xm || xm.Planar != b.planar || !fits(ym) || residual != nil && !fits(rm) {
		return fmt.Errorf("convolution of images %+v to %+v plus %+v; it needs %+v to %+v", xm, ym, rm, need, out)
	}
	if len(x) < n*xm.Len() || len(y) < n*ym.Len() || residual != nil && len(residual) < n*rm.Len() {
		return fmt.Errorf("convolution of %d images with %d inputs, %d outputs and %d residuals", n, len(x), len(y), len(residual))
	}
	c := b.conv
	ay, ax := c.axes[1], c.axes[2]
	if xm.column() && ym.column() && (residual == nil || rm.column()) && ax.kernel == 1 && ax.stride == 1 {
		// The kernels work along rows.
		ay, ax, out = ax, ay, out.turned()
		xm, ym, rm = xm.turned(), ym.turned(), rm.turned()
	}
	j := &blockJob{
		conv: b, ay: ay, ax: ax, x: x, y: y, r: residual, xm: xm, ym: ym, rm: rm,
		rows: out.H, width: out.W, all: out.H * out.W,
	}
	if c.taps == 1 && c.pointwise() && xm.dense() && ym.dense() && (residual == nil || rm.dense()) {
		// Pixels of all rows in a row, cut where it suits.
		j.flat = true
		j.width = min(j.all, gemmMC)
		j.rows = (j.all + j.width - 1) / j.width
	}
	if b.taps {
		j.bands(j.width*BlockSize*c.taps, ay.stride*xm.line())
		j.off = make([]int, 0, c.taps)
		for ky := range ay.kernel {
			for kx := range ax.kernel {
				j.off = append(j.off, ky*ay.dilation*xm.line()+kx*ax.dilation*BlockSize)
			}
		}
		j.blocks, j.each = len(b.panels), 1
	} else {
		cin := c.spec.Cin / c.spec.Groups
		j.runs = b.runs(xm, ay, ax)
		j.bands(j.width*b.panels[0].width*b.k, ay.stride*xm.line()*max(1, cin/xm.lanes()))
		// Panels that share a band: those whose weights stay in the second cache.
		j.each = min(len(b.panels), max(1, (1<<17)/len(b.panels[0].w)))
		j.blocks = (len(b.panels) + j.each - 1) / j.each
	}
	work := j.band * j.each * j.width * b.panels[0].width * max(1, b.k)
	pool.For(n*j.blocks*j.nBands, max(1, gemmWork/16/work), j.tasks)
	return nil
}

// blockJob is one call of BlockConv.Run.
type blockJob struct {
	conv             *BlockConv
	ay, ax           axis
	x, y, r          []float32
	xm, ym, rm       Image
	flat             bool
	rows, width, all int // output rows, pixels of a full one, pixels
	runs             []run
	off              []int
	band, nBands     int // output rows a task, tasks an image and block
	each, blocks     int // panels a task, tasks an image and band
}

// bands divides the rows so that a task has enough work and its input stays in
// the second cache. A row costs work products and reads size new elements.
func (j *blockJob) bands(work, size int) {
	j.band = min(j.rows, max(1, (1<<15)/max(size, 1), (1<<17)/work))
	j.nBands = (j.rows + j.band - 1) / j.band
}

// tasks computes the pieces [lo, hi), numbered by image, panels, rows.
func (j *blockJob) tasks(lo, hi int) {
	b := j.conv
	c := b.conv
	per := tileRows(b.level, j.width)
	ay, ax := j.ay, j.ax
	lanes := j.xm.lanes()
	for i := lo; i < hi; i++ {
		image, piece, band := i/j.nBands/j.blocks, i/j.nBands%j.blocks, i%j.nBands
		x, y := j.x[image*j.xm.Len():][:j.xm.Len()], j.y[image*j.ym.Len():][:j.ym.Len()]
		var r []float32
		if j.r != nil {
			r = j.r[image*j.rm.Len():][:j.rm.Len()]
		}
		for p := piece * j.each; p < min((piece+1)*j.each, len(b.panels)); p++ {
			panel := &b.panels[p]
			xb := x
			if b.taps {
				xb = x[panel.block*j.xm.plane():]
			} else if panel.group > 0 {
				xb = x[panel.group*(c.spec.Cin/c.spec.Groups)/BlockSize*j.xm.plane():]
			}
			yb := y[panel.block*j.ym.plane():]
			var rb []float32
			if r != nil {
				rb = r[panel.block*j.rm.plane():]
			}
			for row := band * j.band; row < min((band+1)*j.band, j.rows); row++ {
				width := j.width
				var xAt, yAt, rAt int
				if j.flat {
					at := row * j.width
					width = min(width, j.all-at)
					xAt, yAt, rAt = at*lanes, at*BlockSize, at*BlockSize
				} else {
					xAt, yAt, rAt = j.xm.at(row*ay.stride-ay.begin, -ax.begin), j.ym.at(row, 0), j.rm.at(row, 0)
				}
				if b.taps {
					t := blockTapTile{
						x: xb[xAt:], w: panel.w, y: yb[yAt:][:width*BlockSize], bias: panel.bias, off: j.off,
						taps: c.taps, lda: ax.stride * BlockSize, rows: width, lo: c.lo, hi: c.hi,
					}
					if rb != nil {
						t.r = rb[rAt:][:width*BlockSize]
					}
					blockTapKernel(b.level, &t)
					continue
				}
				t := blockTile{
					x: xb[xAt:], w: panel.w, y0: yb[yAt:][:width*BlockSize], bias: panel.bias, runs: j.runs, count: len(j.runs),
					lda: ax.stride * lanes, rows: width, per: per, lo: c.lo, hi: c.hi,
				}
				if rb != nil {
					t.r0 = rb[rAt:][:width*BlockSize]
				}
				if panel.width > BlockSize {
					t.y1 = yb[yAt+j.ym.plane():][:width*BlockSize]
					if rb != nil {
						t.r1 = rb[rAt+j.rm.plane():][:width*BlockSize]
					}
				}
				blockKernel(b.level, &t, panel.width)
			}
		}
	}
}
