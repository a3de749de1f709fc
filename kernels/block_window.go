package kernels

import (
	"fmt"
	"math"

	"github.com/onnxq/onnxq/internal/par"
)

// windowAxis is how the outputs along an axis see its inputs: output o reads
// inputs o*stride - begin + k*dilation for those k below kernel that lie inside.
type windowAxis struct{ in, out, kernel, stride, dilation, begin int }

// taps returns the kernel positions [lo, hi) of output o that lie inside, and
// the input at lo.
func (a *windowAxis) taps(o int) (lo, hi, at int) {
	start := o*a.stride - a.begin
	if start < 0 {
		lo = (-start + a.dilation - 1) / a.dilation
	}
	if start < a.in {
		hi = min(a.kernel, (a.in-start+a.dilation-1)/a.dilation)
	}
	if hi <= lo {
		return 0, 0, 0
	}
	return lo, hi, start + lo*a.dilation
}

// inner returns the outputs [lo, hi) for which all kernel positions lie inside.
func (a *windowAxis) inner() (lo, hi int) {
	lo = min((a.begin+a.stride-1)/a.stride, a.out)
	if room := a.in + a.begin - (a.kernel-1)*a.dilation; room > 0 {
		hi = min(a.out, (room-1)/a.stride+1)
	}
	return lo, max(lo, hi)
}

// windowRun is a run of output pixels of one row that read the same kernel
// positions, which are rows × columns of the kernel: places in the input,
// weights and output in elements. Assembly reads it by offset.
type windowRun struct {
	x, w, y, pixels int
	rows, columns   int
	count           float32 // by which a mean divides
}

// blockWindows computes runs of outputs of one block of 16 channels from the
// inputs under a kernel. Assembly reads it by offset, and slices by their first
// word.
type blockWindows struct {
	x, w, y, r, bias []float32 // w: [kernel][16]; r or nil has the layout of y
	runs             []windowRun
	count            int // of runs; 0 afterwards
	lda              int // elements from pixel to pixel of x
	rowStep, tapStep int // elements from row to row and column to column of the kernel in x
	wStep            int // elements from row to row of w
	lo, hi           float32
	work             [2]uintptr
}

// windowOp says what is done under the kernel: a weighted sum plus residual
// and bias, clamped; the greatest element, NaN where one is NaN, and lo where
// there is none; or the sum divided by count.
type windowOp int

const (
	windowTaps windowOp = iota
	windowMax
	windowMean
)

// blockWindowsGo is the specification of the window kernels. Sums start from 0
// and run over the kernel row by row. Assembly fuses each multiplication with
// its addition; here they round separately.
func blockWindowsGo(t *blockWindows, op windowOp) {
	for _, s := range t.runs[:t.count] {
		for i := range s.pixels {
			var acc [BlockSize]float32
			if op == windowMax {
				for j := range acc {
					acc[j] = t.lo
				}
			}
			for ky := range s.rows {
				for kx := range s.columns {
					x := t.x[s.x+i*t.lda+ky*t.rowStep+kx*t.tapStep:][:BlockSize]
					switch op {
					case windowTaps:
						w := t.w[s.w+ky*t.wStep+kx*BlockSize:][:BlockSize]
						for j, v := range x {
							acc[j] += float32(v * w[j])
						}
					case windowMax:
						for j, v := range x {
							if v > acc[j] || v != v {
								acc[j] = v
							}
						}
					case windowMean:
						for j, v := range x {
							acc[j] += v
						}
					}
				}
			}
			y := t.y[s.y+i*BlockSize:][:BlockSize]
			for j, v := range acc {
				switch op {
				case windowTaps:
					if t.r != nil {
						v += t.r[s.y+i*BlockSize+j]
					}
					v = clamp32(v+t.bias[j], t.lo, t.hi)
				case windowMean:
					v /= s.count
				}
				y[j] = v
			}
		}
	}
}

// windowRuns returns the runs of a block of images xm and ym, and where those
// of each row begin. count, if not nil, gives the divisor of an output.
func windowRuns(rows, columns *windowAxis, xm, ym Image, count func(y, x int) int) (runs []windowRun, first []int) {
	lo, hi := columns.inner()
	edges := columns.out - (hi - lo)
	runs = make([]windowRun, 0, rows.out*(edges+1))
	first = make([]int, 0, rows.out+1)
	for y := range rows.out {
		first = append(first, len(runs))
		ky, end, iy := rows.taps(y)
		for x := 0; x < columns.out; {
			kx, kEnd, ix := columns.taps(x)
			r := windowRun{y: ym.at(y, x), pixels: 1}
			if end > ky && kEnd > kx {
				r.x, r.w = xm.at(iy, ix), (ky*columns.kernel+kx)*BlockSize
				r.rows, r.columns = end-ky, kEnd-kx
			}
			if count != nil {
				r.count = float32(count(y, x))
			}
			if x == lo && hi > lo {
				r.pixels = hi - lo
			}
			x += r.pixels
			runs = append(runs, r)
		}
	}
	return runs, append(first, len(runs))
}

// PoolAxis is how a pooling sees an axis, as the ONNX operators MaxPool and
// AveragePool do: Begin is the padding before the input. Count has for each
// output the elements by which a mean divides, those along the axes multiplied;
// it is Kernel where the window lies inside the input.
type PoolAxis struct {
	In, Out, Kernel, Stride, Dilation, Begin int
	Count                                    []int
}

// PoolBlocks pools images in blocks of 16 channels: planes of rows × columns ×
// 16 elements of x to such planes of y. It takes the mean, or the greatest
// element, which is NaN where one is and minus infinity in an empty window.
func PoolBlocks(pool *par.Pool, planes int, rows, columns PoolAxis, x, y []float32, mean bool) error {
	xm, ym := Image{C: BlockSize, H: rows.In, W: columns.In}, Image{C: BlockSize, H: rows.Out, W: columns.Out}
	for _, a := range []PoolAxis{rows, columns} {
		if a.In < 1 || a.Out < 0 || a.Kernel < 1 || a.Stride < 1 || a.Dilation < 1 || a.Begin < 0 || mean && len(a.Count) != a.Out {
			return fmt.Errorf("pooling along %+v", a)
		}
	}
	if planes < 0 || len(x) != planes*xm.Len() || len(y) != planes*ym.Len() {
		return fmt.Errorf("pooling of %d planes with %d inputs and %d outputs", planes, len(x), len(y))
	}
	axis := func(a PoolAxis) *windowAxis {
		return &windowAxis{a.In, a.Out, a.Kernel, a.Stride, a.Dilation, a.Begin}
	}
	op, count := windowMax, (func(y, x int) int)(nil)
	if mean {
		op, count = windowMean, func(y, x int) int { return rows.Count[y] * columns.Count[x] }
	}
	runs, _ := windowRuns(axis(rows), axis(columns), xm, ym, count)
	lv := level
	pool.For(planes, max(1, gemmWork/64/(ym.Len()*rows.Kernel*columns.Kernel+1)), func(lo, hi int) {
		t := blockWindows{
			runs: runs, lda: columns.Stride * BlockSize, rowStep: rows.Dilation * xm.line(),
			tapStep: columns.Dilation * BlockSize, lo: float32(math.Inf(-1)),
		}
		for i := lo; i < hi && len(runs) > 0; i++ {
			t.count = len(runs)
			t.x, t.y = x[i*xm.Len():][:xm.Len()], y[i*ym.Len():][:ym.Len()]
			windowKernel(lv, op, &t)
		}
	})
	return nil
}
