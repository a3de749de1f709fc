//go:build !noasm

package kernels

import "unsafe"

// gemmKernel computes t with the kernel of level l, wide for the one that
// takes gemmWide panels.
func gemmKernel(l Level, t *gemmTile, form tileForm) {
	p := (*byte)(unsafe.Pointer(t))
	switch {
	case l == Generic:
		gemmTileGo(t)
	case l == AVX2 && form == formWide:
		gemmWideAVX2(p)
	case l == AVX2:
		gemmRowsAVX2(p)
	case form == formWide:
		gemmWideAVX512(p)
	case form == formHalf:
		gemmHalfAVX512(p)
	default:
		gemmRowsAVX512(p)
	}
}

// tapKernel computes t with the kernel of level l.
func tapKernel(l Level, t *tapTile) {
	p := (*byte)(unsafe.Pointer(t))
	switch {
	case l == Generic:
		tapTileGo(t)
	case l == AVX2:
		depthwiseAVX2(p)
	default:
		depthwiseAVX512(p)
	}
}

// qKernel computes t with the kernel of level l. The output is words, floats
// or t.c, as t.mode says.
func qKernel(l Level, t *qTile, words []int32, floats []float32) {
	if l == Generic {
		qTileGo(t, words, floats)
		return
	}
	switch t.mode {
	case qWords:
		t.c = asBytes(words)
	case qFloats:
		t.c = asBytes(floats)
	}
	p := (*byte)(unsafe.Pointer(t))
	switch {
	case t.saturates && l == AVX2:
		qgemmRowsSaturatingAVX2(p)
	case t.saturates:
		qgemmRowsSaturatingAVX512(p)
	case l == AVX2:
		qgemmRowsAVX2(p)
	case l == AVX512:
		qgemmRowsAVX512(p)
	default:
		qgemmRowsVNNI(p)
	}
}

// byteSum returns the sum of p[i]^flip.
func byteSum(l Level, p []byte, flip byte) int32 {
	if l == Generic || len(p) == 0 {
		return byteSumGo(p, flip)
	}
	return int32(byteSumAVX2(&p[0], len(p), flip))
}

// widen writes src, each byte exclusive-ored with flip, as words.
func widen(l Level, dst, src []byte, flip byte) {
	if l == Generic || len(src) == 0 {
		widenGo(dst, src, flip)
		return
	}
	_ = dst[:2*len(src)]
	widenAVX2(&dst[0], &src[0], len(src), flip)
}

// qTapKernel computes t with the kernel of level l. The output is words, floats
// or t.c, as t.mode says.
func qTapKernel(l Level, t *qTapTile, words []int32, floats []float32) {
	if l == Generic {
		qTapTileGo(t, words, floats)
		return
	}
	switch t.mode {
	case qWords:
		t.c = asBytes(words)
	case qFloats:
		t.c = asBytes(floats)
	}
	p := (*byte)(unsafe.Pointer(t))
	if t.blocks > 0 {
		qdepthwiseVNNI(p)
		done := 64 * t.blocks
		if done >= t.channels {
			return
		}
		rest := *t
		rest.x, rest.c, rest.w = t.x[done:], t.c[done:], t.w[done:]
		rest.init, rest.scale, rest.channels = t.init[done:], t.scale[done:], t.channels-done
		p = (*byte)(unsafe.Pointer(&rest))
	}
	if l >= AVX512 {
		qdepthwiseAVX512(p)
		return
	}
	qdepthwiseAVX2(p)
}

// blockKernel computes t, of 8, 16 or 32 output channels, with the kernel of
// level l.
func blockKernel(l Level, t *blockTile, width int) {
	p := (*byte)(unsafe.Pointer(t))
	switch {
	case l == Generic:
		blockTileGo(t, width)
	case width == 8:
		block8AVX2(p)
	case l == AVX2:
		block16AVX2(p)
	case width == 16:
		block16AVX512(p)
	default:
		block32AVX512(p)
	}
}

// windowKernel does op with the kernel of level l.
func windowKernel(l Level, op windowOp, t *blockWindows) {
	p := (*byte)(unsafe.Pointer(t))
	switch {
	case l == Generic:
		blockWindowsGo(t, op)
	case op == windowTaps && l == AVX2:
		blockTapsAVX2(p)
	case op == windowTaps:
		blockTapsAVX512(p)
	case op == windowMax && l == AVX2:
		blockMaxAVX2(p)
	case op == windowMax:
		blockMaxAVX512(p)
	case l == AVX2:
		blockMeanAVX2(p)
	default:
		blockMeanAVX512(p)
	}
}

// winogradKernel transforms t, into the domain of products or out of it.
func winogradKernel(l Level, out bool, t *winogradTile) {
	p := (*byte)(unsafe.Pointer(t))
	switch {
	case l == Generic && out:
		winogradOutGo(t)
	case l == Generic:
		winogradInGo(t)
	case l == AVX2 && out:
		winogradOutAVX2(p)
	case l == AVX2:
		winogradInAVX2(p)
	case out:
		winogradOutAVX512(p)
	default:
		winogradInAVX512(p)
	}
}

// transpose8 transposes n squares of 8×8 elements: their rows lie dstStep and
// srcStep apart, the squares dstNext and srcNext. The level is AVX2 or above.
func transpose8(dst []float32, dstStep, dstNext int, src []float32, srcStep, srcNext, n int) {
	transpose8AVX2(&dst[0], 4*dstStep, 4*dstNext, &src[0], 4*srcStep, 4*srcNext, n)
}

// packRows copies k rows of n elements, ld apart, into rows of nr, with zeros
// from n on. There is one row at the least.
func packRows(l Level, dst, src []float32, ld, k, n, nr int) {
	switch {
	case l == Generic:
		packRowsGo(dst, src, ld, k, n, nr)
	case l == AVX2:
		packRowsAVX2(&dst[0], &src[0], 4*ld, k, n)
	default:
		packRowsAVX512(&dst[0], &src[0], 4*ld, k, n)
	}
}
