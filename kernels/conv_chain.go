package kernels

import (
	"fmt"

	"github.com/onnxq/onnxq/internal/par"
)

// Blockable tells whether a convolution over the given number of spatial axes
// is worth computing from or to images in blocks, and NewBlockConv serves it.
func Blockable(cin, cout, groups, dims int) bool {
	if level < AVX2 || dims > 2 || cout < BlockSize/2 {
		return false
	}
	depthwise := cin == groups && cout == groups
	return groups == 1 || depthwise || cin/groups%BlockSize == 0 && cout/groups%BlockSize == 0
}

// RunChain convolves n images of the given spatial shape from x to y, each
// either in blocks without a border or in the layout N, C, spatial axes. A
// residual in the layout of y, or nil, is added before the clamp. Transposed
// convolutions are not served.
func (b *BlockConv) RunChain(pool *par.Pool, n int, x []float32, spatial []int, y, residual []float32, xBlocked, yBlocked bool) error {
	c := b.conv
	if c.transposed || len(spatial) != c.dims || xBlocked && b.planar {
		return fmt.Errorf("convolution of spatial shape %v in blocks", spatial)
	}
	in := c.in(spatial)
	shape := b.shapes.Load()
	if shape == nil || shape.in != in {
		var err error
		if shape, err = b.chainShape(in); err != nil {
			return err
		}
		b.shapes.Store(shape)
	}
	dense, xm, ym := shape.dense, shape.xm, shape.ym
	xLen, yLen := dense.C*dense.H*dense.W, ym.C*ym.H*ym.W
	if xBlocked {
		xLen = dense.Len()
	}
	if yBlocked {
		yLen = ym.Len()
	}
	if n < 0 || len(x) != n*xLen || len(y) != n*yLen || residual != nil && len(residual) != len(y) || !b.taps && !shape.modest {
		return fmt.Errorf("convolution of %d images %v: %d inputs, %d outputs and %d residuals", n, spatial, len(x), len(y), len(residual))
	}
	if b.taps {
		b.runTaps(pool, n, x, dense, y, ym, residual, !xBlocked, !yBlocked)
		return nil
	}
	s := convScratches.get()
	defer convScratches.put(s)
	if xBlocked && b.viaWinograd(n, ym) {
		xm = dense // tiles get their border by themselves
	}
	if !xBlocked || xm != dense {
		xb := grow(&s.a, n*xm.Len())
		xm.ClearBorder(n, xb)
		if xBlocked {
			blocks := dense.Len() / dense.plane()
			pool.For(n*blocks, max(1, reorderWork/dense.plane()), func(lo, hi int) {
				for i := lo; i < hi; i++ {
					xm.fillBlock(xb[i*xm.plane():][:xm.plane()], x[i*dense.plane():][:dense.plane()])
				}
			})
		} else {
			xm.ToImage(pool, n, xb, x)
		}
		x = xb
	}
	b.compute(pool, n, x, xm, y, ym, residual, ym, !yBlocked)
	return nil
}

// chainShape holds the layouts of an image of spatial shape in: without a
// border, with the border that the convolution reads, and the output.
type chainShape struct {
	in            [3]int
	dense, xm, ym Image
	modest        bool // xm is not much larger
}

func (b *BlockConv) chainShape(in [3]int) (*chainShape, error) {
	s := &chainShape{in: in, dense: Image{C: b.conv.spec.Cin, H: in[1], W: in[2], Planar: b.planar}}
	var err error
	if s.ym, err = b.Out(s.dense); err != nil {
		return nil, err
	}
	if s.xm, err = b.Border(s.dense); err != nil {
		return nil, err
	}
	s.modest = s.xm.modest(s.dense.Len() + s.ym.Len())
	return s, nil
}

// fillBlock copies the rows of a block without a border into the middle of dst.
func (m Image) fillBlock(dst, src []float32) {
	w := m.W * m.lanes()
	for y := range m.H {
		copy(dst[m.at(y, 0):][:w], src[y*w:])
	}
}

// windowPlan is a depthwise convolution of images xm to ym.
type windowPlan struct {
	xm, ym Image
	runs   []windowRun
	first  []int        // of each row
	tile   blockWindows // strides and bounds
}

func (b *BlockConv) plan(xm, ym Image) *windowPlan {
	if p := b.windows.Load(); p != nil && p.xm == xm && p.ym == ym {
		return p
	}
	c := b.conv
	p := &windowPlan{xm: xm, ym: ym}
	ay, ax := c.axes[1], c.axes[2]
	if ax.kernel == 1 && xm.column() && ym.column() {
		// The kernels work along rows.
		ay, ax, xm, ym = ax, ay, xm.turned(), ym.turned()
	}
	axis := func(a axis, in, out int) *windowAxis {
		return &windowAxis{in, out, a.kernel, a.stride, a.dilation, a.begin}
	}
	p.runs, p.first = windowRuns(axis(ay, xm.H, ym.H), axis(ax, xm.W, ym.W), xm, ym, nil)
	p.tile = blockWindows{
		lda: ax.stride * BlockSize, rowStep: ay.dilation * xm.line(), tapStep: ax.dilation * BlockSize, wStep: ax.kernel * BlockSize,
		lo: c.lo, hi: c.hi,
	}
	b.windows.Store(p)
	return p
}

// runTaps is a depthwise convolution. Images that are plain are in the layout
// [C][H][W], xm or ym their shape; they change layout where they stay in the
// cache. It does not read the border of x.
func (b *BlockConv) runTaps(pool *par.Pool, n int, x []float32, xm Image, y []float32, ym Image, residual []float32, xPlain, yPlain bool) {
	c := b.conv
	if xPlain {
		xm = Image{C: xm.C, H: xm.H, W: xm.W}
	}
	p := b.plan(xm, ym)
	rows := len(p.first) - 1
	panels := b.phases[0].panels
	blocks, pixels := len(panels), ym.H*ym.W
	bands := 1
	if !xPlain && !yPlain {
		bands = min(rows, max(1, pixels*len(panels[0].w)/taskWork(b.level)))
	}
	pool.For(n*blocks*bands, max(1, taskWork(b.level)*bands/(pixels*len(panels[0].w))), func(lo, hi int) {
		room := blockRooms.get()
		defer blockRooms.put(room)
		t := p.tile
		for i := lo; i < hi; i++ {
			band, plane := i%bands, i/bands
			block := plane % blocks
			channels := min(BlockSize, c.spec.Cin-block*BlockSize)
			t.w, t.bias, t.r = panels[block].w, panels[block].bias, nil
			first := plane/blocks*c.spec.Cin + block*BlockSize // channel of a plain tensor
			if xPlain {
				one := xm
				one.C = channels
				t.x = grow(&room.x, one.Len())
				one.ToImage(nil, 1, t.x, x[first*xm.H*xm.W:])
			} else {
				t.x = x[plane*xm.plane():][:xm.plane()]
			}
			if yPlain {
				t.y = grow(&room.y, ym.plane())
				if residual != nil {
					t.r = grow(&room.r, ym.plane())
					interleave(b.level, t.r, residual[first*pixels:], pixels, channels)
				}
			} else {
				t.y = y[plane*ym.plane():][:ym.plane()]
				if residual != nil {
					t.r = residual[plane*ym.plane():][:ym.plane()]
				}
			}
			t.runs = p.runs[p.first[band*rows/bands]:p.first[(band+1)*rows/bands]]
			if t.count = len(t.runs); t.count > 0 {
				windowKernel(b.level, windowTaps, &t)
			}
			if yPlain {
				deinterleave(b.level, y[first*pixels:], pixels, t.y, channels)
			}
		}
	})
}
