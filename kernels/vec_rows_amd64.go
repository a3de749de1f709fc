//go:build !noasm

package kernels

// softmaxRowsVec computes Softmax of rows of n elements, or returns false.
func softmaxRowsVec(dst, src *float32, rows, n int) bool {
	if level < AVX512 {
		return false
	}
	softmaxRowsAVX512(dst, src, rows, n)
	return true
}

func truncateVec(dst *int32, src *float32, n int) int {
	switch level {
	case Generic:
		return 0
	case AVX2:
		n &^= 7
		truncateAVX2(dst, src, n)
	default:
		truncateAVX512(dst, src, n)
	}
	return n
}
