package kernels

import (
	"math"

	"github.com/onnxq/onnxq/internal/par"
)

// winogradTile is a row of n tiles of 2×2 output pixels of one block on their
// way into or out of the domain in which a 3×3 convolution is 16 products,
// F(2×2, 3×3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks", 2015. Assembly reads it by offset, and slices by their first word.
type winogradTile struct {
	src, dst, r, bias []float32
	row, rRow         int // elements from row to row of the image and of r
	step              int // elements from product to product
	n                 int
	lo, hi            float32
}

// winogradInGo is the specification of the input transform: the 4×4 pixels of
// a tile of the image src, Bᵀ·d·B, rows first. Tiles lie 2 pixels apart.
func winogradInGo(t *winogradTile) {
	for i := range t.n {
		for j := range BlockSize {
			at := func(y, x int) float32 { return t.src[y*t.row+(2*i+x)*BlockSize+j] }
			for y, s := range [4][4]float32{
				winogradIn(func(x int) float32 { return at(0, x) - at(2, x) }),
				winogradIn(func(x int) float32 { return at(1, x) + at(2, x) }),
				winogradIn(func(x int) float32 { return at(2, x) - at(1, x) }),
				winogradIn(func(x int) float32 { return at(1, x) - at(3, x) }),
			} {
				for x, v := range s {
					t.dst[(4*y+x)*t.step+i*BlockSize+j] = v
				}
			}
		}
	}
}

func winogradIn(s func(x int) float32) [4]float32 {
	return [4]float32{s(0) - s(2), s(1) + s(2), s(2) - s(1), s(1) - s(3)}
}

// winogradOutGo is the specification of the output transform: Aᵀ·m·A of the
// products src, rows first, to 2×2 pixels of the image dst. The bias and the
// residual are added last.
func winogradOutGo(t *winogradTile) {
	for i := range t.n {
		for j := range BlockSize {
			at := func(y, x int) float32 { return t.src[(4*y+x)*t.step+i*BlockSize+j] }
			for y, s := range [2][2]float32{
				winogradOut(func(x int) float32 { return at(0, x) + at(1, x) + at(2, x) }),
				winogradOut(func(x int) float32 { return at(1, x) - at(2, x) - at(3, x) }),
			} {
				for x, v := range s {
					v += t.bias[j]
					if t.r != nil {
						v += t.r[y*t.rRow+(2*i+x)*BlockSize+j]
					}
					t.dst[y*t.row+(2*i+x)*BlockSize+j] = clamp32(v, t.lo, t.hi)
				}
			}
		}
	}
}

func winogradOut(s func(x int) float32) [2]float32 {
	return [2]float32{s(0) + s(1) + s(2), s(1) - s(2) - s(3)}
}

// Bounds of what is computed in the domain of Winograd: below them the
// transforms cost what they save.
const (
	winogradChannels = 32
	winogradTiles    = 8 // a call
)

// winogradRoom is the number of elements of the transformed input that leave
// room for weights and products in the second cache.
const winogradRoom = 1 << 16

// winograd tells whether the convolution can be computed so.
func (b *BlockConv) winograd() bool {
	c := b.conv
	s := &c.spec
	ok := b.level >= AVX2 && !b.planar && !c.transposed && c.dims == 2 && s.Groups == 1 && min(s.Cin, s.Cout) >= winogradChannels
	for _, a := range c.axes[1:] {
		ok = ok && a.kernel == 3 && a.stride == 1 && a.dilation == 1
	}
	return ok
}

// viaWinograd tells whether n images are computed so.
func (b *BlockConv) viaWinograd(n int, ym Image) bool {
	return b.winogradPanels != nil && n*((ym.H+1)/2)*((ym.W+1)/2) >= winogradTiles
}

