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
	dense := Image{C: c.spec.Cin, H: in[1], W: in[2], Planar: b.planar}
	ym, err := b.Out(dense)
	if err != nil {
		return err
	}
	xm, err := b.Border(dense)
	if err != nil {
		return err
	}
	xLen, yLen := dense.C*dense.H*dense.W, ym.C*ym.H*ym.W
	if xBlocked {
		xLen = dense.Len()
	}
	if yBlocked {
		yLen = ym.Len()
	}
	if n < 0 || len(x) != n*xLen || len(y) != n*yLen || residual != nil && len(residual) != len(y) || !xm.modest(dense.Len()+ym.Len()) {
		return fmt.Errorf("convolution of %d images %v: %d inputs, %d outputs and %d residuals", n, spatial, len(x), len(y), len(residual))
	}
	if b.taps && xBlocked && yBlocked {
		b.runTaps(pool, n, x, dense, xm, y, residual, ym)
		return nil
	}
	s := convScratches.Get().(*gemmScratch)
	defer convScratches.Put(s)
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
	switch {
	case yBlocked:
		b.compute(pool, n, x, xm, y, ym, residual, ym, false)
	case b.taps:
		yb := grow(&s.b, n*ym.Len())
		var rb []float32
		if residual != nil {
			rb = grow(&s.c, n*ym.Len())
			ym.ToImage(pool, n, rb, residual)
		}
		b.compute(pool, n, x, xm, yb, ym, rb, ym, false)
		ym.FromImage(pool, n, y, yb)
	default:
		b.compute(pool, n, x, xm, y, ym, residual, ym, true)
	}
	return nil
}

// fillBlock copies the rows of a block without a border into the middle of dst.
func (m Image) fillBlock(dst, src []float32) {
	w := m.W * m.lanes()
	for y := range m.H {
		copy(dst[m.at(y, 0):][:w], src[y*w:])
	}
}

// runTaps is RunChain for a depthwise convolution from blocks to blocks. A
// block gets its border where it stays in the cache.
func (b *BlockConv) runTaps(pool *par.Pool, n int, x []float32, dense, xm Image, y, residual []float32, ym Image) {
	p := &b.phases[0]
	rows, width := b.size(p, ym)
	if rows == 0 || width == 0 {
		return
	}
	j := &blockJob{conv: b, phase: p, xm: xm, ym: ym, rm: ym, rows: rows, width: width, all: rows * width, strideY: b.strideY, strideX: b.strideX, taps: p.taps}
	j.dy, j.dx = p.taps[0].dy, p.taps[0].dx
	for _, t := range p.taps {
		j.dy, j.dx = min(j.dy, t.dy), min(j.dx, t.dx)
	}
	j.off = make([]int, len(p.taps))
	for i, t := range p.taps {
		j.off[i] = (t.dy-j.dy)*xm.line() + (t.dx-j.dx)*BlockSize
	}
	one := xm
	one.C = BlockSize
	blocks := len(p.panels)
	pool.For(n*blocks, max(1, gemmWork/16/(j.all*len(p.panels[0].w))), func(lo, hi int) {
		room := blockRooms.Get().(*blockRoom)
		defer blockRooms.Put(room)
		for i := lo; i < hi; i++ {
			xb := x[i*dense.plane():][:dense.plane()]
			if xm != dense {
				src := xb
				xb = grow(&room.x, one.Len())
				one.ClearBorder(1, xb)
				one.fillBlock(xb, src)
			}
			for row := range rows {
				at := i*ym.plane() + ym.at(row, 0)
				var r []float32
				if residual != nil {
					r = residual[at:]
				}
				j.row(&p.panels[i%blocks], xb, row, width, y[at:], 0, r, 0)
			}
		}
	})
}
