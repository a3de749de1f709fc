package kernels

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"

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

// modest tells whether the image with its border is not much larger than size
// elements, as it is unless pads or dilations exceed it.
func (m Image) modest(size int) bool {
	limit := 16*size + 1<<12
	rows, width := m.Top+m.H+m.Bottom, m.Left+m.W+m.Right
	return rows <= limit && width <= limit/rows && m.Len() <= limit
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
// times one panel of 8, 16 or 32 output channels. Assembly reads it by offset,
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
	step      int // elements from pixel to pixel of y0, y1, r0 and r1
}

// blockTileGo is the specification of the direct convolution kernels. Each sum
// runs over the runs in order from 0, then adds the residual and the bias.
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
		out := [2][2][]float32{{t.y0, t.r0}, {t.y1, t.r1}}
		for b := range (width + BlockSize - 1) / BlockSize {
			y, r := out[b][0][i*t.step:][:BlockSize], out[b][1]
			n := min(width-b*BlockSize, BlockSize)
			for j, v := range s[b*BlockSize:][:n] {
				if r != nil {
					v += r[i*t.step+j]
				}
				y[j] = clamp32(v+t.bias[b*BlockSize+j], t.lo, t.hi)
			}
			clear(y[n:])
		}
	}
}

// BlockConv is a float32 convolution, or transposed convolution, over one or two
// spatial axes on blocked images, computed directly. It never changes, so
// goroutines may share it.
type BlockConv struct {
	conv    *Conv
	level   Level
	planar  bool
	taps    bool // depthwise
	windows atomic.Pointer[windowPlan]
	jobs    atomic.Pointer[blockJobs]
	shapes  atomic.Pointer[chainShape]
	// Where it can be computed in the domain of Winograd, direct makes the
	// panels of the phases, and winogradPanels those.
	direct         func()
	winogradPanels func() []blockPanel
	strideY        int // input pixels from output pixel to output pixel of a phase
	strideX        int
	stepY          int // output pixels from one to the next of a phase
	stepX          int
	phases         []blockPhase
}

// blockPhase is a part of the output pixels, all of which read the same kernel
// positions: all pixels of a convolution, or those of a transposed one that
// agree modulo the strides.
type blockPhase struct {
	y, x   int // the first pixel
	taps   []blockTap
	panels []blockPanel
}

// blockTap is a kernel position and the input pixel that output pixel (0, 0) of
// the phase reads for it.
type blockTap struct{ tap, dy, dx int }

type blockPanel struct {
	w, bias      []float32
	width        int
	block, group int
}

// maxPhases bounds the products of the strides of a transposed BlockConv.
const maxPhases = 64

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
	return newBlockConv(c, w, planar), nil
}

// NewBlockConvTranspose prepares the transposed convolution of s, as
// NewConvTranspose does, for planar or blocked input. It serves what
// NewBlockConv serves, but for groups of one channel, and products of the
// strides up to 64.
func NewBlockConvTranspose(s ConvSpec, w, bias []float32, planar bool) (*BlockConv, error) {
	c, err := newConv(s, len(w), bias)
	if err != nil {
		return nil, err
	}
	c.transposed = true
	return newBlockConv(c, w, planar), nil
}