// packWinograd returns the panels for the products: [16][Cin][width] weights
// each, G·g·Gᵀ.
func (b *BlockConv) packWinograd(w []float32) []blockPanel {
	s := &b.conv.spec
	var panels []blockPanel
	g := func(a [3]float64) [4]float64 {
		return [4]float64{a[0], (a[0] + a[1] + a[2]) / 2, (a[0] - a[1] + a[2]) / 2, a[2]}
	}
	for at := 0; at < s.Cout; {
		width := b.panelWidth(s.Cout-at, false)
		q := blockPanel{w: make([]float32, 16*s.Cin*width), bias: panelBias(b.conv.bias, at, s.Cout), width: width, block: at / BlockSize}
		for j := range min(width, s.Cout-at) {
			for ci := range s.Cin {
				k := w[((at+j)*s.Cin+ci)*9:][:9]
				var rows [3][4]float64
				for x := range rows {
					rows[x] = g([3]float64{float64(k[x]), float64(k[3+x]), float64(k[6+x])})
				}
				for y := range 4 {
					for x, v := range g([3]float64{rows[0][y], rows[1][y], rows[2][y]}) {
						q.w[((4*y+x)*s.Cin+ci)*width+j] = float32(v)
					}
				}
			}
		}
		panels = append(panels, q)
		at += width
	}
	return panels
}

// winogradJob is a call of a convolution in the domain of Winograd. A task is a
// rectangle of tiles.
type winogradJob struct {
	conv           *BlockConv
	panels         []blockPanel
	x, y, r        []float32
	xm, ym, rm     Image
	plain          bool // y and r are in the layout [C][H][W]
	tileY, tileX   int  // tiles of an image
	rows, columns  int  // tiles of a task
	tasksY, tasksX int
}

// runWinograd does what compute does. It does not read the border of x.
func (b *BlockConv) runWinograd(pool *par.Pool, n int, x []float32, xm Image, y []float32, ym Image, residual []float32, rm Image, plain bool) {
	j := &winogradJob{conv: b, panels: b.winogradPanels(), x: x, y: y, r: residual, xm: xm, ym: ym, rm: rm, plain: plain}
	j.tileY, j.tileX = (ym.H+1)/2, (ym.W+1)/2
	tile := 16 * xm.C * ym.C // multiplications
	room := max(24, min(winogradRoom/16/xm.C, share(pool, b.level, n*j.tileY*j.tileX*tile)/tile))
	parts := (j.tileX + room - 1) / room
	j.columns = (j.tileX + parts - 1) / parts
	j.rows = min(j.tileY, max(1, room/j.columns))
	j.tasksY, j.tasksX = (j.tileY+j.rows-1)/j.rows, (j.tileX+j.columns-1)/j.columns
	pool.For(n*j.tasksY*j.tasksX, max(1, taskWork(b.level)/(j.rows*j.columns*tile)), j.tasks)
}

func (j *winogradJob) tasks(lo, hi int) {
	room := blockRooms.get()
	defer blockRooms.put(room)
	b, c := j.conv, j.conv.conv
	cin := j.xm.C
	blocks := (cin + BlockSize - 1) / BlockSize
	inf := float32(math.Inf(1))
	products := blockTile{bias: noBias[:], lda: BlockSize, step: BlockSize, lo: -inf, hi: inf}
	room.runs = room.runs[:0]
	for i := lo; i < hi; i++ {
		image, at := i/j.tasksX/j.tasksY, i%(j.tasksX*j.tasksY)
		y0, x0 := at/j.tasksX*j.rows, at%j.tasksX*j.columns
		rows, columns := min(j.rows, j.tileY-y0), min(j.columns, j.tileX-x0)
		tiles := rows * columns
		v := grow(&room.x, 16*blocks*tiles*BlockSize)
		in := winogradTile{row: j.xm.line(), step: blocks * tiles * BlockSize}
		room.runs = room.runs[:0]
		for block := range blocks {
			room.runs = append(room.runs, run{block * tiles * BlockSize, min(BlockSize, cin-block*BlockSize)})
			plane := j.x[image*j.xm.Len()+block*j.xm.plane():][:j.xm.plane()]
			for y := range rows {
				in.dst = v[(block*tiles+y*columns)*BlockSize:]
				j.enter(room, &in, plane, y0+y, x0, columns)
			}
		}
		products.runs, products.count = room.runs, len(room.runs)
		products.rows, products.per = tiles, tileRows(b.level, BlockSize, tiles)
		for p := range j.panels {
			panel := &j.panels[p]
			m := grow(&room.m, 16*panel.width*tiles)
			for k := range 16 {
				products.x, products.w = v[k*in.step:], panel.w[k*cin*panel.width:]
				to := m[k*panel.width*tiles:]
				products.y0 = to
				if panel.width > BlockSize {
					products.y1 = to[tiles*BlockSize:]
				}
				blockKernel(b.level, &products, panel.width)
			}
			for block := range panel.width / BlockSize {
				out := winogradTile{bias: panel.bias[block*BlockSize:], step: panel.width * tiles, lo: c.lo, hi: c.hi}
				if channel := (panel.block + block) * BlockSize; channel < j.ym.C {
					j.leave(room, &out, m[block*tiles*BlockSize:], image, channel, y0, x0, rows, columns)
				}
			}
		}
	}
}

