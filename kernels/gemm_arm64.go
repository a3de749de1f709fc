//go:build !noasm

package kernels

import (
	"math"
	"unsafe"
)

// gemmRowsNEON computes the product of the gemmTile t, of 16 columns, without
// its epilogue.
//
//go:noescape
func gemmRowsNEON(t *byte)

// gemmKernel computes t with the kernel of level l.
func gemmKernel(l Level, t *gemmTile, _ tileForm) {
	if l == Generic {
		gemmTileGo(t)
		return
	}
	const nr = 16
	if t.columns == nr {
		gemmRowsNEON((*byte)(unsafe.Pointer(t)))
	} else {
		// The kernel writes whole panels.
		const rows = 16
		var room [rows * nr]float32
		part := *t
		part.c, part.ldc = room[:], nr
		for i := 0; i < t.rows; i += rows {
			part.rows = min(rows, t.rows-i)
			part.a = t.a[min(i*t.lda, len(t.a)):]
			for r := range part.rows {
				copy(room[r*nr:], t.c[(i+r)*t.ldc:][:t.columns])
			}
			gemmRowsNEON((*byte)(unsafe.Pointer(&part)))
			for r := range part.rows {
				copy(t.c[(i+r)*t.ldc:][:t.columns], room[r*nr:])
			}
		}
	}
	clips := t.lo > float32(math.Inf(-1)) || t.hi < float32(math.Inf(1))
	if t.rowBias == nil && t.colBias == nil && t.res == nil && !clips {
		return
	}
	for i := range t.rows {
		gemmEpilogue(t, i)
	}
}

// depthwiseNEON computes the tapTile t.
//
//go:noescape
func depthwiseNEON(t *byte)

// tapKernel computes t with the kernel of level l.
func tapKernel(l Level, t *tapTile) {
	if l == Generic {
		tapTileGo(t)
		return
	}
	depthwiseNEON((*byte)(unsafe.Pointer(t)))
}