func newBlockConv(c *Conv, w []float32, planar bool) *BlockConv {
	s := &c.spec
	cin, cout := s.Cin/s.Groups, s.Cout/s.Groups
	ay, ax := c.axes[1], c.axes[2]
	b := &BlockConv{conv: c, level: level, planar: planar, strideY: ay.stride, strideX: ax.stride, stepY: 1, stepX: 1}
	b.taps = s.Groups > 1 && cin == 1 && cout == 1 && !c.transposed
	if c.dims > 2 || s.Groups > 1 && (planar || !b.taps && (cin%BlockSize != 0 || cout%BlockSize != 0)) {
		return nil
	}
	if c.transposed {
		if ay.stride > maxPhases || ax.stride > maxPhases || ay.stride*ax.stride > maxPhases {
			return nil
		}
		b.strideY, b.strideX, b.stepY, b.stepX = 1, 1, ay.stride, ax.stride
	}
	for y := range b.stepY {
		for x := range b.stepX {
			p := blockPhase{y: y, x: x}
			for tap := range c.taps {
				ky, kx := tap/ax.kernel*ay.dilation, tap%ax.kernel*ax.dilation
				t := blockTap{tap, ky - ay.begin, kx - ax.begin}
				if c.transposed {
					// Output o gets input i at kernel position k where
					// o = i*stride + k - begin.
					t.dy, t.dx = y+ay.begin-ky, x+ax.begin-kx
					if t.dy%ay.stride != 0 || t.dx%ax.stride != 0 {
						continue
					}
					t.dy, t.dx = t.dy/ay.stride, t.dx/ax.stride
				}
				p.taps = append(p.taps, t)
			}
			b.phases = append(b.phases, p)
		}
	}
	direct := func() {
		for i := range b.phases {
			b.pack(&b.phases[i], w)
		}
	}
	if b.winograd() {
		// Which is made depends on the images.
		b.direct = sync.OnceFunc(direct)
		b.winogradPanels = sync.OnceValue(func() []blockPanel { return b.packWinograd(w) })
	} else {
		direct()
	}
	return b
}

// pack fills the panels of p.
func (b *BlockConv) pack(p *blockPhase, w []float32) {
	c, s := b.conv, &b.conv.spec
	cin, cout := s.Cin/s.Groups, s.Cout/s.Groups
	if b.taps {
		for at := 0; at < s.Cout; at += BlockSize {
			q := blockPanel{w: make([]float32, c.taps*BlockSize), bias: panelBias(c.bias, at, s.Cout), width: BlockSize, block: at / BlockSize}
			for j := range min(BlockSize, s.Cout-at) {
				for t := range c.taps {
					q.w[t*BlockSize+j] = w[(at+j)*c.taps+t]
				}
			}
			p.panels = append(p.panels, q)
		}
		return
	}
	lanes := b.lanes()
	for g := range s.Groups {
		for at := 0; at < cout; {
			width := b.panelWidth(cout-at, true)
			q := blockPanel{
				w: make([]float32, len(p.taps)*cin*width), bias: panelBias(c.bias, g*cout+at, (g+1)*cout),
				width: width, block: (g*cout + at) / BlockSize, group: g,
			}
			to := 0
			for first := 0; first < cin; first += lanes {
				for _, t := range p.taps {
					for ci := first; ci < min(first+lanes, cin); ci++ {
						for j := range min(width, cout-at) {
							i := (g*cout+at+j)*cin + ci
							if c.transposed {
								i = (g*cin+ci)*cout + at + j
							}
							q.w[to+j] = w[i*c.taps+t.tap]
						}
						to += width
					}
				}
			}
			p.panels = append(p.panels, q)
			at += width
		}
	}
}

// panelWidth is the width of the next panel where channels are left: one or two
// blocks, or half a one where the kernels may serve that.
func (b *BlockConv) panelWidth(channels int, half bool) int {
	switch {
	case b.level >= AVX512 && channels > BlockSize:
		return 2 * BlockSize
	case b.level == AVX2 && channels <= BlockSize/2 && half:
		return BlockSize / 2
	}
	return BlockSize
}

