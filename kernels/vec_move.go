package kernels

import (
	"math"
	"unsafe"

	"github.com/onnxq/onnxq/tensor"
)

// Float16ToFloat32 widens the binary16 codes of src. dst is at least as long as
// src.
func Float16ToFloat32(dst []float32, src []uint16) {
	dst = dst[:len(src)]
	n := halfToFloatVec(ptr(dst), ptr(src), len(src))
	dst = dst[n:]
	for i, h := range src[n:] {
		dst[i] = tensor.Float16ToFloat32(h)
	}
}

// Float32ToFloat16 rounds src to binary16, half to even; what is too large
// becomes infinity. dst is at least as long as src.
func Float32ToFloat16(dst []uint16, src []float32) {
	dst = dst[:len(src)]
	n := floatToHalfVec(ptr(dst), ptr(src), len(src))
	dst = dst[n:]
	for i, x := range src[n:] {
		dst[i] = tensor.Float16FromFloat32(x)
	}
}

// BFloat16ToFloat32 widens the bfloat16 codes of src. dst is at least as long as
// src.
func BFloat16ToFloat32(dst []float32, src []uint16) {
	dst = dst[:len(src)]
	n := brainToFloatVec(ptr(dst), ptr(src), len(src))
	dst = dst[n:]
	for i, h := range src[n:] {
		dst[i] = tensor.BFloat16ToFloat32(h)
	}
}

// Float32ToBFloat16 rounds src to bfloat16, half to even; what is too large
// becomes infinity. dst is at least as long as src.
func Float32ToBFloat16(dst []uint16, src []float32) {
	dst = dst[:len(src)]
	n := floatToBrainVec(ptr(dst), ptr(src), len(src))
	dst = dst[n:]
	for i, x := range src[n:] {
		dst[i] = tensor.BFloat16FromFloat32(x)
	}
}

// Truncate stores src, rounded towards zero, in dst; what is out of the range of
// int32 and NaN become the smallest. dst is at least as long as src.
func Truncate(dst []int32, src []float32) {
	dst = dst[:len(src)]
	n := truncateVec(ptr(dst), ptr(src), len(src))
	dst = dst[n:]
	for i, x := range src[n:] {
		dst[i] = math.MinInt32
		if x >= math.MinInt32 && x < 1<<31 {
			dst[i] = int32(x)
		}
	}
}

// Transpose stores src[r*lds+c] in dst[c*ldd+r] for the rows r and the columns c
// of a matrix whose rows lie lds elements apart and those of its transpose ldd.
// Elements of 1 and 4 bytes without pointers are moved fastest.
func Transpose[T any](dst []T, ldd int, src []T, lds, rows, cols int) {
	if rows <= 0 || cols <= 0 {
		return
	}
	dst, src = dst[:(cols-1)*ldd+rows], src[:(rows-1)*lds+cols]
	var zero T
	switch any(zero).(type) {
	case float32, int32, uint32, int8, uint8, bool:
	default:
		transposeBlocks(dst, ldd, src, lds, 0, rows, 0, cols)
		return
	}
	var r, c int // what assembly has moved
	if unsafe.Sizeof(zero) == 4 {
		r, c = transpose4Vec(cast[uint32](dst), cast[uint32](src), rows, cols, ldd, lds)
	} else {
		r, c = transpose1Vec(cast[uint8](dst), cast[uint8](src), rows, cols, ldd, lds)
	}
	transposeBlocks(dst, ldd, src, lds, 0, r, c, cols)
	transposeBlocks(dst, ldd, src, lds, r, rows, 0, cols)
}

// transposeBlocks moves the rows r0 to r1 and the columns c0 to c1 in squares
// that stay in the cache.
func transposeBlocks[T any](dst []T, ldd int, src []T, lds, r0, r1, c0, c1 int) {
	const block = 16
	for ; r0 < r1; r0 += block {
		rows := min(block, r1-r0)
		for c := c0; c < c1; c += block {
			for j := c; j < min(c+block, c1); j++ {
				out, in := dst[j*ldd+r0:][:rows], src[r0*lds+j:]
				for i := range out {
					out[i] = in[i*lds]
				}
			}
		}
	}
}

// MaxRow stores in dst[i] the greatest src[i*stride + k*dilation] for
// 0 <= k < taps, NaN where one is NaN: a row of max pooling without padding.
// taps, stride and dilation are at least 1, and src has at least
// (len(dst)-1)*stride + (taps-1)*dilation + 1 elements. dst and src do not
// overlap.
func MaxRow(dst, src []float32, taps, dilation, stride int) {
	n := poolRowVec(maxRows, dst, src, taps, dilation, stride)
	for i := n; i < len(dst); i++ {
		s := src[i*stride:]
		acc := s[0]
		for k := 1; k < taps; k++ {
			if v := s[k*dilation]; v > acc || v != v {
				acc = v
			}
		}
		dst[i] = acc
	}
}

// SumRow stores in dst[i] the sum of src[i*stride + k*dilation] for
// 0 <= k < taps, added in that order: a row of average pooling without padding.
// The conditions are those of MaxRow.
func SumRow(dst, src []float32, taps, dilation, stride int) {
	n := poolRowVec(sumRows, dst, src, taps, dilation, stride)
	for i := n; i < len(dst); i++ {
		s := src[i*stride:]
		acc := s[0]
		for k := 1; k < taps; k++ {
			acc += s[k*dilation]
		}
		dst[i] = acc
	}
}

const (
	maxRows = iota
	sumRows
)

// poolRowVec checks the sizes, lets assembly do the first elements of dst and
// returns how many.
func poolRowVec(op int, dst, src []float32, taps, dilation, stride int) int {
	n := len(dst)
	if n == 0 {
		return 0
	}
	need := (n-1)*stride + (taps-1)*dilation + 1
	src = src[:need:len(src)]
	if stride == 2 && cap(src) == need {
		n-- // the form for stride 2 reads one element more
	}
	done := poolRowLevel(op, ptr(dst), ptr(src), n&^7, taps, dilation, stride)
	if 0 < done && done < n { // the last eight, some of them again
		poolRowLevel(op, &dst[n-8], &src[(n-8)*stride], 8, taps, dilation, stride)
		return n
	}
	return done
}

// MaxU8 stores the greater of a[i] and b[i] in dst[i]. a and b are at least as
// long as dst, which may be one of them.
func MaxU8(dst, a, b []uint8) {
	a, b = a[:len(dst)], b[:len(dst)]
	for i := max8Vec(ptr(dst), ptr(a), ptr(b), len(dst)); i < len(dst); i++ {
		dst[i] = max(a[i], b[i])
	}
}

// MaxI8 is MaxU8 for int8.
func MaxI8(dst, a, b []int8) {
	a, b = a[:len(dst)], b[:len(dst)]
	for i := max8SignedVec(ptr(dst), ptr(a), ptr(b), len(dst)); i < len(dst); i++ {
		dst[i] = max(a[i], b[i])
	}
}
