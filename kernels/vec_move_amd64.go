//go:build !noasm

package kernels

import "unsafe"

func halfToFloatVec(dst *float32, src *uint16, n int) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		halfToFloatAVX2(dst, src, n)
	default:
		halfToFloatAVX512(dst, src, n)
	}
	return n
}

func brainToFloatVec(dst *float32, src *uint16, n int) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		brainToFloatAVX2(dst, src, n)
	default:
		brainToFloatAVX512(dst, src, n)
	}
	return n
}

func floatToHalfVec(dst *uint16, src *float32, n int) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		floatToHalfAVX2(dst, src, n)
	default:
		floatToHalfAVX512(dst, src, n)
	}
	return n
}

func floatToBrainVec(dst *uint16, src *float32, n int) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		floatToBrainAVX2(dst, src, n)
	default:
		floatToBrainAVX512(dst, src, n)
	}
	return n
}

// transpose4Vec transposes the first r rows and c columns and returns r and c.
func transpose4Vec(dst, src *uint32, rows, cols, ldd, lds int) (r, c int) {
	if level == Generic || cols < 4 {
		return 0, 0
	}
	r, c = rows&^15, cols&^3
	for i := 0; i < r; i += 16 {
		transpose4AVX2(addU32(dst, i), addU32(src, i*lds), c, ldd, lds)
	}
	return r, c
}

func transpose1Vec(dst, src *uint8, rows, cols, ldd, lds int) (r, c int) {
	if level == Generic || cols < 16 {
		return 0, 0
	}
	r, c = rows&^7, cols&^15
	for i := 0; i < r; i += 8 {
		transpose1AVX2((*uint8)(unsafe.Add(unsafe.Pointer(dst), i)), (*uint8)(unsafe.Add(unsafe.Pointer(src), i*lds)), c, ldd, lds)
	}
	return r, c
}

func addU32(p *uint32, n int) *uint32 { return (*uint32)(unsafe.Add(unsafe.Pointer(p), 4*n)) }

func poolRowLevel(op int, dst, src *float32, n, taps, dilation, stride int) int {
	if level == Generic || n <= 0 || stride > 2 {
		return 0
	}
	switch {
	case op == maxRows && stride == 1:
		maxRow1AVX2(dst, src, n, taps, dilation)
	case op == maxRows:
		maxRow2AVX2(dst, src, n, taps, dilation)
	case stride == 1:
		sumRow1AVX2(dst, src, n, taps, dilation)
	default:
		sumRow2AVX2(dst, src, n, taps, dilation)
	}
	return n
}

func max8Vec(dst, a, b *uint8, n int) int {
	if level == Generic {
		return 0
	}
	n &^= 31
	maxU8AVX2(dst, a, b, n)
	return n
}

func max8SignedVec(dst, a, b *int8, n int) int {
	if level == Generic {
		return 0
	}
	n &^= 31
	maxI8AVX2(dst, a, b, n)
	return n
}