// lanes is the number of channels that lie side by side in the input.
func (b *BlockConv) lanes() int {
	if b.planar {
		return 1
	}
	return BlockSize
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

// size is the number of output rows and columns of a phase.
func (b *BlockConv) size(p *blockPhase, out Image) (rows, width int) {
	return max(0, (out.H-p.y+b.stepY-1)/b.stepY), max(0, (out.W-p.x+b.stepX-1)/b.stepX)
}

// Border returns m with the border that Run reads, or more where m has it.
func (b *BlockConv) Border(m Image) (Image, error) {
	out, err := b.Out(m)
	if err != nil {
		return m, err
	}
	for i := range b.phases {
		p := &b.phases[i]
		rows, width := b.size(p, out)
		if rows == 0 || width == 0 {
			continue
		}
		for _, t := range p.taps {
			m.Top, m.Left = max(m.Top, -t.dy), max(m.Left, -t.dx)
			m.Bottom = max(m.Bottom, (rows-1)*b.strideY+t.dy+1-m.H)
			m.Right = max(m.Right, (width-1)*b.strideX+t.dx+1-m.W)
		}
	}
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
	if residual == nil {
		rm = ym
	}
	if b.taps && rm != ym {
		// The kernel wants one layout.
		s := convScratches.get()
		defer convScratches.put(s)
		plain := grow(&s.c, n*rm.C*rm.H*rm.W)
		rm.FromImage(pool, n, plain, residual)
		residual = grow(&s.a, n*ym.Len())
		ym.ToImage(pool, n, residual, plain)
	}
	if b.taps {
		b.runTaps(pool, n, x, xm, y, ym, residual, false, false)
		return nil
	}
	b.compute(pool, n, x, xm, y, ym, residual, rm, false)
	return nil
}

// compute runs the phases of a convolution that is not depthwise. With plain
// set, y and residual are in the layout [C][H][W], ym and rm are the shape of
// the output, and there is one phase.
func (b *BlockConv) compute(pool *par.Pool, n int, x []float32, xm Image, y []float32, ym Image, residual []float32, rm Image, plain bool) {
	if b.viaWinograd(n, ym) {
		b.runWinograd(pool, n, x, xm, y, ym, residual, rm, plain)
		return
	}
	if b.direct != nil {
		b.direct()
	}
	jobs := b.jobs.Load()
	if jobs == nil || jobs.xm != xm || jobs.ym != ym || jobs.rm != rm || jobs.plain != plain || jobs.threads != pool.Threads() {
		jobs = b.newJobs(pool, xm, ym, rm, plain)
		b.jobs.Store(jobs)
	}
	for i := range jobs.phases {
		j := jobs.phases[i]
		j.x, j.y, j.r = x, y, residual
		pool.For(n*j.blocks*j.nBands, j.grain, j.tasks)
	}
}

// blockJobs are the phases of a convolution of images of given layouts, for so
// many threads.
type blockJobs struct {
	threads    int
	xm, ym, rm Image
	plain      bool
	phases     []blockJob // without data
}

func (b *BlockConv) newJobs(pool *par.Pool, xm, ym, rm Image, plain bool) *blockJobs {
	c := b.conv
	jobs := &blockJobs{threads: pool.Threads(), xm: xm, ym: ym, rm: rm, plain: plain}
	for i := range b.phases {
		p := &b.phases[i]
		rows, width := b.size(p, ym)
		if rows == 0 || width == 0 {
			continue
		}
		j := blockJob{
			conv: b, phase: p, xm: xm, ym: ym, rm: rm, rows: rows, width: width, all: rows * width,
			strideY: b.strideY, strideX: b.strideX, taps: p.taps, plain: plain,
		}
		if !c.transposed && xm.column() && ym.column() && rm.column() {
			// The kernels work along rows.
			j.xm, j.ym, j.rm = xm.turned(), ym.turned(), rm.turned()
			j.rows, j.width, j.strideY, j.strideX = width, rows, b.strideX, b.strideY
			j.taps = make([]blockTap, len(p.taps))
			for i, t := range p.taps {
				j.taps[i] = blockTap{t.tap, t.dx, t.dy}
			}
		}
		if c.pointwise() && xm.dense() && ym.dense() && rm.dense() {
			// Pixels of all rows in a row, cut where it suits.
			j.flat = true
			parts := (j.all + gemmMC - 1) / gemmMC
			j.width = min(j.all, roundUp((j.all+parts-1)/parts, tileRows(b.level, p.panels[0].width, gemmMC)))
			j.rows = (j.all + j.width - 1) / j.width
		}
		j.divide(pool)
		jobs.phases = append(jobs.phases, j)
	}
	return jobs
}

// blockJob is one phase of a call of BlockConv.Run.
type blockJob struct {
	conv             *BlockConv
	phase            *blockPhase
	x, y, r          []float32
	xm, ym, rm       Image
	plain            bool // y and r are in the layout [C][H][W]
	flat             bool
	rows, width, all int // output rows, pixels of a full one, pixels
	strideY, strideX int
	taps             []blockTap
	dy, dx           int // the least of the taps
	parts            []blockPart
	band, nBands     int // output rows a task, tasks an image and block
	each, blocks     int // panels a task, tasks an image and band
	grain            int // tasks at a time
}

// divide decides how the work on an image is divided.
func (j *blockJob) divide(pool *par.Pool) {
	b, panels := j.conv, j.phase.panels
	cin, lanes := b.conv.spec.Cin/b.conv.spec.Groups, j.xm.lanes()
	if len(j.taps) > 0 {
		j.dy, j.dx = j.taps[0].dy, j.taps[0].dx
	}
	for _, t := range j.taps {
		j.dy, j.dx = min(j.dy, t.dy), min(j.dx, t.dx)
	}
	j.setParts(cin, lanes, func(t blockTap) int { return (t.dy-j.dy)*j.xm.line() + (t.dx-j.dx)*lanes })
	// Panels that share a band: those whose weights stay in the second cache.
	j.each = min(len(panels), max(1, (1<<17)/max(1, len(panels[0].w))))
	// A band has enough work, and its input stays in the second cache.
	work := j.width * max(len(panels[0].w), 1)
	size := j.strideY * j.xm.line() * max(1, cin/lanes)
	if j.flat {
		size = j.width * cin
	}
	j.band = min(j.rows, max(1, (1<<15)/size, (1<<17)/work))
	most := share(pool, b.level, j.rows*len(panels)*work)
	j.band = min(j.band, max(1, most/(work*j.each)))
	j.each = min(j.each, max(1, most/(work*j.band)))
	j.blocks = (len(panels) + j.each - 1) / j.each
	j.nBands = (j.rows + j.band - 1) / j.band
	j.grain = max(1, taskWork(b.level)/(work*j.band*j.each))
}

// blockPart is a part of the products of an output element. Each is summed from
// 0, the sums are added in order.
type blockPart struct {
	runs []run
	at   int // its first weight, in rows of a panel
}

// pointwiseDepth is the number of channels in a part where there is one kernel
// position.
const pointwiseDepth = 128

// setParts sets the parts and their runs: by block of channels, kernel position
// and channel. A part is a block of channels, or pointwiseDepth of them where
// there is one position: so ONNX Runtime divides them on processors with
// AVX-512, and what is equal here is equal to the bit there.
func (j *blockJob) setParts(cin, lanes int, at func(blockTap) int) {
	depth := lanes
	if len(j.taps) == 1 {
		depth = pointwiseDepth
	}
	rows := 0
	for first := 0; first < cin; first += lanes {
		if first%depth == 0 {
			j.parts = append(j.parts, blockPart{at: rows})
		}
		p := &j.parts[len(j.parts)-1]
		n := min(lanes, cin-first)
		for _, t := range j.taps {
			off := first/lanes*j.xm.plane() + at(t)
			if k := len(p.runs) - 1; k >= 0 && p.runs[k].off+p.runs[k].n == off {
				p.runs[k].n += n
			} else {
				p.runs = append(p.runs, run{off, n})
			}
			rows += n
		}
	}
	if len(j.taps) == 0 {
		j.parts = []blockPart{{runs: []run{{}}}}
	}
}

// blockRoom is what a task needs besides inputs and outputs.
type blockRoom struct {
	x, y, r, m, strip []float32
	runs              []run
}

var blockRooms spares[blockRoom]

// tasks computes the pieces [lo, hi), numbered by image, panels, rows.
func (j *blockJob) tasks(lo, hi int) {
	var room *blockRoom
	if j.plain {
		room = blockRooms.get()
		defer blockRooms.put(room)
	}
	for i := lo; i < hi; i++ {
		image, piece, band := i/j.nBands/j.blocks, i/j.nBands%j.blocks, i%j.nBands
		first, end := band*j.band, min((band+1)*j.band, j.rows)
		for p := piece * j.each; p < min((piece+1)*j.each, len(j.phase.panels)); p++ {
			panel := &j.phase.panels[p]
			x := j.x[image*j.xm.Len()+j.inBlock(panel)*j.xm.plane():]
			if j.plain {
				j.plainBand(room, panel, x, image, first, end)
				continue
			}
			y, yp := j.y[image*j.ym.Len()+panel.block*j.ym.plane():], j.ym.plane()
			var r []float32
			rp := j.rm.plane()
			if j.r != nil {
				r = j.r[image*j.rm.Len()+panel.block*rp:]
			}
			for row := first; row < end; row++ {
				width, yAt, rAt := j.width, 0, 0
				if j.flat {
					at := row * j.width
					width = min(width, j.all-at)
					yAt, rAt = at*BlockSize, at*BlockSize
				} else {
					at := func(m Image) int { return m.at(row*j.conv.stepY+j.phase.y, j.phase.x) }
					yAt, rAt = at(j.ym), at(j.rm)
				}
				var rr []float32
				if r != nil {
					rr = r[rAt:]
				}
				j.row(panel, x, row, width, y[yAt:], yp, rr, rp)
			}
		}
	}
}

// inBlock is the first block of the input that a panel reads.
func (j *blockJob) inBlock(p *blockPanel) int {
	s := &j.conv.conv.spec
	return p.group * (s.Cin / s.Groups) / BlockSize
}

// row computes a row of a panel's output to y, whose blocks lie yp apart, with
// the residual r, whose blocks lie rp apart.
func (j *blockJob) row(p *blockPanel, x []float32, row, width int, y []float32, yp int, r []float32, rp int) {
	b, c := j.conv, j.conv.conv
	lanes := j.xm.lanes()
	if j.flat {
		x = x[row*j.width*lanes:]
	} else {
		x = x[j.xm.at(row*j.strideY+j.dy, j.dx):]
	}
	step := b.stepX * BlockSize
	size := (width-1)*step + BlockSize
	inf := float32(math.Inf(1))
	t := blockTile{
		x: x, y0: y[:size], bias: noBias[:], lda: j.strideX * lanes,
		rows: width, per: tileRows(b.level, p.width, j.width), lo: -inf, hi: inf, step: step,
	}
	if r != nil {
		t.r0 = r[:size]
	}
	if p.width > BlockSize {
		t.y1 = y[yp:][:size]
		if r != nil {
			t.r1 = r[rp:][:size]
		}
	}
	for i, part := range j.parts {
		if i == len(j.parts)-1 {
			t.bias, t.lo, t.hi = p.bias, c.lo, c.hi
		}
		t.w, t.runs, t.count = p.w[part.at*p.width:], part.runs, len(part.runs)
		blockKernel(b.level, &t, p.width)
		t.r0, t.r1 = t.y0, t.y1
	}
}

// noBias is the bias of a panel that has none.
var noBias [2 * BlockSize]float32

// plainBand computes the rows from first to end of a panel for a plain output,
// by way of room, where they stay in the cache.
func (j *blockJob) plainBand(room *blockRoom, p *blockPanel, x []float32, image, first, end int) {
	b := j.conv
	channels := b.conv.spec.Cout
	pixel := first * j.width
	pixels := min(end*j.width, j.all) - pixel
	plane := pixels * BlockSize
	size := max(p.width, BlockSize) * pixels
	y := grow(&room.y, size)
	var r []float32
	// each calls f for the blocks of the panel with their part of a plain tensor.
	each := func(plain []float32, f func(plain []float32, block, c int)) {
		for at := 0; at < p.width; at += BlockSize {
			ch := p.block*BlockSize + at
			f(plain[(image*channels+ch)*j.all+pixel:], at/BlockSize, min(BlockSize, channels-ch))
		}
	}
	if j.r != nil {
		r = grow(&room.r, size)
		each(j.r, func(plain []float32, block, c int) {
			interleave(b.level, r[block*plane:][:plane], plain, j.all, c)
		})
	}
	for row := first; row < end; row++ {
		at := (row - first) * j.width * BlockSize
		width := min(j.width, j.all-row*j.width)
		var rr []float32
		if r != nil {
			rr = r[at:]
		}
		j.row(p, x, row, width, y[at:], plane, rr, plane)
	}
	each(j.y, func(plain []float32, block, c int) {
		deinterleave(b.level, plain, j.all, y[block*plane:][:plane], c)
	})
}
