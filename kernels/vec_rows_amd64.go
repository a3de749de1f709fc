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
