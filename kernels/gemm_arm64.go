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

// qgemmRowsSDOT and qgemmRowsSMULL compute the qTile t, of 16 columns, the first
// with dot products.
//
//go:noescape
func qgemmRowsSDOT(t *byte)

//go:noescape
func qgemmRowsSMULL(t *byte)

func qgemmRows(l Level, t *qTile) {
	if l == NEON {
		qgemmRowsSMULL((*byte)(unsafe.Pointer(t)))
	} else {
		qgemmRowsSDOT((*byte)(unsafe.Pointer(t)))
	}
}

// qKernel computes t with the kernel of level l. The output is words, floats
// or t.c, as t.mode says.
func qKernel(l Level, t *qTile, words []int32, floats []float32) {
	if l == Generic {
		qTileGo(t, words, floats)
		return
	}
	size := 4
	switch t.mode {
	case qWords:
		t.c = asBytes(words)
	case qFloats:
		t.c = asBytes(floats)
	default:
		size = 1
	}
	const nr = 16
	if t.columns == nr {
		qgemmRows(l, t)
		return
	}
	// The kernel writes whole panels.
	const rows = 16
	var room [rows * nr * 4]byte
	part := *t
	part.c, part.ldc = room[:], nr*size
	for i := 0; i < t.rows; i += rows {
		part.rows = min(rows, t.rows-i)
		part.a = t.a[min(i*t.lda, len(t.a)):]
		if t.rowSum != nil {
			part.rowSum = t.rowSum[i:]
		}
		qgemmRows(l, &part)
		for r := range part.rows {
			copy(t.c[(i+r)*t.ldc:][:t.columns*size], room[r*nr*size:])
		}
	}
}

// byteSumNEON returns the sum of p[i]^flip over the first n bytes, of which it
// takes whole groups of 16.
//
//go:noescape
func byteSumNEON(p *byte, n int, flip byte) int32

// byteSum returns the sum of p[i]^flip.
func byteSum(l Level, p []byte, flip byte) int32 {
	whole := len(p) &^ 15
	if l == Generic || whole == 0 {
		return byteSumGo(p, flip)
	}
	return byteSumNEON(&p[0], whole, flip) + byteSumGo(p[whole:], flip)
}

// qdepthwiseNEON computes the qTapTile t, of 16 channels at the least.
//
//go:noescape
func qdepthwiseNEON(t *byte)

// qTapKernel computes t with the kernel of level l. The output is words, floats
// or t.c, as t.mode says.
func qTapKernel(l Level, t *qTapTile, words []int32, floats []float32) {
	if l == Generic || t.channels < 16 {
		qTapTileGo(t, words, floats)
		return
	}
	switch t.mode {
	case qWords:
		t.c = asBytes(words)
	case qFloats:
		t.c = asBytes(floats)
	}
	qdepthwiseNEON((*byte)(unsafe.Pointer(t)))
}