// enter transforms n tiles of the tile row y of a plane from tile x on.
func (j *winogradJob) enter(room *blockRoom, t *winogradTile, plane []float32, y, x, n int) {
	b := j.conv
	iy, ix := 2*y-b.conv.axes[1].begin, 2*x-b.conv.axes[2].begin
	// Tiles before lead and from end on reach over the sides.
	lead, end := min(n, max(0, (1-ix)/2)), max(0, min(n, (j.xm.W-ix-2)/2))
	if iy < 0 || iy+4 > j.xm.H || end-lead < n/2 {
		lead = n
	}
	dst := t.dst
	some := func(from, n int) {
		if n <= 0 {
			return
		}
		width := 2*n + 2
		strip := grow(&room.strip, 4*width*BlockSize)
		for r := range 4 {
			row := strip[r*width*BlockSize:][:width*BlockSize]
			first := ix + 2*from
			lo, hi := min(max(0, -first), width), max(0, min(width, j.xm.W-first))
			if uint(iy+r) >= uint(j.xm.H) || hi <= lo {
				clear(row)
				continue
			}
			clear(row[:lo*BlockSize])
			copy(row[lo*BlockSize:hi*BlockSize], plane[j.xm.at(iy+r, first+lo):])
			clear(row[hi*BlockSize:])
		}
		s := winogradTile{src: strip, dst: dst[from*BlockSize:], row: width * BlockSize, step: t.step, n: n}
		winogradKernel(b.level, false, &s)
	}
	some(0, lead)
	if lead == n {
		return
	}
	t.src, t.dst, t.n = plane[j.xm.at(iy, ix+2*lead):], dst[lead*BlockSize:], end-lead
	winogradKernel(b.level, false, t)
	some(end, n-end)
}

// leave writes the tiles of a rectangle of the block from channel on of an
// image.
func (j *winogradJob) leave(room *blockRoom, t *winogradTile, m []float32, image, channel, y0, x0, rows, columns int) {
	lv := j.conv.level
	height, width := min(2*rows, j.ym.H-2*y0), min(2*columns, j.ym.W-2*x0) // in pixels
	ym, rm := j.ym, j.rm
	y, r := j.y, j.r
	direct := !j.plain && height == 2*rows && width == 2*columns
	at, rAt := image*ym.Len()+channel/BlockSize*ym.plane()+ym.at(2*y0, 2*x0), 0
	if r != nil {
		rAt = image*rm.Len() + channel/BlockSize*rm.plane() + rm.at(2*y0, 2*x0)
	}
	t.row, t.rRow = ym.line(), rm.line()
	channels := min(BlockSize, ym.C-channel)
	plainAt := ((image*ym.C+channel)*ym.H+2*y0)*ym.W + 2*x0
	if !direct {
		// By way of a rectangle of whole tiles.
		t.row, t.rRow = 2*columns*BlockSize, 2*columns*BlockSize
		y = grow(&room.y, 2*rows*t.row)
		if r != nil {
			r = grow(&room.r, 2*rows*t.row)
			for k := range height {
				row := r[k*t.row:][:width*BlockSize]
				if j.plain {
					interleave(lv, row, j.r[plainAt+k*ym.W:], ym.H*ym.W, channels)
				} else {
					copy(row, j.r[rAt+k*rm.line():])
				}
			}
		}
	}
	t.n = columns
	for k := range rows {
		t.src = m[k*columns*BlockSize:]
		if direct {
			t.dst = y[at+2*k*t.row:]
			if r != nil {
				t.r = r[rAt+2*k*t.rRow:]
			}
		} else {
			t.dst = y[2*k*t.row:]
			if r != nil {
				t.r = r[2*k*t.row:]
			}
		}
		winogradKernel(lv, true, t)
	}
	if direct {
		return
	}
	for k := range height {
		row := y[k*t.row:][:width*BlockSize]
		if j.plain {
			deinterleave(lv, j.y[plainAt+k*ym.W:], ym.H*ym.W, row, channels)
		} else {
			copy(j.y[at+k*ym.line():], row)
		}
	}
}
